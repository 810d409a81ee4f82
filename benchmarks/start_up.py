"""Processor time of commands from their start, beside that of `import torch`.

    python benchmarks/start_up.py [--repeat 5]

Runs `python -c "import torch"`, `unmask --help`, `unmask generate` (a short prompt, one block of 16
positions) and `unmask serve` (until `/health` answers) in turn, `--repeat` times, on one thread, each in a
new process; a first round writes bytecode and fills the disk's cache. The read of the bundled model's
weights and the decoding are included. Prints the medians of processor time (user and system, which other
jobs of the machine change least) and of elapsed time, and their ratios to torch's; the exit status is 1 if
a ratio of processor times is above its goal.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

TORCH, HELP, GENERATE, SERVE = "import torch", "unmask --help", "unmask generate", "unmask serve"
GOALS = {HELP: 0.25, GENERATE: 1.6, SERVE: 1.6}
"""Maximum ratio of processor time to that of `import torch`."""
COMMAND = (sys.executable, "-m", "unmask.cli.main")
PROGRAMS: Mapping[str, Sequence[str]] = {
    TORCH: (sys.executable, "-c", "import torch"),
    HELP: (*COMMAND, "--help"),
    GENERATE: (*COMMAND, "generate", "A dog has 3 bones.", "-d", "threshold", "--gen-length", "16"),
    SERVE: (*COMMAND, "serve", "demo", "--port", "0"),
}
URL = re.compile(rb"^url +(http://\S+)", re.MULTILINE)
MAX_WAIT_S, POLL_S = 300.0, 0.02


@dataclass(frozen=True)
class Times:
    """Seconds of processor time and of elapsed time."""

    processor_s: float
    elapsed_s: float


def environment() -> dict[str, str]:
    """Return the environment of a program: one thread, no network, and bytecode is stored."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return own | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_to_end(arguments: Sequence[str]) -> Times:
    """Run a program to its end. Raises CalledProcessError."""
    began = time.monotonic()
    with subprocess.Popen(
        arguments,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(arguments))
    return Times(usage.ru_utime + usage.ru_stime, time.monotonic() - began)


def run_until_healthy(arguments: Sequence[str]) -> Times:
    """Run a server until `/health` answers, then end it. Raises RuntimeError if it does not answer."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        with (
            output.open("wb") as stream,
            subprocess.Popen(
                arguments,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                while not is_healthy(output):
                    if process.poll() is not None or time.monotonic() - began > MAX_WAIT_S:
                        raise RuntimeError(output.read_text(errors="replace"))
                    time.sleep(POLL_S)
                return Times(processor_s(process.pid), time.monotonic() - began)
            finally:
                process.terminate()


def is_healthy(output: Path) -> bool:
    """Return True once the server that writes to `output` answers."""
    match = URL.search(output.read_bytes())
    if match is None:
        return False
    try:
        with urllib.request.urlopen(f"{match[1].decode()}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def processor_s(process_id: int) -> float:
    """Return the processor time of a running process (Linux)."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(repeat: int) -> dict[str, list[Times]]:
    """Return the times of every program, run in turn; the first round is left out."""
    found: dict[str, list[Times]] = {name: [] for name in PROGRAMS}
    for _ in range(repeat + 1):
        for name, arguments in PROGRAMS.items():
            run = run_until_healthy if name == SERVE else run_to_end
            found[name].append(run(arguments))
    return {name: times[1:] for name, times in found.items()}


def report(found: Mapping[str, Sequence[Times]]) -> tuple[list[str], bool]:
    """Return the lines of a table, and True if every goal is met."""
    middle = {
        name: Times(
            median(each.processor_s for each in times), median(each.elapsed_s for each in times)
        )
        for name, times in found.items()
    }
    least, are_met = middle[TORCH], True
    lines = [
        f"{'':<17}{'processor s':>12} {'spread':>12} {'ratio':>6} {'goal':>5} {'elapsed s':>10} ratio"
    ]
    for name, times in middle.items():
        ratio, goal = times.processor_s / least.processor_s, GOALS.get(name)
        are_met &= goal is None or ratio <= goal
        all_s = sorted(each.processor_s for each in found[name])
        spread, shown = f"{all_s[0]:.2f} to {all_s[-1]:.2f}", "" if goal is None else f"{goal:g}"
        lines.append(
            f"{name:<17}{times.processor_s:>12.2f} {spread:>12} {ratio:>6.2f} {shown:>5} "
            f"{times.elapsed_s:>10.2f} {times.elapsed_s / least.elapsed_s:.2f}"
        )
    return lines, are_met


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    lines, are_met = report(measure(parser.parse_args().repeat))
    print(
        f"{platform.machine()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.2f}"
    )
    print("\n".join(lines))
    return int(not are_met)


if __name__ == "__main__":
    raise SystemExit(main())
