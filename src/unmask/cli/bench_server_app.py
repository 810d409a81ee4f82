"""The commands of `unmask bench` that measure a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli import server_flags as flags


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

    command.serve(command.Wanted(**given))


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
    from unmask.cli import bench_exam as command

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
    from unmask.cli import bench_exam as command

    server = Server(base_url, host, port, model, api_key)
    exam = command.Exam(backend, num_tokens, parallel, temperature, extra_body, as_json)
    command.mmlu(server, exam, data, num_questions, seed)
