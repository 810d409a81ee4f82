"""`import unmask` and `unmask --help` answer at once: no torch, no transformers, little work.

What is measured is processor time (user + system) of the child process, not elapsed time: on a
machine that is busy with something else, elapsed time says how busy it is. The best of five runs
counts, since every disturbance (a cold disk, bytecode to be compiled) only adds.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="processor time of a child needs a POSIX system")

HEAVY = {"torch", "transformers"}
LARGE = {
    "transformers",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "matplotlib",
    "datasets",
    "pandas",
    "scipy",
    "sklearn",
    "PIL",
    "huggingface_hub",
    "httpx",
    "ray",
}
LIMIT_S = 0.4
RUNS = 5

START = {
    "import unmask": "import unmask",
    "unmask --help": """
import sys
from unmask.cli.main import main
sys.argv = ["unmask", "--help"]
try:
    status = main()
except SystemExit as stop:
    status = stop.code
assert not status, f"exit status {status}"
""",
}
REPORT = f"""
import sys
print("loaded:", *sorted({HEAVY} & sys.modules.keys()))
"""


def _run(code: str) -> tuple[str, float]:
    """What a fresh interpreter prints for `code`, and the processor seconds it used."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("what", START)
def test_starting_does_not_load_torch_or_transformers(what: str) -> None:
    output, _ = _run(START[what] + REPORT)
    assert output.splitlines()[-1].strip() == "loaded:"


def test_an_answer_needs_no_compiler() -> None:
    code = "import sys, unmask; unmask.LLM('demo').generate('A dog', 'threshold', 'dual', gen_length=4);"
    output, _ = _run(
        code + " print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    assert output.strip() == "[]", "they take as long to import as torch"


def test_an_answer_of_the_bundled_model_needs_no_large_package_but_torch() -> None:
    code = """
import sys
from unmask.cli.main import main
assert main(["generate", "A dog", "-d", "threshold", "--gen-length", "4"]) == 0
print("loaded:", *sorted(LARGE & sys.modules.keys()))
"""
    output, _ = _run(f"LARGE = {LARGE}\n{code}")
    assert output.splitlines()[-1].strip() == "loaded:"


def test_a_server_of_the_bundled_model_needs_no_large_package_but_torch() -> None:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    code = """
import sys
import unmask
import unmask.server.process
from unmask.engine.engine import Engine
from unmask.server.app import create_app
from unmask.server.settings import ServerSettings
llm = unmask.LLM("demo")
create_app(llm, Engine(llm), ServerSettings(models=("demo",)))
print("loaded:", *sorted(LARGE & sys.modules.keys()))
"""
    output, _ = _run(f"LARGE = {LARGE}\n{code}")
    assert output.splitlines()[-1].strip() == "loaded:"


@pytest.mark.parametrize("what", START)
def test_starting_takes_little_processor_time(what: str) -> None:
    best = min(_run(START[what])[1] for _ in range(RUNS))
    assert best < LIMIT_S, f"{what}: {best:.2f} s of processor time, at most {LIMIT_S} s"
