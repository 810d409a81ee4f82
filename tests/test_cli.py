"""The command line as a user meets it, on a tiny random model."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import unmask
from unmask import decoders
from unmask.cli.key_value import parse_blanks, read_prompt, split_words
from unmask.cli.main import main
from unmask.cli.options import DecodeOptions
from unmask.cli.train import key_help
from unmask.demo.tokenizer import build_tokenizer
from unmask.demo.training_data import demo_spec
from unmask.engine.tokenizer import load_tokenizer
from unmask.errors import PromptError
from unmask.knobs import field_names
from unmask.models import BUNDLED
from unmask.plain_text import printable
from unmask.sampling.params import SamplingParams
from unmask.train.checkpoint import export
from unmask.train.loop import StepLog, build
from unmask.train.recipe import Recipe
from unmask.view.trace import read_trace

TINY = {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64, "max_length": 192}
PROMPT = "Tom has 3 boxes."


class Result(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (BUNDLED["demo"] / "tokenizer.json").exists():
        return BUNDLED["demo"]
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def model(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in LLaDA's format."""
    folder = tmp_path_factory.mktemp("random model")
    recipe = Recipe(**TINY)
    network = build(demo_spec(recipe, load_tokenizer(tokenizer_folder)), 0, recipe.embed_std)
    export(network, tokenizer_folder, folder, torch.float32)
    return folder


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the command in this process, with `stdin` piped in."""

    def run(*words: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run


def refused(result: Result) -> str:
    """The one line of a refusal."""
    assert result.status == 2, result
    assert result.out == ""
    assert "Traceback" not in result.err
    (line,) = result.err.splitlines()
    assert line.startswith("unmask: error: ")
    return line


# generate


def test_piped_output_is_the_plain_text_and_statistics_go_to_stderr(cli: Cli, model: Path) -> None:
    (expected,) = unmask.LLM(model).generate(PROMPT, gen_length=16, stop_at_eos=False)
    flags = ("--gen-length", "16", "--no-stop-at-eos")
    status, out, err = cli("generate", PROMPT, "--model", model, *flags)
    assert (status, out) == (0, expected.text + "\n")
    (line,) = err.splitlines()
    assert line.startswith("16 forwards | ")
    for word in ("tokens per forward", "tokens/s", "queries", "finish: ", "cache none (exact)"):
        assert word in line


def test_json_is_one_object_with_all_numbers(cli: Cli, model: Path) -> None:
    words = ("steps=8", "gen_length=16", "cache=dual", "seed=3", "temperature=0.5")
    status, out, err = cli("generate", PROMPT, "-m", model, "--json", *words)
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert set(found) == {
        "text",
        "token_ids",
        "canvas_ids",
        "prompt_length",
        "finish_reason",
        "num_forwards",
        "num_queries",
        "num_draft_forwards",
        "num_draft_queries",
        "num_logit_rows",
        "seconds",
        "tokens_per_forward",
        "model",
        "decoder",
        "method",
        "num_forced",
        "cache",
        "cache_exact",
        "cache_bytes",
        "knobs",
        "seed",
    }
    told = {key: found[key] for key in ("decoder", "cache", "cache_exact", "seed")}
    assert told == {"decoder": "vanilla", "cache": "dual", "cache_exact": False, "seed": 3}
    assert found["knobs"]["steps"] == 8
    assert found["knobs"]["temperature"] == 0.5
    assert len(found["canvas_ids"]) == found["prompt_length"] + 16


def test_flags_and_words_say_the_same(cli: Cli, model: Path) -> None:
    def ids(*words: str) -> object:
        return json.loads(cli("generate", PROMPT, "-m", model, "--json", *words).out)["canvas_ids"]

    by_flags = ids("--decoder", "threshold", "--gen_length", "16", "--seed", "1", "--raw")
    assert by_flags == ids("decoder=threshold", "gen-length=16", "seed=1", "raw=true")


@pytest.mark.parametrize("words", [(), ("-",), ("decoder=vanilla",)])
def test_the_prompt_may_come_from_standard_input(
    words: tuple[str, ...], cli: Cli, model: Path
) -> None:
    rest = ("-m", model, "gen_length=8", "--json")
    typed = cli("generate", PROMPT, *rest)
    piped = cli("generate", *words, *rest, stdin=PROMPT.encode() + b"\n")
    assert json.loads(piped.out)["canvas_ids"] == json.loads(typed.out)["canvas_ids"]


def test_the_trace_file_holds_what_every_forward_did(cli: Cli, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    words = ("threshold=0.001", "gen_length=16", "block_length=8", "--no-stop-at-eos")
    told = ("-m", model, "-d", "threshold", "--trace", path)
    assert cli("generate", PROMPT, *words, *told).status == 0
    (expected,) = unmask.LLM(model).generate(
        PROMPT,
        "threshold",
        threshold=0.001,
        gen_length=16,
        block_length=8,
        stop_at_eos=False,
        return_trace=True,
    )
    header, steps = read_trace(path)
    assert tuple(steps) == expected.trace
    assert header.prompt_ids == expected.canvas_ids[: expected.prompt_length]
    assert header.open == list(range(expected.prompt_length, len(expected.canvas_ids)))
    assert (header.gen_length, header.knobs["threshold"]) == (16, 0.001)


def test_infill_prints_the_whole_text(cli: Cli, model: Path) -> None:
    status, out, _ = cli("infill", "The {2} sat on {{the}} {1}.", "-m", model, "--json")
    expected = unmask.LLM(model).infill(["The", 2, " sat on {the}", 1, "."])
    found = json.loads(out)
    assert status == 0
    assert (found["text"], found["blanks"]) == (expected.text, list(expected.blanks))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_canvas_is_drawn_and_the_text_stays(
    cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    words = ("generate", PROMPT, "gen_length=8", "-m", model, "--no-stop-at-eos", "raw=true")
    piped = cli(*words)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert cli(*words, "--fps", "1000").status == 0
    drawn = terminal.getvalue()
    assert "forward 0" in drawn
    assert "forward 8" in drawn
    assert drawn.endswith(printable(piped.out)), "the plain text comes last"
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    cli(*words, "--no-live")
    assert terminal.getvalue() == printable(piped.out)


def test_a_refused_decode_leaves_no_trace_file(cli: Cli, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    refused(cli("generate", "x", "-m", model, "block_length=0", "--trace", path))
    assert not path.exists()


# mistakes


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("", "gen_length=8"), "empty"),
        (("x", "gen_length=0"), "gen_length=0"),
        (("x", "gen_length=-8"), "gen_length=-8"),
        (("x", "gen_length=many"), "gen_length='many' must be a whole number"),
        (("x", "gen_length=512"), "context is 192"),
        (("x " * 200, "gen_length=8"), "shorten the prompt"),
        (("x", "treshold=0.9", "-d", "threshold"), "did you mean 'threshold'"),
        (("x", "kl_threshold=0.9"), "'kl_threshold' is a knob of decoder klass"),
        (("x", "threshold=0.9", "factor=1"), "name different methods"),
        (("x", "-d", "daedal", "--gen-length", "8"), "initial_gen_length"),
        (("x", "-d", "prophet(inner=ar)"), "constant length"),
        (("x", "canvas=1"), "unknown knob"),
        (("x", "threshold=high", "-d", "threshold"), "threshold='high' must be a number"),
        (("x", "steps=1.5"), "steps"),
        (("x", "--seed", "one"), "--seed one must be a whole number"),
        (("x", "-d", "treshold"), "did you mean 'threshold'"),
        (("x", "--cache", "duel"), "did you mean 'dual'"),
        (("x", "stop_at_eos=maybe"), "must be true or false"),
        (("x", "seed=1", "--seed", "2"), "contradict"),
        (("x", "seed=1", "seed=2"), "contradict"),
        (("x", "y"), "unexpected word 'y'"),
        (("x", "--dtype", "int8"), "unknown dtype"),
        (("x", "--device", "abacus"), "unknown device"),
        (("x", "--trace", "/nowhere/at/all"), "there is no folder"),
        (("x", "--live"), "--live needs a terminal"),
        (("x", "--fps", "5"), "--fps has no effect"),
        (("x", "--bogus"), "--bogus"),
        (("x", "return_trace=true"), "--trace FILE"),
    ],
)
def test_a_mistake_is_one_clear_line_and_status_2(
    words: tuple[str, ...], says: str, cli: Cli, model: Path
) -> None:
    assert says in refused(cli("generate", *words, "-m", model))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no blank", "no blank"),
        ("a {0}", "at least 1"),
        ("a {x}", "single '{'"),
        ("a } {1}", "single '}'"),
        ("a {999}", "context 192"),
        ("a {" + "9" * 5000 + "}", "longer than any context"),
    ],
)
def test_a_text_with_wrong_blanks_is_refused(text: str, says: str, cli: Cli, model: Path) -> None:
    assert says in refused(cli("infill", text, "-m", model))


def test_infill_refuses_options_that_have_no_effect(cli: Cli, model: Path) -> None:
    assert "the blanks give" in refused(cli("infill", "a {1}", "gen_length=8", "-m", model))


def test_empty_standard_input_is_refused(cli: Cli, model: Path) -> None:
    assert "empty" in refused(cli("generate", "-m", model))


def test_standard_input_that_is_no_text_is_refused(cli: Cli, model: Path) -> None:
    assert "UTF-8" in refused(cli("generate", "-m", model, stdin=b"\xff\xfe"))


@pytest.mark.parametrize("name", ["dem", "/no/such/folder", "./gone"])
def test_a_model_that_does_not_exist_is_refused(name: str, cli: Cli) -> None:
    assert name in refused(cli("generate", "x", "-m", name))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"garbage"),
        ("model.safetensors", b""),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"{}"),
        ("config.json", b"\xff\xfe\x00"),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_damaged_checkpoint_is_refused(file: str, content: bytes, cli: Cli, broken: Path) -> None:
    (broken / file).write_bytes(content)
    assert str(broken) in refused(cli("generate", "x", "-m", broken))


def test_a_cut_off_weights_file_is_refused(cli: Cli, broken: Path) -> None:
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "safetensors" in refused(cli("generate", "x", "-m", broken))


def test_pickled_weights_are_refused(cli: Cli, broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert "pickle" in refused(cli("generate", "x", "-m", broken))


# the other commands


def test_models_lists_the_bundled_names(cli: Cli) -> None:
    status, out, _ = cli("models")
    assert status == 0
    assert out.split("\t")[0] == "demo"
    entries = json.loads(cli("models", "--json").out)
    (entry,) = [each for each in entries if each["origin"] == "bundled"]
    assert entry["name"] == "demo"
    assert Path(entry["folder"]).is_dir()


def test_train_runs_a_recipe_and_goes_on_where_it_stopped(cli: Cli, tmp_path: Path) -> None:
    sizes = [f"{key}={value}" for key, value in TINY.items()]
    small = (
        "rows_per_step=4",
        "micro_batches=1",
        "tokens_per_micro_batch=128",
        "checkpoint_every=1",
    )
    told = ("train", "recipe=demo", f"output={tmp_path}", *sizes, *small)
    status, out, err = cli(*told, "steps=1")
    assert status == 0
    assert re.match(r"step 00001/00001 \| loss [\d.]+ \| grad", out)
    assert err.splitlines()[-1] == f"done: the model is in {tmp_path / 'model'}"
    _, out, err = cli(*told, "steps=2")
    assert "going on after step 1 of 2" in err
    assert out.startswith("step 00002/00002")
    assert cli("generate", PROMPT, "gen_length=8", "-m", tmp_path / "model").status == 0


def test_an_interrupted_training_saves_a_checkpoint_and_says_how_to_go_on(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> str:
        signal.raise_signal(signal.SIGINT)
        return "a step"

    monkeypatch.setattr(StepLog, "line", interrupt)
    sizes = [f"{key}={value}" for key, value in TINY.items()]
    small = ("rows_per_step=4", "micro_batches=1", "tokens_per_micro_batch=128", "steps=9")
    before = signal.getsignal(signal.SIGINT)
    status, out, err = cli("train", "recipe=demo", f"output={tmp_path}", *sizes, *small)
    assert (status, out) == (130, "a step\n")
    assert (tmp_path / "step-000001" / "progress.json").exists()
    assert f"to go on: unmask train recipe=demo output={tmp_path}" in err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("recipe=demo", "setps=3"), "did you mean 'steps'"),
        (("recipe=dmeo",), "did you mean 'demo'"),
        (("steps=3",), "recipe=demo"),
        (("recipe=demo", "steps=few"), "steps='few'"),
        (("recipe=demo", "fast"), "key=value"),
        (("recipe=demo", "output=/dev/null/x"), "cannot be written"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_clear_line(
    words: tuple[str, ...], says: str, cli: Cli
) -> None:
    status, _, err = cli("train", *words)
    assert status == 2
    assert "Traceback" not in err
    assert says in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("unmask: error: ")


def test_train_alone_lists_every_key_with_its_meaning(cli: Cli) -> None:
    status, out, _ = cli("train")
    assert status == 0
    for key in field_names(Recipe):
        assert key in out
    assert key_help()["resume"].startswith("Continue from the newest checkpoint")


def test_generate_help_lists_every_knob(cli: Cli) -> None:
    status, out, _ = cli("generate", "--help=all")
    assert status == 0
    wanted = {"threshold", "factor", "steps", "block_length", "sigma"} | field_names(SamplingParams)
    for name in decoders.names():
        assert f"  {name}\n" in out
        wanted |= field_names(decoders.decoder_class(name))
    for knob in wanted:
        assert f"    {knob}=" in out


def test_a_method_by_another_name_is_said_on_standard_error(cli: Cli, model: Path) -> None:
    words = ("generate", "x", "gen_length=8", "threshold=0.5", "steps=4", "--json", "-m", model)
    status, out, err = cli(*words)
    assert status == 0
    assert json.loads(out)["decoder"] == "threshold"
    assert "note: decoder vanilla with threshold is threshold" in err
    assert "steps=4 has no effect" in err


def test_demo_shows_six_tasks_and_a_table_even_when_answers_are_wrong(
    cli: Cli, model: Path
) -> None:
    status, out, err = cli("demo", "--model", model)
    assert (status, err) == (0, "")
    assert "Tom has 3 boxes with 4 pens each" in out
    assert len(re.findall(r"^\d\. .*: decoder \w+, cache \w+$", out, re.MULTILINE)) == 6
    assert re.search(r"^\d of 6 right$", out, re.MULTILINE)


def test_demo_refuses_a_pace_that_contradicts_itself(cli: Cli) -> None:
    assert "contradict" in refused(cli("demo", "--fast", "--fps", "5"))


def test_version_and_no_command(cli: Cli) -> None:
    assert cli("--version") == (0, f"unmask {unmask.__version__}\n", "")
    for words in ((), ("bench",), ("config",)):
        assert cli(*words).status == 2, words
    assert cli("bench", "--help").status == 0
    assert "generat" in refused(cli("generat"))


def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "unmask.cli.main", "models"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# words


def test_words_are_a_prompt_and_settings() -> None:
    assert split_words(["What is 1=1?", "a=b"]) == ("What is 1=1?", {"a": "b"})
    assert split_words(["x=5 is what?"]) == ("x=5 is what?", {})
    assert split_words(["steps=5", "hello"]) == ("hello", {"steps": "5"})
    assert split_words(["hello", "block-length=5", "k=a b"]) == (
        "hello",
        {"block_length": "5", "k": "a b"},
    )
    assert split_words(["1=2"]) == ("1=2", {})


def test_a_flag_and_a_word_may_agree(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[DecodeOptions] = []
    monkeypatch.setattr("unmask.cli.decode.generate", lambda _, found, show: options.append(found))
    words = ("seed=1", "--seed", "01", "raw=yes", "--raw", "quantize=int8", "factor=2")
    assert cli("generate", "x", *words).status == 0
    (found,) = options
    assert (found.seed, found.raw, found.quantization) == (1, True, "int8")
    assert found.knobs == {"factor": "2"}
    both = cli("generate", "x", "decoder=factor", "--decoder", "vanilla")
    assert "--decoder vanilla and decoder=factor contradict" in refused(both)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("The {3} sat", ["The ", 3, " sat"]),
        ("{1}{2}", [1, 2]),
        ("a  {1}", ["a  ", 1]),
        ("{{{1}}}", ["{", 1, "}"]),
        ("{{1}} {1}", ["{1} ", 1]),
    ],
)
def test_blanks_are_numbers_in_braces(text: str, parts: list[str | int]) -> None:
    assert parse_blanks(text) == parts


def test_a_prompt_that_is_no_text_is_refused() -> None:
    with pytest.raises(PromptError, match="UTF-8"):
        read_prompt("\udcff")


def test_bench_overhead_gives_a_row_a_decoder(cli: Cli) -> None:
    sizes = ("--vocab-size", "1024", "--width", "64", "--layers", "1", "--gen-length", "8")
    rest = ("--prompt-length", "8", "--batch", "2", "--decoders", "threshold, daedal")
    status, out, _ = cli("bench", "overhead", *sizes, *rest)
    assert status == 0
    assert [line.split("|")[1].strip() for line in out.splitlines()[-2:]] == ["threshold", "daedal"]
    assert all(float(line.split("|")[5].strip(" %")) > 0 for line in out.splitlines()[-2:])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--decoders", "treshold"), "did you mean 'threshold'"),
        (("--layers", "0"), "layers=0"),
        (("--vocab-size", "10"), "at least 1024"),
    ],
)
def test_bench_overhead_refuses_what_cannot_be(words: tuple[str, ...], says: str, cli: Cli) -> None:
    assert says in refused(cli("bench", "overhead", *words))


LONGER = (["models"], ["inspect", "demo"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "words", [["--help"], *(pytest.param(words, marks=pytest.mark.slow) for words in LONGER)]
)
def test_output_to_a_full_disk_is_one_line_on_standard_error(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run_full(words, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        error = done.stderr.decode().splitlines()[-1]
        assert error.startswith("unmask: error: the output cannot be written (No space left")
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr
        assert run_full(words, stdout=subprocess.DEVNULL, stderr=full).returncode in (0, 2)


def run_full(words: list[str], **streams: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "unmask.cli.main", *words], **streams)


def test_a_command_without_standard_streams_ends_well() -> None:
    line = f"exec {sys.executable} -m unmask.cli.main models >&- 2>&-"
    assert subprocess.run(["bash", "-c", line]).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "Tom", "--gen-length", "1.5"],
        ["generate", "Tom", "gen_length=8.5"],
        ["serve", "--port", "80.5"],
        ["eval", "task=word_problem", "--num-processes=1.5"],
        ["bench", "decode", "--limit", "nan"],
    ],
)
def test_a_fraction_is_no_whole_number(words: list[str], cli: Cli) -> None:
    status, _, error = cli(*words)
    assert status == 2
    assert error.rstrip().endswith("must be a whole number")


# drafts


def test_a_draft_is_revised_and_its_pinned_part_stays(cli: Cli, model: Path) -> None:
    draft, words = "Then: 3+2=5", ("-d", "wino", "narrow_out_thres=1.0", "-m", model)
    kept = cli("generate", PROMPT, *words, "--draft", draft, "--max-edits", "0")
    assert (kept.status, kept.out) == (0, draft + "\n")
    free = cli("generate", PROMPT, *words, "--draft", draft, "--no-stop-at-eos")
    assert free.out != kept.out
    pins = ("--pin", "Then", "--pin", "5")
    held = cli("generate", PROMPT, *words, "--draft", draft, *pins, "--no-stop-at-eos")
    assert held.out.startswith("Then")
    assert "5" in held.out
    filled = cli("infill", "Tom has {6}.", *words, "--draft", " 3 boxes", "max_edits=0")
    assert filled.out.startswith("Tom has 3 boxes")


def test_a_draft_that_cannot_be_used_is_refused(cli: Cli, model: Path) -> None:
    words = ("generate", PROMPT, "-m", model)
    assert "never changes a decided token" in refused(cli(*words, "--draft", "3"))
    assert "no effect without draft" in refused(cli(*words, "--pin", "3"))
    assert "not in the draft" in refused(
        cli(*words, "-d", "wino", "--draft", "3", "--pin", "4", "--gen-length", "8")
    )
