"""A model over several processes: the same numbers and the same decodes as in one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_spec

from unmask import LLM
from unmask.attention.layered import FeatureRowMeta
from unmask.attention.packed import RowMeta
from unmask.caches.base import Layers
from unmask.distributed import codec
from unmask.errors import ConfigError
from unmask.models import convert_checkpoint, load_model
from unmask.models.families import llada
from unmask.models.ranks import Ranks, part_of
from unmask.models.spec import ExpertSpec
from unmask.models.transformer import Transformer
from unmask.models.weights import save_weights

HERE = Path(__file__).parent
PARITY = HERE / "fixtures" / "parity"
BLOCK_CAUSAL = ("sdar", "llada2_moe")
FAMILIES = ("llada", "dream", "sdar", "llada2_moe", "llada_moe", "fast_dllm_v2")
DECODES = [
    {"decoder": "vanilla", "gen_length": 16},
    {"decoder": "threshold", "cache": "dual", "gen_length": 16, "threshold": 0.2},
    {"decoder": "vanilla", "cache": "d2cache", "gen_length": 16, "steps": 8},
    {"decoder": "vanilla", "cache": "dllm(kp=4, kr=3)", "gen_length": 16, "steps": 8},
    {"decoder": "vanilla", "gen_length": 16, "temperature": 1.0, "cfg_scale": 0.5, "seed": 7},
]
MORE_DECODES = [
    {"decoder": "wino", "cache": "dual", "gen_length": 16},
    {"decoder": "daedal", "cache": "prefix", "initial_gen_length": 16, "max_gen_length": 48},
    {"decoder": "block_diffusion", "cache": "auto", "gen_length": 32, "block_length": 16},
    {"decoder": "klass", "cache": "dkv", "gen_length": 16},
    {"decoder": "cadllm", "cache": "vicinity", "gen_length": 32},
]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def started_ranks(folder: Path, plan: dict) -> Iterator[list[subprocess.Popen]]:
    (folder / "plan.json").write_text(json.dumps(plan))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, [*sys.path, HERE]))}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(HERE / "ranks.py"), str(folder)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def results(folder: Path, plan: dict) -> tuple[dict, dict]:
    with started_ranks(folder, plan) as ranks:
        for rank in ranks:
            _, errors = rank.communicate(timeout=1800)
            assert rank.returncode == 0, errors
    first, second = (json.loads((folder / f"rank{i}.json").read_text()) for i in range(2))
    return first, second


def check_equal(first: dict, second: dict) -> None:
    for name, result in first.items():
        assert result["difference"] <= 1e-5 * max(1.0, result["largest"]), name
        assert result["differing"] == [], name
        assert result["likelihood_difference"] <= 1e-4, name
        assert second[name]["stores"] <= 1, f"{name}: stores that rank 0 dropped are dropped"


def family(name: str, root: Path) -> dict:
    """A parity checkpoint whose special tokens are among its 1,024 rows."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    config = json.loads((PARITY / name / "config.json").read_text())
    ids = {"mask_token_id": 1000, "eos_token_id": 1001, "pad_token_id": 1001}
    (folder / "config.json").write_text(json.dumps(config | ids))
    shutil.copy(PARITY / name / "model.safetensors", folder)
    return {"name": name, "folder": str(folder), "serves": name in BLOCK_CAUSAL}


def written(folder: Path, **changes: object) -> str:
    model = tiny_model(**changes)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(llada.config_from_spec(model.spec)))
    save_weights(model, folder / "model.safetensors", llada.NAMES, torch.float32)
    return str(folder)


def test_two_processes_decode_like_one(tmp_path: Path) -> None:
    cases = [family(name, tmp_path) for name in FAMILIES[:2]]
    first, second = results(tmp_path, {"cases": cases, "decodes": DECODES})
    check_equal(first, second)
    for name in FAMILIES[:2]:
        assert first[name]["num_forwards"] > 40, "the comparison compared something"
        whole = sum(x.numel() for x in load_model(PARITY / name, "float32", "cpu").parameters())
        assert second[name]["numbers"] < first[name]["numbers"] < whole


