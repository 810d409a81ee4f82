"""What a server promises of its engine, one promise a test. Numbers: checks of the specification."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from test_engine import WAIT_S, Listener, alone, assert_idle, assert_same, bytes_for, model

from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine


def submit(engine, request, act=None):
    listener = Listener(act)
    return engine.submit(request, listener), listener


# 17
def test_an_abort_in_the_middle_of_a_long_prompt_frees_its_pages():
    llm = model("blocks")
    long = llm.request([7, 8, 9] * 30, "vanilla", "block_causal", gen_length=8)
    reached, go = threading.Event(), threading.Event()
    with Engine(
        llm, EngineConfig(max_num_batched_tokens=16, enable_prefix_caching=False)
    ) as engine:
        plain, count = engine._batch.runner.launch, []

        def launch(inputs, ahead=()):
            count.append(inputs)
            if len(count) == 3:
                reached.set()
                assert go.wait(WAIT_S)
            return plain(inputs, ahead)

        engine._batch.runner.launch = launch
        handle, listener = submit(engine, long)
        assert reached.wait(WAIT_S)
        assert engine.stats.pages_free < engine.stats.pages_total
        engine.abort(handle)
        go.set()
        assert listener.last.kind == "aborted"
        assert listener.last.num_forwards == 0, "the prompt was not even read"
        assert len(count) == 3, "the forward under way, and no other"
        assert_idle(engine)


# 18
def test_an_abort_of_who_was_preempted_and_waits_frees_it_and_leaves_the_others_alone():
    llm = model("blocks", 2)
    requests = [
        llm.request([3 + i] * 14, "vanilla", "block_causal", gen_length=40, stop_at_eos=False)
        for i in range(6)
    ]
    aborted, when = [], []
    with Engine(llm, EngineConfig(kv_cache_memory_bytes=bytes_for(llm, 8))) as engine:

        def look(update):
            parked = [t for t in engine._queue if t.sequence.num_preempted]
            if parked and not aborted:
                aborted.append(parked[0])
                when.append(engine.stats.num_forwards)
                tell = parked[0].listener
                parked[0].listener = lambda u: (when.append(engine.stats.num_forwards), tell(u))
                engine.abort(parked[0])

        pairs = [submit(engine, request, look) for request in requests]
        kinds = [listener.last.kind for _, listener in pairs]
        assert_idle(engine)
    assert len(aborted) == 1
    assert when == [when[0]] * 2, "told before the next forward"
    assert aborted[0].sequence.num_forwards > 0, "it had run before"
    for (handle, listener), request, kind in zip(pairs, requests, kinds, strict=True):
        assert kind == ("aborted" if handle is aborted[0] else "done")
        if kind == "done":
            assert_same(listener.last.output, alone(llm, request))


# 26
def test_every_request_is_sampled_at_its_own_temperature():
    """One token each, interleaved in one batch: its frequencies are those of its temperature alone."""
    llm, prompt, count = model("plain"), [7, 8, 9], 600
    temperatures = (0.5, 1.0, 2.5)
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, llm.spec.mask_id]])
        logits = llm.model(ids)[0, -1].double()
        logits[llm.vocabulary.forbidden] = -torch.inf
    found = {temperature: np.zeros(len(logits)) for temperature in temperatures}
    with Engine(llm, EngineConfig(max_queue=count * len(temperatures))) as engine:
        listeners = [
            (temperature, submit(engine, llm.request(
                prompt, "vanilla", gen_length=1, seed=seed, temperature=temperature
            ))[1])
            for seed in range(count) for temperature in temperatures
        ]  # fmt: skip
        for temperature, listener in listeners:
            found[temperature][listener.last.output.canvas_ids[-1]] += 1
    for temperature, counts in found.items():
        assert distance(counts, logits, temperature) < 0.12, "two samples of 600 differ by so much"
        for other in temperatures:
            if other != temperature:
                assert distance(counts, logits, other) > 0.2, "and other temperatures by more"


def distance(counts, logits, temperature):
    """Total variation between what was drawn and the softmax at a temperature."""
    wanted = (logits / temperature).softmax(-1).numpy()
    return float(np.abs(counts / counts.sum() - wanted).sum() / 2)


# 35
PEAK = """
import resource, sys
sys.path[:0] = [{tests!r}]
from test_engine import Listener
from tiny import tiny_model
from unmask import LLM
from unmask.engine import lm_head
from unmask.engine.engine import Engine

VOCAB, ROWS = 150_000, 80
lm_head.HEAD_CHUNK = 1 << 22  # logits: 16 MB
llm = LLM(tiny_model(vocab_size=VOCAB), pack_weights=False)

def run(count):
    listeners = [Listener() for _ in range(count)]
    for seed, listener in enumerate(listeners):
        request = llm.request([7], "vanilla", gen_length=ROWS, block_length=ROWS, steps=1,
                              temperature={temperature}, seed=seed, stop_at_eos=False)
        engine.submit(request, listener)
    assert [listener.last.kind for listener in listeners] == ["done"] * count

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

with Engine(llm) as engine:
    lm_head.HEAD_CHUNK >>= 4
    run(1)
    lm_head.HEAD_CHUNK <<= 4
    before = peak()
    run({count})
    print(peak() - before)
"""


@pytest.mark.parametrize(
    ("temperature", "count"), [(0.0, 8), pytest.param(1.0, 3, marks=pytest.mark.slow)]
)
def test_many_rows_of_a_large_vocabulary_stay_in_the_budget_of_logits(temperature, count):
    """8 times 80 rows of 150,000 logits are 384 MB; 16 MB are set aside, sampling takes copies."""
    code = PEAK.format(tests=str(Path(__file__).parent), temperature=temperature, count=count)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * (16 << 20)
