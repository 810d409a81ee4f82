"""`unmask bench serve`: numbers against hand-made replies, the client against a server of known pace."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mock_server import WORD, mock_server

from unmask.bench.endpoint import Arrival, EndpointReply
from unmask.bench.latency import blocks, parse_goals, standard
from unmask.bench.serve import Traffic
from unmask.bench.workload import Workload
from unmask.cli.bench_serve import find_tokenizer, percentiles
from unmask.cli.main import main
from unmask.errors import ConfigError

ROWS = """Backend Traffic request rate|Max request concurrency|Successful requests|Benchmark duration (s)
Total input tokens|Total input text tokens|Total input vision tokens|Total generated tokens
Total generated tokens (retokenized)|Request throughput (req/s)|Input token throughput (tok/s)
Output token throughput (tok/s)|Peak output token throughput (tok/s)|Peak concurrent requests
Total token throughput (tok/s)|Concurrency|Mean E2E Latency (ms)|Median E2E Latency (ms)|Mean TTFT (ms)
Median TTFT (ms)|P99 TTFT (ms)|Mean TPOT (ms)|Median TPOT (ms)|P99 TPOT (ms)|Mean ITL (ms)
Median ITL (ms)|P95 ITL (ms)|P99 ITL (ms)|Max ITL (ms)""".replace("Backend ", "Backend|")
DOCUMENT_ROWS = [row for line in ROWS.splitlines() for row in line.split("|")]


def words(text: str) -> int:
    return len(text.split())


def reply(sent_at, pieces, latency, num_tokens, **more):
    arrivals = tuple(Arrival(*piece) for piece in pieces)
    return EndpointReply(sent_at, latency, arrivals, num_tokens, **more)


NATIVE = [
    reply(10.0, [(0.5, "a b", 2), (0.9, "c d e f", 6), (1.0, "", 6), (1.5, "g", 7)], 1.6, 7),
    reply(10.2, [(1.9, "a", 1)], 2.0, 1),
    reply(12.0, [], 0.1, 9, error="refused"),
]
PIECES = [
    reply(10.0, [(0.5, "a b"), (0.9, "c d e f"), (1.5, "g")], 1.6, 7),
    reply(10.2, [(1.9, "a")], 2.0, 1),
    reply(12.0, [], 0.1, 9, error="refused"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return find_tokenizer("demo")


def test_every_row_follows_sglangs_definition():
    found = standard(NATIVE, [5, 6, 7], 4.0, words)
    assert (found.completed, found.num_input, found.num_output) == (2, 11, 8)
    assert found.num_retokenized == words("a bc d e fg") + 1
    assert found.request_rate == 2 / 4
    assert found.input_rate == 11 / 4
    assert found.output_rate == 8 / 4
    assert found.total_rate == 19 / 4
    assert found.concurrency == pytest.approx((1.6 + 2.0) / 4)
    assert found.e2el.values == pytest.approx((1600, 2000))
    assert found.ttft.values == pytest.approx((500, 1900))
    assert found.tpot.values == pytest.approx(((1600 - 500) / 6,))
    # a gap is shared among its tokens; a piece without a new one is passed over
    assert found.itl.values == pytest.approx([100] * 4 + [600])
    assert found.itl.percentile(50) == pytest.approx(100)
    assert found.itl.percentile(99) == pytest.approx(np.percentile([100] * 4 + [600], 99))
    assert found.ttft.std == pytest.approx(700)
    # seconds 0 and 1 hold 5 (0.5, 0.6, 0.7, 0.8, 0.9) and 1 token, second 2 the other request's first
    assert found.peak_rate == 5
    assert found.peak_concurrency == 2


def test_openai_pieces_count_one_gap_each_unless_the_server_tells_an_accept_length():
    plain = standard(PIECES, [5, 6, 7], 4.0, words)
    assert plain.itl.values == pytest.approx([400, 600])
    assert plain.peak_rate == 2
    split = standard(PIECES, [5, 6, 7], 4.0, words, accept_length=4.0)
    assert split.itl.values == pytest.approx([100] * 4 + [600])
    assert split.peak_rate == 2, "SGLang's peak is of pieces even then"


def test_document_000s_own_row_is_reproduced():
    # ten serial requests of 1.375 s: mean TTFT is queueing, concurrency 5.47
    own = [reply(0.0, [(1.375 * i + 0.07, "x" * 3)], 1.375 * (i + 1), 291) for i in range(10)]
    found = standard(own, [205] * 10, 13.75, words)
    assert found.output_rate == pytest.approx(211.6, abs=0.1)
    assert found.concurrency == pytest.approx(5.5)
    assert found.ttft.mean == pytest.approx(6257, abs=1)


def test_blocks_are_timed_by_when_their_last_token_came():
    told = {"num_forwards": 3}
    one = reply(0.0, [(1.0, "", 3), (2.0, "", 9), (4.0, "", 10)], 4.5, 10, usage=told)
    two = reply(0.0, [(1.5, "", 4)], 2.0, 4, usage=told)
    counted = {"steps": 7, "positions": 40, "wasted": 10}
    found = blocks([one, two], 5.0, words, 4, {"e2el": 2500.0}, counted)
    assert found.first_block.values == pytest.approx((2000, 1500))
    assert found.block.values == pytest.approx((0, 2000)), "two blocks at 2 s, the rest at 4 s"
    assert found.tokens_per_forward == 14 / 6
    assert found.forwards == 3, "the replies' own count comes first"
    assert found.eos_waste == 0.25
    assert found.good_rate == 1 / 5
    by_server = blocks([reply(0.0, [(1.0, "", 14)], 1.0, 14)], 5.0, words, 4, counters=counted)
    assert (by_server.forwards, by_server.tokens_per_forward) == (7, 2)
    silent = blocks([reply(0.0, [(1.0, "a b")], 1.0, 2)], 5.0, words, 4)
    assert (silent.tokens_per_forward, silent.eos_waste, silent.good_rate) == (None, None, None)


def test_goals_are_read_as_vllm_writes_them():
    assert parse_goals(["ttft:500", "e2el:2e3"]) == {"ttft": 500, "e2el": 2000}
    assert parse_goals(["ttft:500,tpot:10"]) == {"ttft": 500, "tpot": 10}
    for wrong in ("tfft:5", "ttft", "ttft:x", "ttft:-1", "ttft:nan"):
        with pytest.raises(ConfigError):
            parse_goals([wrong])


def test_percentiles_are_added_to_the_metrics_named():
    assert percentiles("ttft,itl", "50,99.9") == {"ttft": [50, 99.9], "itl": [50, 99.9]}
    assert percentiles("e2el", None) == {"e2el": [99]}
    assert percentiles(None, None)["ttft"] == []
    for wrong in (("ttl", None), (None, "101"), (None, "x")):
        with pytest.raises(ConfigError):
            percentiles(*wrong)


def test_random_prompts_are_those_of_sglangs_client_for_the_same_seed(tokenizer):
    items = Workload(num_prompts=4, input_length=20, output_length=10, range_ratio=0.5).items(
        tokenizer, np.random.RandomState(1)
    )
    np.random.seed(1)
    lengths = np.random.randint(10, 21, size=4)
    answers = np.random.randint(5, 11, size=4)
    offsets = np.random.randint(0, tokenizer.vocab_size, size=4)
    assert [item.prompt_length for item in items] == lengths.tolist()
    assert [item.query.num_tokens for item in items] == answers.tolist()
    first = [(offsets[0] + j) % tokenizer.vocab_size for j in range(lengths[0])]
    assert items[0].query.prompt == tokenizer.decode(first)


def test_recorded_conversations_are_sent_with_answers_as_long_as_theirs(tokenizer, tmp_path):
    path = tmp_path / "share gpt.json"
    turns = [{"value": "Tom has two pens."}, {"value": "pens pens pens"}]
    short = [{"value": "x"}, {"value": "y"}]
    path.write_text(json.dumps([{"conversations": turns}, {"conversation": turns[:1]}, {"x": 1}]))
    load = Workload("sharegpt", path, num_prompts=1)
    (item,) = load.items(tokenizer, np.random.RandomState(0))
    assert item.query.prompt == "Tom has two pens."
    assert item.query.num_tokens == len(tokenizer("pens pens pens")["input_ids"])
    with pytest.raises(ConfigError, match="use fewer"):
        Workload("sharegpt", path, num_prompts=2).items(tokenizer, np.random.RandomState(0))
    path.write_text(json.dumps([{"conversations": short[:1]}]))
    with pytest.raises(ConfigError, match="two turns"):
        load.items(tokenizer, np.random.RandomState(0))


@pytest.mark.parametrize("name", ["word_problem", "sudoku"])
def test_bundled_sets_are_sent_as_they_are(tokenizer, name):
    items = Workload(name, num_prompts=3).items(tokenizer, np.random.RandomState(0))
    assert len({item.query.prompt for item in items}) == 3
    assert all(
        item.prompt_length == len(tokenizer(item.query.prompt)["input_ids"]) for item in items
    )


def test_waits_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness():
    rng = np.random.RandomState(0)
    for burstiness, spread in ((1.0, 1.0), (4.0, 0.5), (0.25, 2.0)):
        waits = [Traffic(20.0, burstiness).interval_s(rng) for _ in range(20_000)]
        assert np.mean(waits) == pytest.approx(1 / 20, rel=0.05)
        assert np.std(waits) == pytest.approx(spread / 20, rel=0.1)
    assert Traffic().interval_s(rng) == 0


def bench(mock, *words) -> list[str]:
    return ["bench", "serve", "--base-url", mock.url, "--random-range-ratio", "1", *map(str, words)]


def test_the_table_has_document_000s_rows_in_its_order(capsys):
    with mock_server(block_s=0.01) as mock:
        assert main(bench(mock, "--backend", "sglang", "--num-prompt", 2)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    labels = [line.split(":")[0] for line in lines if ":" in line]
    assert labels[: len(DOCUMENT_ROWS)] == DOCUMENT_ROWS
    assert "----------------End-to-End Latency----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "Backend:                                 sglang    " in lines


def test_percentiles_that_are_asked_for_become_rows(capsys):
    asked = ["--percentile-metrics", "ttft,e2el", "--metric-percentiles", "50,90"]
    with mock_server(block_s=0.001) as mock:
        assert main(bench(mock, "--num-prompts", 1, *asked)) == 0
    labels = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ":" in line]
    added = [label for label in labels if label not in DOCUMENT_ROWS and label.startswith("P")]
    assert added[:2] == ["P90 E2E Latency (ms)", "P90 TTFT (ms)"]
    assert not any(label.startswith("P50") for label in labels), "the median is there already"


@pytest.mark.parametrize("backend", ["sglang", "openai", "openai-chat", "sglang-oai"])
def test_a_server_of_known_pace_is_measured_right(backend, capsys):
    pace = 0.06
    flags = ["--backend", backend, "--num-prompts", 4, "--random-output-len", 128, "--json"]
    with mock_server(block_s=pace, accept_length=4.0) as mock:
        assert main(bench(mock, *flags, "--goodput", "ttft:1", "--max-concurrency", 2)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["completed"] == 4
    assert found["total_output_tokens"] == found["total_output_tokens_retokenized"] == 4 * 128
    assert found["total_input_tokens"] == 4 * 128
    # only lower bounds hold on a machine that is busy with something else; the rest is algebra
    assert found["duration"] >= 8 * pace, "two at a time, four blocks each"
    assert 1 < found["concurrency"] <= 2
    assert found["p50_first_block_ms"] >= 1000 * pace
    block = found["p50_block_ms"]
    assert block >= 900 * pace
    after_first = found["mean_e2e_latency_ms"] - found["mean_ttft_ms"]
    assert found["mean_tpot_ms"] * 127 == pytest.approx(after_first)
    a_piece = backend in ("openai", "openai-chat")
    assert found["median_itl_ms"] * (1 if a_piece else 32) == pytest.approx(block)
    assert found["diffusion_tokens_per_forward"] == 4
    assert found["diffusion_forwards_per_request"] == 32
    assert found["diffusion_eos_waste"] == 0.25
    assert found["request_goodput"] == 0
    assert found["accept_length"] == (4.0 if backend.startswith("sglang") else None)


def test_forwards_come_from_the_servers_counters_where_replies_do_not_tell(capsys):
    with mock_server(block_s=0.001, tells_forwards=False) as mock:
        assert main(bench(mock, "--num-prompts", 2, "--random-output-len", 64, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["diffusion_forwards_per_request"] == 16, "the warm-up's are not counted"
    assert found["diffusion_tokens_per_forward"] == 4


def test_requests_that_fail_are_counted_and_the_first_reason_is_shown(capsys):
    flags = ["--num-prompts", 5, "--random-output-len", 64, "--max-concurrency", 1]
    with mock_server(block_s=0.001, fail={2}, break_off={4}) as mock:
        status = main(bench(mock, *flags, "--json"))
        assert len(mock.log) == 6, "one warms up"
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert status == 1
    assert (found["completed"], found["failed"]) == (3, 2)
    assert "2 of 5 requests failed; the first: status 429: the queue is full" in shown.err
    assert found["total_input_tokens"] == 3 * 128, "those that failed do not count"


def test_a_server_that_refuses_or_is_not_there_is_one_line(capsys):
    with mock_server(key="secret") as mock:
        assert main(bench(mock, "--model", "demo")) == 2
        assert "no such key" in capsys.readouterr().err
        assert main(bench(mock, "--model", "demo", "--api-key", "secret", "--num-prompts", 1)) == 0
        assert main(bench(mock, "--model", "nobody")) == 2
        assert "give one with --tokenizer" in capsys.readouterr().err
    assert main(bench(mock)) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_results_are_written_and_extras_sent(tmp_path, capsys):
    flags = ["--num-prompts", 1, "--random-output-len", 1, "--extra-body", '{"decoder": "klass"}']
    files = ["--save-result", "--result-dir", tmp_path, "--result-filename", "a.json"]
    with mock_server(block_s=0.001) as mock:
        for _ in range(2):
            line = ["--output-file", tmp_path / "b.jsonl"]
            assert main(bench(mock, *flags, *files, *line, "--ignore-eos")) == 0
        assert mock.log[-1]["decoder"] == "klass"
        assert mock.log[-1]["ignore_eos"] is True
    assert json.loads((tmp_path / "a.json").read_text())["generated_texts"] == [WORD]
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    assert main(bench(mock, "--result-dir", tmp_path)) == 2
    assert "without --save-result" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["sglang", "openai", "openai-chat"])
def test_answers_in_one_piece_have_their_latency_as_ttft_and_no_block_times(backend, capsys):
    flags = ["--backend", backend, "--num-prompts", 2, "--random-output-len", 64, "--json"]
    with mock_server(block_s=0.001) as mock:
        assert main(bench(mock, *flags, "--disable-stream")) == 0
        assert [body["stream"] for body in mock.log] == [False] * 3
        assert not any("stream_options" in body for body in mock.log)
    found = json.loads(capsys.readouterr().out)
    assert found["total_output_tokens"] == found["total_output_tokens_retokenized"] == 128
    assert found["mean_ttft_ms"] == found["mean_e2e_latency_ms"] > 0
    assert (found["mean_tpot_ms"], found["mean_itl_ms"]) == (0, None)
    assert (found["p50_first_block_ms"], found["p50_block_ms"]) == (None, None)
    assert found["diffusion_tokens_per_forward"] == 4


def test_details_are_written_as_sglangs_client_writes_them(tmp_path, capsys):
    path = tmp_path / "out.jsonl"
    flags = ["--num-prompts", 3, "--random-output-len", 96, "--max-concurrency", 1, "--tag", "one"]
    with mock_server(block_s=0.001, fail={2}) as mock:
        assert main(bench(mock, *flags, "--output-file", path, "--output-details")) == 1
    found = json.loads(path.read_text())
    assert found["tag"] == "one"
    assert found["input_lens"] == [128] * 3
    assert found["output_lens"] == [96, 0, 96]
    assert [len(gaps) for gaps in found["itls"]] == [2, 0, 2]
    assert found["ttfts"][1] == 0 < found["ttfts"][0]
    assert found["generated_texts"] == [WORD * 96, "", WORD * 96]
    assert found["errors"] == ["", "status 429: the queue is full", ""]


def test_headers_go_with_every_request(capsys):
    more = ["--header", "X-Team=a", "X-Note=b=c d", "--goodput", "ttft:9", "e2el:9"]
    with mock_server(block_s=0.001) as mock:
        assert main(bench(mock, "--num-prompts", 1, *more, "--json")) == 0
        assert {(told["x-team"], told["x-note"]) for told in mock.headers} == {("a", "b=c d")}
    assert json.loads(capsys.readouterr().out)["goals"] == {"ttft": 9, "e2el": 9}


def test_the_served_name_is_sent_and_the_models_tokenizer_counts(capsys):
    with mock_server(block_s=0.001) as mock:
        words = ["--model", "demo", "--served-model-name", "theirs", "--num-prompts", 1]
        assert main(bench(mock, *words, "--disable-tqdm")) == 0
        assert {body["model"] for body in mock.log} == {"theirs"}


def test_prompts_are_sent_in_the_chat_template_without_its_beginning(tokenizer):
    (plain,) = Workload("word_problem", num_prompts=1).items(tokenizer, np.random.RandomState(0))
    (item,) = Workload("word_problem", num_prompts=1, chat_template=True).items(
        tokenizer, np.random.RandomState(0)
    )
    assert item.query.prompt == plain.query.prompt + "<|eot_id|>"
    turn = [{"role": "user", "content": plain.query.prompt}]
    assert item.prompt_length == len(tokenizer.apply_chat_template(turn)["input_ids"])


def test_conversations_that_are_too_long_are_left_out(tokenizer, tmp_path):
    path = tmp_path / "talks.json"
    talks = [["Tom has two pens." * times, "pens pens"] for times in (1, 20)]
    path.write_text(json.dumps([{"conversations": [{"value": t} for t in pair]} for pair in talks]))
    load = Workload("sharegpt", path, num_prompts=1, context_length=50)
    for seed in range(4):
        (item,) = load.items(tokenizer, np.random.RandomState(seed))
        assert item.query.prompt == "Tom has two pens."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "openia"], "did you mean 'openai'"),
        (["--dataset-name", "randm"], "did you mean 'random'"),
        (["--dataset-name", "sharegpt"], "needs a JSON file"),
        (["--num-prompts", "0"], "must be at least 1"),
        (["--request-rate", "0"], "must be above 0"),
        (["--random-range-ratio", "1.5"], "from 0 to 1"),
        (["--burstiness", "2"], "no effect"),
        (["--extra-body", "[1]"], "must be a JSON object"),
        (["--extra-body", "{"], "is not JSON"),
        (["ttft:5"], "unexpected word"),
        (["--goodput", "ttft:5", "X-Team=a"], "unknown goal 'X-Team=a'"),
        (["--header", "X Team=a"], "must be NAME=VALUE"),
        (["--header", "X-Team=a\r\nb"], "must be NAME=VALUE"),
        (["--header", "authorization=x", "--api-key", "y"], "give one of them"),
        (["--output-details"], "no effect without --output-file"),
        (["--extra-body", '{"stream": false}'], "use --disable-stream"),
        (["--apply-chat-template"], "no effect on random prompts"),
        (["--sharegpt-context-len", "9"], "for dataset sharegpt only"),
        (
            ["--apply-chat-template", "--dataset-name", "sudoku", "--backend", "openai-chat"],
            "the server does that",
        ),
        (["--base-url", "localhost:8000"], "must begin with http"),
        (["--output-file", "/nowhere/x"], "there is no folder"),
        (["--tokenize-prompt", "--dataset-name", "sudoku"], "token ids"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(words, said, capsys):
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9", *words]) == 2
    assert said in capsys.readouterr().err