@pytest.mark.slow
def test_two_processes_decode_like_one_with_every_family_and_kind_of_store(tmp_path: Path) -> None:
    biases = {"qkv_bias": True, "linear_bias": True, "norm_bias": True}
    cases = [family(name, tmp_path) for name in FAMILIES]
    cases += [{"name": "biases", "folder": written(tmp_path / "biases", **biases)}]
    cases += [{"name": "tied", "folder": written(tmp_path / "tied", tie_embeddings=True)}]
    cases += [family("llada", tmp_path) | {"name": "packed", "pack": True}]
    plan = {"cases": cases, "decodes": DECODES + MORE_DECODES}
    check_equal(*results(tmp_path, plan))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "how"),
    [(0, "dies"), (1, "dies"), (1, "hangs")],  # a hanging rank 0 looks like an idle one
)
def test_a_rank_that_dies_or_hangs_ends_the_other(tmp_path: Path, failing: int, how: str) -> None:
    cases = [family("llada", tmp_path)]
    plan = {"cases": cases, "decodes": DECODES, "failing": failing, "how": how}
    with started_ranks(tmp_path, plan | {"timeout_s": 3}) as ranks:
        _, errors = ranks[1 - failing].communicate(timeout=60)
        assert ranks[1 - failing].returncode == 1
        assert f"WorkerError: rank {1 - failing} lost another rank" in errors


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_of_all_ranks_are_the_whole(name: str) -> None:
    check_parts(PARITY / name)


@pytest.mark.parametrize(
    ("name", "form"), [("llada2_moe", "stacked"), ("llada_moe", "fused"), ("llada2_moe", "unmask")]
)
def test_parts_are_read_from_every_form(tmp_path: Path, name: str, form: str) -> None:
    convert_checkpoint(PARITY / name, tmp_path / "other", form)
    check_parts(tmp_path / "other")


def check_parts(folder: Path) -> None:
    whole = dict(load_model(folder, "float32", "cpu").named_parameters())
    parts = []
    for rank in range(2):

        def make(spec, rank=rank):
            return Transformer(spec, Ranks(rank, 2))

        parts.append(dict(load_model(folder, "bfloat16", "cpu", make=make).named_parameters()))
    assert set(parts[1]) == set(whole) - {"lm_head.weight"}
    for name, value in whole.items():
        one, other = parts[0][name].float(), parts[1].get(name, parts[0][name]).float()
        if one.shape != value.shape:
            dim = next(i for i, n in enumerate(value.shape) if one.shape[i] != n)
            assert one.shape[dim] * 2 == value.shape[dim]
            one = torch.cat((one, other), dim)
        else:
            assert torch.equal(one, other), name
        assert torch.equal(one, value.bfloat16().float()), name


def test_a_rank_holds_half_of_every_block() -> None:
    whole, part = (Transformer(tiny_spec(), Ranks(1, size)) for size in (1, 2))
    blocks = [
        sum(
            x.numel() for n, x in model.named_parameters() if n.startswith("layers") and x.dim() > 1
        )
        for model in (whole, part)
    ]
    assert blocks[0] == 2 * blocks[1]


@pytest.mark.parametrize(
    ("changes", "size", "problem"),
    [
        ({"num_kv_heads": 2}, 4, "num_kv_heads=2 of this model; allowed: 1, 2"),
        ({"d_ff": 45}, 2, "d_ff=45 of this model; allowed: 1"),
        ({}, 3, "num_heads=4 or num_kv_heads=4 of this model; allowed: 1, 2, 4"),
        (
            {"experts": ExpertSpec(8, 2, 10, "softmax", True, d_shared=6)},
            4,
            "d_ff of an expert=10 or d_ff of the shared expert=6",
        ),
    ],
)
def test_a_model_that_cannot_be_split_evenly_says_what_is_allowed(changes, size, problem) -> None:
    with pytest.raises(ConfigError) as error:
        part_of(tiny_spec(**changes), size)
    assert f"tensor_parallel_size={size} does not divide {problem}" in str(error.value)


