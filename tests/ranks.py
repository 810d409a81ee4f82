"""What each of two processes does in `test_parallel.py`: `ranks.py FOLDER`, with torchrun's environment.

`FOLDER/plan.json` says which checkpoints and decodes; rank r leaves `FOLDER/rank{r}.json`. Rank 0 runs
every decode twice: with the ranks, and with the whole model in itself alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unmask import LLM
from unmask.distributed import codec, control, tensor_parallel
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.models import load_model

PROMPTS = [[5, 9, 2, 14, 3, 3, 8], [11, 4, 7]]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    plan = json.loads((folder / "plan.json").read_text())
    control.TIMEOUT_S = plan.get("timeout_s", control.TIMEOUT_S)
    channel = control.init_ranks(2, "cpu")
    fail(channel.ranks.rank, plan)
    found = {}
    for case in plan["cases"]:
        make = partial(tensor_parallel.ShardedTransformer, channel)
        model = load_model(case["folder"], "float32", channel.device, make=make)
        if case.get("pack"):
            model = packed(model)
        result: dict[str, Any] = {"numbers": sum(x.numel() for x in model.parameters())}
        if channel.ranks.rank == 0:
            result |= compare(model, case, plan["decodes"])
            with channel.collective(codec.EndMessage()):
                pass
        else:
            channel.barrier()
            result["stores"] = len(tensor_parallel.run_worker(model).by_number)
        found[case["name"]] = result
    (folder / f"rank{channel.ranks.rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def compare(
    model: tensor_parallel.ShardedTransformer, case: dict[str, Any], decodes: list[Any]
) -> dict[str, Any]:
    shared, alone = LLM(model), LLM(case["folder"], dtype="float32", device="cpu")
    shared.tokenizer = alone.tokenizer = None
    ids = torch.arange(40).view(2, 20) % 64
    real = torch.ones(2, 20, dtype=torch.bool)
    real[1, 15:] = False
    logits = [llm.model(ids, real)[real] for llm in (shared, alone)]
    result: dict[str, Any] = {
        "difference": (logits[0] - logits[1]).abs().max().item(),
        "largest": logits[1].abs().max().item(),
        "differing": [],
        "num_forwards": 0,
    }
    for options in decodes:
        outputs = [run(llm, options) for llm in (shared, alone)]
        if outputs[0] != outputs[1]:
            result["differing"].append([options, outputs])
        result["num_forwards"] += sum(len(trace) for trace in outputs[1])
    if case.get("serves"):
        served = [serve(llm) for llm in (shared, alone)]
        if served[0] != served[1]:
            result["differing"].append(["engine", served])
        result["num_forwards"] += sum(map(len, served[1]["tokens"]))
    scores = [llm.loglikelihood([5, 9], [7, 3, 1], mc_num=4).log_prob for llm in (shared, alone)]
    result["likelihood_difference"] = abs(scores[0] - scores[1])
    return result


def run(llm: LLM, options: dict[str, Any]) -> list[Any]:
    """The committed (position, token) pairs of each forward, a list for each prompt."""
    return [
        [[list(commit[:2]) for commit in step.committed] for step in output.trace]
        for output in llm.generate(PROMPTS, return_trace=True, **options)
    ]


def serve(llm: LLM) -> dict[str, Any]:
    """What an engine makes of requests that share a beginning and too few pages."""
    from unmask.engine.kv_budget import PAGED_SHARE
    from unmask.kv.paged_store import PagedStore

    page = PagedStore.page_bytes(llm.model.part, llm.model.dtype)
    beginning = list(range(2, 42))
    updates: dict[int, Any] = {}
    size = int(14 * page / PAGED_SHARE) + page  # one of them for padding
    with Engine(llm, EngineConfig(max_num_seqs=4, kv_cache_memory_bytes=size)) as engine:
        for i in range(6):
            cache = "prefix" if i == 4 else "block_causal"
            request = llm.request(
                [*beginning, 50 + i], "threshold", cache, gen_length=24, threshold=0.3, seed=i
            )
            engine.submit(request, lambda update, i=i: updates.__setitem__(i, update))
        assert engine.drain(120)
        stats = engine.stats
    assert stats.pages_free == stats.pages_total
    found = [updates[i].output.canvas_ids for i in range(6)]
    assert stats.prefix_found > 0, "pages were shared"
    return {"tokens": found}


def packed(model: tensor_parallel.ShardedTransformer) -> tensor_parallel.ShardedTransformer:
    from unmask.models import packed_weights

    packed_weights.LEAST_ELEMENTS = 1
    assert packed_weights.pack_weights(model)
    return model


def fail(rank: int, plan: dict[str, Any]) -> None:
    """Make one rank end or hang in its third forward."""
    if rank != plan.get("failing"):
        return
    count, plain = 0, tensor_parallel.ShardedTransformer.hidden

    def hidden(self: tensor_parallel.ShardedTransformer, *args: Any, **named: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 3 and plan["how"] == "dies":
            os._exit(9)
        if count == 3:
            time.sleep(3600)
        return plain(self, *args, **named)

    tensor_parallel.ShardedTransformer.hidden = hidden  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
