"""Special ids by role, from whichever file of a checkpoint folder names them."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest

from unmask import LLM
from unmask.cli.main import main
from unmask.errors import CheckpointWarning, ConfigError, ModelError
from unmask.models import BUNDLED, load_model, read_spec

BOS, EOS, MASK, TURN_END = 2040, 2041, 2042, 2045
ROWS = 2048


class Home:
    """A copy of the bundled model whose small files can be edited; the weights are a link."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(BUNDLED["demo"] / name, path / name)
        (path / "model.safetensors").symlink_to(BUNDLED["demo"] / "model.safetensors")

    def edit(self, name="config.json", drop=(), **changes):
        file = self.path / name
        values = json.loads(file.read_text()) if file.exists() else {}
        values = {key: value for key, value in values.items() if key not in drop} | changes
        file.write_text(json.dumps(values))
        return self

    def rename(self, old, new):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            file = self.path / name
            file.write_text(file.read_text().replace(old, new))
        return self

    def add_word(self, text, id_):
        tokens = json.loads((self.path / "tokenizer.json").read_text())
        tokens["model"]["vocab"][text] = id_
        (self.path / "tokenizer.json").write_text(json.dumps(tokens))

    @property
    def spec(self):
        return read_spec(self.path)

    @property
    def ends(self):
        return {self.spec.eos_id, *self.spec.end_ids}


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "model")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, {7}),
        (7.0, {7}),
        ([7], {7}),
        ([7, 9], {7, 9}),
        ([7, 7, 9], {7, 9}),
        ([9, -1, None, 7], {7, 9}),
        (-1, set()),
        (None, set()),
        ([], set()),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_ends_are_a_number_or_a_list_in_either_config(value, expected, name, home):
    home.edit("config.json", drop=["eos_token_id"])
    assert not home.edit(name, eos_token_id=value).ends ^ {*expected, EOS}
    assert home.spec.eos_id == next(iter(expected and [int(_first(value))] or [EOS]))


def _first(value):
    return value if not isinstance(value, list) else next(v for v in value if v not in (-1, None))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", "</s>"),
        ("eos_token_id", True),
        ("eos_token_id", [1.5]),
        ("eos_token_id", -2),
        ("eos_token_id", {"id": 3}),
        ("eos_token_id", [[1]]),
        ("eos_token_id", list(range(2000))),
        ("mask_token_id", [1, 2]),
        ("mask_token_id", "x" * 5000),
        ("pad_token_id", [1, 2]),
        ("pad_token_id", float("nan")),
        ("bos_token_id", False),
    ],
)
def test_a_value_that_is_no_id_is_refused_in_short(key, value, home):
    with pytest.raises(ModelError, match=rf"config.json: {key}=") as caught:
        _ = home.edit(**{key: value}).spec
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [-1, None])
def test_a_pad_of_minus_1_is_none_so_that_the_end_pads(value, home):
    home.edit(pad_token_id=value).edit("tokenizer_config.json", drop=["pad_token"])
    assert home.spec.pad_id == EOS


def test_the_ends_of_all_files_end_an_answer(home):
    home.edit(eos_token_id=[EOS, 5]).edit("generation_config.json", eos_token_id=[EOS, 6])
    home.edit("tokenizer_config.json", eos_token="<|startoftext|>")
    with pytest.warns(CheckpointWarning) as caught:
        llm = LLM(home.path)
    assert llm.stop_ids == {EOS, 5, 6, BOS, TURN_END}
    assert llm.spec.eos_id == EOS, "the first of config.json"
    text = str(caught[0].message)
    assert "generation_config.json 2041" in text
    assert "tokenizer_config.json 2040" in text


def test_a_longer_list_of_the_same_ends_is_no_conflict(home):
    home.edit("generation_config.json", eos_token_id=[TURN_END, EOS, 7])
    home.edit("tokenizer_config.json", eos_token="<|eot_id|>")
    assert home.spec.notes == ()
    assert home.ends == {EOS, TURN_END, 7}


