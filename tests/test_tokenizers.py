"""Every family's tokenizer and chat template, read through transformers without remote code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from unmask import LLM, decoders
from unmask.engine.token_text import TokenTexts
from unmask.engine.tokenizer import load_tokenizer
from unmask.errors import PromptError

FIXTURES = Path(__file__).parent / "fixtures"
FILES = {"llada_moe": "llada2_moe"}
MASK = {
    "llada": ("<|mdm_mask|>", 1000),
    "dream": ("<|mask|>", 1004),
    "llada_moe": ("<|mask|>", 1004),
    "llada2_moe": ("<|mask|>", 1004),
    "sdar": ("<|MASK|>", 1004),
    "fast_dllm_v2": ("|<MASK>|", 1004),
}
STOPS = {
    "llada": {"<|endoftext|>": 961, "<|eot_id|>": 1012},
    "dream": {"<|endoftext|>": 1000, "<|im_end|>": 1002},
    "llada_moe": {"<|endoftext|>": 1001, "<|role_end|>": 1007},
    "llada2_moe": {"<|endoftext|>": 1001, "<|role_end|>": 1007},
    "sdar": {"<|endoftext|>": 1000, "<|im_end|>": 1002},
    "fast_dllm_v2": {"<|endoftext|>": 1000, "<|im_end|>": 1002},
}
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi {x}"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "2 < 3"},
]
QWEN = (
    "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi {x}<|im_end|>\n"
    "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\n2 < 3<|im_end|>\n"
    "<|im_start|>assistant\n"
)
LLADA = (
    "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi {x}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n2 < 3<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
ROLES = (
    "<role>SYSTEM</role>Be short.<|role_end|><role>HUMAN</role>Hi {x}<|role_end|>"
    "<role>ASSISTANT</role>Yes?<|role_end|><role>HUMAN</role>2 < 3<|role_end|>"
    "<role>ASSISTANT</role>"
)
RENDERED = {
    "llada": LLADA,
    "dream": QWEN,
    "llada_moe": ROLES,
    "llada2_moe": ROLES,
    "sdar": QWEN,
    "fast_dllm_v2": QWEN,
}
TEXTS = (
    "import os\n\ndef f(x):\n\treturn x ** 2",
    " two  spaces ",
    "naïve 漢字 🙂",
    "<|not_a_token|>",
)


def source(family):
    return FIXTURES / "tokenizers" / FILES.get(family, family)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A family's tiny checkpoint with its tokenizer, as a released folder has it."""
    loaded = {}

    def get(family):
        if family not in loaded:
            folder = tmp_path_factory.mktemp(family)
            for name in ("config.json", "model.safetensors"):
                shutil.copy(FIXTURES / "parity" / family / name, folder)
            for path in source(family).iterdir():
                shutil.copy(path, folder)
            loaded[family] = LLM(folder, dtype="float32", device="cpu")
        return loaded[family]

    return get


@pytest.mark.parametrize("family", MASK)
def test_text_comes_back_as_it_was(family, llm):
    tokenizer = llm(family).tokenizer
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert max(ids) < min(STOPS[family].values()), "nothing special in it"


@pytest.mark.parametrize("family", MASK)
def test_the_chat_template_gives_the_familys_own_text(family, llm):
    tokenizer = llm(family).tokenizer
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert rendered == RENDERED[family]
    ids = llm(family).chat_ids(CHAT)
    assert tokenizer.decode(ids) == rendered, "no further special token is added"
    for text, id_ in STOPS[family].items():
        assert ids.count(id_) == rendered.count(text)


@pytest.mark.parametrize("family", MASK)
def test_a_role_that_the_template_does_not_know_is_refused_or_written_out(family, llm):
    messages = [{"role": "critic", "content": "no"}]
    if family in ("llada_moe", "llada2_moe"):
        with pytest.raises(PromptError, match="chat template (refuses|fails)"):
            llm(family).chat_ids(messages)
    else:
        assert "critic" in llm(family).tokenizer.decode(llm(family).chat_ids(messages))


@pytest.mark.parametrize("family", MASK)
def test_the_end_of_a_turn_stops_an_answer_as_the_end_of_text_does(family, llm):
    own = llm(family)
    assert own.tokenizer.get_vocab()[own.spec.turn_end] in own.stop_ids
    assert own.spec.eos_id in own.stop_ids
    ends = set(STOPS[family].values())
    assert own.stop_ids == (ends if family != "fast_dllm_v2" else {1002}), "its eos is <|im_end|>"


@pytest.mark.parametrize("family", MASK)
def test_the_masks_text_is_one_token_that_comes_back(family, llm):
    text, id_ = MASK[family]
    tokenizer = llm(family).tokenizer
    assert llm(family).spec.mask_id == id_
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == [id_]
    sentence = f"what does {text} mean"
    ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
    assert ids.count(id_) == 1
    assert tokenizer.decode(ids) == sentence


