"""The `unmask` command. Imports nothing heavy, so that help and errors in the command line are fast."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError

from unmask.cli import launcher, parsing, plugins
from unmask.cli.help import PlainHelp
from unmask.cli.messages import warnings_as_lines
from unmask.errors import UnmaskError
from unmask.plain_text import one_line
from unmask.version import __version__

USAGE_STATUS, INTERRUPTED_STATUS = 2, 130
MAX_MESSAGE = 2_000
"""Characters of an error line; a longer one is cut in the middle."""
COMMANDS = {
    "generate": (
        "generate:generate",
        "Generate the answer to a prompt, in any order of positions.",
    ),
    "infill": (
        "generate:infill",
        'Fill the blanks of a text: unmask infill "The {2} sat on the {1}."',
    ),
    "replay": (
        "replay:replay",
        "Show a decode again from its trace file: in the terminal, or as GIF, SVG, page or figure.",
    ),
    "chat": (
        "chat:chat",
        "Chat with a local model or a server; of piped input, every line is a turn.",
    ),
    "serve": (
        "serve:serve",
        "Serve a model over HTTP: OpenAI's and SGLang's routes, infilling, a playground.",
    ),
    "eval": ("evaluate:evaluate", "Evaluate a task: accuracy and speed."),
    "compare": (
        "compare:compare",
        "Compare decoders and caches on a task: table, plots, and a page of all answers.",
    ),
    "samples": (
        "samples:samples",
        "Show the answers of a run of `eval`, or those by which two runs differ.",
    ),
    "report": (
        "report:report",
        "Compare runs of `eval`: a table, and plots of quality against speed.",
    ),
    "tune": ("tune:tune", "Search a decoder's knobs for speed without loss of quality."),
    "bench": ("bench:bench", "Benchmark decoders, caches, kernels and servers."),
    "train": (
        "train:train",
        "Train on your own data or by a recipe; an interrupted run continues where it stopped.",
    ),
    "data": ("data:data", "Look at the rows of a training before it is run."),
    "demo": ("commands:demo", "Watch a small model solve word problems, a Sudoku and an infill."),
    "cite": (
        "cite:cite",
        "Print BibTeX of unmask, and of the papers behind a decoder and a cache.",
    ),
    "models": (
        "commands:models",
        "List the bundled models, those in the local hub cache, and the presets of known ones.",
    ),
    "pull": (
        "commands:pull",
        "Download a checkpoint from the hub into the local cache, and print its folder.",
    ),
    "inspect": (
        "commands:inspect",
        "Describe a checkpoint (sizes, special ids, attention) without reading weights.",
    ),
    "convert": (
        "commands:convert",
        "Convert a checkpoint to another layout of its weights, without changing a value.",
    ),
    "push": ("commands:push", "Upload a checkpoint folder to the hub, with its model card."),
    "frequencies": (
        "frequencies:frequencies",
        "Count background token frequencies, for `frequencies=` of the decoders that debias.",
    ),
    "config": ("config:config", "Show the configuration that a command would use."),
    "decoders": (
        "commands:decoders",
        "Print the knobs of a decoder, or the reference of all decoders.",
    ),
    "caches": ("commands:caches", "Print the knobs of a cache, or the reference of all caches."),
    "routes": (
        "commands:routes",
        "Print the reference of the HTTP API: routes, fields, limits, errors.",
    ),
    "completion": (
        "commands:completion",
        "Print a shell's completion script: source <(unmask completion bash).",
    ),
}
"""Each command: its module below `unmask.cli` with its function or group, and its summary.

The summary is the first line of the function's docstring, here available without an import.
"""
ALL_HELP = "--help=all"
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""Codes of a full or failed disk."""


