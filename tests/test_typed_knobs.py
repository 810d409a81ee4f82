"""Names and knobs of methods as types: the file is that of the registry, and mypy refuses misspellings."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from unmask import Reference, caches, decoders
from unmask.engine import knob_types
from unmask.errors import ConfigError
from unmask.sampling.params import SamplingParams

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "knob_types.py"
GOOD = """
import random
from pathlib import Path
import unmask
from unmask import LLM, Reference
from unmask.decoders.threshold import Threshold
from unmask.method import MethodSpec

llm = LLM("demo")
llm.generate("A dog", "threshold", "dual", threshold=0.8, gen_length=16, temperature=0)
llm.generate("A dog", decoder="klass", kl_threshold=0.02, score="margin")
llm.generate("A dog", Threshold(threshold=0.8), n=2)
llm.generate("A dog", Threshold, threshold=0.8)
llm.generate("A dog", Path("./mine.py"))
llm.generate("A dog", Reference("./mine.py"))
llm.generate("A dog", Reference("package.module:Mine(count=3)"), Reference("dllm(kp=50)"))
llm.generate("A dog", Reference(random.choice(["klass", "threshold"])))
llm.generate("A dog", MethodSpec.parse())
llm.chat([{"role": "user", "content": "A"}], "threshold", threshold=0.8, raw=False, tools=[])
llm.infill(["The ", 3, " sat."], decoder="threshold", cache="dkv", cache_args={"interval": 4})
llm.request("A dog", "prophet", inner="cadllm")
text: str = "".join(llm.stream("A dog", "threshold", gen_length=8, block_length=4))
unmask.evaluate("word_problem", "demo", "threshold", limit=2, threshold=0.9)
unmask.tune("threshold", prompts="mine.jsonl", num_prompts=20)
unmask.train("rows.jsonl", output="run", steps=40).folder.name
unmask.decisions.choice("Is it cold?", ["yes", "no"])
unmask.objectives.llada_loss
"""
BAD = """
llm.generate("A dog", decodr="threshold")
llm.generate("A dog", decoder="treshold")
llm.generate("A dog", "threshold", "daul")
unmask.tune("treshold")
llm.generate("A dog", "threshold", treshold=0.8)
llm.generate("A dog", "threshold", threshold="high")
llm.generate("A dog", "vanilla", remasking="randm")
llm.chat([{"role": "user", "content": "A"}], "treshold")
llm.chat([{"role": "user", "content": "A"}], treshold=0.8)
llm.infill(["The ", 3], "treshold")
llm.infill(["The ", 3], treshold=0.8)
llm.stream("A dog", "treshold")
llm.stream("A dog", treshold=0.8)
llm.request("A dog", "treshold")
llm.request("A dog", inner="treshold")
unmask.evaluate("word_problem", "demo", "treshold")
"""


def test_the_file_is_that_of_the_registry():
    if not SCRIPT.exists():
        pytest.skip("the source distribution has no such script")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    path = ROOT / "src/unmask/engine/knob_types.py"
    assert path.read_text() == done.stdout, f"python scripts/knob_types.py > {path}"


def test_the_types_name_every_method_and_knob():
    assert list(get_args(knob_types.DecoderName)) == decoders.names()
    assert list(get_args(knob_types.CacheName)) == caches.names()
    classes = [SamplingParams, *map(decoders.decoder_class, decoders.names())]
    knobs = {field.name for cls in classes for field in dataclasses.fields(cls)}
    assert set(knob_types.Knobs.__annotations__) == knobs | {"preset", "num_transfer_tokens"}


def test_a_path_and_a_reference_are_methods(tiny, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from unmask.decoders.threshold import Threshold\n"
        "class Mine(Threshold):\n    'A decoder.'\n"
    )
    llm = tiny("llada")
    own = llm.generate([[1, 2]], tmp_path / "mine.py", gen_length=4)[0]
    assert own.canvas_ids == llm.generate([[1, 2]], "threshold", gen_length=4)[0].canvas_ids
    called = Reference("threshold(threshold=0.5)")
    assert "threshold=0.5" in llm.generate([[1, 2]], called, gen_length=4)[0].method
    with pytest.raises(ConfigError, match="did you mean 'threshold'"):
        llm.generate([[1, 2]], "treshold", gen_length=4)


@pytest.mark.slow  # mypy reads the whole package, and torch
def test_mypy_takes_what_works_and_refuses_misspellings(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "snippet.py").write_text(GOOD + BAD)
    done = subprocess.run(  # with the settings and the cache of `make check`
        [sys.executable, "-m", "mypy", tmp_path / "snippet.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = re.findall(r"snippet\.py:(\d+): error: ", done.stdout)
    refused = {int(line) for line in lines}
    first = GOOD.count("\n") + 1
    assert refused == set(range(first + 1, first + BAD.count("\n"))), done.stdout + done.stderr
