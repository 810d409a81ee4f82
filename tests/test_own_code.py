"""Decoders and caches of users: objects, classes, files, `module:Class`, entry points."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from unmask import LLM, caches, decoders, own_code
from unmask.caches.dual import Dual
from unmask.cli.main import main
from unmask.decoders.cadllm import CadLLM
from unmask.decoders.prophet import Prophet
from unmask.decoders.threshold import Threshold
from unmask.errors import ConfigError, PluginError
from unmask.evals.settings import EvalSettings
from unmask.knobs import Source
from unmask.method import MethodSpec

PROMPT = "Anna has 7 eggs. She buys 5 more eggs. How many eggs does she have?"
BOLD = """
from dataclasses import dataclass
from unmask.decoders.threshold import Threshold
from unmask.knobs import knob

@dataclass(frozen=True)
class Bold(Threshold):
    threshold: float = knob(0.3, "confidence of a commit")
"""


@dataclass(frozen=True)
class Own(Threshold):
    """A decoder as a notebook defines one: its knobs need no help."""

    again: int = 1


@dataclass(frozen=True)
class Packaged(Own):
    """A decoder that only an entry point names, since a class keeps the first name that it is loaded by."""


@pytest.fixture(autouse=True)
def _clean():
    before = [dict(each.WORKSHOP.registry.own) for each in (decoders, caches)]
    yield
    for each, own in zip((decoders, caches), before, strict=True):
        each.WORKSHOP.registry.own.clear()
        each.WORKSHOP.registry.own.update(own)


@pytest.fixture(scope="module")
def llm():
    return LLM("demo")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "bold.py"
    path.write_text(textwrap.dedent(BOLD))
    return path


def trace(llm, decoder, cache="none", **knobs):
    out = llm.generate(PROMPT, decoder, cache, gen_length=24, return_trace=True, **knobs)[0]
    return out.canvas_ids, out.num_forwards, out.trace


def test_an_object_is_its_name_and_knobs(llm):
    by_name = trace(llm, "threshold", threshold=0.8, block_length=8)
    assert trace(llm, Threshold(threshold=0.8, block_length=8)) == by_name
    assert trace(llm, Threshold(threshold=0.8), block_length=8) == by_name
    assert trace(llm, Threshold, threshold=0.8, block_length=8) == by_name
    prophet = trace(llm, "prophet(inner=cadllm)", gap_thresholds=[8.0, 6.0, 4.0])
    assert trace(llm, Prophet(inner=CadLLM(), gap_thresholds=(8.0, 6.0, 4.0))) == prophet
    assert trace(llm, "threshold", Dual()) == trace(llm, "threshold", "dual")
    assert trace(llm, "threshold", Dual) == trace(llm, "threshold", "dual")


def test_an_object_and_a_knob_that_differ_are_refused(llm):
    with pytest.raises(ConfigError, match="threshold"):
        llm.generate(PROMPT, Threshold(threshold=0.8), threshold=0.5)


def test_an_own_class_is_used_in_every_call(llm):
    expected = trace(llm, "threshold", threshold=0.8)
    assert trace(llm, Own(threshold=0.8)) == expected
    assert trace(llm, f"{__name__}:Own", threshold=0.8) == expected
    out = llm.generate(PROMPT, Own(threshold=0.8, again=2), gen_length=8)[0]
    assert out.method == f"{__name__}:Own(threshold=0.8, again=2)"
    assert trace(llm, out.method, threshold=0.8), "the text of a method names it again"
    canvas = llm.infill_canvas(["The ", 3, " sat"])
    assert list(llm.stream(canvas, Own))
    llm.infill(["The ", 3, " sat"], Own(threshold=0.7))


def test_a_local_class_is_a_decoder_too(llm):
    @dataclass(frozen=True)
    class Local(Threshold):
        pass

    assert trace(llm, Local(threshold=0.8)) == trace(llm, "threshold", threshold=0.8)


def test_a_file_is_a_decoder_and_is_read_again_when_it_changes(llm, file):
    expected = trace(llm, "threshold", threshold=0.3)
    assert trace(llm, str(file)) == expected
    assert trace(llm, f"{file}(threshold=0.8)") == trace(llm, "threshold", threshold=0.8)
    assert trace(llm, f"{file}:Bold", threshold=0.3) == expected
    assert trace(llm, f"prophet(inner={file})") == trace(
        llm, "prophet(inner=threshold)", threshold=0.3
    )
    file.write_text(file.read_text().replace("0.3", "0.99"))
    assert trace(llm, str(file)) == trace(llm, "threshold", threshold=0.99)


def test_a_cache_of_ones_own(llm, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from unmask.caches.dual import Dual\n\nclass Mine(Dual):\n    pass\n")
    assert trace(llm, "threshold", str(path)) == trace(llm, "threshold", "dual")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = (", "cannot be imported"),
        ("raise SystemExit(3)", "cannot be imported"),
        ("x = 1", "needs DECODER = CLASS"),
        (BOLD + BOLD.replace("Bold", "Other"), "Bold, Other"),
        ("DECODER = 7", "must be a subclass of Decoder"),
        ("from unmask.decoders import Decoder\nclass Half(Decoder):\n    pass", "defines no ask"),
    ],
)
def test_a_file_that_is_no_decoder_is_a_config_error(content, words, llm, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(textwrap.dedent(content))
    with pytest.raises(ConfigError, match=words) as caught:
        llm.generate(PROMPT, str(path))
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "value",
    ["./nowhere.py", "nowhere:X", "os:path", "os:nothing", ":", "x:", 3, None, object(), int],
)
def test_what_is_no_decoder_is_a_config_error(value, llm):
    with pytest.raises(ConfigError):
        llm.generate(PROMPT, value)


def test_state_outside_of_the_fields_is_refused(llm):
    class Bad(Threshold):
        def __init__(self, level):
            super().__init__()
            object.__setattr__(self, "level", level)

    with pytest.raises(PluginError, match="'level' outside of its fields"):
        llm.generate(PROMPT, Bad(3))


def test_the_entry_point_of_a_package_is_a_name(llm, monkeypatch):
    point = EntryPoint("packaged", f"{__name__}:Packaged", "unmask.decoders")
    monkeypatch.setattr(
        own_code, "entry_points", lambda group: [point] if group == point.group else []
    )
    assert trace(llm, "packaged", threshold=0.8) == trace(llm, "threshold", threshold=0.8)


def test_a_method_that_nobody_vouches_for_runs_no_code(file):
    before = set(sys.modules)
    for name in (str(file), f"{__name__}:Own", f"prophet(inner={file})"):
        with pytest.raises(ConfigError):
            MethodSpec.parse(Source({"decoder": name}))
    assert not [name for name in set(sys.modules) - before if not name.startswith("unmask.")]


def test_evaluations_take_own_decoders(file):
    settings = EvalSettings.from_dict(
        {"task": "word_problem", "decoder": str(file), "knobs": {"threshold": 0.8}}
    )
    again = EvalSettings.from_dict(settings.as_dict())
    assert again.method.decoder == settings.method.decoder


def test_the_command_line_takes_own_decoders(file, capsys):
    words = ["generate", PROMPT, "--gen-length=24", "--cache=none"]
    assert main([*words, "--decoder", str(file), "threshold=0.8"]) == 0
    own = capsys.readouterr().out
    assert main([*words, "--decoder", "threshold", "threshold=0.8"]) == 0
    assert capsys.readouterr().out == own
    assert main(["decoders", str(file)]) == 0
    assert "threshold=0.3: confidence of a commit" in capsys.readouterr().out


def test_the_page_about_own_decoders_works(tmp_path, capsys):
    page = (Path(__file__).parents[1] / "docs/how-to/own-decoder.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    definition, _, calls = code.partition("llm = LLM")
    (tmp_path / "top_two.py").write_text(
        definition.replace("import Threshold", "import Threshold  # noqa")
    )
    file = f"{tmp_path / 'top_two.py'}:TopTwo"
    own = decoders.WORKSHOP.admit(file)[0]
    names = {"LLM": LLM, "TopTwo": decoders.decoder_class(own), "Threshold": Threshold}
    exec("llm = LLM" + calls, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == printed[1]
    for words in re.findall(r"^unmask (.*top_two.py.*)$", page, re.MULTILINE):
        command = shlex.split(words.replace("./top_two.py", str(tmp_path / "top_two.py")))
        if command[0] in ("generate", "decoders"):
            assert main(command) == 0
    assert "count=2" in capsys.readouterr().out


def test_a_named_plug_in_is_for_requests(file):
    name = decoders.WORKSHOP.add_named(str(file))
    assert name == "bold"
    assert "bold" in decoders.served_names()
    assert "bold" not in decoders.names()
    method = MethodSpec.parse(Source({"decoder": "bold", "threshold": 0.5}))
    assert method.label == "bold(threshold=0.5)"
    path = file.with_name("threshold.py")
    path.write_text(file.read_text())
    with pytest.raises(ConfigError, match="exists"):
        decoders.WORKSHOP.add_named(str(path))
