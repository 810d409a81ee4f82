"""The flags of `unmask serve`; `cli.serve` does the work, and imports what is heavy.

vLLM's spellings, with SGLang's beside them where they mean the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.flags import DeviceFlag, DtypeFlag


def serve(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL | KEY=VALUE",
            help="Bundled name, folder or hub id, and knobs that requests have by default.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", "--model-path", metavar="M", help="The model, as a flag."),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            "--decoder", "-d", metavar="D", help="Of requests that name none. Default: vanilla."
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            "-c",
            metavar="C",
            help="Of requests that name none. Default: block_causal where the model is, else none.",
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            "--dllm-algorithm",
            metavar="A",
            help="SGLang's name of a decoder: LowConfidence, JointThreshold, CadLLM...",
        ),
    ] = None,
    algorithm_config: Annotated[
        Path | None,
        typer.Option("--dllm-algorithm-config", metavar="FILE", help="Its knobs, in YAML."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")
    ] = 8000,
    served_names: Annotated[
        list[str] | None,
        typer.Option(
            "--served-model-name",
            metavar="NAME",
            help="Instead of the model's own; may be repeated.",
        ),
    ] = None,
    max_num_seqs: Annotated[
        int,
        typer.Option(
            "--max-num-seqs",
            "--max-running-requests",
            min=1,
            help="Sequences that share a forward.",
        ),
    ] = 16,
    max_queue: Annotated[
        int,
        typer.Option("--max-queue", "--max-queued-requests", min=1, help="Requests that may wait."),
    ] = 256,
    max_num_batched_tokens: Annotated[
        int,
        typer.Option(
            "--max-num-batched-tokens", min=1, help="About how many slots a forward computes."
        ),
    ] = 8192,
    kv_bytes: Annotated[
        int | None,
        typer.Option(
            "--kv-cache-memory-bytes",
            min=1,
            help="Memory for keys and values. Default: a share of what is free.",
        ),
    ] = None,
    prefix_caching: Annotated[
        bool,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Block-causal models: share full blocks of prompts that begin alike.",
        ),
    ] = True,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            "--max-model-len",
            "--context-length",
            min=2,
            help="Most slots of a canvas, prompt included. Default: the model's context.",
        ),
    ] = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    quantization: Annotated[
        str | None, typer.Option("--quantization", metavar="Q", help="int8 (extra `quantize`).")
    ] = None,
    tensor_parallel_size: Annotated[
        int,
        typer.Option(
            "--tensor-parallel-size",
            "--tp-size",
            min=1,
            help="Processes that hold a part of the model each; on GPUs one each.",
        ),
    ] = 1,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            "--data-parallel-size",
            min=1,
            help="Servers behind one port (extra `ray`).",
        ),
    ] = None,
    min_replicas: Annotated[
        int | None, typer.Option("--min-replicas", min=1, help="As few when there is little to do.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option("--max-replicas", min=1, help="As many when there is much to do.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="Clients must send it. Better in the environment, as UNMASK_API_KEY.",
            show_default=False,
        ),
    ] = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option("--allow-unauthenticated", help="Serve other machines without a key."),
    ] = False,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host", metavar="NAME", help="Further Host name to answer to without a key."
        ),
    ] = None,
    public_metrics: Annotated[
        bool, typer.Option("--public-metrics", help="/metrics without the key.")
    ] = False,
    public_page: Annotated[
        bool, typer.Option("--public-page", help="The page (not what it calls) without the key.")
    ] = False,
    request_timeout: Annotated[
        float, typer.Option("--request-timeout", min=0.001, help="Seconds a request may take.")
    ] = 600.0,
    shutdown_timeout: Annotated[
        float,
        typer.Option("--shutdown-timeout", min=0, help="Seconds to finish requests on SIGTERM."),
    ] = 30.0,
    max_body_bytes: Annotated[
        int, typer.Option("--max-body-bytes", min=1, help="Largest request body.")
    ] = 4 << 20,
    log_requests: Annotated[
        bool, typer.Option("--log-requests/--no-log-requests", help="A line for each, on stderr.")
    ] = True,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", hidden=True)] = False,
) -> None:
    """Serve a model over HTTP: OpenAI's routes, infilling, SGLang's routes, metrics, a page.

    Requests choose decoder, cache and knobs; what is given here is the default.
    """
    from unmask.cli import serve as command

    command.run(
        command.Wanted(
            words=tuple(words or ()),
            model=model,
            decoder=decoder,
            cache=cache,
            algorithm=algorithm,
            algorithm_config=algorithm_config,
            host=host,
            port=port,
            served_names=tuple(served_names or ()),
            max_num_seqs=max_num_seqs,
            max_queue=max_queue,
            max_num_batched_tokens=max_num_batched_tokens,
            kv_bytes=kv_bytes,
            prefix_caching=prefix_caching,
            max_model_len=max_model_len,
            dtype=dtype,
            device=device,
            quantization=quantization,
            tensor_parallel_size=tensor_parallel_size,
            replicas=replicas,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            api_key=api_key,
            allow_unauthenticated=allow_unauthenticated,
            allowed_hosts=tuple(allowed_hosts or ()),
            public_metrics=public_metrics,
            public_page=public_page,
            request_timeout=request_timeout,
            shutdown_timeout=shutdown_timeout,
            max_body_bytes=max_body_bytes,
            log_requests=log_requests,
            trust_remote_code=trust_remote_code,
        )
    )