@pytest.mark.parametrize("family", MASK)
def test_the_masks_text_in_a_prompt_is_never_undecided(family, llm):
    text, id_ = MASK[family]
    own = llm(family)
    prompt = f"repeat {text} twice {text}"
    canvas = own.prompt_canvas(prompt, 16)
    masked = canvas.tokens[: canvas.prompt_length] == id_
    assert masked.sum() == 2
    assert canvas.open.sum() == 16
    assert not canvas.open[: canvas.prompt_length].any()
    assert text in own.tokenizer.decode(canvas.tokens[: canvas.prompt_length].tolist())
    asked = own.prompt_ids(prompt)
    for cache in ("none", "auto"):
        out = own.generate(
            prompt, "threshold", cache, gen_length=16, block_length=16, return_trace=True
        )[0]
        assert out.canvas_ids[: out.prompt_length] == asked
        assert id_ not in out.canvas_ids[out.prompt_length :]
        told = {commit.position for step in out.trace for commit in step.committed}
        assert min(told) >= out.prompt_length


@pytest.mark.parametrize("decoder", decoders.names())
def test_no_decoder_takes_the_masks_text_of_a_prompt_for_a_position(decoder, llm):
    own = llm("llada")
    text, id_ = MASK["llada"]
    prompt = f"a {text} b {text}"
    options = {"gen_length": 16}
    if decoders.finds_length(decoder):
        options = {"initial_gen_length": 16, "max_gen_length": 16}
    out = own.generate(prompt, decoder, return_trace=True, stop_at_eos=False, **options)[0]
    asked = own.prompt_ids(prompt)
    assert out.canvas_ids[: len(asked)] == asked
    assert asked.count(id_) == 2
    assert id_ not in out.canvas_ids[len(asked) :]


def test_a_blank_beside_the_masks_text_is_filled_and_the_text_stays(llm):
    own = llm("llada")
    text, id_ = MASK["llada"]
    out = own.infill([f"see {text} and ", 3, f" not {text}"])
    assert out.canvas_ids.count(id_) == 2
    assert len(out.token_ids) == 3
    assert id_ not in out.token_ids


def slow_files(family, folder):
    """The files of Qwen2's slow tokenizer, as Dream's release has them: no `tokenizer.json`."""
    content = json.loads((source(family) / "tokenizer.json").read_text())
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
    ]
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    shutil.copy(source(family) / "tokenizer_config.json", folder)


@pytest.mark.parametrize("family", ["dream", "sdar", "fast_dllm_v2"])
def test_qwens_slow_files_give_the_same_ids_whatever_class_they_name(family, tmp_path, llm):
    slow_files(family, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenization_dream.py").write_text("raise SystemExit('remote code was run')")
    slow, fast = load_tokenizer(tmp_path), llm(family).tokenizer
    for text in (*TEXTS, RENDERED[family], f"a {MASK[family][0]} b"):
        ids = fast(text, add_special_tokens=False)["input_ids"]
        assert slow(text, add_special_tokens=False)["input_ids"] == ids
        assert slow.decode(ids) == text
    rendered = slow.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert rendered == RENDERED[family]


@pytest.mark.parametrize("family", MASK)
def test_a_chat_template_in_a_file_of_its_own_is_read(family, tmp_path, llm):
    for path in source(family).iterdir():
        shutil.copy(path, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "chat_template.jinja").write_text(config.pop("chat_template"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_tokenizer(tmp_path)
    rendered = found.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert rendered == RENDERED[family]


MIXED = "Größe 7\u00a0€ — \U0001f642 日本 \x00\t\r\n\ufffd end"


@pytest.mark.parametrize("family", sorted({FILES.get(name, name) for name in MASK}))
def test_the_bytes_of_tokens_join_to_those_of_the_text_parts_of_characters_too(family):
    tokenizer = load_tokenizer(FIXTURES / "tokenizers" / family)
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(MIXED, add_special_tokens=False)
    pieces = [texts.data(id_) for id_ in ids]
    assert b"".join(pieces) == MIXED.encode()
    assert any("\ufffd" in piece.decode(errors="replace") for piece in pieces), (
        "parts are among them"
    )
    for name, id_ in tokenizer.get_added_vocab().items():
        assert texts.data(id_) == name.encode()
    assert texts.data(10**6) == b"", "no token"


def test_a_tokenizer_with_byte_fallback_has_the_bytes_of_its_pieces():
    from tokenizers import Tokenizer, models
    from tokenizers import decoders as stages
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "\u2581a": 257}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = stages.Sequence(
        [stages.Replace("\u2581", " "), stages.ByteFallback(), stages.Fuse()]
    )
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert [texts.data(byte + 1) for byte in "é".encode()] == [b"\xc3", b"\xa9"]
    assert texts.data(257) == b" a"
    assert TokenTexts(None).data(7) == b"<7>"
