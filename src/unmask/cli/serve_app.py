"""The flags of `unmask serve`; `cli.serve` does the work, and imports what is heavy.

vLLM's spellings, with SGLang's beside them where they mean the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.flags import DeviceFlag, DtypeFlag

ModelWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL | KEY=VALUE",
        help="Bundled name, folder or hub id, and knobs that requests have by default.",
        show_default=False,
    ),
]
ServedModelFlag = Annotated[
    str | None,
    typer.Option("--model", "-m", "--model-path", metavar="M", help="The model, as a flag."),
]
ServedDecoderFlag = Annotated[
    str | None,
    typer.Option(
        "--decoder", "-d", metavar="D", help="Of requests that name none. Default: vanilla."
    ),
]
ServedCacheFlag = Annotated[
    str | None,
    typer.Option(
        "--cache",
        "-c",
        metavar="C",
        help="Of requests that name none. Default: block_causal where the model is, else none.",
    ),
]
AlgorithmFlag = Annotated[
    str | None,
    typer.Option(
        "--dllm-algorithm",
        metavar="A",
        help="SGLang's name of a decoder: LowConfidence, JointThreshold, CadLLM...",
    ),
]
AlgorithmConfigFlag = Annotated[
    Path | None,
    typer.Option("--dllm-algorithm-config", metavar="FILE", help="Its knobs, in YAML."),
]
ConfigFlag = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML of these options by their long names, and `knobs`; what is typed wins.",
    ),
]
HostFlag = Annotated[str, typer.Option("--host", help="Address to listen on.")]
PortFlag = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")]
ServedNamesFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--served-model-name",
        metavar="NAME",
        help="Instead of the model's own; may be repeated.",
    ),
]
MaxNumSeqsFlag = Annotated[
    int,
    typer.Option(
        "--max-num-seqs",
        "--max-running-requests",
        min=1,
        help="Sequences that share a forward.",
    ),
]
MaxQueueFlag = Annotated[
    int,
    typer.Option("--max-queue", "--max-queued-requests", min=1, help="Requests that may wait."),
]
MaxNumBatchedTokensFlag = Annotated[
    int,
    typer.Option(
        "--max-num-batched-tokens", min=1, help="About how many positions a forward computes."
    ),
]
MaxWaitFlag = Annotated[
    float,
    typer.Option(
        "--max-wait",
        min=0.001,
        metavar="S",
        help="Seconds that a request without room may be passed by others that have it.",
    ),
]
StepsPerRoundFlag = Annotated[
    int,
    typer.Option(
        "--steps-per-round",
        min=1,
        help="Forwards between two looks at the queue; more: less host work, later starts and ends.",
    ),
]
KvBytesFlag = Annotated[
    int | None,
    typer.Option(
        "--kv-cache-memory-bytes",
        min=1,
        help="Memory for keys and values. Default: a share of what is free.",
    ),
]
PrefixCachingFlag = Annotated[
    bool,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        help="Block-causal models: share full blocks of prompts that begin alike.",
    ),
]
MaxModelLenFlag = Annotated[
    int | None,
    typer.Option(
        "--max-model-len",
        "--context-length",
        min=2,
        help="Most positions of a canvas, prompt included. Default: the model's context.",
    ),
]
QuantizationFlag = Annotated[
    str | None, typer.Option("--quantization", metavar="Q", help="int8 (extra `quantize`).")
]
TensorParallelFlag = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size",
        "--tp-size",
        min=1,
        help="Processes that hold a part of the model each; on GPUs one each.",
    ),
]
ReplicasFlag = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        "--data-parallel-size",
        min=1,
        help="Servers behind one port (extra `ray`).",
    ),
]
MinReplicasFlag = Annotated[
    int | None, typer.Option("--min-replicas", min=1, help="As few when there is little to do.")
]
MaxReplicasFlag = Annotated[
    int | None, typer.Option("--max-replicas", min=1, help="As many when there is much to do.")
]
UpscaleDelayFlag = Annotated[
    float | None,
    typer.Option(
        "--upscale-delay",
        min=0,
        metavar="S",
        help="Seconds of much to do before a replica is added. Default: 30.",
    ),
]
DownscaleDelayFlag = Annotated[
    float | None,
    typer.Option(
        "--downscale-delay",
        min=0,
        metavar="S",
        help="Seconds of little to do before one is taken away. Default: 600.",
    ),
]
ApiKeyFlag = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Clients must send it. Better in the environment, as UNMASK_API_KEY.",
        show_default=False,
    ),
]
AllowUnauthenticatedFlag = Annotated[
    bool,
    typer.Option("--allow-unauthenticated", help="Serve other machines without a key."),
]
AllowedHostsFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host", metavar="NAME", help="Further Host name to answer to without a key."
    ),
]
PublicMetricsFlag = Annotated[
    bool, typer.Option("--public-metrics", help="/metrics without the key.")
]
PublicPageFlag = Annotated[
    bool, typer.Option("--public-page", help="The page (not what it calls) without the key.")
]
RequestTimeoutFlag = Annotated[
    float, typer.Option("--request-timeout", min=0.001, help="Seconds a request may take.")
]
ShutdownTimeoutFlag = Annotated[
    float,
    typer.Option("--shutdown-timeout", min=0, help="Seconds to finish requests on SIGTERM."),
]
MaxBodyBytesFlag = Annotated[
    int, typer.Option("--max-body-bytes", min=1, help="Largest request body.")
]
LogRequestsFlag = Annotated[
    bool, typer.Option("--log-requests/--no-log-requests", help="A line for each, on stderr.")
]
TrustRemoteCodeFlag = Annotated[bool, typer.Option("--trust-remote-code", hidden=True)]


def serve(
    words: ModelWords = None,
    config: ConfigFlag = None,
    model: ServedModelFlag = None,
    decoder: ServedDecoderFlag = None,
    cache: ServedCacheFlag = None,
    algorithm: AlgorithmFlag = None,
    algorithm_config: AlgorithmConfigFlag = None,
    host: HostFlag = "127.0.0.1",
    port: PortFlag = 8000,
    served_names: ServedNamesFlag = None,
    max_num_seqs: MaxNumSeqsFlag = 16,
    max_queue: MaxQueueFlag = 256,
    max_num_batched_tokens: MaxNumBatchedTokensFlag = 8192,
    max_wait: MaxWaitFlag = 2.0,
    steps_per_round: StepsPerRoundFlag = 1,
    kv_bytes: KvBytesFlag = None,
    prefix_caching: PrefixCachingFlag = True,
    max_model_len: MaxModelLenFlag = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    quantization: QuantizationFlag = None,
    tensor_parallel_size: TensorParallelFlag = 1,
    replicas: ReplicasFlag = None,
    min_replicas: MinReplicasFlag = None,
    max_replicas: MaxReplicasFlag = None,
    upscale_delay: UpscaleDelayFlag = None,
    downscale_delay: DownscaleDelayFlag = None,
    api_key: ApiKeyFlag = None,
    allow_unauthenticated: AllowUnauthenticatedFlag = False,
    allowed_hosts: AllowedHostsFlag = None,
    public_metrics: PublicMetricsFlag = False,
    public_page: PublicPageFlag = False,
    request_timeout: RequestTimeoutFlag = 600.0,
    shutdown_timeout: ShutdownTimeoutFlag = 30.0,
    max_body_bytes: MaxBodyBytesFlag = 4 << 20,
    log_requests: LogRequestsFlag = True,
    trust_remote_code: TrustRemoteCodeFlag = False,
) -> None:
    """Serve a model over HTTP: OpenAI's routes, infilling, SGLang's routes, metrics, a page.

    Requests choose decoder, cache and knobs; what is given here is the default.
    """
    given = dict(locals())
    from unmask.cli import serve as command

    command.run(command.ServeOptions(**given))
