"""`unmask chat`: a conversation, interactive or with one turn per line of piped input."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Protocol

from cyclopts import Parameter
from rich.console import Console

from unmask.cli.chat_remote import DRAWN_SEED, ChatAnswer
from unmask.cli.key_value import refuse_words, split_words
from unmask.cli.options import KEY_VARIABLE, DecodeOptions, DeviceOptions, ShowOptions, flat
from unmask.errors import ConfigError, UnmaskError, unknown_name
from unmask.knobs import set_field
from unmask.options import option
from unmask.plain_text import one_line, printable

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.method import MethodSpec

PROMPT = "> "
UNUSED_WORDS = {
    "raw": "a conversation needs the chat template",
    "stop_at_eos": "an answer always ends at its end token",
    "return_trace": "use unmask generate",
}
HELP = {
    "decoder": "NAME: change the decoder (its knobs start at their defaults)",
    "cache": "NAME: change the cache",
    "set": "KNOB=VALUE: change a knob, or gen_length or seed",
    "unset": "KNOB: reset a knob to its default",
    "show": "the settings",
    "reset": "discard the conversation",
    "help": "this list",
    "quit": "end the conversation, like Control-D",
}


class Speaker(Protocol):
    """The model of a conversation. `check` and `answer` raise UnmaskError."""

    def check(self, options: DecodeOptions) -> None:
        """Check the options."""
        ...

    def answer(
        self, messages: list[dict[str, str]], options: DecodeOptions, console: Console | None
    ) -> ChatAnswer:
        """Return the next turn, drawn live on the console if there is one."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


