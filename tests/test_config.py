"""Configuration: d2Cache's evaluation commands, Hydra's grammar, layers, and refused keys."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

import unmask
from unmask import decoders
from unmask.config import Sources, compose, method_of, sweep
from unmask.config.schema import ALIASES, REFUSED
from unmask.config.settings import rows, settings_of
from unmask.docgen.config import markdown
from unmask.errors import ConfigError, ModelError

FIXTURES = Path(__file__).parent / "fixtures"
COMMANDS = [
    line
    for line in (FIXTURES / "commands" / "d2cache.txt").read_text().splitlines()
    if line.startswith("accelerate")
]


def words_of(command):
    """What a command says after the name of its script."""
    words = shlex.split(command)
    return words[words.index("eval.py") + 1 :]


def said(text, **sources):
    return compose(text.split(), Sources(**sources))


def knobs(method):
    return {key: value for key, value in method.given.items() if not key.startswith("cache.")}


def cache_knobs(method):
    return {k.removeprefix("cache."): v for k, v in method.given.items() if k.startswith("cache.")}


def layers(composed):
    return {key: (value, layer) for key, value, layer in rows(composed, method_of(composed))}


STANDS_FOR = [
    ("vanilla", {"steps": 256, "block_length": 32}),
    ("threshold", {"threshold": 0.9, "block_length": 32}),
    ("factor", {"factor": 1, "block_length": 32}),
    ("pc_sampler", {"steps": 256, "block_length": 32, "debias": True}),
    ("vanilla", {"steps": 256, "block_length": 32, "sigma": 10}),
    ("daedal", {"block_length": 32, "initial_gen_length": 128}),
    ("klass", {"block_length": 64, "kl_threshold": 0.01, "kl_history_length": 2}),
    ("eb_sampler", {"block_length": 64, "gamma": 0.001}),
    ("wino", {"block_length": 128, "wide_in_thres": 0.6, "narrow_out_thres": 0.9}),
]


@pytest.mark.parametrize(("command", "expected"), list(zip(COMMANDS, STANDS_FOR, strict=True)))
def test_every_command_of_the_documents_is_the_method_it_describes(command, expected):
    composed = compose(words_of(command))
    method = method_of(composed)
    assert (method.decoder_name, method.given) == expected
    assert method.cache_name == "none"
    assert composed["seed"] == 1234
    assert composed["model.path"] == "GSAI-ML/LLaDA-8B-Instruct"


def test_a_spelling_that_stands_for_another_method_is_told():
    notes = method_of(said("generation=vanilla generation.threshold=0.9 generation.steps=64")).notes
    assert [(note.code, note.key, note.message) for note in notes] == [
        (
            "no_effect",
            "steps",
            "decoder vanilla with threshold is threshold, which has no schedule: steps=64 has no effect",
        )
    ]


def test_each_layer_wins_over_those_below_it(tmp_path):
    (tmp_path / "generation").mkdir()
    (tmp_path / "recipe").mkdir()
    (tmp_path / "generation" / "mine.yaml").write_text("strategy: klass\nblock_length: 11\n")
    recipe = "# @package _global_\ngeneration:\n  block_length: 12\n"
    (tmp_path / "recipe" / "ours.yaml").write_text(recipe)
    file = tmp_path / "file.yaml"
    file.write_text("generation:\n  block_length: 13\n")
    text, found, key = "dataset=gsm8k", [], "generation.block_length"
    for more in ("", "model=llada-base", "cache=prefix", "generation=mine", "recipe=ours"):
        text += f" {more}"
        found.append(layers(said(text, config_dir=tmp_path))[key])
    found.append(layers(said(text, config_dir=tmp_path, config_file=file))[key])
    text += " generation.block_length=14"
    found.append(layers(said(text, config_dir=tmp_path, config_file=file))[key])
    assert found == [
        (32, "schema default"),
        (256, "model preset llada-base"),
        (32, "cache preset prefix"),
        (11, "generation preset mine"),
        (12, "recipe ours"),
        (13, f"config file {file}"),
        (14, "command line"),
    ]


def test_a_value_equal_to_the_default_is_still_said():
    composed = said("cache=d2cache generation.sigma=null generation.gen_length=64")
    assert layers(composed)["generation.sigma"] == (None, "command line")
    assert knobs(method_of(composed)) == {"sigma": None, "block_length": 64}
    assert layers(said("seed=0"))["seed"] == (0, "command line")
    assert layers(said("limit=3"))["seed"] == (0, "schema default")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("generation=daedal", {"generation.max_gen_length": 2048, "generation.gen_length": None}),
        (
            "generation=daedal generation.initial_gen_length=4096",
            {"generation.max_gen_length": 4096},
        ),
        (
            "generation=vanilla",
            {
                "generation.gen_length": 128,
                "generation.block_length": 32,
                "generation.steps": 128,
                "generation.sigma": None,
                "generation.top_p": None,
                "dataset.n_shot": None,
            },
        ),
        (
            "dataset.name=gsm8k generation=klass",
            {"generation.gen_length": 256, "generation.steps": 256, "dataset.n_shot": 5},
        ),
        ("generation.steps=2", {"generation.block_length": 64, "generation.steps": 2}),
        ("generation.block_steps=2", {"generation.steps": None, "generation.block_length": 32}),
        ("generation.gen_length=37", {"generation.block_length": 37, "generation.steps": 37}),
        ("generation.block_length=null", {"generation.block_length": 32}),
        ("model.path=parity/sdar", {"generation.block_length": 4}),
        ("model=llada2-mini", {"generation.block_length": None, "generation.steps": 128}),
        ("generation=block_diffusion", {"generation.block_length": 32, "generation.steps": 128}),
        ("generation=dream", {"generation.steps": 128}),
        ("generation=eb_sampler", {"generation.score": "entropy"}),
        ("generation=eb_sampler generation.order=margin", {"generation.score": "margin"}),
        ("generation=cadllm", {"generation.threshold": None}),
        ("generation=cadllm generation.adaptive_threshold=false", {"generation.threshold": 0.85}),
        ("generation=prophet", {"generation.steps": 128, "generation.answer_start": None}),
        ("generation.vocabulary=union", {"generation.vocab_size": 1000}),
        ("generation.vocabulary=adaptive", {"generation.vocab_size": None}),
        ("cache=dkv", {"cache.interval": 4}),
        ("cache=dkv cache.inner=dual", {"cache.interval": None}),
    ],
)
def test_a_default_that_stands_for_a_value_is_shown_as_this_value(words, expected, monkeypatch):
    monkeypatch.chdir(FIXTURES)
    composed = said(words)
    shown = {key: value for key, value, _ in rows(composed, method_of(composed))}
    assert {key: shown[key] for key in expected} == expected


@pytest.mark.slow
def test_shown_defaults_are_those_that_decode():
    """As written values they change nothing."""
    llm = unmask.LLM("demo")
    for name in decoders.names():
        length = None if name == "daedal" else 24
        composed = said(f"generation={name} generation.gen_length={length or 'null'}")
        method = method_of(composed)
        inferred = {}
        for key, value, _ in rows(composed, method):
            group, _, knob = key.rpartition(".")
            if group == "generation" and method.knobs().get(knob, value) is None:
                inferred |= {} if value is None else {knob: value}
        plain, written = (
            llm.generate("Tom has 3 pens.", name, gen_length=length, return_trace=True, **knobs)[0]
            for knobs in ({}, inferred)
        )
        assert plain.trace == written.trace, (name, inferred)


def test_a_tilde_takes_back_what_a_preset_says():
    assert knobs(method_of(said("cache=d2cache ~generation.sigma"))) == {"block_length": None}
    assert said("~cache")["cache.name"] == "none"
    with pytest.raises(ConfigError, match=r"'generation\.sigma' does not exist"):
        said("~generation.sigma")


def test_a_plus_says_the_same_as_no_plus():
    assert method_of(said("+generation.gamma=0.2")).decoder_name == "eb_sampler"
    assert said("+seed=4")["seed"] == 4
    with pytest.raises(ConfigError, match="unknown key 'sede'"):
        said("+sede=4")


def test_d2cache_fills_lengths_and_cadences_by_task_model_and_cache():
    method = method_of(said("dataset.name=gsm8k cache=dllm model=llada-inst"))
    assert cache_knobs(method) == {"kp": 50, "kr": 7}
    method = method_of(said("dataset.name=mbpp cache=dllm model=dream-base"))
    assert (method.given["block_length"], cache_knobs(method)) == (512, {"kp": 25, "kr": 8})
    assert cache_knobs(method_of(said("dataset.name=sudoku cache=dllm"))) == {"kp": 50, "kr": 4}
    method = method_of(said("dataset.name=gsm8k cache=d2cache model=llada-inst"))
    assert knobs(method) == {"block_length": 256, "sigma": 10.0}
    assert cache_knobs(method)["inflate_w"] == 0


def test_d2cache_spellings_are_translated():
    text = "generation.alg=topk_margin generation.num_transfer_tokens=4 generation.gen_length=64"
    assert knobs(method_of(said(text))) == {"score": "margin", "steps": 16}
    assert knobs(method_of(said("generation=dream generation.alg=maskgit_plus"))) == {
        "alg": "maskgit_plus"
    }
    text = "cache=d2cache generation.threshold=0.9 generation.sigma=0.0 generation.temperature=null"
    assert knobs(method_of(said(text))) == {"threshold": 0.9, "sigma": None, "block_length": None}
    with pytest.raises(ConfigError, match="has no schedule"):
        method_of(said("generation=threshold generation.num_transfer_tokens=2"))
    with pytest.raises(ConfigError, match="must divide"):
        method_of(said("generation.num_transfer_tokens=3 generation.gen_length=64"))
    with pytest.raises(ConfigError, match="that is score=entropy and score=confidence contradict"):
        method_of(said("generation.alg=entropy generation.score=confidence"))


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_cannot_be_followed_is_refused_with_the_reason(key):
    other = "other" if REFUSED[key].allowed == (None,) else "5"
    with pytest.raises(ConfigError, match="is not possible here"):
        said(f"{key}={other}")
    for value in REFUSED[key].allowed:
        said(f"{key}={'null' if value is None else str(value).lower()}")


@pytest.mark.parametrize(("own", "other"), [(k, o) for k, names in ALIASES.items() for o in names])
def test_another_name_of_a_key_is_that_key(own, other):
    value = {"confirm_run_unsafe_code": "true", "generation.strategy": "klass"}.get(own, "7")
    value = "dual" if own == "cache.name" else value
    assert str(said(f"{other}={value}").values[own].value).lower() == value
    assert said(f"{other}={value}").values[own].layer == "command line"


MISTAKES = [
    ("generation.threshhold=0.9", "did you mean 'threshold'"),
    ("generaton=vanilla", "did you mean 'generation'"),
    ("generation=vanila", "did you mean 'vanilla'"),
    ("cache=duall", "did you mean 'dual'"),
    ("batchsize=3", "did you mean 'batch_size'"),
    ("dataset.nam=gsm8k", "did you mean 'dataset.name'"),
    ("recipe=cadlm", "did you mean 'cadllm'"),
    ("generation=klass generation.gamma=3", "'gamma' is a knob of decoder eb_sampler"),
    ("cache=dllm cache.kq=3", "did you mean 'k"),
    ("seed=x", "seed='x' must be a whole number"),
    ("dataset.n_shot=1.5", "dataset.n_shot=1.5 must be a whole number"),
    ("limit=0", "limit=0 must be at least 1 examples"),
    ("generation.gen_length=0", "generation.gen_length=0 must be at least 1 positions"),
    ("generation=threshold generation.threshold=2", "must be between 0 and 1"),
    ("seed=1 eval_args.random_seed=2", "contradict"),
    ("seed=1,2", "add -m"),
    ("seed=[1,", "cannot be read"),
    ("seed", "cannot be read"),
    ("=3", "not of the form key=value"),
    ("hydra.run.dir=x", "use output=FOLDER"),
    ("model@x=demo", "cannot be moved"),
    ("generation=nowhere.yaml", "cannot be read"),
    ("generation.block_length=${x.y}", "does not fit"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_named_with_what_would_be_right(text, message):
    with pytest.raises(ConfigError) as caught:
        method_of(said(text))
    assert message in str(caught.value)


def test_an_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(ModelError, match="did you mean 'llada-inst'"):
        said("model=llada-instruct")


def test_presets_may_be_files_and_models_folders(tmp_path):
    folder = tmp_path / "my model"
    folder.mkdir()
    file = tmp_path / "my preset.yaml"
    file.write_text("strategy: wino\nwide_in_thres: 0.5\ngen_length: 40\n")
    composed = compose([f"generation='{file}'", f"model='{folder}'"])
    assert composed["model.path"] == str(folder)
    assert composed["generation.gen_length"] == 40
    assert knobs(method_of(composed)) == {"wide_in_thres": 0.5}
    assert composed["model.name"] == "my model"
    assert said("model=owner/name")["model.path"] == "owner/name"
    file.write_text("strategy: wino\nwide_in_thresh: 0.5\n")
    with pytest.raises(ConfigError, match="did you mean 'wide_in_thres'"):
        method_of(compose([f"generation='{file}'"]))


def test_a_preset_of_a_user_must_not_hide_one_of_ours(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "dual.yaml").write_text("name: dual\n")
    with pytest.raises(ConfigError, match="exists already"):
        said("seed=1", config_dir=tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        said("seed=1", config_dir=tmp_path / "none")


def test_what_a_preset_suggests_is_left_out_where_the_decoder_has_no_such_knob():
    assert knobs(method_of(said("model=llada-inst generation=cadllm cache=dual"))) == {}
    with pytest.raises(ConfigError, match="unknown knob for decoder 'cadllm': 'block_length'"):
        method_of(said("generation=cadllm generation.block_length=32"))


def test_the_config_of_a_run_folder_is_the_run_again(tmp_path):
    settings = settings_of(
        said(
            "dataset.name=word_problem cache=dllm generation=klass generation.kl_threshold=0.02 limit=3 "
            "batch_size=2 output=somewhere model=demo"
        )
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings.as_dict()))
    assert settings_of(compose([], Sources(config_file=file))) == settings
    changed = settings_of(compose(["limit=5"], Sources(config_file=file)))
    assert changed.limit == 5
    assert changed.fingerprint() == settings.fingerprint()


def test_the_same_words_name_the_same_folder_and_others_another():
    one = settings_of(said("dataset.name=word_problem generation=klass limit=3"))
    assert (
        one.output == settings_of(said("dataset.name=word_problem generation=klass limit=3")).output
    )
    more = settings_of(said("dataset.name=word_problem generation=klass limit=9")).output
    assert one.output == more, "a longer run of the same settings goes on"
    assert (
        one.output != settings_of(said("dataset.name=word_problem generation=klass seed=3")).output
    )
    assert one.output.startswith("runs/eval/word_problem-demo-klass-")


def test_a_task_is_needed_to_evaluate():
    with pytest.raises(
        ConfigError, match=r"no task; set dataset\.name=NAME, one of .*word_problem"
    ):
        settings_of(said("seed=1"))


def test_words_that_list_values_are_every_combination():
    found = sweep(["generation=klass,wino", "seed=range(1,3)", "limit=2", "a=[1,2]"])
    assert found == [
        [f"generation={decoder}", f"seed={seed}", "limit=2", "a=[1,2]"]
        for decoder in ("klass", "wino")
        for seed in (1, 2)
    ]


def test_the_reference_of_the_configuration_is_what_the_code_says():
    docs = Path(__file__).parents[1] / "docs"
    if not docs.exists():
        pytest.skip("the source distribution has no docs")
    page = (docs / "reference" / "config.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: unmask config reference > docs/reference/config.md"
