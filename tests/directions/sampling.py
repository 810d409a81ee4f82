"""Sampling parameters, with decoder vanilla."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from tiny import EOS, KNOWN, MASK, TURN_END, VOCAB, trace_of, want

from unmask.errors import ConfigError
from unmask.models.transformer import Transformer

from .registry import direction
from .stubs import (
    LENGTH,
    POSITIONS,
    PROMPT,
    decode,
    notes,
    order,
    random_llm,
    table,
    table_llm,
    tokens,
)

NAME = "sampling"
ROWS = table(11)


def drawn(seed: int = 0, **knobs: object) -> list[int]:
    return tokens(decode(table_llm(ROWS), "vanilla", block_length=LENGTH, seed=seed, **knobs))


GREEDY = ROWS[POSITIONS].argmax(-1).tolist()


@direction("temperature", NAME, ends="0, large")
@direction("top_p", NAME, ends="0, 1, default")
@direction("top_k", NAME, ends="1, -1 or 0, default")
@direction("min_p", NAME, ends="0, 1")
def which_tokens_are_drawn(name: str) -> None:
    assert drawn(0) == drawn(1) == GREEDY
    assert drawn(0, temperature=1e-6) == GREEDY
    wild = [
        token for seed in range(40) for token in drawn(seed, temperature=1e6, remasking="random")
    ]
    counts = torch.bincount(torch.tensor(wild), minlength=VOCAB)
    assert (counts[:58] > 0).all()
    assert counts.max() < 40, "11 are expected of each token"
    hot = {"temperature": 5.0}
    plain = drawn(**hot)
    assert plain != GREEDY
    for alone in ({"top_p": 0.0}, {"top_k": 1}, {"min_p": 1.0}):
        assert drawn(**hot, **alone) == GREEDY, alone
    for everything in ({"top_p": 1.0}, {"top_k": -1}, {"top_k": 0}, {"min_p": 0.0}):
        assert drawn(**hot, **everything) == plain, everything


@direction("cfg_scale", NAME, ends="0, large")
def the_prompt_is_followed(name: str) -> None:
    llm = random_llm()
    plain = decode(llm, "vanilla", block_length=LENGTH)
    assert trace_of(decode(llm, "vanilla", block_length=LENGTH, cfg_scale=0.0)) == trace_of(plain)
    ids = torch.tensor([[*PROMPT, *[MASK] * LENGTH], [*[MASK] * 3, *[MASK] * LENGTH]])
    given, hidden = llm.model(ids)
    away = given - hidden
    away[:, [MASK, *range(KNOWN, VOCAB)]] = -torch.inf
    out = decode(llm, "vanilla", block_length=LENGTH, cfg_scale=1e6)
    position, token = trace_of(out)[0][0]
    assert token == int(away[position].argmax())


@direction("logits_eos_inf", NAME, ends="true, false")
@direction("confidence_eos_eot_inf", NAME, ends="true, false")
@direction("compat", NAME, ends="true, false")
def end_tokens_can_be_held_back(name: str) -> None:
    rows = ROWS.clone()
    rows[POSITIONS[:8:2], EOS] = 30.0
    rows[POSITIONS[1:8:2], TURN_END] = 30.0
    llm = table_llm(rows)

    def run(**knobs: object):
        return decode(llm, "vanilla", block_length=LENGTH, **knobs)

    assert set(order(run())[:8]) == set(POSITIONS[:8])
    assert tokens(run(logits_eos_inf=True)).count(EOS) == 0
    assert tokens(run(logits_eos_inf=True)).count(TURN_END) == 4
    late = run(confidence_eos_eot_inf=True)
    assert set(order(late)[8:]) == set(POSITIONS[:8])
    assert tokens(late) == tokens(run())
    warm = {"confidence_eos_eot_inf": True, "temperature": 1e-6}
    assert set(order(run(**warm))[8:]) == set(POSITIONS[:8])
    quirk = order(run(**warm, compat=True))
    assert set(quirk[:4]) == set(POSITIONS[:8:2]), "end-of-text keeps its confidence"
    assert set(quirk[12:]) == set(POSITIONS[1:8:2])


@direction("drop_after_eos", NAME, ends="true, false")
def positions_behind_the_end(name: str) -> None:
    rows = ROWS.clone()
    rows[POSITIONS[9], EOS] = 30.0
    kept, dropped = (
        decode(
            table_llm(rows), "vanilla", block_length=LENGTH, drop_after_eos=drop, stop_at_eos=True
        )
        for drop in (False, True)
    )
    assert kept.num_forwards == LENGTH
    assert dropped.num_queries < kept.num_queries
    assert max(order(dropped)[1:]) < POSITIONS[9]


def columns(monkeypatch: pytest.MonkeyPatch, **knobs: object) -> list[int]:
    """The number of tokens that the LM head computes, by forward."""
    sizes, plain = [], Transformer.head

    def head(self, hidden, ids=None):  # type: ignore[no-untyped-def]
        sizes.append(VOCAB if ids is None else len(ids))
        return plain(self, hidden, ids)

    monkeypatch.setattr(Transformer, "head", head)
    decode(random_llm(3, 6.0), "vanilla", block_length=LENGTH, **knobs)
    monkeypatch.setattr(Transformer, "head", plain)
    return sizes


@direction("vocabulary", NAME, ends="none, static, adaptive, frequency, union")
@direction("vocab_size", NAME, ends="small, large, default")
@direction("max_missed", NAME, ends="0, 1")
@direction("frequencies", NAME, ends="none")
def tokens_that_count(name: str) -> None:
    llm = random_llm(3)

    def run(**knobs: object):
        return decode(llm, "threshold", block_length=LENGTH, **knobs)

    plain = run()
    assert trace_of(run(vocabulary="none")) == trace_of(plain)
    for kind in ("static", "union"):
        assert trace_of(run(vocabulary=kind, vocab_size=VOCAB)) == trace_of(plain)
        assert trace_of(run(vocabulary=kind)) == trace_of(plain), "1000 are all"
    assert run(vocabulary="static", vocab_size=1).num_forwards == 1, "alone it is certain"
    assert all(35 <= size <= VOCAB for size in notes(run(vocabulary="adaptive"), "vocab_size"))
    with pytest.MonkeyPatch.context() as patch:
        small, large = (columns(patch, vocabulary="union", vocab_size=s) for s in (1, VOCAB))
        strict = columns(patch, vocabulary="union", vocab_size=1, max_missed=0.0)
    assert set(large) == {VOCAB}
    assert small[0] == VOCAB > max(small[1:])
    assert strict.count(VOCAB) > small.count(VOCAB)
    with tempfile.TemporaryDirectory() as folder:
        from unmask.sampling.token_frequencies import save_background

        file = Path(folder) / "counts.json"
        save_background(file, {5: 90, 6: 50, 11: 40, 12: 1})
        found = run(vocabulary="frequency", vocab_size=3, frequencies=str(file))
        assert set(tokens(found)) <= {5, 6, 11, EOS, TURN_END}
    with pytest.raises(ConfigError, match="needs frequencies=FILE"):
        run(vocabulary="frequency")


@direction("constraints", NAME, ends="default")
def tokens_that_are_given(name: str) -> None:
    llm = want(random_llm(), 5)
    out = decode(llm, "vanilla", constraints={2: 9, 7: 11})
    assert tokens(out) == [5, 5, 9, 5, 5, 5, 5, 11, *[5] * 8]
    assert out.num_forwards == LENGTH - 2
    assert tokens(decode(llm, "vanilla")) == [5] * LENGTH