@pytest.mark.parametrize("value", [{"content": "[MASK]", "special": True}, "[MASK]"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_mask_of_the_tokenizer_is_found_by_its_role(name, value, home):
    home.rename("<|mdm_mask|>", "[MASK]").edit(drop=["mask_token_id"])
    home.edit("tokenizer_config.json", drop=["mask_token"]).edit(name, mask_token=value)
    assert home.spec.mask_id == MASK


def test_the_mask_may_be_a_word_of_the_vocabulary_alone(home):
    home.edit(drop=["mask_token_id"]).edit("tokenizer_config.json", mask_token="dog")
    home.add_word("dog", 1999)
    assert home.spec.mask_id == 1999


@pytest.mark.parametrize("text", ["[MASK]", "<mask>", "<|mask|>", "<|mdm_mask|>"])
def test_a_mask_without_a_role_is_found_by_a_well_known_text(text, home):
    home.rename("<|mdm_mask|>", text).edit(drop=["mask_token_id"])
    home.edit("tokenizer_config.json", drop=["mask_token"])
    assert home.spec.mask_id == MASK


def test_the_masks_id_is_never_a_guess_that_is_another_token(home):
    home.rename("<|mdm_mask|>", "<|hole|>").edit(
        drop=["mask_token_id"], vocab_size=126464, embedding_size=126464
    )
    home.edit("tokenizer_config.json", drop=["mask_token"])
    assert home.spec.mask_id == 126336, "the family's own, which is no token of the tokenizer"
    assert "no file names the mask" in home.spec.notes[0]
    home.add_word("dog", 126336)
    with pytest.raises(ModelError, match=r"126336, is the token 'dog'; set mask_token_id"):
        _ = home.spec


def test_a_mask_outside_the_rows_gives_way_to_the_tokenizers_and_is_told(home):
    home.edit(mask_token_id=ROWS + 5)
    assert home.spec.mask_id == MASK
    with pytest.warns(CheckpointWarning, match="mask_token_id=2053 is outside the 2048 rows"):
        load_model(home.path)


def test_masks_that_disagree_are_told_and_the_configs_is_used(home):
    home.edit(mask_token_id=7).edit("tokenizer_config.json", mask_token="<|mdm_mask|>")
    assert home.spec.mask_id == 7
    assert "config.json: mask_token_id=7" in home.spec.notes[0]
    assert "tokenizer_config.json has 2042 (<|mdm_mask|>)" in home.spec.notes[0]


@pytest.mark.parametrize("value", [[EOS, 9999], [9999, EOS]])
def test_an_end_outside_the_rows_is_left_out_and_told(value, home):
    home.edit(eos_token_id=value)
    assert home.ends == {EOS}
    assert "eos_token_id=9999 is outside" in home.spec.notes[0]


def test_the_mask_ends_nothing(home):
    home.edit(eos_token_id=[EOS, MASK])
    assert home.ends == {EOS}
    assert "is the mask" in home.spec.notes[0]


def test_the_text_of_a_role_that_is_no_token_is_told(home):
    home.edit("tokenizer_config.json", eos_token="<|nowhere|>")
    assert home.ends == {EOS}
    assert "eos_token='<|nowhere|>' is no token" in home.spec.notes[0]


def test_the_bundled_model_has_no_notes_and_roles_without_effect_do_not_warn(home):
    assert read_spec("demo").notes == read_spec("demo").minor_notes == ()
    home.edit(pad_token_id=3, bos_token_id=4)
    assert home.spec.notes == ()
    assert len(home.spec.minor_notes) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(home.path)


def test_inspect_names_all_roles_and_the_notes(home, capsys):
    home.edit(eos_token_id=[EOS, 5], mask_token_id=7, bos_token_id=4)
    home.edit("tokenizer_config.json", mask_token="<|mdm_mask|>")
    assert main(["inspect", str(home.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ends"].startswith("5 (")
    assert "2041 (<|endoftext|>), 2045 (<|eot_id|>)" in found["ends"]
    assert found["highest_id"] == TURN_END
    assert found["bos_id"] == 4
    assert len(found["id_notes"]) == 2


def test_rows_in_holes_of_the_vocabulary_are_never_proposed(home):
    home.add_word("zebra", ROWS - 1)
    llm = LLM(home.path)
    known = set(llm.tokenizer.get_vocab().values())
    assert len(known) < max(known) + 1
    assert set(llm.vocabulary.forbidden.tolist()) == {MASK, *range(ROWS)} - (known - {MASK})


def test_a_tokenizer_with_an_id_beyond_the_rows_is_refused(home):
    home.add_word("zebra", ROWS)
    with pytest.raises(ModelError, match="highest id is 2048"):
        LLM(home.path)


@pytest.fixture(scope="module")
def llm():
    return LLM("demo")


def test_every_end_of_a_list_ends_an_answer_and_can_be_suppressed(home, llm):
    prompt = "Anna has 7 eggs. She buys 5 more eggs. How many eggs does she have?"
    usual = llm.generate(prompt, gen_length=32)[0]
    word = usual.token_ids[2]
    other = LLM(home.edit(eos_token_id=[EOS, word]).path)
    cut = other.generate(prompt, gen_length=32)[0]
    assert cut.token_ids == usual.token_ids[: usual.token_ids.index(word)]
    assert cut.finish_reason == "stop"
    without = other.generate(prompt, gen_length=32, logits_eos_inf=True)[0]
    assert word not in without.canvas_ids[without.prompt_length :]
    assert len(without.token_ids) > 3


def test_stop_token_ids_end_one_call_alone(llm):
    prompt = "Anna has 7 eggs. She buys 5 more eggs. How many eggs does she have?"
    usual = llm.generate(prompt, gen_length=32)[0]
    word = usual.token_ids[3]
    first = usual.token_ids.index(word)
    for cache in ("none", "auto"):
        cut = llm.generate(prompt, cache=cache, gen_length=32, stop_token_ids=[word])[0]
        assert cut.token_ids == usual.token_ids[:first]
        assert cut.finish_reason == "stop"
    assert llm.generate(prompt, gen_length=32)[0] == usual
    alone = llm.generate(prompt, gen_length=32, stop_at_eos=False, stop_token_ids=[word])[0]
    assert alone.token_ids == usual.token_ids[:first]
    same = llm.generate(prompt, gen_length=32, stop_token_ids=[MASK, 10**9])[0]
    assert same.token_ids == usual.token_ids, "ids that no model can propose change nothing"
    chat = llm.chat([{"role": "user", "content": prompt}], gen_length=32, stop_token_ids=[word])
    assert chat.token_ids == usual.token_ids[:first]


@pytest.mark.parametrize("value", ["12", [-1], [1.5], [True], 7, {3: 1}])
def test_stop_token_ids_are_a_list_of_ids(value, llm):
    with pytest.raises(ConfigError, match="stop_token_ids"):
        llm.generate("A dog", gen_length=4, stop_token_ids=value)


def test_a_begin_token_is_never_doubled(llm):
    usual = llm.prompts.encode("A dog", special=True)
    assert usual[0] == BOS
    assert llm.prompts.encode("<|startoftext|>A dog", special=True) == usual
    assert llm.prompts.encode("<|startoftext|>A dog", special=False) == usual
    canvas = llm.infill_canvas(["<|startoftext|>A dog", 3])
    assert canvas.tokens.tolist() == llm.infill_canvas(["A dog", 3]).tokens.tolist()
    assert llm.infill_canvas([3, " dog"]).tokens.tolist()[0] == BOS
    assert llm.prompts.with_begin(usual) == usual
    assert llm.prompts.with_begin(usual[1:]) == usual


def test_the_tokenizer_gives_a_tokens_id_and_another_files_id_is_told(home):
    home.edit(drop=["mask_token_id"]).edit("added_tokens.json", **{"<|mdm_mask|>": 2000})
    assert home.spec.mask_id == MASK
    assert "2000" in home.spec.notes[0]
    home.edit("added_tokens.json", **{"<|mdm_mask|>": MASK})
    assert home.spec.notes == ()


@pytest.mark.parametrize("key", ["extra_special_tokens", "model_specific_special_tokens"])
def test_a_role_may_be_among_the_further_special_tokens(key, home):
    home.edit(drop=["mask_token_id"]).rename("<|mdm_mask|>", "<X>")
    home.edit("tokenizer_config.json", **{key: {"mask_token": "<X>"}})
    assert home.spec.mask_id == MASK


@pytest.mark.parametrize("text", ["|<MASK>|", "<MASK>"])
def test_the_mask_of_another_family_is_known_by_its_text(text, home):
    assert home.edit(drop=["mask_token_id"]).rename("<|mdm_mask|>", text).spec.mask_id == MASK


def test_a_mask_that_is_not_the_familys_token_is_told(home):
    spec = home.edit(mask_token_id=100).spec
    assert spec.mask_id == 100
    assert "100" in spec.notes[0]
    assert str(MASK) in spec.notes[0]


def test_a_mask_that_no_file_names_and_no_row_has_is_refused_with_the_remedy(home):
    home.edit(drop=["mask_token_id"]).rename("<|mdm_mask|>", "<X>")
    with pytest.raises(ModelError, match="outside the 2048 rows.*set mask_token_id"):
        _ = home.spec
