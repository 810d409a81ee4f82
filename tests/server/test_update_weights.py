"""`POST /update_weights` and step maps: who may, what is refused, and that no answer mixes two models."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from served import CHAT, gated_client, wait_for
from tiny import tiny_llm, tiny_model

from unmask import LLM
from unmask.engine.engine import Engine
from unmask.errors import CapacityError, ConfigError, EngineError
from unmask.models import BUNDLED
from unmask.models.digests import checkpoint_digests
from unmask.server.settings import Access, ServerSettings

CHAT_URL, URL = "/v1/chat/completions", "/update_weights"
KEY = {"Authorization": "Bearer secret"}
SHORT = {**CHAT, "max_tokens": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`old`: the bundled model; `new`: with other weights; `wide`: another shape; `cut`: half a file."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("old", "new", "wide", "cut"):
        shutil.copytree(BUNDLED["demo"], root / name)
    tensors = load_file(root / "new/model.safetensors")
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: value + 0.08 * torch.randn(value.shape, generator=generator).to(value.dtype)
        for name, value in tensors.items()
    }
    save_file(changed, root / "new/model.safetensors")
    config = json.loads((root / "wide/config.json").read_text())
    key = next(k for k in ("max_sequence_length", "max_position_embeddings") if k in config)
    (root / "wide/config.json").write_text(json.dumps({**config, key: 2048}))
    path = root / "cut/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return root


def settings(root):
    access = Access(key_digest=Access.digest("secret"))
    return ServerSettings(models=("demo",), access=access, weights_folder=root)


@pytest.fixture(scope="module")
def client(folders):
    llm = LLM("demo", dtype="float32", device="cpu")
    with gated_client(llm, settings(folders)) as found:
        found.llm = llm
        yield found


def answer(client, **more):
    reply = client.post(CHAT_URL, json={**SHORT, **more}, headers=KEY)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def update(client, path, status=200, **more):
    reply = client.post(URL, json={"path": str(path), **more}, headers=KEY)
    assert reply.status_code == status, reply.text
    return reply.json()


def test_new_weights_answer_as_their_own_checkpoint_and_back(client, folders):
    before = answer(client)
    number = client.engine.num_changes
    reply = update(client, "new")
    assert reply["weights_version"] == number + 1
    assert reply["path"] == str(folders / "new")
    own = LLM(folders / "new", dtype="float32", device="cpu")
    expected = own.chat(SHORT["messages"], "threshold", gen_length=16)
    after = answer(client)
    assert after["message"]["content"] == expected.text != before["message"]["content"]
    assert update(client, folders / "old")["weights_version"] == number + 2
    assert answer(client) == before


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("wide", 400, "max_length=2048, but the loaded model has"),
        ("cut", 400, "model.safetensors"),
        ("nothing", 404, "is no folder in"),
        ("..", 404, "is no folder in"),
        ("/etc", 404, "is no folder in"),
        ("new\0", 404, "is no folder in"),
        ("", 400, "path"),
    ],
)
def test_what_cannot_be_loaded_changes_nothing(client, path, status, message):
    before, number = answer(client), client.engine.num_changes
    assert message in update(client, path, status)["error"]["message"]
    assert (answer(client), client.engine.num_changes) == (before, number)


def test_a_link_out_of_the_folder_is_not_followed(client, folders):
    (folders / "link").symlink_to(BUNDLED["demo"])
    assert update(client, "link", 404)["error"]["code"] == "folder_not_found"


def test_a_key_and_a_folder_are_needed(client, folders, demo_llm):
    assert client.post(URL, json={"path": "new"}).status_code == 401
    closed = ServerSettings(models=("demo",), weights_folder=folders)
    with gated_client(demo_llm, closed) as found:
        assert update(found, "new", 403)["error"]["code"] == "updates_disabled"
    closed = ServerSettings(models=("demo",), access=settings(folders).access)
    with gated_client(demo_llm, closed) as found:
        assert "--weights-folder" in update(found, "new", 403)["error"]["message"]


def test_running_requests_end_with_the_old_weights_and_waiting_ones_begin_with_the_new(
    client, folders
):
    update(client, "old")
    old = answer(client, return_step_map=True)
    results = {}

    def run(name, call):
        thread = threading.Thread(target=lambda: results.update({name: call()}))
        thread.start()
        return thread

    client.gate.close()
    threads = [run("first", lambda: answer(client, return_step_map=True))]
    assert client.gate.waits.wait(20)
    threads.append(run("update", lambda: update(client, "new")))
    assert wait_for(lambda: client.engine._change is not None)
    threads.append(run("second", lambda: answer(client, return_step_map=True)))
    assert wait_for(lambda: client.engine.stats.queued == 1)
    assert update(client, "new", 429)["error"]["code"] == "update_in_progress"
    client.gate.open()
    for thread in threads:
        thread.join(60)
    new = answer(client, return_step_map=True)
    assert results["first"] == old
    assert results["second"] == new != old
    assert new["step_map"]["weights_version"] == old["step_map"]["weights_version"] + 1
    assert results["update"]["waited_s"] > 0


def test_requests_that_do_not_end_in_time_leave_the_weights_as_they_are(client):
    number = client.engine.num_changes
    client.gate.close()
    thread = threading.Thread(target=lambda: answer(client))
    thread.start()
    assert client.gate.waits.wait(20)
    reply = update(client, "new", 429, timeout_s=0.2)
    assert "did not end within 0.2 s; nothing was changed" in reply["error"]["message"]
    client.gate.open()
    thread.join(60)
    assert client.engine.num_changes == number
    answer(client)


def test_a_step_map_has_the_forward_and_the_probability_of_every_token(client):
    update(client, "old")
    choice = answer(client, return_step_map=True, return_trace=True, logprobs=True)
    found = choice["step_map"]
    decided = {
        position: (number, token)
        for number, step in enumerate(choice["trace"], start=1)
        for position, token, _, _ in step["committed"]
    }
    start = min(decided)
    count = len(found["token_ids"])
    assert count > 0
    assert [decided[start + k] for k in range(count)] == list(
        zip(found["forwards"], found["token_ids"], strict=True)
    )
    assert found["logprobs"] == [item["logprob"] for item in choice["logprobs"]["content"]]
    assert all(value <= 0 for value in found["logprobs"])
    assert "step_map" not in answer(client)
    with client.stream(
        "POST", CHAT_URL, json={**SHORT, "stream": True, "return_step_map": True}, headers=KEY
    ) as reply:
        chunks = [json.loads(x[6:]) for x in reply.iter_lines() if x.startswith("data: {")]
    maps = [c["choices"][0]["step_map"] for c in chunks if "step_map" in c["choices"][0]]
    assert maps == [found]


def tokens_of(engine, llm, ids):
    done, found = threading.Event(), {}

    def listener(update):
        if update.kind != "step":
            found.update(output=update.output, error=update.error, cached=update.num_cached)
            done.set()

    engine.submit(llm.request(ids, "vanilla", "block_causal", gen_length=8), listener)
    assert done.wait(20)
    assert found["error"] is None
    return found["output"].token_ids, found["cached"]


def test_keys_of_the_old_weights_are_not_reused():
    llm = tiny_llm(block_size=4)
    other = tiny_model(seed=5, block_size=4)
    prompt = [int(k) for k in range(5, 69 - 16)]
    with Engine(llm) as engine:
        first, _ = tokens_of(engine, llm, prompt)
        again, cached = tokens_of(engine, llm, prompt)
        assert (again == first, cached > 0) == (True, True)
        weights = {name: value.detach() for name, value in other.named_parameters()}
        engine.change(lambda: llm.use_weights(weights), 10)
        new, cached = tokens_of(engine, llm, prompt)
    assert cached == 0
    fresh = tiny_llm(seed=5, block_size=4)
    with Engine(fresh) as engine:
        assert new == tokens_of(engine, fresh, prompt)[0] != first


def test_a_change_that_fails_stops_the_engine_and_says_so():
    llm = tiny_llm()

    def broken():
        raise RuntimeError("half written")

    with Engine(llm) as engine:
        with pytest.raises(EngineError, match="has failed"):
            engine.change(broken, 10)
        with pytest.raises(EngineError, match="has failed"):
            engine.change(lambda: None, 10)
    with Engine(llm) as engine:
        pass
    with pytest.raises(CapacityError, match="is stopping"):
        engine.change(lambda: None, 10)


def test_the_command_refuses_a_folder_without_a_key(tmp_path):
    from unmask.cli.serve import weights_folder
    from unmask.cli.serve_options import ServeOptions
    from unmask.server.settings import ReplicaConfig, ServerConfig

    options = ServeOptions(server=ServerConfig(weights_folder=tmp_path))
    keyed = Access(key_digest=b"1")
    assert weights_folder(options, keyed) == tmp_path
    assert weights_folder(ServeOptions(), Access()) is None
    with pytest.raises(ConfigError, match="needs an API key"):
        weights_folder(options, Access())
    missing = ServeOptions(server=ServerConfig(weights_folder=tmp_path / "none"))
    with pytest.raises(ConfigError, match="is no folder"):
        weights_folder(missing, keyed)
    several = ServeOptions(
        server=ServerConfig(weights_folder=tmp_path), replicas=ReplicaConfig(replicas=2)
    )
    with pytest.raises(ConfigError, match="not for several replicas"):
        weights_folder(several, keyed)


def test_a_reply_names_the_weights_that_gave_it(client, folders):
    update(client, "old")
    reply = client.post(CHAT_URL, json=SHORT, headers=KEY).json()
    old = reply["unmask"]["model"]["weights"]
    update(client, "new")
    reply = client.post(CHAT_URL, json=SHORT, headers=KEY).json()
    new = reply["unmask"]["model"]["weights"]
    assert (old, new) == tuple(checkpoint_digests(folders / n)["weights"] for n in ("old", "new"))
    assert old != new
