"""Flags of commands that talk to a server; SGLang's and vLLM's spellings both work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BaseUrlFlag = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="The server. Default: http://HOST:PORT."),
]
HostFlag = Annotated[str, typer.Option("--host", metavar="H", help="The server's host.")]
PortFlag = Annotated[int, typer.Option("--port", metavar="P", help="The server's port.")]
KeyFlag = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="The server's key.",
        envvar="UNMASK_API_KEY",
        show_default=False,
    ),
]
ServedFlag = Annotated[
    str | None,
    typer.Option(
        "--model", "--served-model-name", "-m", metavar="M", help="Default: the server's first."
    ),
]
BackendFlag = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="B",
        help="openai (/v1/completions), openai-chat, or sglang (/generate). Also: sglang-oai, "
        "sglang-oai-chat, vllm, vllm-chat.",
    ),
]
TokenizerFlag = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="M",
        help="Bundled name, folder or hub id whose tokenizer counts. Default: the model's name.",
    ),
]
EndpointFlag = Annotated[
    str | None, typer.Option("--endpoint", metavar="PATH", help="Default: as the backend has it.")
]
DatasetFlag = Annotated[
    str,
    typer.Option(
        "--dataset-name",
        metavar="D",
        help="random (of token ids), sharegpt (a file), word_problem, sudoku or countdown.",
    ),
]
DatasetPathFlag = Annotated[
    Path | None,
    typer.Option("--dataset-path", metavar="FILE", help="ShareGPT-like JSON, for sharegpt."),
]
PromptsFlag = Annotated[
    int, typer.Option("--num-prompts", "--num-prompt", metavar="N", help="Requests to send.")
]
InputFlag = Annotated[
    int,
    typer.Option(
        "--random-input-len", "--input-len", metavar="N", help="Most tokens of a random prompt."
    ),
]
OutputFlag = Annotated[
    int | None,
    typer.Option(
        "--random-output-len",
        "--sharegpt-output-len",
        "--output-len",
        metavar="N",
        help="Most tokens of an answer. Default: 128 if random, else as the set has it.",
    ),
]
RatioFlag = Annotated[
    float,
    typer.Option(
        "--random-range-ratio",
        metavar="R",
        help="Least random length, as a share of the most (SGLang's meaning). 1: all alike.",
    ),
]
IdsFlag = Annotated[
    bool,
    typer.Option("--tokenize-prompt", help="Send random prompts as token ids, not as text."),
]
RateFlag = Annotated[
    float, typer.Option("--request-rate", metavar="R", help="Requests a second; inf: all at once.")
]
BurstFlag = Annotated[
    float,
    typer.Option("--burstiness", metavar="B", help="1: Poisson; below: in bursts; above: even."),
]
ConcurrencyFlag = Annotated[
    int | None,
    typer.Option("--max-concurrency", metavar="N", help="Most requests under way. Default: any."),
]
WarmUpFlag = Annotated[
    int,
    typer.Option("--warmup-requests", "--num-warmups", metavar="N", help="Untimed requests first."),
]
LoadSeedFlag = Annotated[
    int, typer.Option("--seed", metavar="S", help="Seed of the prompts and of the waits.")
]
IgnoreEosFlag = Annotated[
    bool | None,
    typer.Option(
        "--ignore-eos/--disable-ignore-eos",
        help="Ask for all tokens, past the answer's end. Default: with sglang backends only.",
    ),
]
TemperatureFlag = Annotated[
    float, typer.Option("--temperature", metavar="T", help="0: the likeliest tokens.")
]
ExtraFlag = Annotated[
    str | None,
    typer.Option(
        "--extra-body",
        "--extra-request-body",
        metavar="JSON",
        help="""Added to every request: '{"decoder": "threshold"}'.""",
    ),
]
GoodputFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--goodput", metavar="GOAL:MS ...", help="Count requests within ttft:MS, tpot:MS, e2el:MS."
    ),
]
MetricsFlag = Annotated[
    str | None,
    typer.Option("--percentile-metrics", metavar="LIST", help="ttft,tpot,itl,e2el: those to add."),
]
PercentilesFlag = Annotated[
    str | None,
    typer.Option("--metric-percentiles", metavar="LIST", help="Percentiles to add, as 50,90,99."),
]
BlocksFlag = Annotated[
    int, typer.Option("--block-length", metavar="N", help="Tokens that count as a block.")
]
SaveFlag = Annotated[
    bool, typer.Option("--save-result", help="Write all numbers and texts as a JSON file.")
]
ResultDirFlag = Annotated[
    Path | None, typer.Option("--result-dir", metavar="FOLDER", help="For --save-result.")
]
ResultNameFlag = Annotated[
    str | None, typer.Option("--result-filename", metavar="NAME", help="For --save-result.")
]
AppendFlag = Annotated[
    Path | None, typer.Option("--output-file", metavar="FILE", help="Append the numbers, a line.")
]
NumbersFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")]
DataFlag = Annotated[
    Path,
    typer.Option(
        "--data",
        "--data-path",
        metavar="PATH",
        envvar="UNMASK_DATA",
        help="The task's test file, its folder, or the folder above it.",
    ),
]
QuestionsFlag = Annotated[
    int, typer.Option("--num-questions", "--num-examples", metavar="N", help="Questions to ask.")
]
NewTokensFlag = Annotated[
    int, typer.Option("--max-new-tokens", "--max-tokens", metavar="N", help="Most of an answer.")
]
ParallelFlag = Annotated[
    int, typer.Option("--parallel", "--num-threads", metavar="N", help="Requests under way.")
]
