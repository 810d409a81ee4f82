"""Short commands; the modules that they import in their bodies do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from unmask.cli.fit_options import FitOptions
from unmask.cli.options import PRINT_JSON, flat
from unmask.options import option


def demo(
    *,
    model: Annotated[str, option("-m", metavar="M")] = "demo",
    revision: Annotated[str | None, option(metavar="R")] = None,
    fps: Annotated[float | None, option(metavar="N")] = None,
    fast: bool = False,
) -> None:
    """Watch a small model solve word problems, a Sudoku and an infill.

    Args:
        model: Bundled name, folder or hub id.
        revision: Branch, tag or commit of a hub id; the same as owner/name@R. Default: main.
        fps: Maximum number of frames per second. Default: 20.
        fast: Decode at full speed, without waiting between frames.
    """
    from unmask.cli import demo as command
    from unmask.models import with_revision

    command.run(with_revision(model, revision), fps, fast)


def models(*, as_json: Annotated[bool, PRINT_JSON] = False) -> None:
    """List the bundled models, those in the local hub cache, and the presets of known ones.

    With size, the memory of a decode of 256 + 128 positions, and whether it fits here, where the config is
    on this machine. Nothing is downloaded.

    Args:
        as_json: Print JSON.
    """
    from unmask.cli import models as command

    command.show(as_json)


def inspect(
    model: Annotated[str, Parameter(name="MODEL")] = "demo",
    /,
    *,
    revision: Annotated[str | None, option(metavar="R")] = None,
    as_json: Annotated[bool, PRINT_JSON] = False,
    fit: Annotated[FitOptions, flat()] = FitOptions(),
) -> None:
    """Describe a checkpoint (sizes, special ids, attention) without reading weights.

    --fit --batch 16 --gen-length 512 computes the memory of a decode, and whether it fits here.

    Args:
        model: Bundled name, folder or hub id.
        revision: Branch, tag or commit of a hub id; the same as owner/name@R. Default: main.
        as_json: Print JSON.
    """
    from unmask.cli import inspect as command
    from unmask.models import with_revision

    command.show(with_revision(model, revision), as_json, fit)


def pull(
    model: Annotated[str, Parameter(name="MODEL")],
    /,
    *,
    revision: Annotated[str | None, option(metavar="R")] = None,
) -> None:
    """Download a checkpoint from the hub into the local cache, and print its folder.

    Only safetensors, JSON and the files of the tokenizer are fetched. An interrupted download continues.

    Args:
        model: Hub id, or the name of a preset such as llada-inst; `unmask models` lists them.
        revision: Branch, tag or commit; the same as MODEL@R. Default: main.
    """
    from unmask.cli import models as command

    command.pull(model, revision)


def convert(
    source: Annotated[str, Parameter(name="SOURCE")],
    target: Annotated[str, Parameter(name="TARGET")],
    /,
    *,
    to: Annotated[str, option(metavar="FORM")],
    revision: Annotated[str | None, option(metavar="R")] = None,
) -> None:
    """Convert a checkpoint to another layout of its weights, without changing a value.

    Configuration, tokenizer and text files are copied. Existing files are never overwritten.

    Args:
        source: Bundled name, folder or hub id.
        target: Folder to create.
        to: Layout: family (as released), unmask (as in memory), stacked (LLaDA2) or fused (LLaDA-MoE, SDAR
            with experts).
        revision: Branch, tag or commit of a hub id; the same as owner/name@R. Default: main.
    """
    from unmask.cli import models as command
    from unmask.models import with_revision

    command.run(with_revision(source, revision), target, to)


def push(
    folder: Annotated[Path, Parameter(name="FOLDER")],
    repository: Annotated[str, Parameter(name="OWNER/NAME")],
    /,
    *,
    endpoint: Annotated[str | None, option(metavar="URL", env="HF_ENDPOINT")] = None,
    public: bool = False,
) -> None:
    """Upload a checkpoint folder to the hub, with its model card.

    The token is that of `hf auth login` or the variable HF_TOKEN. A missing repository is created, private
    unless --public is given.

    Args:
        folder: Folder of a checkpoint, e.g. runs/mine/final, or of an adapter.
        repository: Repository on the hub.
        endpoint: Address of another hub.
        public: Create a public repository.
    """
    from unmask.train.push import push as upload

    print(upload(folder, repository, endpoint=endpoint, is_private=not public))


def decoders(name: Annotated[str | None, Parameter(name="NAME")] = None, /) -> None:
    """Print the knobs of a decoder, or the reference of all decoders.

    Args:
        name: Name of a decoder. Default: the reference page of all (Markdown).
    """
    if name is None:
        from unmask.docgen.decoders import markdown

        print(markdown(), end="")
        return
    from unmask.cli.methods import decoder_page

    print(decoder_page(name))


def caches(name: Annotated[str | None, Parameter(name="NAME")] = None, /) -> None:
    """Print the knobs of a cache, or the reference of all caches.

    Args:
        name: Name of a cache. Default: the reference page of all (Markdown).
    """
    if name is None:
        from unmask.docgen.caches import markdown

        print(markdown(), end="")
        return
    from unmask.cli.methods import cache_page

    print(cache_page(name))


def routes(*, metrics: bool = False) -> None:
    """Print the reference of the HTTP API: routes, fields, limits, errors.

    Args:
        metrics: Print the reference of the metrics instead.
    """
    from unmask.cli import serve as command

    command.print_routes(metrics)


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(name="SHELL")],
    /,
) -> None:
    """Print a shell's completion script: source <(unmask completion bash).

    Args:
        shell: bash, zsh or fish.
    """
    from unmask.cli.main import make_app

    print(make_app().generate_completion(shell=shell))
