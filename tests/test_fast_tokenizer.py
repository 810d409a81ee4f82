"""Folders read by the `tokenizers` library alone have the ids and texts that transformers gives them."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from tokenizers import decoders as stages
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unmask.engine.fast_tokenizer import NAMED, OTHER_OPTIONS, FastTokenizer, read_fast
from unmask.engine.text_pool import TextPool
from unmask.engine.tokenizer import load_tokenizer
from unmask.models import BUNDLED

FIXTURES = Path(__file__).parent / "fixtures"
FOLDERS = {path.name: path for path in sorted((FIXTURES / "tokenizers").iterdir())}
FOLDERS |= {"demo": BUNDLED["demo"], "golden": FIXTURES / "golden" / "tiny-llada"}
LLADA = FOLDERS["llada"]
PAIRS: dict[Path, tuple[FastTokenizer, PreTrainedTokenizerFast]] = {}


def pair(folder):
    """Return a folder's tokenizer as both libraries read it."""
    if folder not in PAIRS:
        fast = read_fast(folder)
        assert fast is not None, "the library alone can read it"
        PAIRS[folder] = fast, PreTrainedTokenizerFast.from_pretrained(str(folder))
    return PAIRS[folder]


def is_fast(tokenizer):
    return type(tokenizer) is FastTokenizer


def agree(folder, text):
    """Check the ids of a text, and the texts of these ids, in both forms."""
    fast, full = pair(folder)
    for special in (True, False):
        ids = full(text, add_special_tokens=special)["input_ids"]
        assert fast.encode(text, add_special_tokens=special) == ids
        assert full.encode(text, add_special_tokens=special) == ids
        for skip in (True, False):
            assert fast.decode(ids, skip_special_tokens=skip) == full.decode(
                ids, skip_special_tokens=skip
            )
        assert fast.convert_ids_to_tokens(ids) == full.convert_ids_to_tokens(ids)
    assert is_fast(fast)


PIECES = (
    " ",
    "  ",
    "\t",
    "\n",
    "\x00",
    "\u00a0",
    "\u200b",
    "\u3000",
    " ,",
    " n't",
    " 's",
    "don't",
    "e\u0301",
    "\u1f82",
    "\ufffd",
    "\U0001f642",
    "\u65e5\u672c",
    "2007",
    "def f(x):",
    "<unk>",
    "[MASK]",
    "[PAD]",
    "\u2581",
    "##ing",
)


def texts_for(folder):
    """Return a strategy of texts that contain the tokenizer's own special and added tokens."""
    added = [token.content for token in pair(folder)[0].added_tokens_decoder.values()]
    words = st.sampled_from((*PIECES, *added))
    free = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
    return st.lists(st.one_of(words, free), max_size=8).map("".join)


RUN = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_texts_are_those_of_transformers_for_every_fixture(name):
    @RUN
    @given(texts_for(FOLDERS[name]))
    def check(text):
        agree(FOLDERS[name], text)

    check()
    agree(FOLDERS[name], "")


@pytest.mark.parametrize("name", FOLDERS)
def test_vocabulary_and_special_tokens_are_those_of_transformers(name):
    fast, full = pair(FOLDERS[name])
    assert fast.get_vocab() == full.get_vocab()
    assert len(fast) == len(full)
    assert fast.vocab_size == full.vocab_size
    assert list(fast.special_tokens_map.items()) == list(full.special_tokens_map.items())
    assert fast.all_special_ids == full.all_special_ids
    assert repr(fast.added_tokens_decoder) == repr(full.added_tokens_decoder)
    assert fast.chat_template == full.chat_template
    for role in NAMED:
        assert getattr(fast, role) == getattr(full, role)
        assert getattr(fast, f"{role}_id") == getattr(full, f"{role}_id")
    beyond = max(fast.get_vocab().values()) + 5
    for ids in ([], [0, 1, 2], [beyond], [0, beyond], list(range(200))):
        for skip in (True, False):
            assert fast.decode(ids, skip_special_tokens=skip) == full.decode(
                ids, skip_special_tokens=skip
            )
            options = {"skip_special_tokens": skip}
            assert fast.convert_ids_to_tokens(ids, **options) == full.convert_ids_to_tokens(
                ids, **options
            )
        assert fast.convert_ids_to_tokens(beyond) is None
    assert fast.decode(1) == full.decode(1)
    assert is_fast(fast)


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_a_lone_surrogate_fails_in_the_same_words(text):
    fast, full = pair(LLADA)
    with pytest.raises(Exception) as expected:  # noqa: PT011 - whatever the library raises
        full(text)
    with pytest.raises(expected.type) as caught:
        fast.encode(text)
    assert str(caught.value) == str(expected.value)