def make_app(*, with_summaries: bool = False) -> App:
    """Build the parser; the module of a command is imported when the command is used.

    `with_summaries`: commands have the summaries of the table as their help, for the list of commands.
    """
    app = App(
        name="unmask",
        help="Decode, watch and train masked diffusion language models.",
        version=f"unmask {__version__}",
        version_flags=["--version"],
        help_flags=["--help", "-h"],
        help_format="plaintext",
        help_formatter=PlainHelp(),
        group_parameters=Group("Options", sort_key=0),
        default_parameter=Parameter(negative_iterable=(), allow_repeating=True),
        config=[
            parsing.restore_dashes,
            parsing.take_words,
            parsing.take_file,
            parsing.refuse_fractions,
        ],
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for number, (name, (place, summary)) in enumerate(COMMANDS.items()):
        help_text = {"help": summary} if with_summaries else {}
        app.command(f"unmask.cli.{place}", name=name, sort_key=number, **help_text)
    for flag in ("--help", "--version"):
        app[flag].group = "Options"
    return app


def _run(arguments: Sequence[str]) -> int:
    try:
        arguments = _with_plugins(arguments)
    except UnmaskError as error:
        return _fail(str(error))
    typed = parsing.hide_dashes(arguments)
    asks_all = ALL_HELP in typed
    if asks_all:
        typed = [*typed[: typed.index(ALL_HELP)], "--help"]
    app = make_app(with_summaries=typed[:1] in ([], ["--help"], ["-h"]))
    try:
        status = app(typed)
        if asks_all:
            _print_all(typed)
    except UnmaskError as error:
        return _fail(str(error))
    except CycloptsError as error:
        return _fail(parsing.message_of(error, typed))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _fail(f"the device's memory is full ({error}); use a smaller gen_length or dtype")
    if app.parse_commands(typed)[1][-1].default_command is None:
        return USAGE_STATUS  # a group of commands without one of them: its help was printed
    return status if isinstance(status, int) else 0


def _with_plugins(arguments: Sequence[str]) -> Sequence[str]:
    """Register the plug-ins of `--plugin`, and return the rest; `serve` has an option of this name."""
    if (
        plugins.FLAG not in {word.partition("=")[0] for word in arguments}
        or arguments[0] == "serve"
    ):
        return arguments
    rest, references = plugins.split_plugins(arguments)
    for reference in references:
        plugins.add_plugin(reference)
    return rest


def _print_all(arguments: Sequence[str]) -> None:
    """Print the long part of a help page: recipes with their keys, or methods with their knobs."""
    if arguments[0] == "train":
        from unmask.cli.train import show_recipes
        from unmask.cli.train_files import show_keys

        show_recipes()
        show_keys()
        return
    from unmask.cli.methods import all_knobs

    print(all_knobs())


def _fail(message: str) -> int:
    line = one_line(message)
    if len(line) > MAX_MESSAGE:
        line = f"{line[: MAX_MESSAGE // 2]} ... {line[-MAX_MESSAGE // 2 :]}"
    prefix = f"unmask: rank {os.environ['RANK']}" if launcher.is_follower() else "unmask"
    with suppress(OSError):  # nothing is left to say it with if standard error fails too
        print(f"{prefix}: error: {line}", file=sys.stderr, flush=True)
    return USAGE_STATUS


def _silence(stream: TextIO, descriptor: int) -> None:
    """Discard what a stream still holds, which Python would flush once more at exit."""
    with suppress(OSError):
        stream.flush()
        return
    target = os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, descriptor)
    os.close(target)
    with suppress(OSError):
        stream.flush()


def _open_streams() -> None:
    """Give output and errors a place to go if the process was started with closed ones."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: this process's) and return the exit status.

    0 for success, 1 if the reader of the output left, 2 for every mistake of the user's and for output that
    cannot be written (one line on standard error), 130 when interrupted.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _open_streams()
    try:
        with warnings_as_lines():
            status = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        status = 1
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        place = "the output" if error.filename is None else repr(str(error.filename))
        status = _fail(
            f"{place} cannot be written ({error.strerror}); free space there, or write elsewhere"
        )
    if status:
        _silence(sys.stdout, 1)
        _silence(sys.stderr, 2)
    return status


if __name__ == "__main__":
    sys.exit(main())
