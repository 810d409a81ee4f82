"""`unmask generate` and `unmask infill`: one decode, shown live, traced and measured."""

from __future__ import annotations

import json
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from unmask.cli import launcher
from unmask.cli.collection import paused_collection
from unmask.cli.key_value import parse_blanks, read_prompt, refuse_words
from unmask.cli.messages import say
from unmask.cli.options import DecodeOptions, FillOptions, ShowOptions
from unmask.errors import ConfigError, SettingWarning, cut_text
from unmask.grammar.constraint import (
    MAX_SOURCE_CHARS,
    TextConstraint,
    choice,
    ebnf,
    json_schema,
    regex,
)
from unmask.regular_files import read_bounded

if TYPE_CHECKING:
    from unmask.canvas import Canvas
    from unmask.engine.llm import LLM
    from unmask.engine.request import Request
    from unmask.method import MethodSpec
    from unmask.view.report import DecodeRun
    from unmask.view.terminal import LiveView
    from unmask.view.trace import TraceWriter


UNUSED_WORDS = {"return_trace": "use --trace FILE"}
NO_TRACE = "--trace-alternatives has no effect without --trace FILE; add it, or leave it out"
UNUSED_IN_INFILL = UNUSED_WORDS | {
    "gen_length": "the blanks give the number of tokens",
    "stop_at_eos": "every blank is filled",
    "raw": "infill never applies the chat template",
}


def generate(prompt: str | None, options: DecodeOptions, show: ShowOptions) -> None:
    """Answer a prompt (None: standard input)."""
    refuse_words(options.knobs, UNUSED_WORDS)
    take_rank(options)
    console = live_console(show)
    text = read_prompt(prompt)
    llm, method = load(options, show.trace)
    _decode_and_report(llm, text, options, method, show, console)


def infill(text: str | None, options: DecodeOptions, show: ShowOptions) -> None:
    """Fill the blanks of a text (None: standard input)."""
    refuse_words(options.knobs, UNUSED_IN_INFILL)
    take_rank(options)
    console = live_console(show)
    parts = parse_blanks(read_prompt(text, "text"))
    llm, method = load(options, show.trace)
    _decode_and_report(llm, llm.infill_canvas(parts), options, method, show, console)


def live_console(show: ShowOptions) -> Console | None:
    """Return the console of the live canvas, None without it. Raises ConfigError for contradictions."""
    if show.trace_alternatives and show.trace is None:
        raise ConfigError(NO_TRACE)
    if show.fps is not None and not 0 < show.fps <= 1000:
        raise ConfigError(f"fps={show.fps:g} must be above 0 and at most 1000")
    streams = (sys.stdout, sys.stderr) if show.live else (sys.stdout,)
    places = [Console(file=stream, highlight=False) for stream in streams if stream.isatty()]
    is_live = not show.as_json if show.live is None else show.live
    if show.as_json and show.live:
        places = places[-1:]
    usable = [console for console in places if not console.is_dumb_terminal]
    if show.live and not usable:
        raise ConfigError("--live needs a terminal that can move its cursor; leave it out")
    if not is_live or not usable:
        if show.fps is not None:
            raise ConfigError("--fps has no effect without the live canvas; leave it out")
        return None
    return usable[0]


def take_rank(options: DecodeOptions) -> None:
    """Start the ranks of a model that is sharded over several processes; see `launcher.take`."""
    launcher.take(options.tensor_parallel_size, options.model, options.keywords())


def load(options: DecodeOptions, trace: Path | None = None) -> tuple[LLM, MethodSpec]:
    """Parse the method, then load the model, so that errors of the method come first."""
    if trace is not None:
        from unmask.durable import check_writable

        check_writable(trace, "trace file")
    from unmask.view.progress import LoadingView

    with LoadingView(options.model) as progress, paused_collection():
        from unmask.engine.drafts import read_draft
        from unmask.engine.llm import LLM
        from unmask.engine.request_builder import OPTIONS
        from unmask.method import MethodSpec

        read_constraint(options)  # its errors come before the weights are read
        read_draft(options.draft, options.pinned, options.max_edits)
        method = MethodSpec.parse(
            options.method, gen_length=options.gen_length, options=OPTIONS, is_trusted=True
        )
        llm = LLM(options.model, progress=progress, **options.keywords())
    for note in method.notes:
        say(note.message, "note")
    if method.notes:
        warnings.simplefilter("ignore", SettingWarning)
    return llm, method.bind(llm.spec.block_size)