def byte_level():
    backend = Tokenizer.from_file(str(LLADA / "tokenizer.json"))
    flags = {
        "<left>": {"lstrip": True},
        "<right>": {"rstrip": True},
        "<both>": {"lstrip": True, "rstrip": True},
        "word": {"single_word": True},
        "Norm": {"normalized": True},
    }
    backend.add_tokens([AddedToken(text, **each) for text, each in flags.items()])
    backend.add_special_tokens([AddedToken("<s>", special=True, lstrip=True), "</s>"])
    start, end = backend.token_to_id("<s>"), backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="$A $B", special_tokens=[("<s>", start), ("</s>", end)]
    )
    return backend, {"bos_token": "<s>", "eos_token": "</s>", "clean_up_tokenization_spaces": True}


def byte_fallback():
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocab |= {"\u2581": 257, "a": 258, "\u2581a": 259, "<s>": 260}
    backend = Tokenizer(models.BPE(vocab, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = stages.Sequence(
        [stages.Replace("\u2581", " "), stages.ByteFallback(), stages.Fuse()]
    )
    backend.add_special_tokens(["<unk>", "<s>"])
    return backend, {"unk_token": "<unk>", "bos_token": "<s>", "add_bos_token": True}


def unknown_words():
    vocab = {"[UNK]": 0, "def": 1, "don": 2, "'": 3, "t": 4, "2007": 5, "[MASK]": 6}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[UNK]", "[MASK]"])
    return backend, {"unk_token": "[UNK]", "mask_token": "[MASK]", "gmask_token": "[MASK]"}


def pieces_of_words():
    vocab = {"[UNK]": 0, "def": 1, "don": 2, "##ing": 3, "##t": 4, ",": 5, "'": 6, "n": 7}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = stages.WordPiece()
    return backend, {"extra_special_tokens": ["[UNK]"], "clean_up_tokenization_spaces": False}


def scores():
    vocab = [("<unk>", 0.0), ("\u2581", -1.0), ("a", -2.0), ("\u2581de", -2.5), ("f", -2.0)]
    backend = Tokenizer(models.Unigram(vocab, 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = stages.Metaspace()
    return backend, {"additional_special_tokens": ["<unk>"]}


def without_processor():
    backend, config = byte_level()
    content = json.loads(backend.to_str()) | {"post_processor": None}
    return Tokenizer.from_str(json.dumps(content)), config | {"add_eos_token": True}


KINDS = (byte_level, byte_fallback, unknown_words, pieces_of_words, scores, without_processor)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_other_kinds_of_tokenizers_have_the_ids_and_texts_of_transformers(kind, tmp_path):
    backend, config = kind()
    extra = [*config.get("extra_special_tokens", ()), *config.get("additional_special_tokens", ())]
    backend.add_special_tokens(extra)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    fast, full = pair(tmp_path)
    assert fast.all_special_ids == full.all_special_ids
    assert fast.special_tokens_map == full.special_tokens_map

    @RUN
    @given(texts_for(tmp_path))
    def check(text):
        agree(tmp_path, text)

    check()
    agree(tmp_path, "")
    agree(tmp_path, " a <left>  b<right>  c <both> d sword word <s> x </s> y")


def change(folder, **keys):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.fixture
def folder(tmp_path):
    for path in LLADA.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


TOKEN = {
    "content": "<|x|>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}


@pytest.mark.parametrize(
    "keys",
    [
        {"mask_token": "dog"},
        {"mask_token": {"content": "<|mdm_mask|>"}},
        {"sep_token": 7},
        {"own_token": "no token"},
        {"own_token": TOKEN | {"__type": "AddedToken"}},
        {"added_tokens_decoder": {"5": TOKEN}},
        {"added_tokens_decoder": {"961": TOKEN | {"content": "<|endoftext|>", "lstrip": True}}},
        {"added_tokens_decoder": {"961": TOKEN | {"unknown": 1}}},
        {"extra_special_tokens": {"image_token": "<|endoftext|>"}},
        {"extra_special_tokens": [TOKEN]},
        {"extra_special_tokens": ["no token"]},
        {"extra_special_tokens": [], "additional_special_tokens": ["<|endoftext|>"]},
        {"split_special_tokens": True},
        {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True},
        {"fix_mistral_regex": True},
        {"decode": "x"},
        {"chat_template": [{"name": "default", "template": "x"}]},
    ],
    ids=str,
)
def test_a_configuration_that_changes_the_tokenizer_is_left_to_transformers(keys, folder):
    change(folder, **keys)
    assert read_fast(folder) is None


@pytest.mark.parametrize("key", ["truncation", "padding"])
def test_lengths_in_the_file_are_left_to_transformers(key, folder):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if key == "truncation":
        backend.enable_truncation(5)
    else:
        backend.enable_padding(length=5)
    backend.save(str(folder / "tokenizer.json"))
    assert read_fast(folder) is None
    assert len(load_tokenizer(folder)("a b c d e f g h")["input_ids"]) > 5


def test_cleaning_of_word_pieces_is_left_to_transformers(tmp_path):
    backend, config = pieces_of_words()
    backend.add_special_tokens(["[UNK]"])
    backend.save(str(tmp_path / "tokenizer.json"))
    config |= {"clean_up_tokenization_spaces": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_fast(tmp_path) is None
    assert isinstance(load_tokenizer(tmp_path), PreTrainedTokenizerBase)


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json"])
def test_older_files_are_left_to_transformers_unless_the_configuration_replaces_them(name, folder):
    (folder / name).write_text("{}")
    assert read_fast(folder) is not None
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["added_tokens_decoder"]
    path.write_text(json.dumps(config))
    assert read_fast(folder) is None
    (folder / name).unlink()
    assert read_fast(folder) is not None


def test_a_folder_without_a_configuration_or_with_several_templates_is_left_to_transformers(folder):
    (folder / "additional_chat_templates").mkdir()
    assert read_fast(folder) is None
    (folder / "additional_chat_templates").rmdir()
    (folder / "tokenizer_config.json").unlink()
    assert read_fast(folder) is None


def test_any_other_call_makes_it_a_tokenizer_of_transformers():
    for use in (
        lambda tokenizer: tokenizer(["a", "b c"], padding=True, return_tensors="pt"),
        lambda tokenizer: tokenizer.batch_decode([[5, 6], [7]]),
        lambda tokenizer: tokenizer.decode([[5, 6], [7]]),
        lambda tokenizer: tokenizer.decode([5], clean_up_tokenization_spaces=True),
        lambda tokenizer: tokenizer.encode("a", return_tensors="pt"),
        lambda tokenizer: tokenizer.model_max_length,
    ):
        tokenizer = load_tokenizer(LLADA)
        assert is_fast(tokenizer)
        assert str(use(tokenizer)) == str(use(pair(LLADA)[1]))
        assert isinstance(tokenizer, PreTrainedTokenizerBase)


def test_a_change_is_seen_by_every_later_call(tmp_path):
    tokenizer = load_tokenizer(LLADA)
    tokenizer.chat_template = "{{ messages }}"
    assert is_fast(tokenizer)
    tokenizer.add_special_tokens({"mask_token": "<hole>"})
    id_ = tokenizer.get_vocab()["<hole>"]
    assert tokenizer.encode("<hole>", add_special_tokens=False) == [id_]
    assert id_ in tokenizer.all_special_ids
    assert tokenizer.chat_template == "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab()["<hole>"] == id_
    other = load_tokenizer(LLADA)
    other.pad_token = "<|startoftext|>"
    assert other.pad_token_id == 960


def test_a_copy_works_as_the_tokenizer_does():
    fast = read_fast(LLADA)
    for twin in (pickle.loads(pickle.dumps(fast)), copy.copy(fast)):
        assert is_fast(twin)
        assert twin.encode("a b") == fast.encode("a b")
        assert twin.chat_template == fast.chat_template
    full = fast.become_full()
    assert full is fast
    assert pickle.loads(pickle.dumps(full)).encode("a b") == fast.encode("a b")


def test_workers_use_it_as_the_process_does():
    fast = read_fast(LLADA)
    pool = TextPool(fast)
    messages = [{"role": "user", "content": "x"}]
    try:
        assert pool.encode("a b", special=True) == fast.encode("a b")
        there = pool.render(fast.chat_template, messages, {"add_generation_prompt": True})
        assert there == fast.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    finally:
        pool.stop()
    assert is_fast(fast)


def test_reading_encoding_and_rendering_do_not_import_transformers():
    code = """
import sys
from unmask.engine.tokenizer import load_tokenizer
from unmask.models import BUNDLED
own = load_tokenizer(BUNDLED["demo"])
own.decode(own.encode("a"))
own.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
print("transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi <b> & 'x' \u65e5"},
    {"role": "assistant", "content": " I think ", "tool_calls": None, "thinking": "hm"},
]
CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"x": [1, 2.5, None]}}}]
TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "stripped": "{% for m in messages %}\n    {{- m.content.strip() }}|\n{% endfor %}",
    "blocks": "  {% if true %}\n  x\n  {% endif %}\n{% for m in messages %}{{ loop.index }}\n{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ tools | tojson(indent=2) }}{{ 'é<' | tojson(ensure_ascii=true) }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.content }}"
    "{% endfor %}",
    "calls": "{% for m in messages %}{{ m.tool_calls is defined }}{{ m.tool_calls }}{% endfor %}",
    "namespace": "{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}"
    "{{ n.a }}",
    "hidden name": "{% set n = namespace(_a=1) %}{{ n._a }}",
    "hidden attribute": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "self in a namespace": "{% set n = namespace(self=3) %}{{ n.self }}",
    "dict": "{{ dict(a=1, b=messages|length) }}{{ dict.fromkeys([1, 2]) }}",
    "class of dict": "{{ dict.__class__ }}",
    "generation": "{% for m in messages %}{% set x = 1 %}{% generation %}{% set x = 2 %}{{ m.content }}"
    "{% endgeneration %}{{ x }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "raise": "{{ raise_exception('no ' ~ messages[0].role) }}",
    "time": "{{ strftime_now('%Y') }}",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ mask_token }}{{ own }}{{ documents is none }}"
    "{{ tools is none }}",
    "prompt": "{{ add_generation_prompt }}{{ messages[-1].content }}",
    "change": "{{ messages.append(1) }}",
    "attack": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "missing": "{{ messages[9].content + 1 }}",
    "syntax": "{% for %}",
    "parts": "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
}
OPTIONS = (
    {},
    {"add_generation_prompt": True},
    {"continue_final_message": True},
    {"continue_final_message": True, "add_generation_prompt": True},
    {"tools": [{"name": "f"}], "own": "<é>", "bos_token": "other"},
    {"tools": []},
)


def outcome(tokenizer, messages, **options):
    """Return the text of messages, or the kind of error, with its text if it is the template's."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # noqa: BLE001 - the template may raise anything
        own = options.get("continue_final_message") and isinstance(error, ValueError)
        return type(error), "" if own else str(error)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_the_text_or_the_error_that_transformers_gives(name):
    fast, full = pair(LLADA)
    parts = [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "image"}]}]
    calls = [MESSAGES[1], {"role": "assistant", "tool_calls": CALLS, "reasoning": "r"}]
    for messages in (MESSAGES, MESSAGES[:2], parts, calls, [{"role": "user", "content": None}]):
        before = copy.deepcopy(messages)
        for options in OPTIONS:
            given = {"chat_template": TEMPLATES[name], **options}
            assert outcome(fast, messages, **given) == outcome(full, messages, **given)
        assert messages == before
    assert is_fast(fast)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_templates_of_the_fixtures_give_the_texts_of_transformers(name):
    fast, full = pair(FOLDERS[name])
    words = st.text(max_size=10)
    roles = st.sampled_from(("system", "user", "assistant", "tool", "critic"))
    keys = st.fixed_dictionaries({"role": roles, "content": words})

    @RUN
    @given(st.lists(keys, min_size=1, max_size=4), st.sampled_from(OPTIONS))
    def check(messages, options):
        assert outcome(fast, messages, **options) == outcome(full, messages, **options)

    check()
    assert is_fast(fast)


class Odd(str):
    """A text with methods of its own."""


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([{"role": "user", "content": Odd("x")}], {}),
        ([{"role": "user", "content": {1, 2}}], {}),
        ([MESSAGES, MESSAGES], {}),
        (tuple(MESSAGES), {}),
        ([], {}),
        (MESSAGES, {"documents": [{"title": "t"}]}),
        (MESSAGES, {"continue_final_message": "content"}),
        (MESSAGES, {"tools": [agree]}),
        (MESSAGES, {"tools": {"a": 1}}),
        (MESSAGES, {"padding": True}),
    ],
)
def test_other_conversations_and_options_are_left_to_transformers(messages, options):
    fast, full = read_fast(LLADA), pair(LLADA)[1]
    given = {"chat_template": TEMPLATES["plain"], **options}
    assert outcome(fast, messages, **given) == outcome(full, messages, **given)
    assert not is_fast(fast)


def test_the_options_of_both_renderers_are_the_same():
    of_both = [
        set(inspect.signature(kind.apply_chat_template).parameters)
        for kind in (FastTokenizer, PreTrainedTokenizerBase)
    ]
    assert of_both[0] - {"options"} | OTHER_OPTIONS == of_both[1] - {"kwargs"}
