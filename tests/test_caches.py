"""The caches: the ladder of exactness, edits, stale rows, oracles of dLLM-Cache and d2Cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_properties import METHODS, PROMPTS, assert_same_run, finds_length, generate, run
from tiny import FAMILIES, KNOWN, tiny_llm, tiny_model, tiny_spec, trace_of

from unmask import caches, decoders
from unmask.attention import rollout as rollouts
from unmask.attention.layered import FeatureRowMeta, FeatureStore, LayeredAttention
from unmask.attention.packed import PackedAttention, RowMeta
from unmask.attention.rollout import rollout, weighted_attention
from unmask.caches.base import CachePlan
from unmask.caches.registry import describe, make_cache
from unmask.canvas import Edit, edited, new_canvas, places
from unmask.docgen.caches import markdown, numbers_per_position
from unmask.edit_rules import apply
from unmask.engine.request import Request
from unmask.engine.request_builder import parse_method
from unmask.errors import ConfigError
from unmask.kv.dense_store import DenseStore
from unmask.models.transformer import attention

BLOCK = 4
_BLOCK_CAUSAL: dict = {}


def block_causal(family="llada", seed=0):
    if (family, seed) not in _BLOCK_CAUSAL:
        _BLOCK_CAUSAL[family, seed] = tiny_llm(family, seed, block_size=BLOCK)
    return _BLOCK_CAUSAL[family, seed]


every_family = pytest.mark.parametrize("family", FAMILIES)
every_method = pytest.mark.parametrize(("name", "knobs"), METHODS)


def assert_same_decode(ours, theirs):
    """Equal but for the work that it took."""
    assert trace_of(ours) == trace_of(theirs)
    assert ours.canvas_ids == theirs.canvas_ids
    assert [step.remasked for step in ours.trace] == [step.remasked for step in theirs.trace]
    assert [step.inserted for step in ours.trace] == [step.inserted for step in theirs.trace]
    assert ours.num_forwards == theirs.num_forwards


# the ladder of exactness (decoders.md, 3.9)


@every_family
@every_method
def test_block_causal_equals_none_for_every_decoder_and_computes_less(name, knobs, family):
    llm = block_causal(family, 1)
    exact, cached = (
        generate(llm, PROMPTS, name, which, knobs) for which in ("none", "block_causal")
    )
    for plain, ours in zip(exact, cached, strict=True):
        assert_same_decode(ours, plain)
        assert ours.cache_exact
    assert sum(o.num_queries for o in cached) < sum(o.num_queries for o in exact)


EVERYTHING = (
    "dkv(interval=1)",
    "vicinity(prefix_look=1000, after_look=1000)",
    "vicinity(cache_update_freq=1)",
    "vicinity(warmup_steps=1000)",
    "dllm(kp=1, kr=1)",
    "dllm(kp=1, kr=1000, rou=1)",
    "d2cache(current_k=1000, rollout_p=1)",
    "dkv(inner=dllm, interval=1)",
    "dkv(inner=d2cache, rollout_p=1)",
)


@every_family
@pytest.mark.parametrize("cache", EVERYTHING)
@pytest.mark.parametrize(
    "name", ["threshold", "wino", "daedal", "klass", "dream", "joint_threshold"]
)
def test_a_cache_that_is_told_to_compute_everything_equals_none(name, cache, family):
    for llm in (tiny_llm(family, 2), block_causal(family, 2)):
        exact, cached = (generate(llm, PROMPTS, name, which, {}) for which in ("none", cache))
        for plain, ours in zip(exact, cached, strict=True):
            assert_same_run(ours, plain)


@every_family
@pytest.mark.parametrize("name", ["vanilla", "threshold", "cadllm"])
def test_vicinity_without_a_vicinity_is_dual_and_use_dual_says_which(name, family):
    llm = tiny_llm(family, 3)
    none, dual, alias, other = (
        generate(llm, PROMPTS, name, which, {})
        for which in (
            "vicinity(prefix_look=0, after_look=0)",
            "dual",
            "prefix(use_dual=true)",
            "dual(use_dual=false)",
        )
    )
    for first, second, third in zip(none, dual, alias, strict=True):
        assert_same_run(first, second)
        assert_same_run(second, third)
    assert {o.cache for o in alias} == {"dual"}
    assert {o.cache for o in other} == {"prefix"}


@pytest.mark.parametrize(
    "cache", ["d2cache", "dkv", "dllm", "dual", "prefix", "vicinity(prefix_look=1, after_look=1)"]
)
def test_an_approximate_cache_strays_somewhere_and_computes_less(cache):
    """Else it would not be used."""
    strays, queries, whole = 0, 0, 0
    for seed in range(4):
        llm = tiny_llm("llada", seed)
        exact, cached = (
            generate(llm, PROMPTS, "vanilla", which, {"block_length": 8}, gen_length=16)
            for which in ("none", cache)
        )
        for plain, ours in zip(exact, cached, strict=True):
            strays += trace_of(ours) != trace_of(plain)
            queries, whole = queries + ours.num_queries, whole + plain.num_queries
            assert not ours.cache_exact
    assert strays
    assert queries < 0.95 * whole


@every_family
def test_auto_is_exact_where_it_can_be(family):
    output = generate(block_causal(family), [[1, 2]], "vanilla", "auto", {})[0]
    assert (output.cache, output.cache_exact) == ("block_causal", True)
    output = generate(tiny_llm(family), [[1, 2]], "vanilla", "auto", {})[0]
    assert (output.cache, output.cache_exact) == ("vicinity", False)


# batches of block-causal models, any mixture


@every_family
@settings(max_examples=25)
@given(data=st.data())
def test_any_mixture_of_requests_on_a_block_causal_model_decodes_like_each_alone(family, data):
    llm = block_causal(family, 3)
    names = [name for name in caches.names() if name != "auto"]
    requests = []
    for _ in range(data.draw(st.integers(2, 5))):
        name, knobs = data.draw(st.sampled_from(METHODS))
        shape = {"block_length": 4} if "block_length" in decoders.knob_names(name, knobs) else {}
        shared = {"temperature": data.draw(st.sampled_from([0.0, 0.8]))}
        method = parse_method(name, knobs=shape | knobs | shared)
        prompt = data.draw(st.lists(st.integers(0, KNOWN - 1), min_size=1, max_size=9))
        requests.append(
            Request(
                canvas=llm.prompt_canvas(prompt, data.draw(st.sampled_from([4, 8]))),
                method=replace(method, cache=make_cache(data.draw(st.sampled_from(names)))),
                seed=data.draw(st.integers(0, 3)),
                stop_ids=llm.stop_ids,
                stop_at_eos=data.draw(st.booleans()),
                facts=llm.facts,
            )
        )
    together = run(llm, requests, data.draw(st.sampled_from([2, 3, 10])))
    for ours, request in zip(together, requests, strict=True):
        alone = run(llm, [request], 2)[0]
        assert [[c[:2] for c in step.committed] for step in ours.trace] == [
            [c[:2] for c in step.committed] for step in alone.trace
        ]
        assert ours.canvas.tokens.tolist() == alone.canvas.tokens.tolist()
        assert ours.num_queries == alone.num_queries


# edits


def canvas_of(tokens, num_open, prompt=3):
    blanks = [False] * len(tokens) + [True] * num_open
    return new_canvas(tokens + [60] * num_open, blanks, prompt, 60)


edits = st.lists(
    st.tuples(
        st.sampled_from(["commit", "remask", "replace", "insert", "delete"]), st.integers(0, 30)
    ),
    min_size=1,
    max_size=8,
)


def edit_of(canvas, kind, number):
    own = np.flatnonzero(~canvas.fixed)
    decided, open_ = own[~canvas.open[own]], own[canvas.open[own]]
    if kind == "commit" and len(open_):
        position = open_[number % len(open_)]
        return Edit(
            commit=np.array([position]), tokens=np.array([number]), confidence=np.array([0.5])
        )
    if kind == "remask" and len(decided):
        return Edit(remask=decided[[number % len(decided)]])
    if kind == "replace" and len(decided):
        position = decided[[number % len(decided)]]
        return Edit(replace=position, replace_tokens=np.array([number]))
    if kind == "insert":
        return Edit(insert=((int(own[number % len(own)]), 1 + number % 3),))
    if kind == "delete" and len(own) > 2:
        return Edit(delete=own[[number % len(own)]])
    return Edit()


@every_family
@settings(max_examples=30)
@given(steps=edits)
def test_after_any_edits_the_store_holds_what_each_position_had_turned_to_its_new_place(
    family, steps
):
    """Layer 0 depends on a position alone: its moved keys must equal keys computed at the new place."""
    model = tiny_model(family, 5)
    store = DenseStore(model.spec, 1, 64, torch.float32, torch.device("cpu"))
    canvas = canvas_of([1, 2, 3, 4, 5], 9)
    known = compute(model, store, canvas, np.arange(len(canvas)))
    for number, (kind, which) in enumerate(steps):
        before, canvas = canvas, apply(canvas, edit_of(canvas, kind, which), number)
        sources = places(before, canvas)
        targets = np.flatnonzero(sources >= 0)
        store.move_positions(0, sources[targets], targets)
        compute(model, store, canvas, np.flatnonzero(edited(before, canvas)))
    fresh = DenseStore(model.spec, 1, 64, torch.float32, torch.device("cpu"))
    exact = compute(model, fresh, canvas, np.arange(len(canvas)))
    size = len(canvas)
    for kept, wanted in ((store.keys[0], fresh.keys[0]), (store.values[0], fresh.values[0])):
        assert torch.allclose(kept[0, :, :size], wanted[0, :, :size], atol=2e-5)
    refreshed = compute(model, store, canvas, np.arange(len(canvas)))
    assert torch.allclose(refreshed, exact, atol=2e-5)
    assert known.shape[1] == exact.shape[1]


@torch.inference_mode()
def compute(model, store, canvas, positions):
    if not len(positions):
        return None
    meta = RowMeta(0, positions, len(canvas), positions)
    backend = PackedAttention([meta], store, model.spec.block_size, torch.device("cpu"))
    ids = torch.from_numpy(canvas.tokens[positions])
    return model.hidden(ids, torch.from_numpy(positions), backend=backend)


@every_family
@pytest.mark.parametrize("cache", ["dual", "vicinity", "dkv", "d2cache", "dllm"])
def test_inserting_positions_computes_the_new_ones_and_moves_the_others(cache, family, monkeypatch):
    llm = tiny_llm(family, 1)
    moved = []
    plain = DenseStore.move_positions
    monkeypatch.setattr(
        DenseStore,
        "move_positions",
        lambda self, row, old, new: (moved.append((old, new)), plain(self, row, old, new)),
    )
    knobs = {
        "threshold": 0.4,
        "low_conf_expand_thres": 1.0,
        "num_check_last_eot": 4,
        "initial_eot_expand_thres": 0.0,
        "block_length": 8,
    }
    outputs = llm.generate(
        [[7, 8, 9]], "daedal", cache, stop_at_eos=False, return_trace=True,
        initial_gen_length=16, max_gen_length=60, **knobs,
    )  # fmt: skip
    inserted = [k for k, step in enumerate(outputs[0].trace) if step.inserted]
    assert inserted
    assert moved
    assert any((old != new).any() for old, new in moved)
    if cache in ("dual", "d2cache"):
        sizes = [step.num_queries for step in outputs[0].trace]
        assert any(
            sizes[k + 1] < len(outputs[0].canvas_ids) for k in inserted if k + 1 < len(sizes)
        )


class Recorder(caches.CachePolicy):
    """A policy that remembers its plans and what it was told of the canvas."""

    def __init__(self, policy):
        self.policy, self.plans = policy, []
        self.stores, self.exact = policy.stores, policy.exact

    @property
    def layered(self):
        return self.policy.layered

    def start(self, canvas, facts):
        return self.policy.start(canvas, facts)

    def plan(self, canvas, ask, rows, state):
        plan, state = self.policy.plan(canvas, ask, rows, state)
        self.plans.append((canvas, ask, rows, plan))
        return plan, state

    def observe(self, before, after, seen, state):
        assert np.isin(seen.reading.positions, self.plans[-1][1].rows).all() or len(
            self.plans[-1][1].optional
        )
        return self.policy.observe(before, after, seen, state)


def recorded(llm, name, knobs, cache, gen_length=16):
    method = parse_method(name, cache, knobs=knobs).bind(llm.spec.block_size)
    recorder = Recorder(method.cache)
    request = Request(
        canvas=llm.prompt_canvas([7, 8, 9], gen_length),
        method=replace(method, cache=recorder),
        seed=0,
        stop_ids=llm.stop_ids,
        stop_at_eos=False,
        facts=llm.facts,
    )
    run(llm, [request], 1)
    return recorder.plans


CACHES = [name for name in caches.names() if name not in ("auto", "block_causal")]


@every_family
@pytest.mark.parametrize(
    "cache", [*CACHES, "dkv(inner=dual)", "dkv(inner=d2cache)", "dkv(inner=dllm)"]
)
@every_method
def test_plans_compute_what_must_be_read_and_what_was_edited(name, knobs, cache, family):
    llm = tiny_llm(family, 6)
    shape = {"block_length": 4} if "block_length" in decoders.knob_names(name, knobs) else {}
    if finds_length(name):
        shape |= {"initial_gen_length": 12, "max_gen_length": 24}
    before = None
    for canvas, ask, rows, plan in recorded(llm, name, shape | knobs, cache):
        assert (np.diff(plan.queries) > 0).all(), "ascending, none twice"
        inside = (ask.rows >= ask.window[0]) & (ask.rows < ask.window[1]) & canvas.open[ask.rows]
        inside &= ~np.isin(ask.rows, ask.needed)
        assert np.isin(rows[~inside], plan.queries).all()
        assert not inside.any() or np.isin(rows[inside], plan.queries).any()
        if before is not None and cache != "none":
            new = np.flatnonzero(places(before, canvas) < 0)
            computed = plan.queries
            if plan.layers is not None and not plan.layers.response:
                computed = plan.layers.forced
            assert np.isin(new, computed).all(), "a new position has nothing to reuse"
        before = canvas


def test_d2cache_leaves_rows_out_and_the_decoder_does_not_see_them():
    llm = tiny_llm("llada", 0)
    plans = recorded(
        llm, "vanilla", {"block_length": 16}, "d2cache(current_k=2, rollout_p=0, inflate_w=0)"
    )
    left_out = [len(rows) - np.isin(rows, plan.queries).sum() for _, _, rows, plan in plans]
    assert left_out[0] == 0
    assert max(left_out) > 5
    sizes = [len(plan.queries) for *_, plan in plans]
    assert sizes[0] == 19
    assert max(sizes[1:]) <= 2 + 1 + 1  # two to decode, one just decoded, one looked at


def test_d2cache_knobs_at_their_ends():
    llm = tiny_llm("llada", 0)

    def sizes(cache):
        return [
            len(plan.queries) for *_, plan in recorded(llm, "vanilla", {"block_length": 16}, cache)
        ][1:]

    narrow = sizes("d2cache(current_k=1, rollout_p=0, inflate_w=0)")
    assert max(narrow) <= 3
    assert sum(sizes("d2cache(current_k=1, rollout_p=0.5, inflate_w=0)")) > sum(narrow)
    assert sum(sizes("d2cache(current_k=1, rollout_p=0, inflate_w=8)")) > sum(narrow)
    assert set(sizes("d2cache(current_k=1, rollout_p=1)")) == {19}


def test_klass_pushes_no_history_for_rows_that_were_not_computed():
    """A position that d2cache left out for a forward begins its history anew: +inf, not a stale number."""
    llm = tiny_llm("llada", 1)
    seen = []
    decoder = parse_method(
        "klass", knobs={"block_length": 16, "threshold": 0.05, "kl_threshold": 9.0}
    ).decoder
    step = type(decoder).step

    def watch(self, canvas, state, reading):
        seen.append(
            dict(
                zip(
                    canvas.uid[reading.positions].tolist(),
                    reading.stats["kl"].tolist(),
                    strict=True,
                )
            )
        )
        return step(self, canvas, state, reading)

    type(decoder).step = watch
    try:
        llm.generate([[7, 8, 9]], "klass", "d2cache(current_k=2, rollout_p=0, inflate_w=0)", gen_length=16,
                     block_length=16, stop_at_eos=False)  # fmt: skip
    finally:
        type(decoder).step = step
    for before, now in zip(seen, seen[1:], strict=False):
        for uid, divergence in now.items():
            assert np.isinf(divergence) == (uid not in before)
    assert any(np.isinf(list(now.values())).any() for now in seen[1:])


def test_prophet_reads_its_answer_span_under_caches_that_skip_it():
    llm = tiny_llm("llada", 2)
    for cache in ("dual", "d2cache(current_k=1, rollout_p=0)"):
        knobs = {"inner": "vanilla", "block_length": 4, "answer_start": 12, "answer_length": 3,
                 "gap_thresholds": [99.0, 99.0, 99.0]}  # fmt: skip
        for _, ask, _, plan in recorded(llm, "prophet", knobs, cache):
            assert np.isin([15, 16, 17], ask.rows).all()
            assert np.isin([15, 16, 17], plan.queries).all()


# what is computed


@every_family
def test_wino_leaves_no_trace_of_its_shadow_in_the_store(family):
    """The same positions with and without shadows leave the same keys and values behind."""
    model = tiny_model(family, 3)
    canvas = canvas_of([1, 2, 3, 4], 6)
    positions = np.arange(len(canvas))
    stores = [DenseStore(model.spec, 1, 10, torch.float32, torch.device("cpu")) for _ in range(2)]
    compute(model, stores[0], canvas, positions)
    meta = RowMeta(
        0, positions, 10, np.concatenate((positions, [3, 4, 5])), shadows=np.array([3, 4, 5])
    )
    ids = torch.from_numpy(np.concatenate((canvas.tokens, [60, 60, 60])))
    with torch.inference_mode():
        backend = PackedAttention([meta], stores[1], None, torch.device("cpu"))
        model.hidden(ids, torch.from_numpy(meta.position_ids), backend=backend)
    for layer in range(model.spec.num_layers):
        assert torch.allclose(stores[0].keys[layer], stores[1].keys[layer][:, :, :10], atol=1e-5)
        assert torch.allclose(
            stores[0].values[layer], stores[1].values[layer][:, :, :10], atol=1e-5
        )


def naive_rollout(maps, queries, size):
    """Matrix products, as published."""
    product = torch.eye(size, dtype=torch.float64)
    for seen in maps:
        whole = torch.eye(size, dtype=torch.float64)
        whole[queries] = seen.double()
        layer = whole + torch.eye(size, dtype=torch.float64)
        product = (layer / layer.sum(dim=-1, keepdim=True)) @ product
    return product.sum(dim=0)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), layers=st.integers(1, 5))
def test_the_rollout_of_vectors_equals_the_product_of_matrices(seed, size, layers):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(size, generator=generator) < 0.6
    queries = torch.arange(size)[chosen]
    maps = [torch.rand(len(queries), size, generator=generator).softmax(-1) for _ in range(layers)]
    found = rollout([each[None] for each in maps], queries[None], size)[0]
    assert torch.allclose(found.double(), naive_rollout(maps, queries, size), atol=1e-5)
    assert float(found.sum()) == pytest.approx(size, rel=1e-5)


@every_family
@pytest.mark.parametrize("most", [1 << 24, 100])
def test_weighted_attention_gives_outputs_and_the_mean_of_its_weights(family, most, monkeypatch):
    """The outputs against PyTorch's attention, the weights against loops; in one part and in several."""
    monkeypatch.setattr(rollouts, "MAX_SCORES", most)
    generator = torch.Generator().manual_seed(0)
    spec = tiny_spec(family)
    q = torch.randn(2, 5, spec.num_heads, spec.head_dim, generator=generator)
    keys, values = (
        torch.randn(2, spec.num_kv_heads, 7, spec.head_dim, generator=generator) for _ in range(2)
    )
    visible = torch.rand(2, 1, 5, 7, generator=generator) < 0.7
    visible[..., 0] = True
    shared = spec.num_heads // spec.num_kv_heads
    wanted = torch.zeros(2, 5, 7)
    for row, head, i in np.ndindex(2, spec.num_heads, 5):
        scores = keys[row, head // shared] @ q[row, i, head] / spec.head_dim**0.5
        scores[~visible[row, 0, i]] = -torch.inf
        wanted[row, i] += scores.softmax(-1) / spec.num_heads
    output, mean = weighted_attention(q, keys, values, ~visible)
    assert torch.allclose(mean, wanted, atol=1e-6)
    assert torch.allclose(output, attention(q, keys, values, visible), atol=1e-6)


def rotated(model, heads, size):
    """Half-rotate by place / theta^(2i / width)."""
    half = model.spec.head_dim // 2
    angle = torch.arange(size)[:, None, None] / model.spec.rope_theta ** (torch.arange(half) / half)
    heads = heads.unflatten(-1, (-1, 2 * half))
    low, high = heads[..., :half], heads[..., half:]
    return torch.cat(
        (low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()), -1
    )


def naive_dllm(model, tokens, prompt, kept, response_due, prompt_due, share):
    """One forward of dLLM-Cache in plain loops; `kept` holds a dictionary a layer."""
    size = len(tokens)
    x = model.embed(torch.tensor(tokens))
    for number, layer in enumerate(model.layers):
        own = kept.setdefault(number, {})
        normed = layer.attn_norm(x)
        values = layer.attn.v(normed)
        both = number == 0
        chosen = list(range(prompt)) if both or prompt_due else []
        if both or response_due:
            chosen += range(prompt, size)
        else:
            alike = [
                torch.nn.functional.cosine_similarity(values[i], own["v"][i], dim=0).item()
                for i in range(prompt, size)
            ]
            order = sorted(range(size - prompt), key=lambda i: alike[i])
            chosen += sorted(prompt + i for i in order[: int(share * (size - prompt))])
        fresh = set(chosen) | set(range(prompt, size))
        own["v"] = torch.stack([values[i] if i in fresh else own["v"][i] for i in range(size)])
        q, k = (rotated(model, part(normed), size) for part in (layer.attn.q, layer.attn.k))
        old = own.get("k")
        own["k"] = torch.stack([k[i] if i in chosen else old[i] for i in range(size)])
        out = {}
        for i in chosen:
            heads = []
            for head in range(model.spec.num_heads):
                group = head // (model.spec.num_heads // model.spec.num_kv_heads)
                width = model.spec.head_dim
                part = slice(group * width, (group + 1) * width)
                scores = own["k"][:, group] @ q[i, head] / width**0.5
                heads.append(scores.softmax(-1) @ own["v"][:, part])
            out[i] = layer.attn.o(torch.cat(heads))
        old = own.get("a")
        own["a"] = torch.stack([out[i] if i in out else old[i] for i in range(size)])
        x = x + own["a"]
        fed = {i: layer.ffn(layer.ffn_norm(x[i])) for i in chosen}
        old = own.get("f")
        own["f"] = torch.stack([fed[i] if i in fed else old[i] for i in range(size)])
        x = x + own["f"]
    return model.norm(x)


@every_family
@torch.inference_mode()
def test_dllm_computes_what_plain_loops_compute(family):
    """States of seven forwards, tokens changing in between, against position by position loops."""
    model = tiny_model(family, 4)
    policy = make_cache("dllm(kp=3, kr=4, rou=0.4)")
    canvas = canvas_of([1, 2, 3, 4], 7, prompt=4)
    store = FeatureStore(model.spec, 1, len(canvas), torch.float32, torch.device("cpu"))
    state, kept = policy.start(canvas, None), {}
    for number in range(7):
        plan, state = policy.plan(canvas, None, None, state)
        meta = RowMeta(0, plan.queries, len(canvas), plan.queries)
        backend = LayeredAttention(
            [FeatureRowMeta(meta, plan.layers)], store, None, torch.device("cpu")
        )
        ids = torch.from_numpy(canvas.tokens)
        ours = model.hidden(ids, torch.arange(len(canvas)), backend=backend)
        wanted = naive_dllm(
            model, canvas.tokens.tolist(), 4, kept, number % 4 == 0, number % 3 == 0, 0.4
        )
        assert torch.allclose(ours, wanted, atol=2e-5), number
        position = canvas.open_positions()[number % canvas.num_open]
        edit = Edit(
            commit=np.array([position]), tokens=np.array([number]), confidence=np.array([0.5])
        )
        before, canvas = canvas, apply(canvas, edit, number)
        state = policy.observe(before, canvas, None, state)
        assert not len(state.forced)


# memory and work


@every_family
@pytest.mark.parametrize("name", [*CACHES, "dkv(inner=dllm)"])
def test_the_memory_of_the_reference_page_is_what_is_allocated(name, family):
    llm = tiny_llm(family)
    output = generate(llm, [[1, 2, 3]], "vanilla", name, {})[0]
    spec = llm.spec
    numbers = numbers_per_position("dllm" if "dllm" in name else name, spec)
    assert output.cache_bytes == numbers * spec.num_layers * 11 * 4
    formula = {0: "0", 2 * spec.num_kv_heads * spec.head_dim: "2 G A"}.get(numbers, "2 G A + 2 D")
    if "(" not in name and name != "dkv":
        assert f"[`{name}`](#{name})" in markdown()
        row = next(line for line in markdown().splitlines() if line.startswith(f"| [`{name}`]"))
        assert row.endswith(f"| {formula} |")


def test_the_store_has_no_more_room_than_it_was_asked_for():
    spec = tiny_spec()
    made = DenseStore(spec, 3, 10, torch.float32, torch.device("cpu"))
    total = sum(tensor.nbytes for tensors in made.tensors for tensor in tensors)
    assert total == 3 * 10 * 2 * spec.num_kv_heads * spec.head_dim * spec.num_layers * 4
    assert made.bytes_per_position * 30 == total
    features = FeatureStore(spec, 3, 10, torch.float32, torch.device("cpu"))
    assert (
        features.bytes_per_position
        == made.bytes_per_position + 2 * spec.d_model * spec.num_layers * 4
    )


def test_a_steady_forward_writes_in_place_and_grows_nothing(monkeypatch):
    """The store's tensors stay the same objects of the same size, shadows and insertions included."""
    grown = []
    monkeypatch.setattr(
        torch, "cat",
        lambda parts, *a, _cat=torch.cat, **k: (
            grown.append(sum(p.numel() for p in parts)), _cat(parts, *a, **k)
        )[1],
    )  # fmt: skip
    llm = tiny_llm("llada")
    llm.generate([[1] * 60], "vanilla", "dual", gen_length=8, block_length=8, stop_at_eos=False)
    steady = sorted(grown)[:-10]
    assert max(steady, default=0) < 60 * llm.spec.d_model


def test_rows_that_refresh_do_not_widen_the_others(monkeypatch):
    """The linear layers see exactly the queries that were planned."""
    llm = tiny_llm("llada")
    rows = []
    plain = type(llm.model.layers[0].ffn).forward
    monkeypatch.setattr(
        type(llm.model.layers[0].ffn),
        "forward",
        lambda self, x: (rows.append(len(x)), plain(self, x))[1],
    )
    prompts = [[1] * n for n in (3, 30, 9)]
    outputs = llm.generate(prompts, "threshold", "dual", gen_length=8, block_length=4, threshold=0.3,
                           stop_at_eos=False)  # fmt: skip
    assert sum(rows) == llm.spec.num_layers * sum(o.num_queries for o in outputs)


# names and knobs


@pytest.mark.parametrize(
    ("cache", "args", "message"),
    [
        ("dul", None, "did you mean 'dual'"),
        ("dllm", {"kq": 1}, "did you mean 'kr'"),
        ("dllm(kp=0)", None, "kp=0 must be at least 1"),
        ("dllm(rou=2)", None, "rou=2.0 must be between 0 and 1"),
        ("dllm(kp=2)", {"kp": 3}, "contradict"),
        ("d2cache(rollout_p=-1)", None, "rollout_p=-1.0 must be between 0 and 1"),
        ("d2cache(current_k=0)", None, "current_k=0 must be at least 1"),
        ("d2cache(sigma=0)", None, "sigma=0.0 must be greater than 0"),
        ("d2cache(inflate_w=-1)", None, "inflate_w=-1 must be at least 0"),
        ("vicinity(prefix_look=-1)", None, "prefix_look=-1 must be at least 0"),
        ("vicinity(cache_update_freq=0)", None, "cache_update_freq=0 must be at least 1"),
        ("dkv(delay=0)", None, "delay=0 must be at least 1"),
        ("dkv(interval=0)", None, "interval=0 must be at least 1"),
        ("dkv(inner=none)", None, "leaves nothing to delay"),
        ("dkv(inner=dkv)", None, "leaves nothing to delay"),
        ("dkv(kp=3)", None, "unknown knob for cache 'dkv'"),
        ("dkv(inner=dllm, kq=3)", None, "did you mean 'kr'"),
        ("none(kp=3)", None, "unknown knob for cache 'none'"),
        ("block_causal", None, "every position attends to every other"),
        ("dual", 5, "cache_args=5 must map"),
    ],
)  # fmt: skip
def test_what_a_cache_cannot_be_is_refused_with_the_reason(cache, args, message):
    with pytest.raises(ConfigError, match="(?s)" + message.replace("(", "\\(")):
        tiny_llm("llada").generate([[1]], "vanilla", cache, cache_args=args, gen_length=4)


def test_three_spellings_of_a_knob_are_one():
    llm = tiny_llm("llada")
    options = {"gen_length": 8, "block_length": 4}
    made = [
        llm.generate([[1]], "vanilla", "dllm(kp=9, kr=3)", **options),
        llm.generate([[1]], "vanilla", "dllm", cache_args={"kp": 9, "kr": "3"}, **options),
        llm.generate([[1]], "vanilla", "dllm", **{"cache.kp": 9, "cache.kr": 3}, **options),
    ]
    assert {out[0].cache for out in made} == {"dllm(kp=9, kr=3)"}


def test_a_policy_describes_itself_so_that_it_can_be_made_again():
    for text in (
        "none",
        "dllm(kp=9)",
        "dkv(inner=dllm(kr=5), delay=2)",
        "vicinity(cache_update_freq=4)",
    ):
        assert describe(make_cache(text)) == text
        assert make_cache(describe(make_cache(text))) == make_cache(text)


def test_plans_are_values():
    plan = CachePlan(np.arange(3))
    assert replace(plan, needs_importance=True).needs_importance
    assert not plan.needs_importance


def sorted_choice(policy, chosen, importance):
    """The most attended positions by a full sort, and gaps by a loop."""
    others = np.flatnonzero(~chosen)
    order = others[np.argsort(-importance[others], kind="stable")]
    shares = np.cumsum(importance[order]) / max(importance[others].sum(), 1e-9)
    count = max(1, int((shares <= policy.rollout_p).sum())) if policy.rollout_p < 1 else len(order)
    selected = set(order[:count].tolist())
    places_ = sorted(selected | set(np.flatnonzero(chosen).tolist()))
    filled = set(places_)
    for first, second in zip(places_, places_[1:], strict=False):
        if second - first <= policy.inflate_w:
            filled |= set(range(first, second))
    return selected, filled


@settings(max_examples=200)
@given(data=st.data())
def test_d2cache_chooses_what_a_full_sort_chooses_ties_included(data):
    importance = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 2.0]), min_size=1, max_size=30))
    )
    whole = len(importance)
    chosen = np.zeros(whole, dtype=np.bool_)
    chosen[list(data.draw(st.sets(st.integers(0, whole - 1))))] = True
    share = data.draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.99, 1.0]))
    policy = make_cache("d2cache", {"rollout_p": share, "inflate_w": data.draw(st.integers(0, 5))})
    selected = policy.most_attended(chosen, importance)
    if chosen.all():
        assert not selected.any()
        return
    expected, filled = sorted_choice(policy, chosen, importance)
    assert set(np.flatnonzero(selected).tolist()) == expected
    assert set(np.flatnonzero(policy.fill_gaps(chosen | selected)).tolist()) == filled