def read_constraint(options: FillOptions) -> TextConstraint | None:
    """Return the constraint of `--json-schema`, `--regex`, `--choice` or `--grammar`; one or none."""
    flags = {
        "--json-schema": options.json_schema,
        "--regex": options.regex,
        "--choice": options.choice,
        "--grammar": options.grammar,
    }
    given = {flag: text for flag, text in flags.items() if text is not None}
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are constraints on one answer; give one of them")
    if options.regex is not None:
        return regex(options.regex)
    if options.grammar is not None:
        return ebnf(_grammar_text(options.grammar))
    if options.choice is not None:
        return choice(options.choice.split("|"))
    return None if options.json_schema is None else json_schema(_schema_text(options.json_schema))


def _schema_text(given: str) -> str:
    """Return a schema that is given as JSON text, or as a file that holds it. Raises ConfigError."""
    if given.lstrip()[:1] in ("{", "t"):
        return given
    try:
        return read_bounded(Path(given).expanduser(), MAX_SOURCE_CHARS).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--json-schema {cut_text(given)!r} cannot be read ({error}); give a JSON file, or JSON text"
        ) from None


def _grammar_text(file: str) -> str:
    """Return the grammar in a file. Raises ConfigError."""
    try:
        return read_bounded(Path(file).expanduser(), MAX_SOURCE_CHARS).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--grammar {cut_text(file)!r} cannot be read ({error}); give a file in GBNF"
        ) from None


def request_of(
    llm: LLM, content: str | Canvas, options: DecodeOptions, method: MethodSpec
) -> Request:
    """Return the request for a prompt, or for a canvas that has its positions."""
    is_prompt = isinstance(content, str)
    return llm.request(
        content,
        method,
        gen_length=options.gen_length if is_prompt else None,
        raw=options.raw and is_prompt,
        seed=options.seed,
        stop_at_eos=options.stop_at_eos,
        constraint=read_constraint(options),
        draft=options.draft,
        pinned=options.pinned,
        max_edits=options.max_edits,
    )


def decode(
    llm: LLM,
    request: Request,
    options: DecodeOptions,
    method: MethodSpec,
    view: LiveView | None = None,
    trace: TraceWriter | None = None,
) -> DecodeRun:
    """Decode to the end and measure the time of the engine, without that of drawing and writing."""
    from unmask.view.report import DecodeRun

    events = llm.events([request], 1)
    if view is not None:
        view.begin(request.canvas)
    seconds, last = 0.0, None
    while True:
        began = time.perf_counter()
        event = next(events, None)
        seconds += time.perf_counter() - began
        if event is None:
            break
        if trace is not None:
            if last is None:
                trace.begin(event.before)
            trace.step(event.sequence.num_forwards - 1, event.sequence.trace[-1])
        last = event.sequence
        if view is not None:
            view.show(event)
    assert last is not None, "a canvas with an open position takes at least one forward"
    return DecodeRun(
        output=llm.output(last, False),
        seconds=seconds,
        model=options.model,
        decoder=method.decoder_name,
        knobs=method.all_knobs(),
        seed=options.seed,
    )


def _decode_and_report(
    llm: LLM,
    content: str | Canvas,
    options: DecodeOptions,
    method: MethodSpec,
    show: ShowOptions,
    console: Console | None,
) -> None:
    from unmask.engine.origin import versions
    from unmask.engine.token_text import TokenTexts
    from unmask.engine.trace_records import header_of
    from unmask.plain_text import printable
    from unmask.view.terminal import LiveView
    from unmask.view.trace import TraceWriter

    pieces, request = TokenTexts(llm.tokenizer), request_of(llm, content, options, method)
    request, canvas = replace(request, num_alternatives=show.trace_alternatives), request.canvas
    with ExitStack() as stack:
        view = trace = None
        if show.trace is not None:
            limit = read_constraint(options)
            header = replace(
                header_of(method, canvas, llm.stop_ids, model=options.model, seed=options.seed),
                stop_at_eos=options.stop_at_eos,
                constraint={} if limit is None else {"kind": limit.kind, "source": limit.source},
                origin=llm.origin(),
                versions=versions(),
            )
            trace = stack.enter_context(TraceWriter(show.trace, header, pieces))
        if console is not None:
            view = stack.enter_context(LiveView(console, pieces, llm.stop_ids, show.fps))
        run = decode(llm, request, options, method, view, trace)
    if show.as_json:
        print(json.dumps(run.as_json(), ensure_ascii=False), flush=True)
    else:
        text = run.output.text
        print(printable(text) if sys.stdout.isatty() else text, flush=True)
        print(run.line(), file=sys.stderr)
