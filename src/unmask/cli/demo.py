"""`unmask demo`: the bundled model on sample tasks, with each answer checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.cli.decode import decode, live_console, load, request_of
from unmask.cli.key_value import parse_blanks
from unmask.cli.options import DecodeOptions, ShowOptions
from unmask.demo.example import Example
from unmask.demo.tasks import check, held_out_set
from unmask.errors import ContradictionError
from unmask.knobs import Source

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.view.report import DecodeRun

FPS = 20.0
PENS = Example(
    task="word_problem",
    prompt="Tom has 3 boxes with 4 pens each. He buys 5 more pens. How many pens does he have?",
    answer="In boxes: 3*4=12\nThen: 12+5=17\n#### 17",
    key="3*4=12;12+5=17",
)
INFILL = "The {2} sat on the mat."
PICK = 7
"""Seed that draws the displayed held-out problems."""


@dataclass(frozen=True)
class DemoItem:
    """An item of the demonstration: a task and its decoding method. `infill`: the prompt has blanks."""

    title: str
    example: Example
    decoder: str
    cache: str = "none"
    gen_length: int = 96
    infill: bool = False


def items() -> list[DemoItem]:
    """Run the demonstration."""
    one, two, three = held_out_set("word_problem", 3, PICK, equations=2)
    (grid,) = held_out_set("sudoku", 1, PICK, blanks=8)
    sentence = Example("sentence", INFILL, "", INFILL)
    return [
        DemoItem("Word problem", PENS, "vanilla"),
        DemoItem("Word problem, held out from training", one, "threshold"),
        DemoItem("Word problem, held out from training", two, "threshold", "dual"),
        DemoItem("Word problem, held out from training", three, "cadllm", "dual"),
        DemoItem("Sudoku, held out from training", grid, "threshold", gen_length=32),
        DemoItem("Infill", sentence, "threshold", infill=True),
    ]


def run(model: str, fps: float | None, fast: bool) -> None:
    """Show every item, then a table of the results."""
    if fast and fps is not None:
        raise ContradictionError("fps", "--fast", f"--fps {fps:g}")
    console = live_console(ShowOptions(fps=fps))
    pace = None if fast else fps or FPS
    base = DecodeOptions(model=model)
    llm, _ = load(base)
    size = sum(parameter.numel() for parameter in llm.model.parameters())
    plain = Console(highlight=False)
    _say(plain, f"model {model}: {size / 1e6:.1f} M parameters on {llm.model.device}")
    if console is not None:
        from unmask.view.terminal import legend

        plain.print(legend())
    done: list[tuple[DemoItem, DecodeRun, bool]] = []
    for number, item in enumerate(items(), 1):
        title = f"{number}. {item.title}: decoder {item.decoder}, cache {item.cache}"
        _say(plain, "\n" + title, "bold")
        _say(plain, item.example.prompt + "\n", "dim")
        result = _decode(llm, item, base, console, pace)
        right = check(item.example, result.output.text)
        _say(plain, result.output.text)
        _say(plain, _verdict(item, right), "green" if right else "red")
        _say(plain, result.line(), "dim")
        done.append((item, result, right))
    _table(plain, done)


def _say(console: Console, text: str, style: str = "") -> None:
    from unmask.plain_text import printable

    console.print(Text(printable(text), style=style), soft_wrap=not console.is_terminal)


def _decode(
    llm: LLM, item: DemoItem, base: DecodeOptions, console: Console | None, pace: float | None
) -> DecodeRun:
    from unmask.method import MethodSpec

    options = dataclasses.replace(base, stop_at_eos=not item.infill)
    method = MethodSpec.parse(Source({"decoder": item.decoder, "cache": item.cache}))
    if item.infill:
        canvas = llm.infill_canvas(parse_blanks(item.example.prompt))
    else:
        canvas = llm.prompt_canvas(item.example.prompt, item.gen_length)
    request = request_of(llm, canvas, options, method)
    if console is None:
        return decode(llm, request, options, method)
    from unmask.engine.token_text import TokenTexts
    from unmask.view.terminal import LiveView

    with LiveView(console, TokenTexts(llm.tokenizer), llm.stop_ids, pace) as view:
        return decode(llm, request, options, method, view)


def _verdict(item: DemoItem, right: bool) -> str:
    if item.infill:
        return (
            "✓ a sensible sentence" if right else "✗ wrong: not a sentence of the training grammar"
        )
    if right:
        return "✓ right"
    answer = item.example.answer
    if item.example.task == "word_problem":
        answer = answer.splitlines()[-1]
    return f"✗ wrong; right would be: {' / '.join(answer.splitlines())}"


def _table(console: Console, done: Sequence[tuple[DemoItem, DecodeRun, bool]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("task", "decoder", "cache"):
        table.add_column(title)
    for title in ("forwards", "tokens per forward", "waste"):
        table.add_column(title, justify="right")
    table.add_column("right?")
    for item, result, right in done:
        table.add_row(
            item.example.task.replace("_", " ") if not item.infill else "infill",
            item.decoder,
            item.cache,
            str(result.output.num_forwards),
            f"{result.tokens_per_forward:.2f}",
            f"{100 * result.output.waste:.0f} %",
            Text("✓ yes", "green") if right else Text("✗ no", "red"),
        )
    console.print()
    console.print(table)
    console.print(f"{sum(right for *_, right in done)} of {len(done)} right")
