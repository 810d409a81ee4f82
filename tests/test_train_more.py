"""Around a run: the Python API, the dry run, samples, curves, reinforcement learning, the hub."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import unmask
from unmask.cli.main import main
from unmask.errors import ConfigError, RemoteError
from unmask.train.push import push

ROWS = [{"prompt": f"{a} {b}", "response": f"{b} {a}"} for a in "abcd" for b in "efgh"]
SMALL = {
    "init": None,
    "model": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 48, "vocab_size": 300},
    "batch_size": 4,
    "micro_batch_size": 2,
}


def test_train_from_python_returns_the_folder_and_reports_steps(tmp_path):
    seen = []
    done = unmask.train(
        ROWS,
        output=tmp_path / "run",
        steps=3,
        report=lambda entry: seen.append(entry.step),
        watch={"sample_every": 3, "samples": 2},
        data={"eval_fraction": 0.3},
        **SMALL,
    )
    assert seen == [1, 2, 3]
    assert (done.steps, done.folder) == (3, tmp_path / "run" / "final")
    assert done.loss > 0
    assert done.eval_loss > 0
    samples = [
        json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()
    ]
    assert len(samples) == 2
    assert sorted(samples[0]["forward_of_position"])[0] == 0


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ([], {}, "data is empty"),
        (["a.jsonl", {"text": "a"}], {}, "mixes files and rows"),
        ([{"text": object()}], {}, "a row is not JSON"),
        (ROWS, {"stepz": 3}, "did you mean 'steps'"),
        (ROWS, {"lora": {"rnk": 3}}, "did you mean 'lora.rank'"),
    ],
)
def test_wrong_calls_are_told(tmp_path, data, settings, message):
    with pytest.raises(ConfigError, match=message):
        unmask.train(data, output=tmp_path, **settings)


def test_a_dry_run_tells_sizes_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["init=null", "model.d_model=32", "model.num_layers=2", "model.num_heads=2"]
    words += ["model.vocab_size=300", "epochs=2", "batch_size=8", "--dry-run"]
    assert main(["train", f"data={file}", *words]) == 0
    out = capsys.readouterr().out
    for part in ("parameters ", "rows         16;", "steps        4,", "activations", "time"):
        assert part in out
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_curves_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    unmask.train(ROWS, output=tmp_path / "run", steps=1, watch={"tensorboard": True}, **SMALL)
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


class FakeHub(BaseHTTPRequestHandler):
    """The routes of the hub that an upload uses; files are kept in memory."""

    files: dict[str, bytes] = {}
    refuses = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, answer = 200, {}
        if self.refuses:
            status, answer = 403, {"error": "forbidden"}
        elif self.path == "/api/repos/create":
            answer = {"url": "https://huggingface.co/me/mine", "id": "me/mine"}
        elif "/preupload/" in self.path:
            named = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": f["path"], **plain} for f in named]}
        elif "/commit/" in self.path:
            import base64

            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            answer = {"commitUrl": "https://huggingface.co/me/mine/commit/1", "commitOid": "1" * 40,
                      "pullRequestUrl": None, "hookOutput": "", "success": True}  # fmt: skip
        self.reply(status, answer)

    def do_GET(self):
        self.reply(
            200, {"id": "me/mine", "siblings": [], "sha": "1" * 40, "tags": [], "private": True}
        )

    def reply(self, status, answer):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    FakeHub.files, FakeHub.refuses = {}, False
    server = HTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_folder_is_pushed_whole_and_nothing_else(tmp_path, hub, monkeypatch):
    done = unmask.train(ROWS, output=tmp_path / "run", steps=1, **SMALL)
    (done.folder / ".lock").write_text("1")
    push(done.folder, "me/mine", endpoint=hub, token="hf_test")
    expected = {
        path.name: path.read_bytes() for path in done.folder.iterdir() if path.name != ".lock"
    }
    assert FakeHub.files == expected
    FakeHub.files = {}
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert main(["push", str(done.folder), "me/mine", "--endpoint", hub]) == 0
    assert FakeHub.files == expected
    FakeHub.refuses = True
    with pytest.raises(RemoteError, match="the upload failed"):
        push(done.folder, "me/mine", endpoint=hub, token="hf_test")
    with pytest.raises(ConfigError, match="is no folder"):
        push(tmp_path / "nowhere", "me/mine", endpoint=hub)
