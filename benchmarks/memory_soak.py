"""Resident memory of a server over many mixed requests of random lengths.

    python benchmarks/memory_soak.py [--requests 1500] [--longest 160] [--layers 6]

Starts `unmask serve demo` on a free port and asks it for completions of random prompts: every request has
its own number of prompt tokens and of answer tokens, and a random pair of decoder and cache. Prints the
server's resident memory after the warm-up and after every tenth of the rest, and the growth in between; the
exit status is 1 above `--limit` MB. Linux only, since it reads `/proc`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = (
    ("vanilla", "none"),
    ("vanilla", "dual"),
    ("threshold", "none"),
    ("threshold", "prefix"),
    ("threshold", "dual"),
    ("klass", "none"),
    ("cadllm", "dual"),
    ("cadllm", "dkv"),
    ("eb_sampler", "prefix"),
    ("pc_sampler", "none"),
    ("wino", "none"),
    ("daedal", "none"),
    ("threshold", "d2cache"),
    ("threshold", "dllm"),
)
READY = re.compile(r"http://127\.0\.0\.1:\d+")


@contextmanager
def server(model: str, *flags: str, **options: Any) -> Iterator[tuple[int, str]]:
    """Run a server with more flags; yield its process id and URL. `options` are those of `Popen`."""
    command = [sys.executable, "-m", "unmask.cli.main", "serve", model, "--port", "0", *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **options
    )
    assert process.stdout is not None, "a pipe"
    try:
        url = ""
        for line in process.stdout:
            found = READY.search(line)
            url = found[0] if found else url
            if line == "ready\n":
                break
        else:
            raise SystemExit("the server did not start")
        yield process.pid, url
    finally:
        process.kill()
        process.communicate()


def body_of(number: int, seed: int, longest: int) -> dict[str, object]:
    """Return the body of a request with a prompt of 1 to `longest` tokens; equal calls agree."""
    draw = random.Random(f"{seed}-{number}")
    decoder, cache = draw.choice(METHODS)
    return {
        "prompt": [draw.randrange(4, 2000) for _ in range(draw.randrange(1, longest + 1))],
        "decoder": decoder,
        "cache": cache,
        "ignore_eos": draw.random() < 0.5,
        "seed": number,
        "max_tokens": draw.randrange(4, 33),
    }


def ask(url: str, body: dict[str, object]) -> None:
    """Send a request; raise for any other status than 200."""
    data = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=3600) as reply:
            reply.read()
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code}: {error.read().decode()} for {body}") from error


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def shallow(folder: Path, num_layers: int) -> Path:
    """Write the bundled model with its first layers only, for a soak of the same products in less time."""
    from safetensors.torch import load_file, save_file

    from unmask import demo

    source = Path(demo.__file__).parent / "model"
    for path in source.iterdir():
        if path.suffix in {".json", ".txt", ".jinja"}:
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": num_layers}), "utf-8")
    dropped = tuple(f".blocks.{layer}." for layer in range(num_layers, config["n_layers"]))
    weights = load_file(source / "model.safetensors")
    rest = {name: value for name, value in weights.items() if not any(d in name for d in dropped)}
    save_file(rest, folder / "model.safetensors")
    return folder


def soak(
    requests: int, warmup: int, concurrency: int = 8, *, longest: int = 160, model: str = "demo"
) -> list[tuple[int, float]]:
    """Return the resident memory in MB after `warmup` requests and after every tenth of the rest."""
    marks = [warmup + (requests - warmup) * k // 10 for k in range(11)]
    readings = []
    with server(model) as (pid, url), ThreadPoolExecutor(concurrency) as pool:
        start = 0
        for mark in marks:
            list(pool.map(lambda n: ask(url, body_of(n, 0, longest)), range(start, mark)))
            start = mark
            readings.append((mark, resident_mb(pid)))
            print(f"{mark:6} requests  {readings[-1][1]:7.1f} MB", flush=True)
    return readings


def main() -> int:
    """Run the soak; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--longest", type=int, default=160, help="longest prompt in tokens")
    parser.add_argument("--layers", type=int, default=6, help="layers of the bundled model to keep")
    parser.add_argument("--limit", type=float, default=60.0, help="allowed growth in MB")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = "demo" if wanted.layers == 6 else str(shallow(Path(folder), wanted.layers))
        readings = soak(
            wanted.requests, wanted.warmup, wanted.concurrency, longest=wanted.longest, model=model
        )
    growth = max(mb for _, mb in readings) - readings[0][1]
    print(f"growth {growth:.1f} MB (goal: at most {wanted.limit:.0f})")
    return int(growth > wanted.limit)


if __name__ == "__main__":
    raise SystemExit(main())