class Local:
    """A model loaded into this process."""

    def __init__(self, llm: LLM, fps: float | None) -> None:
        self.llm, self.fps = llm, fps

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def check(self, options: DecodeOptions) -> None:
        """Raise ConfigError for an unknown decoder, cache or knob, and for an invalid value."""
        self._method(options)

    def _method(self, options: DecodeOptions) -> MethodSpec:
        """Return the method of the options."""
        from unmask.engine.request_builder import OPTIONS
        from unmask.method import MethodSpec

        method = MethodSpec.parse(
            options.method, gen_length=options.gen_length, options=OPTIONS, is_trusted=True
        )
        return method.bind(self.llm.spec.block_size)

    def answer(
        self, messages: list[dict[str, str]], options: DecodeOptions, console: Console | None
    ) -> ChatAnswer:
        """Decode the next turn."""
        from unmask.cli.decode import decode, request_of
        from unmask.engine.token_text import TokenTexts
        from unmask.view.terminal import LiveView

        method = self._method(options)
        canvas = self.llm.requests.canvas(self.llm.chat_ids(messages), method, options.gen_length)
        with ExitStack() as stack:
            view = None
            if console is not None:
                live = LiveView(
                    console, TokenTexts(self.llm.tokenizer), self.llm.stop_ids, self.fps
                )
                view = stack.enter_context(live)
            request = request_of(self.llm, canvas, options, method)
            run = decode(self.llm, request, options, method, view)
        return ChatAnswer(run.output.text, run.line())


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Options of `unmask chat`."""

    model: Annotated[str | None, option("-m", metavar="M")] = None
    """Bundled name, folder or hub id; with --base-url, a name on the server. Default: demo, or the first of
    the server."""

    revision: Annotated[str | None, option(metavar="R")] = None
    """Branch, tag or commit of a hub id."""

    base_url: Annotated[str | None, option(metavar="URL")] = None
    """Address of a server to use instead of loading a model."""

    api_key: Annotated[str | None, option(metavar="KEY")] = None
    """API key of the server. Default: $UNMASK_API_KEY."""

    decoder: Annotated[str | None, option("-d", metavar="D")] = None
    """Decoding method. Default: vanilla, or that of the server."""

    cache: Annotated[str | None, option("-c", metavar="C")] = None
    """Cache policy. Default: none, or that of the server."""

    gen_length: Annotated[int | None, option("--max-tokens", metavar="N")] = None
    """Number of positions of an answer. Default: 128, or that of the server."""

    system: Annotated[str | None, option(metavar="TEXT")] = None
    """System message of the conversation. Default: none."""

    seed: Annotated[int | None, option(metavar="S")] = None
    """Seed of all randomness. Default: 0, or random on a server."""

    device: Annotated[DeviceOptions, flat()] = DeviceOptions()

    live: bool | None = None
    """Draw the canvas while it is decoded. Default: on a terminal."""

    fps: Annotated[float | None, option(metavar="N")] = None
    """Maximum number of frames per second of the live canvas. Default: one per forward pass."""


def chat(
    *words: Annotated[
        str, Parameter(name="KEY=VALUE", help="Knobs such as threshold=0.9 or temperature=0.5.")
    ],
    options: Annotated[ChatOptions, flat()] = ChatOptions(),
) -> None:
    """Chat with a local model or a server; of piped input, every line is a turn.

    At the prompt: /decoder NAME, /cache NAME, /set KNOB=VALUE, /unset KNOB, /show, /reset, /help, /quit.
    Control-C stops an answer, Control-D ends the conversation.
    """
    from unmask.cli.decode import live_console

    prompt, knobs = split_words(words)
    if prompt is not None:
        raise ConfigError(
            f"unexpected word {prompt!r}; messages are typed at the prompt, and a model is chosen with "
            f"--model"
        )
    refuse_words(knobs, UNUSED_WORDS)
    console = live_console(ShowOptions(live=options.live, fps=options.fps))
    speaker, method = _speaker(options, knobs)
    first = [] if options.system is None else [{"role": "system", "content": options.system}]
    with closing(speaker):
        Session(speaker, method, console, first).run()


def _speaker(options: ChatOptions, knobs: Mapping[str, str]) -> tuple[Speaker, DecodeOptions]:
    """Return the local or remote model, and the options; defaults of a server are left open."""
    decode = DecodeOptions(
        decoder=options.decoder,
        cache=options.cache,
        gen_length=options.gen_length,
        knobs=knobs,
        **dataclasses.asdict(options.device),
    )
    if options.base_url is None:
        if options.api_key is not None:
            raise ConfigError("--api-key has no effect without --base-url; leave it out")
        from unmask.cli.decode import load
        from unmask.method import DEFAULT_CACHE, DEFAULT_DECODER

        local = dataclasses.replace(
            decode,
            model=options.model or decode.model,
            revision=options.revision,
            seed=options.seed or 0,
        )
        llm, _ = load(local)
        names = {"decoder": DEFAULT_DECODER, "cache": DEFAULT_CACHE}
        return Local(llm, options.fps), _with_method(local, {**names, **local.method.values})
    from unmask.cli.chat_remote import Remote

    values = {"revision": options.revision, **dataclasses.asdict(options.device)}
    for name, value in values.items():
        if value is not None:
            raise ConfigError(
                f"{name} has no effect with --base-url, where the server has loaded the model; leave it out"
            )
    key = options.api_key or os.environ.get(KEY_VARIABLE)
    remote = Remote(options.base_url, key, options.fps)
    seed = DRAWN_SEED if options.seed is None else options.seed
    return remote, dataclasses.replace(decode, model=options.model or "", seed=seed)


def _with_method(options: DecodeOptions, values: Mapping[str, object]) -> DecodeOptions:
    """Return the options with another method."""
    texts = {key: str(value) for key, value in values.items()}
    decoder, cache = texts.pop("decoder", None), texts.pop("cache", None)
    return dataclasses.replace(options, decoder=decoder, cache=cache, knobs=texts)


@dataclass
class Session:
    """One conversation with its settings."""

    speaker: Speaker
    options: DecodeOptions
    console: Console | None
    first: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.messages = list(self.first)
        self.is_typed = sys.stdin.isatty()

    def run(self) -> None:
        """Take turns until the input ends or /quit."""
        if self.is_typed:
            print("/help lists the commands, Control-D ends the conversation.", file=sys.stderr)
        for line in self._lines():
            try:
                if line.startswith("/"):
                    if self._command(line[1:]):
                        return
                else:
                    self._turn(line)
            except UnmaskError as error:
                if not self.is_typed:
                    raise
                print(f"error: {one_line(str(error))}", file=sys.stderr)

    def _lines(self) -> Iterator[str]:
        """Yield typed or piped lines; empty ones are skipped."""
        if self.is_typed:
            with suppress(ImportError):
                import readline  # noqa: F401 - gives input() its history and its editing
        while True:
            try:
                line = input(PROMPT) if self.is_typed else sys.stdin.readline()
                line.encode()  # in the C locale, invalid bytes arrive as lone surrogates
            except EOFError:
                print(file=sys.stderr)
                return
            except UnicodeError as error:
                raise ConfigError(f"standard input is not UTF-8 text ({error})") from None
            if not self.is_typed and not line:
                return
            if line.strip():
                yield line.strip()

    def _turn(self, text: str) -> None:
        history = [*self.messages, {"role": "user", "content": text}]
        try:
            answer = self.speaker.answer(history, self.options, self.console)
        except KeyboardInterrupt:
            if not self.is_typed:
                raise
            print("stopped; this turn is discarded", file=sys.stderr)
            return
        print(printable(answer.text) if sys.stdout.isatty() else answer.text, flush=True)
        if self.is_typed and answer.facts:
            print(f"[{one_line(answer.facts)}]", file=sys.stderr)
        if answer.text.strip():
            self.messages = [*history, {"role": "assistant", "content": answer.text}]
        else:
            print("(empty answer; this turn is discarded)", file=sys.stderr)

    def _command(self, text: str) -> bool:
        """Execute a command; return True to end the conversation. Raises ConfigError."""
        name, _, rest = text.strip().partition(" ")
        rest = rest.strip()
        if name not in HELP:
            raise unknown_name("command", f"/{name}", [f"/{each}" for each in HELP])
        if (name in ("decoder", "cache", "set", "unset")) != bool(rest):
            problem = "takes no argument" if rest else "needs an argument"
            raise ConfigError(f"/{name} {problem}; /{name} {HELP[name]}")
        if name == "quit":
            return True
        if name == "reset":
            self.messages = list(self.first)
        elif name == "help":
            print("\n".join(f"/{each} {about}" for each, about in HELP.items()), file=sys.stderr)
        elif name == "show":
            print(one_line(self._shown()), file=sys.stderr)
        else:
            changed = self._changed(name, rest)
            self.speaker.check(changed)
            self.options = changed
        return False

    def _changed(self, name: str, rest: str) -> DecodeOptions:
        """Return the settings after /decoder, /cache, /set or /unset."""
        old, values = self.options, dict(self.options.method.values)
        inside = {key for key in values if key == "cache" or key.startswith("cache.")}
        if name == "decoder":
            return _with_method(old, {"decoder": rest, **{key: values[key] for key in inside}})
        if name == "cache":
            rest_of = {key: value for key, value in values.items() if key not in inside}
            return _with_method(old, {**rest_of, "cache": rest})
        if name == "unset":
            knobs = values.keys() - {"decoder", "cache"}
            if rest not in knobs:
                raise unknown_name("changed knob", rest, knobs)
            del values[rest]
            return _with_method(old, values)
        key, equals, value = rest.partition("=")
        key, value = key.strip().replace("-", "_"), value.strip()
        if not equals or not key:
            raise ConfigError(f"/set {rest}: must be of the form KNOB=VALUE")
        if key in ("gen_length", "seed"):
            return dataclasses.replace(old, **{key: set_field(DecodeOptions, key, value)})
        return _with_method(old, {**values, key: value})

    def _shown(self) -> str:
        values = {"decoder": "the server's", "cache": "the server's", **self.options.method.values}
        shown = {
            "decoder": values.pop("decoder"),
            "cache": values.pop("cache"),
            "gen_length": self.options.gen_length or "default",
            "seed": "random" if self.options.seed == DRAWN_SEED else self.options.seed,
            **values,
            "turns": sum(message["role"] == "user" for message in self.messages),
        }
        return ", ".join(f"{key}={value}" for key, value in shown.items())
