"""`unmask samples`: the answers of a run, or those by which two runs differ."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unmask.cli.options import PRINT_JSON
from unmask.options import option
from unmask.plain_text import one_line, printable

if TYPE_CHECKING:
    from unmask.evals.samples import EvalSample


def samples(
    run: Annotated[Path, Parameter(name="RUN", help="Run folder of `unmask eval`.")],
    *,
    wrong: bool = False,
    diff: Annotated[Path | None, option(metavar="RUN2")] = None,
    limit: Annotated[int | None, option(metavar="N", least=1)] = None,
    as_json: Annotated[bool, PRINT_JSON] = False,
) -> None:
    """Show the answers of a run of `eval`, or those by which two runs differ.

    Args:
        wrong: Only answers of RUN that are not right.
        diff: Only answers whose text or score differs from that of this run, next to it.
        limit: Number of documents to show. Default: all.
        as_json: Print one JSON object per document.
    """
    from unmask.evals.samples import SamplePair, read_pairs, read_samples

    if diff is None:
        listed = [(sample,) for sample in read_samples(run)]
        pairs: list[SamplePair] = []
    else:
        pairs = read_pairs(run, diff)
        listed = [(pair.first, pair.second) for pair in pairs if pair.is_different]  # type: ignore[misc]
    shown = [item for item in listed if not wrong or item[0].is_wrong]
    for item in shown[:limit]:
        if as_json:
            rows = [_record(sample) for sample in item]
            print(json.dumps(rows[0] if diff is None else rows, ensure_ascii=False))
        else:
            print(_text(item, [str(run), str(diff)]))
    if as_json:
        return
    print(f"{min(len(shown), limit or len(shown))} of {len(pairs or listed)} documents")
    if diff is not None:
        better = sum(pair.gain > 0 for pair in pairs)
        worse = sum(pair.gain < 0 for pair in pairs)
        print(f"{len(listed)} differ; {one_line(str(diff))}: {better} better, {worse} worse")


def _record(sample: EvalSample) -> dict[str, object]:
    record = dataclasses.asdict(sample)
    del record["trace"]
    return record | {"verdict": sample.verdict}


def _text(item: tuple[EvalSample, ...], names: list[str]) -> str:
    lines = [f"document {item[0].doc}"]
    lines += _field("prompt", item[0].prompt) + _field("target", item[0].target)
    for name, sample in zip(names, item, strict=False):
        facts = f"{sample.verdict}, {sample.num_forwards} forwards, {sample.num_tokens} tokens"
        lines.append(f"  {facts}" if len(item) == 1 else f"  {one_line(name)}: {facts}")
        lines += _field("answer", sample.text)
    return "\n".join(lines) + "\n"


def _field(name: str, text: str) -> list[str]:
    first, *rest = printable(text).split("\n")
    return [f"  {name}: {first}", *(f"  {' ' * len(name)}  {line}" for line in rest)]
