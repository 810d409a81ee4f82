"""Flags of commands that talk to a server; SGLang's and vLLM's spellings both work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli import bench_server_commands as flags

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
ServedModelFlag = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="M", help="Its name there. Default: the server's first."),
]
ServedNameFlag = Annotated[
    str | None,
    typer.Option(
        "--served-model-name",
        metavar="NAME",
        help="Its name there, where --model is something else: then that one's tokenizer counts.",
    ),
]
HeaderFlag = Annotated[
    list[str] | None,
    typer.Option("--header", metavar="NAME=VALUE ...", help="HTTP headers of every request."),
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
ContextFlag = Annotated[
    int | None,
    typer.Option(
        "--sharegpt-context-len",
        metavar="N",
        help="Leave out conversations whose prompt and answer are longer.",
    ),
]
TemplateFlag = Annotated[
    bool,
    typer.Option(
        "--apply-chat-template", help="Send prompts in the tokenizer's chat template, as text."
    ),
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
WholeFlag = Annotated[
    bool,
    typer.Option("--disable-stream", help="Ask for answers in one piece. Blocks are not timed."),
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
DetailsFlag = Annotated[
    bool,
    typer.Option(
        "--output-details", help="With --output-file: each request's lengths, times and text too."
    ),
]
TagFlag = Annotated[
    str | None, typer.Option("--tag", metavar="TEXT", help="Written beside the numbers.")
]
QuietFlag = Annotated[bool, typer.Option("--disable-tqdm", help="Show no progress bar.")]
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


def bench_serve(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD]", hidden=True)] = None,
    backend: flags.BackendFlag = "openai",
    base_url: flags.BaseUrlFlag = None,
    host: flags.HostFlag = "127.0.0.1",
    port: flags.PortFlag = 8000,
    endpoint: flags.EndpointFlag = None,
    api_key: flags.KeyFlag = None,
    header: flags.HeaderFlag = None,
    model: flags.ServedModelFlag = None,
    served_model_name: flags.ServedNameFlag = None,
    tokenizer: flags.TokenizerFlag = None,
    dataset_name: flags.DatasetFlag = "random",
    dataset_path: flags.DatasetPathFlag = None,
    num_prompts: flags.PromptsFlag = 10,
    input_length: flags.InputFlag = 128,
    output_length: flags.OutputFlag = None,
    range_ratio: flags.RatioFlag = 0.0,
    as_ids: flags.IdsFlag = False,
    chat_template: flags.TemplateFlag = False,
    context_length: flags.ContextFlag = None,
    request_rate: flags.RateFlag = float("inf"),
    burstiness: flags.BurstFlag = 1.0,
    max_concurrency: flags.ConcurrencyFlag = None,
    warm_ups: flags.WarmUpFlag = 1,
    seed: flags.LoadSeedFlag = 1,
    disable_stream: flags.WholeFlag = False,
    ignore_eos: flags.IgnoreEosFlag = None,
    temperature: flags.TemperatureFlag = 0.0,
    extra_body: flags.ExtraFlag = None,
    goodput: flags.GoodputFlag = None,
    percentile_metrics: flags.MetricsFlag = None,
    metric_percentiles: flags.PercentilesFlag = None,
    block_length: flags.BlocksFlag = 32,
    save_result: flags.SaveFlag = False,
    result_dir: flags.ResultDirFlag = None,
    result_filename: flags.ResultNameFlag = None,
    output_file: flags.AppendFlag = None,
    output_details: flags.DetailsFlag = False,
    tag: flags.TagFlag = None,
    disable_tqdm: flags.QuietFlag = False,
    as_json: flags.NumbersFlag = False,
) -> None:
    """Put a running server under load: SGLang's table, with blocks, forwards and waste besides.

    Exit status 1 when some requests failed. Goals and headers may follow each other: --goodput ttft:500
    e2el:2000.
    """
    given = dict(locals())
    from unmask.cli import bench_serve as command

    command.serve(command.BenchServeOptions(**given))


def bench_gsm8k(
    data: flags.DataFlag,
    num_questions: flags.QuestionsFlag = 200,
    num_shots: Annotated[
        int, typer.Option("--num-shots", metavar="N", help="Solved questions before each.")
    ] = 5,
    shots_from: Annotated[
        Path | None,
        typer.Option(
            "--shots-from",
            metavar="FILE",
            help="Where the shots come from, such as train.jsonl. Default: the questions' own file, "
            "as SGLang does, whose first few are then asked with their answers in sight.",
        ),
    ] = None,
    num_tokens: flags.NewTokensFlag = 512,
    parallel: flags.ParallelFlag = 128,
    backend: flags.BackendFlag = "openai",
    base_url: flags.BaseUrlFlag = None,
    host: flags.HostFlag = "127.0.0.1",
    port: flags.PortFlag = 8000,
    api_key: flags.KeyFlag = None,
    model: flags.ServedFlag = None,
    temperature: flags.TemperatureFlag = 0.0,
    extra_body: flags.ExtraFlag = None,
    as_json: flags.NumbersFlag = False,
) -> None:
    """Ask a running server GSM8K with few shots, as SGLang's few_shot_gsm8k does."""
    from unmask.bench.serve import Server
    from unmask.cli import bench_tasks as command

    server = Server(base_url, host, port, model, api_key)
    exam = command.Exam(backend, num_tokens, parallel, temperature, extra_body, as_json)
    command.gsm8k(server, exam, data, num_questions, num_shots, shots_from)


def bench_mmlu(
    data: flags.DataFlag,
    num_questions: flags.QuestionsFlag = 200,
    num_tokens: flags.NewTokensFlag = 512,
    parallel: flags.ParallelFlag = 128,
    backend: flags.BackendFlag = "openai-chat",
    base_url: flags.BaseUrlFlag = None,
    host: flags.HostFlag = "127.0.0.1",
    port: flags.PortFlag = 8000,
    api_key: flags.KeyFlag = None,
    model: flags.ServedFlag = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the sample.")] = 0,
    temperature: flags.TemperatureFlag = 0.0,
    extra_body: flags.ExtraFlag = None,
    as_json: flags.NumbersFlag = False,
) -> None:
    """Ask a running server a sample of MMLU, a chat turn a question, no shots."""
    from unmask.bench.serve import Server
    from unmask.cli import bench_tasks as command

    server = Server(base_url, host, port, model, api_key)
    exam = command.Exam(backend, num_tokens, parallel, temperature, extra_body, as_json)
    command.mmlu(server, exam, data, num_questions, seed)
