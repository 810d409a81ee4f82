"""How long a text must be at least, told before it is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unmask import LLM
from unmask.engine.llm import LLM as AnyLLM
from unmask.engine.tokenizer import max_token_characters
from unmask.errors import LengthError, PromptError

MARKS = "\u0301\u0313\u0345\u03b1ae 1\n\U0001f642<|a|>"


def byte_level(normalizer=None, split=None, added=()):
    """A tokenizer that knows all bytes and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: number for number, word in enumerate([*alphabet, "aa", "aaaa"])}
    made = Tokenizer(models.BPE(vocab, [("a", "a"), ("aa", "aa")]))
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence([*([split] if split else []), *steps])
    if normalizer is not None:
        made.normalizer = normalizer
    made.add_special_tokens([AddedToken("<|a|>", special=True), *added])
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC(), normalizers.NFKD()])
def test_no_text_has_fewer_tokens_than_its_characters_allow(normalizer):
    tokenizer = byte_level(normalizer)
    most = max_token_characters(tokenizer)
    assert most == (5 if normalizer is None else 20), "<|a|>"

    @given(st.text(st.sampled_from(MARKS) | st.characters(exclude_categories=["Cs"])))
    def holds(text):
        assert len(text) <= most * len(tokenizer(text)["input_ids"])

    holds()


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(normalizers.Lowercase()),
        byte_level(normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
        byte_level(split=pre_tokenizers.Split(Regex(r"\s"), "removed")),
        byte_level(split=pre_tokenizers.WhitespaceSplit()),
        byte_level(added=[AddedToken("<|b|>", lstrip=True)]),
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))),
        object(),
    ],
)
def test_where_characters_may_vanish_there_is_no_bound(tokenizer):
    assert max_token_characters(tokenizer) is None


@pytest.fixture(scope="module")
def demo() -> AnyLLM:
    return LLM("demo", device="cpu")


def test_a_text_that_cannot_fit_is_refused_unread(demo, monkeypatch):
    def read(*_, **__):
        raise AssertionError("it was read")

    longest = max_token_characters(demo.tokenizer) * demo.spec.max_length
    monkeypatch.setattr(type(demo.tokenizer), "encode", read)
    said = f"{longest + 1} characters is at least 1025 tokens .* context is 1024"
    for ask in (
        lambda text: demo.prompt_ids(text, raw=True),
        lambda text: demo.chat_ids([{"role": "user", "content": text}]),
    ):
        with pytest.raises(LengthError):
            ask("a" * (longest + 1))
    with pytest.raises(LengthError, match=said):
        demo.prompt_ids("a" * (longest + 1), raw=True)
    with pytest.raises(PromptError, match="it was read"):
        demo.prompt_ids("a" * longest, raw=True)