def test_without_torchrun_the_error_has_its_command() -> None:
    with pytest.raises(ConfigError, match="needs 2 processes .* torchrun --nproc-per-node 2"):
        LLM("demo", tensor_parallel_size=2)


def test_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="tensor_parallel_size=2, but 1 processes were started"):
        LLM("demo", tensor_parallel_size=2, device="cpu")
    assert not torch.distributed.is_initialized()


def test_a_process_that_uses_torch_distributed_already_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="in use in this process already"):
        LLM("demo", tensor_parallel_size=2, device="cpu")


@pytest.mark.parametrize("size", [0, -1, 1.5, "two", True])
def test_a_size_that_is_no_count_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        LLM("demo", tensor_parallel_size=size)


def test_a_loaded_model_is_not_split() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size have no effect on a loaded model"):
        LLM(tiny_model(), tensor_parallel_size=2)


def test_a_message_arrives_as_it_was_sent() -> None:
    meta = RowMeta(
        1, np.arange(3), 9, np.array([4, 5, 6]), shadows=np.arange(0), shadows_attend=np.bool_(0)
    )
    layers = Layers(2, True, False, 3, np.array([1, 7]))
    sent = ["forward", [1, None, 2.5], np.eye(3, dtype=np.bool_), (FeatureRowMeta(meta, layers),)]
    what, plain, seen, items = codec.unpack(codec.pack(sent))
    assert (what, plain) == ("forward", [1, None, 2.5])
    assert seen.dtype == np.bool_
    assert np.array_equal(seen, np.eye(3))
    got = items[0]
    assert (got.meta.row, got.meta.length, got.meta.shadows_attend) == (1, 9, False)
    assert got.meta.position_ids.tolist() == [4, 5, 6]
    assert got.meta.shadows.shape == (0,)
    assert (got.layers.num_moved, got.layers.forced.tolist()) == (3, [1, 7])


@pytest.mark.parametrize("value", [object(), np.zeros(2), {1, 2}, Ranks()])
def test_a_message_holds_nothing_but_what_is_listed(value: object) -> None:
    with pytest.raises(codec.MessageError, match="not serializable"):
        codec.pack(["forward", value])


@pytest.mark.parametrize(
    "tree",
    [
        {"type": "Popen", "fields": {}},
        {"type": "EndMessage", "fields": {"a": 1}},
        {"array": "float64", "shape": [1], "start": 0},
        {"array": "int64", "shape": [9], "start": 0},
        {"shape": [1]},
    ],
)
def test_bytes_that_are_no_message_are_refused(tree: dict) -> None:
    text = json.dumps(tree).encode()
    packed = np.concatenate((np.array([len(text)]).view(np.uint8), np.frombuffer(text, np.uint8)))
    with pytest.raises(codec.MessageError, match="malformed message"):
        codec.unpack(packed)
    with pytest.raises(codec.MessageError, match="malformed message"):
        codec.unpack(packed[:5])


@pytest.mark.slow
def test_a_server_ends_when_a_rank_of_its_model_dies(tmp_path: Path) -> None:
    import httpx2

    log = tmp_path / "log"
    words = ["serve", "demo", "--tensor-parallel-size", "2", "--port", "0", "--device", "cpu"]
    with (
        log.open("w") as sink,
        subprocess.Popen(
            [sys.executable, "-m", "unmask.cli.main", *words],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=sink,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            until = time.monotonic() + 120
            while "ready\n" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            url = re.search(r"^url +(\S+)$", log.read_text(), re.MULTILINE)
            assert url is not None
            body = {"model": "demo", "prompt": "Anna has 7 eggs.", "max_tokens": 16}
            assert httpx2.post(f"{url[1]}/v1/completions", json=body, timeout=60).status_code == 200
            os.kill(second_rank(process.pid), signal.SIGKILL)
            assert process.wait(timeout=60) == 1
        finally:
            process.kill()


def second_rank(parent: int) -> int:
    """The child of a process whose RANK is 1."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not children.exists():
        pytest.skip("needs Linux's /proc to find the rank")
    for child in children.read_text().split():
        if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError("no rank 1")
