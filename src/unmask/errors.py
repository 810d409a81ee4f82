"""The errors of the package, as one tree.

    UnmaskError
    ├── ConfigError      an option, knob or recipe value that is not allowed
    │   ├── ContradictionError  one option with two values
    │   ├── GrammarError  a constraint that is not supported or that no answer can meet
    │   └── PluginError  a decoder, cache or family file that cannot be used
    ├── ModelError       a checkpoint that cannot be found, read or understood
    ├── PromptError      a prompt that cannot be decoded (empty, no tokenizer)
    │   ├── LengthError  one that is too long for the model's context
    │   └── TextLimitError  one whose template or tokenizer exceeds its time or memory
    ├── DependencyError  an optional package that this feature needs is missing
    ├── CapacityError    the engine takes no more requests now
    ├── EngineError      the engine has failed and answers nothing any more
    ├── RemoteError      a server that cannot be reached, or that refuses a request
    ├── WorkerError      another process that holds a part of the model failed
    └── ContractError    a plug-in broke a rule of the engine: a bug of its author
        ├── DecoderError its ask or its edit
        └── CacheError   its plan

Every message shows the value, says what is allowed and what to do. The command line prints it as one
line and exits with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_CHARACTERS = 1500
"""Maximum length of a message that may repeat the values of a file."""


def cut_text(text: str, max_chars: int = 60) -> str:
    """Return `text`, or its beginning and `...` in `max_chars` characters."""
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."


class UnmaskError(Exception):
    """Base of every error a user can cause."""


class ConfigError(UnmaskError, ValueError):
    """An option, knob or recipe value that is not allowed; `key`: its name, where it is known."""

    key: str | None = None

    def about(self, key: str) -> Self:
        """Return the error with the name of its option."""
        self.key = key
        return self


class ContradictionError(ConfigError):
    """An option `key` that two sources give different values; `first` and `second` as they are written."""

    def __init__(self, key: str, first: str, second: str) -> None:
        super().__init__(f"{first} and {second} contradict; give one of them")
        self.key = key
        self.texts = first, second

    def __reduce__(self) -> tuple[type[ContradictionError], tuple[str | None, str, str]]:
        """Return the constructor's arguments for pickle."""
        return type(self), (self.key, *self.texts)


class GrammarError(ConfigError):
    """A constraint that cannot be understood, is too large, or that no answer can meet."""


class PluginError(ConfigError):
    """A decoder's, cache's or model family's file that cannot be used."""


class ModelError(UnmaskError):
    """A checkpoint that cannot be found, read or understood.

    A message that values of its files make too long loses its middle: it begins with the cause and ends
    with the remedy.
    """

    def __init__(self, message: str) -> None:
        half = (MAX_CHARACTERS - 5) // 2
        is_long = len(message) > MAX_CHARACTERS
        super().__init__(f"{message[:half]} ... {message[-half:]}" if is_long else message)


class PromptError(UnmaskError, ValueError):
    """A prompt that cannot be decoded."""


class LengthError(PromptError):
    """A prompt, or a prompt and its answer, that the model's context does not hold."""


class TextLimitError(PromptError):
    """A prompt whose template or tokenizer exceeds its time or memory, or crashes its process."""


class DependencyError(UnmaskError, ImportError):
    """A package that a feature needs is not installed."""


class WorkerError(UnmaskError, RuntimeError):
    """Another process that holds a part of the model ended or does not answer."""


class ContractError(UnmaskError, RuntimeError):
    """A plug-in that broke a rule of the engine; `name` of the plug-in, number of the `forward`, `rule`.

    `rule` states the offending value and what is allowed. Raised with and without `python -O`.
    """

    kind = "plug-in"

    def __init__(self, rule: str, name: str = "", forward: int | None = None) -> None:
        subject = f"{self.kind} {name!r}" if name else f"the {self.kind}"
        place = "" if forward is None else f" at forward {forward}"
        super().__init__(f"{subject} broke the contract{place}: {rule}; this is a bug in its file")
        self.rule, self.name, self.forward = rule, name, forward


class DecoderError(ContractError):
    """A decoder whose ask, edit or answer breaks a rule (see `Ask`, `Edit` and `Decoder`)."""

    kind = "decoder"


class CacheError(ContractError):
    """A cache policy whose plan breaks a rule (see `CachePlan` and `CachePolicy.plan`)."""

    kind = "cache"


class CapacityError(UnmaskError):
    """The engine takes no more requests now; try again after `retry_after_s` seconds (an estimate)."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(UnmaskError):
    """The engine has failed and answers nothing any more; `__cause__` says why."""


class RemoteError(UnmaskError):
    """A server that cannot be reached, refuses a request, or breaks off an answer."""


def unknown_name(kind: str, name: str, allowed: Iterable[str], owner: str = "") -> ConfigError:
    """Build the error for an unknown name, with the nearest known one or a hint (`owner`)."""
    names = sorted(allowed)
    near = [] if owner else difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listing = f"allowed: {', '.join(names)}" if names else "none are allowed"
    return ConfigError(f"unknown {kind} {name!r}: {owner}{hint}{listing}")


class CheckpointWarning(UserWarning):
    """Values of a checkpoint's files that disagree, or that are left out."""


class SettingWarning(UserWarning):
    """A setting from a published command that has no effect with the decoder that the command selects."""
