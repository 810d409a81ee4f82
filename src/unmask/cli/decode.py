"""`unmask generate` and `unmask infill`: one decode, shown live, traced and measured."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from unmask.cli import launcher
from unmask.cli.key_value import DecodeOptions, parse_blanks, read_prompt, settings, split_words
from unmask.errors import ConfigError, SettingWarning
from unmask.knobs import whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unmask.canvas import Canvas
    from unmask.engine.llm import LLM
    from unmask.method import MethodSpec
    from unmask.view.report import DecodeRun
    from unmask.view.terminal import LiveView
    from unmask.view.trace import TraceWriter


@dataclass(frozen=True)
class Shown:
    """How the result is shown; `live` None: on a terminal; `fps` None: as fast as it decodes."""

    as_json: bool = False
    trace: Path | None = None
    live: bool | None = None
    fps: float | None = None


def generate(words: Sequence[str], flags: dict[str, Any], shown: Shown) -> None:
    """Answer a prompt."""
    prompt, pairs = split_words(words)
    wanted = settings(pairs, flags)
    take_rank(wanted)
    console = live_console(shown)
    text = read_prompt(prompt)
    llm, method = load(wanted, shown.trace)
    canvas = llm.requests.canvas(text, method, wanted.gen_length, raw=wanted.raw)
    _decode_and_report(llm, canvas, wanted, method, shown, console)


def infill(words: Sequence[str], flags: dict[str, Any], shown: Shown) -> None:
    """Fill the blanks of a text."""
    text, pairs = split_words(words)
    unused = {
        "gen_length": "the blanks say how many tokens",
        "stop_at_eos": "every blank is filled",
        "raw": "the text is always taken as it is",
    }
    wanted = dataclasses.replace(settings(pairs, flags, unused), stop_at_eos=False)
    take_rank(wanted)
    console = live_console(shown)
    parts = parse_blanks(read_prompt(text, "text"))
    llm, method = load(wanted, shown.trace)
    _decode_and_report(llm, llm.infill_canvas(parts), wanted, method, shown, console)


def live_console(shown: Shown) -> Console | None:
    """Where the live canvas is drawn, if anywhere. Raises ConfigError when what was asked cannot be."""
    if shown.fps is not None and not 0 < shown.fps <= 1000:
        raise ConfigError(f"fps={shown.fps:g} must be above 0 and at most 1000")
    streams = (sys.stdout, sys.stderr) if shown.live else (sys.stdout,)
    places = [Console(file=stream, highlight=False) for stream in streams if stream.isatty()]
    wanted = not shown.as_json if shown.live is None else shown.live
    if shown.as_json and shown.live:
        places = places[-1:]
    usable = [console for console in places if not console.is_dumb_terminal]
    if shown.live and not usable:
        raise ConfigError("--live needs a terminal that can be redrawn; leave it out")
    if not wanted or not usable:
        if shown.fps is not None:
            raise ConfigError("--fps has no effect without the live canvas; leave it out")
        return None
    return usable[0]


def take_rank(wanted: DecodeOptions) -> None:
    """See `ranks.take`."""
    size = whole("tensor_parallel_size", wanted.tensor_parallel_size, 1)
    launcher.take(size, wanted.model, loading(wanted))


def loading(wanted: DecodeOptions) -> dict[str, Any]:
    """What `LLM` is told of how a model is held."""
    return {
        "dtype": wanted.dtype,
        "device": wanted.device,
        "quantization": wanted.quantization,
        "tensor_parallel_size": wanted.tensor_parallel_size,
    }


def load(wanted: DecodeOptions, trace: Path | None = None) -> tuple[LLM, MethodSpec]:
    """Load the model and parse the method, whose errors are raised before the model is read."""
    if trace is not None:
        from unmask.view.trace import check_writable

        check_writable(trace)
    from unmask.view.progress import LoadingView

    with LoadingView(wanted.model) as progress:
        from unmask.engine.llm import LLM
        from unmask.engine.request_builder import OPTIONS
        from unmask.method import MethodSpec

        method = MethodSpec.parse(wanted.method, gen_length=wanted.gen_length, options=OPTIONS)
        llm = LLM(wanted.model, progress=progress, **loading(wanted))
    for note in method.notes:
        print(f"unmask: note: {note.message}", file=sys.stderr)
    if method.notes:
        warnings.simplefilter("ignore", SettingWarning)
    return llm, method.bind(llm.spec.block_size)


def decode(
    llm: LLM,
    canvas: Canvas,
    wanted: DecodeOptions,
    method: MethodSpec,
    view: LiveView | None = None,
    trace: TraceWriter | None = None,
) -> DecodeRun:
    """Decode to the end and measure the engine's time, without drawing and writing."""
    from unmask.view.report import DecodeRun

    events = llm.stream(canvas, method, seed=wanted.seed, stop_at_eos=wanted.stop_at_eos)
    if view is not None:
        view.begin(canvas)
    seconds, last = 0.0, None
    while True:
        began = time.perf_counter()
        event = next(events, None)
        seconds += time.perf_counter() - began
        if event is None:
            break
        last = event.sequence
        if trace is not None:
            trace.step(last.num_forwards - 1, last.trace[-1])
        if view is not None:
            view.show(event)
    assert last is not None, "a canvas with an open position takes a forward at least"
    return DecodeRun(
        output=llm.output(last, False),
        seconds=seconds,
        model=wanted.model,
        decoder=method.decoder_name,
        knobs=method.knobs(),
        seed=wanted.seed,
    )


def _decode_and_report(
    llm: LLM,
    canvas: Canvas,
    wanted: DecodeOptions,
    method: MethodSpec,
    shown: Shown,
    console: Console | None,
) -> None:
    from unmask.engine.token_text import TokenTexts, printable
    from unmask.view.terminal import LiveView
    from unmask.view.trace import Header, TraceWriter

    pieces = TokenTexts(llm.tokenizer)
    with ExitStack() as stack:
        view = trace = None
        if shown.trace is not None:
            header = Header(
                model=wanted.model,
                decoder=method.decoder_name,
                cache=method.describe_cache(),
                knobs=method.knobs(),
                seed=wanted.seed,
                prompt_ids=canvas.tokens[: canvas.prompt_length].tolist(),
                gen_length=len(canvas) - canvas.prompt_length,
                mask_id=canvas.mask_id,
                tokens=canvas.tokens.tolist(),
                open=canvas.open_positions().tolist(),
                method=method.describe(),
            )
            trace = stack.enter_context(TraceWriter(shown.trace, header, pieces))
        if console is not None:
            view = stack.enter_context(LiveView(console, pieces, llm.stop_ids, shown.fps))
        run = decode(llm, canvas, wanted, method, view, trace)
    if shown.as_json:
        print(json.dumps(run.as_json(), ensure_ascii=False), flush=True)
    else:
        text = run.output.text
        print(printable(text) if sys.stdout.isatty() else text, flush=True)
        print(run.line(), file=sys.stderr)
