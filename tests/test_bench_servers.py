"""What the clients of `unmask bench` learn from a server: its tokenizer, its tokens, or nothing."""

from __future__ import annotations

import asyncio
import json
import re
import shutil

import pytest
from mock_server import WORD, mock_server

from unmask.bench.endpoint import Arrival, EndpointReply, make_client
from unmask.bench.latency import blocks, meets, standard
from unmask.bench.serve import local_tokenizers
from unmask.cli.main import main
from unmask.models import BUNDLED
from unmask.server.sglang import absolute

RUN = ["bench", "serve", "--num-prompts", "2", "--warmup-requests", "0", "--output-len", "64"]


def rows_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(.+?):\s+(\S+)", text, re.MULTILINE))


def reply(pieces, latency, num_tokens, **more):
    return EndpointReply(
        10.0, latency, tuple(Arrival(*piece) for piece in pieces), num_tokens, **more
    )


@pytest.fixture
def folder(tmp_path):
    """A folder with the tokenizer of the bundled model, at an absolute path."""
    place = tmp_path / "a model"
    place.mkdir()
    for path in BUNDLED["demo"].glob("*.json"):
        shutil.copy(path, place)
    return place


@pytest.mark.parametrize("where", ["tokenizer_path", "model_path", "root"])
@pytest.mark.parametrize("value", ["a folder", "demo"])
def test_the_tokenizer_is_that_of_a_server_on_this_machine(where, value, folder, capsys):
    name = str(folder) if value == "a folder" else value
    more = {"root": name} if where == "root" else {"model_info": {where: name}}
    with mock_server(block_s=0.001, served="mine", **more) as mock:
        assert main([*RUN, "--base-url", mock.url]) == 0
        assert mock.log[0]["model"] == "mine"
    rows = rows_of(capsys.readouterr().out)
    assert rows["Total generated tokens"] == rows["Total generated tokens (retokenized)"] != "0"


@pytest.mark.parametrize(
    "info",
    [
        {"tokenizer_path": "/nowhere/at/all"},
        {"tokenizer_path": "some/hub-id"},
        {"tokenizer_path": "."},
        {"tokenizer_path": "../tests"},
        {"tokenizer_path": ""},
        {"tokenizer_path": 7},
        {"tokenizer_path": None, "model_path": ["demo"]},
        {"tokenizer_path": "/" + "x" * 9999},
        {"tokenizer_path": "/\0"},
        {},
        None,
    ],
    ids=str,
)
def test_what_is_not_on_this_machine_is_passed_over(info):
    async def ask(url):
        async with make_client() as client:
            return await local_tokenizers(client, url, "mine")

    with mock_server(served="mine", model_info=info, root="relative") as mock:
        assert asyncio.run(ask(mock.url)) == []


def test_without_one_the_models_name_is_tried_and_the_error_names_the_flag(tmp_path, capsys):
    """A folder without a tokenizer is passed over too."""
    with mock_server(served="mine", root=str(tmp_path)) as mock:
        assert main([*RUN, "--base-url", mock.url]) == 2
    assert "no tokenizer for 'mine'" in (error := capsys.readouterr().err)
    assert "--tokenizer" in error


def test_a_tokenizer_that_is_given_is_the_one(tmp_path, capsys):
    with mock_server(block_s=0.001, served="mine", root=str(tmp_path)) as mock:
        assert main([*RUN, "--base-url", mock.url, "--tokenizer", "demo"]) == 0
        assert main([*RUN, "--base-url", mock.url, "--tokenizer", str(tmp_path / "no")]) == 2


def test_our_server_names_a_folder_by_its_absolute_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert absolute("a model") == str(folder)
    assert absolute("demo") == "demo"
    assert absolute("owner/name") == "owner/name"


NUMBERS = ("Mean TTFT (ms)", "Median TTFT (ms)", "P99 TTFT (ms)", "Mean TPOT (ms)", "Mean ITL (ms)")


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "sglang"])
@pytest.mark.parametrize("stream", [[], ["--disable-stream"]])
def test_replies_without_text_have_no_times_of_tokens(backend, stream, capsys):
    with mock_server(answer="") as mock:
        words = [*RUN, "--base-url", mock.url, "--backend", backend, *stream]
        assert main(words) == 0
        rows = rows_of(capsys.readouterr().out)
        for name in (*NUMBERS, "Peak output token throughput (tok/s)", "Max ITL (ms)"):
            assert rows[name] == "n/a", name
        assert rows["Median time to first block (ms)"] == "n/a"
        assert float(rows["Mean E2E Latency (ms)"]) > 0
        assert rows["Total generated tokens (retokenized)"] == "0"
        assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean_ttft_ms"] is None
    assert found["max_output_tokens_per_s"] is None


def test_a_reply_without_text_does_not_lower_the_others_times():
    done = [reply([(0.5, "a"), (0.9, "b")], 1.0, 3), reply([], 0.2, 8)]
    found = standard(done, [1, 1], 2.0, len)
    assert found.ttft.values == (500.0,)
    assert found.tpot.values == (250.0,)
    assert len(found.e2el.values) == 2
    assert found.peak_rate == 2
    assert not meets(done[1], {"ttft": 600.0})
    assert meets(done[1], {"e2el": 600.0})
    assert blocks(done, 2.0, len, goals={"ttft": 600.0}).good_rate == 0.5


@pytest.mark.parametrize("backend", ["openai", "sglang"])
def test_tokens_that_a_server_does_not_report_are_counted(backend, capsys):
    with mock_server(answer=WORD * 5, tells_tokens=False) as mock:
        words = [*RUN, "--base-url", mock.url, "--backend", backend]
        assert main(words) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["Total generated tokens"] == "10", "not the 64 that were asked for"


@pytest.fixture
def exam(tmp_path):
    (tmp_path / "test").mkdir()
    head = "question,choice0,choice1,choice2,choice3,answer\n"
    (tmp_path / "test" / "a_test.csv").write_text(f"{head}A?,p,q,r,s,1\nB?,p,q,r,s,2\n")
    (tmp_path / "gsm8k").mkdir()
    row = json.dumps({"question": "Q?", "answer": "#### 4"})
    (tmp_path / "gsm8k" / "test.jsonl").write_text(f"{row}\n{row}\n")
    return tmp_path


@pytest.mark.parametrize("task", ["gsm8k", "mmlu"])
def test_an_exam_counts_with_the_servers_tokenizer_or_says_that_it_cannot(task, exam, capsys):
    words = ["bench", task, "--data", str(exam), "--num-questions", "2", "--json"]
    words += ["--num-shots", "0"] if task == "gsm8k" else []

    def rate(*more, **settings):
        with mock_server(answer=WORD * 5, **settings) as mock:
            assert main([*words, "--base-url", mock.url, *more]) == 0
        found = capsys.readouterr()
        return json.loads(found.out), found.err

    told, _ = rate()
    assert told["output_throughput"] * told["latency"] == pytest.approx(2 * 512)
    counts = {"tells_tokens": False, "served": "mine"}
    for more, settings in (
        ((), {"model_info": {"tokenizer_path": "demo"}}),
        ((), {"root": "demo"}),
        (("--tokenizer", "demo"), {}),
    ):
        found, _ = rate(*more, **counts, **settings)
        assert found["output_throughput"] * found["latency"] == pytest.approx(10)
    found, noted = rate(**counts)
    assert found["output_throughput"] is None
    assert "tokens are not counted" in noted
    words.remove("--json")
    with mock_server(answer="4", **counts) as mock:
        assert main([*words, "--base-url", mock.url]) == 0
    assert "Output throughput: n/a\n" in capsys.readouterr().out
