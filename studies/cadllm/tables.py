"""Tables of the README, made from `results/` alone; each is between two comments that name it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import failures
import parts
from cells import HERE, Cell, Measured, stored
from dynamics import CASES
from spelling import (
    accuracy,
    against,
    ece,
    forwards,
    invalid,
    markdown,
    number3,
    per_forward,
    per_forward_short,
    percent,
    points,
    queries,
    same,
    times,
)
from stats import Interval, difference, wilson

README = HERE / "README.md"
RESULTS = HERE / "results"
MISSING = "not measured"
NAMES = {"word": "word problems", "sudoku": "Sudoku, 8 blanks"}

DenseStore = dict[str, Measured]


def compared(
    rows: Sequence[tuple[Sequence[str], Cell, Cell]], head: Sequence[str], store: DenseStore
) -> str:
    """Compare cells with a reference cell each: quality, then counts."""
    columns = (
        "n", "exact, %", "points against", "invalid, %", "forwards", "tokens / forward", "times",
        "queries / token",
    )  # fmt: skip
    made = []
    for labels, cell, reference in rows:
        got, other = store.get(cell.key), store.get(reference.key)
        if got is None or other is None:
            made.append([*labels, MISSING, *[""] * (len(columns) - 1)])
            continue
        made.append([
            *labels, str(cell.n), accuracy(got), against(got, other), invalid(got), forwards(got),
            per_forward(got), times(got, other), queries(got),
        ])  # fmt: skip
    return markdown([*head, *columns], made)


def baseline(store: DenseStore) -> str:
    """Return the table of the baseline, and of CadLLM on it."""
    rows = [
        ((NAMES[task], label), parts.cell(task, *arm), parts.cell(task, parts.THRESHOLD))
        for task in parts.TASKS
        for label, arm in parts.BASELINE.items()
    ]
    return compared(rows, ("task", "method"), store)


def ablation(store: DenseStore) -> str:
    """Return the table of every policy removed, and every policy alone."""
    rows = [
        ((NAMES[task], label), parts.cell(task, method), parts.cell(task, parts.THRESHOLD))
        for task in parts.TASKS
        for label, method in parts.ABLATION.items()
    ]
    return compared(rows, ("task", "arm"), store)


def scaled(store: DenseStore) -> str:
    """Return the table of the ablation with a quarter of the lengths."""
    rows = [
        ((NAMES[task], label), parts.cell(task, method), parts.cell(task, parts.SCALED_BLOCK))
        for task in parts.TASKS
        for label, method in parts.SCALED.items()
    ]
    return compared(rows, ("task", "arm"), store)


def pairs(store: DenseStore) -> str:
    """Return the table of the pairs of arms in the findings, each over the same prompts."""
    made = []
    for label, one, other in parts.pairs():
        for task in parts.TASKS:
            a, b = store.get(parts.cell(task, one).key), store.get(parts.cell(task, other).key)
            row = [label, NAMES[task]]
            made.append(
                [*row, MISSING, "", ""]
                if a is None or b is None
                else [*row, against(a, b), times(a, b), str(same(a, b))]
            )
    head = ("first against second", "task", "points", "times the tokens / forward", "same, %")
    return markdown(head, made)


def variants(store: DenseStore) -> str:
    """Return the table of the authors' code against the paper's equations."""
    rows = [
        (
            (NAMES[task], str(length), label),
            parts.variant_cell(task, method, length),
            parts.variant_cell(task, parts.THRESHOLD, length),
        )
        for task, length in parts.variants()
        for label, method in (
            ("threshold 0.9", parts.THRESHOLD),
            ("CadLLM, code", parts.CADLLM),
            ("CadLLM, paper", parts.PAPER),
        )
    ]
    return compared(rows, ("task", "positions", "method"), store)


def vocabulary(store: DenseStore) -> str:
    """Return the table of pruned vocabularies."""
    wanted = {cell.key for cell in parts.cells()["vocabulary"]}
    rows = []
    for name, method in (("threshold 0.9", parts.THRESHOLD), ("CadLLM", parts.CADLLM)):
        reference = parts.vocabulary_cell(method, "none")
        if method == parts.CADLLM:
            rows.append(((name, "its own (V_t)"), parts.cell("word", method), reference))
        for label in parts.VOCABULARIES:
            cell = parts.vocabulary_cell(method, label)
            if cell.key in wanted:
                rows.append(((name, label), cell, reference))
    return compared(rows, ("method", "vocabulary"), store)


def shifted(store: DenseStore) -> str:
    """Return the table of shifted prompt sets."""
    reliability = _read("reliability.json")
    made = []
    for name in parts.SHIFTED:
        row = [name]
        found = reliability.get(name)
        row += (
            [MISSING, "", ""]
            if found is None
            else [
                percent(Interval(*found["right"])),
                number3(found["ece"]),
                percent(Interval(*found["sure_and_wrong"])),
            ]
        )
        made.append(row)
        for method in (parts.ONE, parts.THRESHOLD, parts.CADLLM):
            got = store.get(parts.shift_cell(name, method).key)
            made[-1] += [MISSING, ""] if got is None else [accuracy(got), per_forward_short(got)]
    head = (
        "prompts", "proposals right, %", "ECE", "of those sure (0.9), wrong, %",
        "one a forward: exact, %", "tokens / forward", "threshold 0.9: exact, %",
        "tokens / forward", "CadLLM: exact, %", "tokens / forward",
    )  # fmt: skip
    return markdown(head, made)


def losses(store: DenseStore) -> str:
    """Return the losses of parallel methods against one token per forward, by prompt set."""
    made = []
    for name in parts.SHIFTED:
        one = store.get(parts.shift_cell(name, parts.ONE).key)
        row = [name]
        for method in (parts.THRESHOLD, parts.CADLLM):
            got = store.get(parts.shift_cell(name, method).key)
            row += (
                [MISSING] * 2
                if got is None or one is None
                else [against(got, one), times(got, one)]
            )
            row += [MISSING] if got is None else [ece(got)]
        made.append(row)
    head = (
        "prompts", "threshold 0.9: points", "times", "ECE of commits", "CadLLM: points", "times",
        "ECE of commits",
    )  # fmt: skip
    return markdown(head, made)


def sharpness(store: DenseStore) -> str:
    """Return the table of scaled logits."""
    reliability = _read("reliability.json")
    made = []
    for factor in parts.SHARPNESS:
        found = reliability.get(f"sharpness {factor:g}")
        row = [f"{factor:g}"]
        row += (
            [MISSING, ""]
            if found is None
            else [number3(found["ece"]), percent(Interval(*found["sure_and_wrong"]))]
        )
        for method in (parts.THRESHOLD, parts.CADLLM):
            got = store.get(parts.sharp_cell(method, factor).key)
            row += [MISSING, ""] if got is None else [accuracy(got), per_forward(got)]
        made.append(row)
    head = (
        "logits times", "ECE", "of those sure (0.9), wrong, %", "threshold 0.9: exact, %",
        "tokens / forward", "CadLLM: exact, %", "tokens / forward",
    )  # fmt: skip
    return markdown(head, made)


def lengths(store: DenseStore) -> str:
    """Return the table of short answers by the length of the canvas."""
    rows = [
        (
            (str(length), label),
            parts.length_cell(method, length),
            parts.length_cell(parts.THRESHOLD, length),
        )
        for length in parts.LENGTHS
        for label, method in (
            ("threshold 0.9", parts.THRESHOLD),
            ("CadLLM, code", parts.CADLLM),
            ("CadLLM, paper", parts.PAPER),
        )
    ]
    return compared(rows, ("positions", "method"), store)


def dynamics(store: DenseStore) -> str:
    """Return the table of long canvases filled to their end."""
    made = []
    measured = _read("dynamics.json")
    for kind, length, method in CASES:
        found = measured.get(f"{kind} {length} {method}")
        if found is None:
            made.append([kind, str(length), method, MISSING, *[""] * 5])
            continue
        tenths = [found["parts"][k] for k in (0, 4, -1)]
        made.append([
            kind, str(length), method, f"{found['tokens_per_forward']:.2f}",
            f"{found['queries_per_token']:.1f}", *(
                " / ".join(f"{p[name]:.{digits}f}" if name in p else "-" for p in tenths)
                for name, digits in (("mean_confidence", 2), ("block_length", 0), ("committed", 1))
            ),
            " / ".join(f"{100 * share:.0f}" for share in found.get("in_grammar", ())) or "-",
        ])  # fmt: skip
    head = (
        "canvas", "positions", "method", "tokens / forward", "queries / token",
        "mean confidence: first, fifth, last tenth", "block: the same", "commits a forward: the same",
        "sentences in the grammar, %: first, second half",
    )  # fmt: skip
    return markdown(head, made)


def shapes(store: DenseStore) -> str:
    """Return the table of three shapes of model."""
    rows = []
    for model in parts.SHAPES:
        for task in parts.TASKS:
            arms = {"one token a forward": parts.ONE, "threshold 0.9": parts.THRESHOLD}
            arms |= {"factor 1.0": parts.FACTOR, "CadLLM": parts.CADLLM}
            if model == "dream":
                arms["CadLLM, path=dream"] = "cadllm(path=dream)"
            reference = parts.shape_cell(model, task, parts.THRESHOLD)
            rows += [
                ((model, NAMES[task], label), parts.shape_cell(model, task, method), reference)
                for label, method in arms.items()
            ]
    return compared(rows, ("model", "task", "method"), store)


def front(store: DenseStore) -> str:
    """Return the table of every decoder with the main caches."""
    columns = [("demo", cache) for cache in parts.CACHES] + [("blocks", "block_causal")]
    made = []
    for label in parts.DECODERS:
        row = [f"`{parts.DECODERS[label]}`"]
        for model, cache in columns:
            got = store.get(parts.front_cell(model, label, cache).key)
            row.append(
                MISSING
                if got is None
                else f"{100 * sum(got.right) / len(got.right):.0f} · "
                f"{per_forward_short(got)} · {queries(got)}"
            )
        made.append(row)
    return markdown(["decoder", *(f"{model}, {cache}" for model, cache in columns)], made)


def failure_rows(prompts: str, n: int, arms: dict[str, str]) -> list[list[str]]:
    """Return the rows of a table of `failures`; the first arm is the reference of its task."""
    found = _read("failures.json")
    reference = found.get(f"{prompts} {n} {next(iter(arms.values()))}")
    made = []
    for label, method in arms.items():
        got = found.get(f"{prompts} {n} {method}")
        row = [label]
        if got is None or reference is None:
            made.append([*row, MISSING])
            continue
        if "right" in got:
            row += [
                percent(wilson(sum(got["right"]), n)),
                points(difference(got["right"], reference["right"])),
                f"{100 * got['invalid'] / n:.0f}",
            ]
        row += [
            f"{got['forwards'] / n:.1f}",
            f"{got['tokens'] / got['forwards']:.2f}",
            f"{got['vocab_size']:.0f}",
            f"{got['loops']} of {n}, {100 * got['in_loops']:.0f}",
        ]
        made.append([*row, *(f"{got['forced']}" for _ in range("right" in got))])
    return made


COUNTS = ("forwards", "tokens / forward", "mean V_t", "texts with loops, % of positions")
JUDGED = ("exact, %", "points against", "invalid, %", *COUNTS, "forced forwards")


def collapse(store: DenseStore) -> str:
    """Return the table of CadLLM with ever smaller vocabularies and thresholds."""
    made = [
        [NAMES[task], *row]
        for task in parts.TASKS
        for row in failure_rows(task, failures.N, failures.COLLAPSE)
    ]
    return markdown(("task", "arm", *JUDGED), made)


def loops(store: DenseStore) -> str:
    """Return the table of essays with and without the repetition factor."""
    rows = failure_rows("essay", failures.NUM_ESSAYS, failures.LOOPS)
    return markdown(("arm", *COUNTS), rows)


def stalls(store: DenseStore) -> str:
    """Return the table of CadLLM where no confidence reaches the threshold."""
    rows = failure_rows("word", failures.NUM_SLOW, failures.STALLS)
    return markdown(("arm", *JUDGED), rows)


def document(store: DenseStore) -> str:
    """Return accuracy, latency and throughput in the form that serving benchmarks print."""
    timing = _read("timing.json")
    blocks = []
    for task in parts.TASKS:
        for label in ("threshold 0.9", "CadLLM"):
            row = timing.get(task, {}).get("rows", {}).get(label)
            title = "Baseline" if label != "CadLLM" else "Baseline + CadLLM"
            blocks.append(f"{title}, {NAMES[task]}:")
            if row is None:
                blocks += ["not timed; `run.py timing`", ""]
                continue
            seconds = median(row["seconds"])
            blocks += [
                f"Accuracy: {row['right'] / row['n']:.3f}",
                f"Invalid: {row['invalid'] / row['n']:.3f}",
                f"Latency: {seconds:.3f} s",
                f"Output throughput: {row['tokens'] / seconds:.3f} token/s",
                "",
            ]
    return "```\n" + "\n".join(blocks).rstrip() + "\n```"


def timing(store: DenseStore) -> str:
    """Return the table of the seconds of every timed method."""
    found = _read("timing.json")
    made = []
    for task in parts.TASKS:
        rows = found.get(task, {}).get("rows", {})
        base = rows.get("threshold 0.9")
        for label, row in rows.items():
            seconds = sorted(row["seconds"])
            rate = row["tokens"] / median(seconds)
            made.append([
                NAMES[task], label, f"{row['right']}/{row['n']}", f"{median(seconds):.2f}",
                f"{seconds[0]:.2f} to {seconds[-1]:.2f}", f"{rate:.0f}",
                f"{rate / (base['tokens'] / median(base['seconds'])):.2f}",
            ])  # fmt: skip
    head = ("task", "method", "right", "seconds, median", "range", "tokens / s", "times")
    return markdown(head, made) if made else MISSING


def heads(store: DenseStore) -> str:
    """Return the table of the milliseconds of the parts of a reading, by vocabulary."""
    rows = _read("timing.json").get("head", {}).get("rows", {})
    if not rows:
        return MISSING
    jobs = list(next(iter(rows.values())))
    made = [
        [f"{int(size):,}", *(f"{1000 * median(row[job]):.3f}" for job in jobs)]
        for size, row in rows.items()
    ]
    return markdown(["tokens", *(f"{job}, ms" for job in jobs)], made)


def large(store: DenseStore) -> str:
    """Return the table of the milliseconds per forward with a large vocabulary."""
    rows = _read("timing.json").get("large", {}).get("rows", {})
    if not rows:
        return MISSING
    made = [
        [label, str(row["forwards"]), f"{1000 * median(row['seconds']) / row['forwards']:.1f}"]
        for label, row in rows.items()
    ]
    return markdown(("vocabulary", "forwards", "ms / forward"), made)


def machine(store: DenseStore) -> str:
    """Return the machine of the timings."""
    found = _read("timing.json")
    if not found:
        return MISSING
    lines = []
    for label, part in found.items():
        facts = part["machine"]
        lines.append(
            f"- {label}: {facts['processor']}, {facts['num_threads']} threads, torch "
            f"{facts['torch']}, load before {facts['load_average']}"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[DenseStore], str]] = {
    made.__name__: made
    for made in (
        baseline, document, ablation, scaled, pairs, variants, vocabulary, shifted, losses, sharpness,
        lengths, dynamics, collapse, loops, stalls, shapes, front, timing, heads, large, machine,
    )
}  # fmt: skip


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / name
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def filled(text: str) -> str:
    """Return a README with all tables replaced. Raises KeyError for an unknown table."""
    store = stored()

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- {name}: begin -->\n{TABLES[name](store)}\n<!-- {name}: end -->"

    pattern = r"<!-- (?P<name>\w+): begin -->\n.*?<!-- (?P=name): end -->"
    return re.sub(pattern, fill, text, flags=re.DOTALL)


def write() -> None:
    """Replace the tables of the README."""
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
