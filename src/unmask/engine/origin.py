"""The origin of an answer: digests of the files that a loaded model was made of, and versions."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from typing_extensions import TypedDict

from unmask.models.digests import adapter_digest, checkpoint_digests
from unmask.models.transformer import Transformer
from unmask.version import __version__, installed_versions

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
"""The packages whose versions can change an answer."""


class ModelOrigin(TypedDict):
    """The files of a loaded model as SHA-256 digests (`models.digests`), and the form of its weights.

    None where a part is not from files or not known: the weights of a network from Python, the tokenizer
    of another origin. `revision`: commit of a hub id. `adapter`: that of `lora`. `chat_template`: of a
    template, or of variables of it, that were chosen at loading.
    """

    weights: str | None
    config: str | None
    tokenizer: str | None
    revision: str | None
    adapter: str | None
    chat_template: str | None
    dtype: str
    device: str
    quantization: str | None


@dataclass(frozen=True)
class LoadedParts:
    """The parts that a model was loaded from; `folder` None: a network from Python.

    `template`: the text of the chat template and its variables, if one of them was chosen at loading.
    `exchanged`: the digest, if known, of weights that have replaced those of the folder.
    """

    folder: Path | None = None
    has_other_tokenizer: bool = False
    lora: Path | None = None
    template: tuple[str | None, Mapping[str, object]] | None = None
    quantization: str | None = None
    exchanged: tuple[str | None] | None = None

    def origin(self, model: Transformer) -> ModelOrigin:
        """Return the origin of a model. Reads all files, once per process. Raises ModelError."""
        files = {} if self.folder is None else checkpoint_digests(self.folder)
        template = self.template and json.dumps(self.template, sort_keys=True, default=str)
        found = ModelOrigin(
            weights=files.get("weights"),
            config=files.get("config"),
            tokenizer=None if self.has_other_tokenizer else files.get("tokenizer"),
            revision=files.get("revision"),
            adapter=None if self.lora is None else adapter_digest(self.lora),
            chat_template=template and hashlib.sha256(template.encode()).hexdigest(),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            quantization=self.quantization,
        )
        return found if self.exchanged is None else with_weights(found, self.exchanged[0])


def with_weights(origin: ModelOrigin, digest: str | None) -> ModelOrigin:
    """Return the origin after an exchange of the weights for those with a digest (None: not known)."""
    return {**origin, "weights": digest, "revision": None, "adapter": None}


class FolderWeights(dict[str, Tensor]):
    """The weights of a folder for `LLM.use_weights`, with the digest of their files."""

    digest: str | None = None


@contextmanager
def read_ahead(folder: Path) -> Iterator[Future[dict[str, str | None]]]:
    """Compute the digests of a folder in a thread, for which leaving the context waits.

    Reading a checkpoint and its digests then take the time of the longer one, and `LoadedParts.origin` no
    time after both.
    """
    with ThreadPoolExecutor(1, "digests") as pool:
        yield pool.submit(checkpoint_digests, folder)


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those of `PACKAGES`."""
    own = {"python": platform.python_version(), "unmask": __version__}
    return own | installed_versions(PACKAGES)
