"""Tasks of users: files of rows with a prompt and a metric, and task files in lm-eval's format."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

import unmask
from unmask.data.own_metrics import last_number, metric_of
from unmask.data.own_rows import RowTask
from unmask.errors import ConfigError, PluginError
from unmask.evals.own_task import read_yaml
from unmask.evals.results import Results
from unmask.evals.run import evaluate
from unmask.evals.run_folder import read_all
from unmask.evals.settings import EvalSettings

FAST = {"decoder": "threshold", "knobs": {"block_length": 16}, "gen_length": 16}
ROWS = [
    {"question": "Tom has 3 apples and buys 4. How many?", "answer": "3 + 4 = 7\n#### 7"},
    {"question": "Ann has 10 pens and gives 2 away. How many?", "answer": "#### 8"},
    {"question": "A box holds 5 balls. How many in 3 boxes?", "answer": 15},
]


@pytest.fixture(scope="module")
def llm():
    return unmask.LLM("demo", dtype="float32", device="cpu")


@pytest.fixture
def own(tmp_path, monkeypatch, llm):
    """`own(rows, **settings)`: results of a run on a file of these rows, in the folder "run"."""
    monkeypatch.chdir(tmp_path)

    def call(rows=ROWS, task="mine.jsonl", output="run", **settings):
        if rows is not None:
            write(Path(task), rows)
        values = {"task": task, "output": output, **FAST, **settings}
        return evaluate(EvalSettings.from_dict(values), llm=llm)

    return call


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(folder="run"):
    return {item.answer.doc: item.answer.text for item in read_all(Path(folder)).values()}


def test_rows_are_asked_in_their_prompts_and_judged_by_the_metric(own, llm):
    results = own(prompt="Q: {{question}}\nA:", metric="last_number")
    outs = llm.generate(
        [f"Q: {row['question']}\nA:" for row in ROWS], "threshold", gen_length=16, block_length=16
    )
    assert answers() == {number: out.text for number, out in enumerate(outs)}
    targets = [7, 8, 15]
    assert results.right == tuple(
        float(last_number(out.text) == target) for out, target in zip(outs, targets, strict=True)
    )
    assert results.task == "mine"
    assert results.settings["metric"] == "last_number"


def test_the_prompt_is_found_by_the_names_of_fields(own):
    first = own(metric="exact", prompt="{{question}}", target="{{answer}}")
    second = own(metric="exact", output="by name")
    assert answers() == answers("by name")
    assert first.right == second.right


def test_answers_are_those_of_another_run_with_its_folder_resumed(own):
    own(ROWS[:2], metric="exact")
    before = Path("run/samples.jsonl").read_bytes()
    results = own(ROWS, metric="exact")
    assert Path("run/samples.jsonl").read_bytes().startswith(before)
    assert results.docs == (0, 1, 2)


def test_examples_of_a_file_stand_before_every_question(own, llm):
    write(Path("shots.jsonl"), [{"question": "Eve has 1 cup?", "answer": "One. #### 1"}])
    results = own(metric="exact", prompt="Q: {{question}}\nA:", shots="shots.jsonl", limit=1)
    prompt = f"Q: Eve has 1 cup?\nA: One. #### 1\n\nQ: {ROWS[0]['question']}\nA:"
    text = llm.generate(prompt, "threshold", gen_length=16, block_length=16)[0].text
    assert answers() == {0: text.partition("\n\nQ:")[0]}
    assert results.resolved["num_fewshot"] == 1


def test_other_rows_are_examples_and_more_than_there_are_is_an_error(own):
    with pytest.raises(ConfigError, match="num_fewshot=3: task=mine.jsonl has 2 examples"):
        own(metric="exact", num_fewshot=3)
    results = own(metric="exact", num_fewshot=2, limit=1)
    assert results.metrics["prompt_tokens"] > 2 * len(ROWS[0]["question"].split())


def test_a_stop_ends_the_answer(own):
    full = own(metric="exact")
    text = answers()[0]
    own(metric="exact", stop=text[3:5], output="stopped")
    assert answers("stopped")[0] == text.partition(text[3:5])[0]
    assert full.task == "mine"


def test_the_likeliest_choice_is_the_answer(own, llm):
    rows = [
        {"question": "2 + 2 =", "options": ["4", "banana"], "answer": "A"},
        {"question": "2 + 3 =", "options": ["4", "5"], "answer": 1},
        {"question": "2 + 4 =", "options": ["4", "6"], "answer": "6"},
    ]
    results = own(rows, metric="choice", mc_num=4, decoder="vanilla", knobs={}, gen_length=None)
    likelihoods = {}
    for item in read_all(Path("run")).values():
        likelihoods.setdefault(item.answer.doc, {})[item.answer.part] = item.answer.log_prob
    best = [max(pair, key=pair.get) for _, pair in sorted(likelihoods.items())]
    assert results.right == tuple(float(a == b) for a, b in zip(best, [0, 1, 1], strict=True))
    assert "acc_norm,none" in results.scores


@pytest.mark.parametrize(
    ("metric", "target", "good", "bad"),
    [
        ("last_number", "#### 1,200", "so $1200.00.", "1200 or 1201"),
        ("last_number", "-3", "it is \u22123", "it is 3"),
        ("exact", " Paris", "Paris\n", "paris"),
        ("contains", "new york", "In New York, yes", "In New Yorker"),
        ("contains", "4", "It is 4.", "It is 14"),
        ("letter", "B", "The answer is B.", "BA, then C, then B"),
        ("math", "\\frac{1}{2}", "It is $0.5$", "It is $0.6$"),
    ],
)
def test_a_metric_says_what_is_right(tmp_path, metric, target, good, bad):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "p", "target": target}])
    task = RowTask(path, metric=metric)
    (document,) = task.documents()
    assert task.score(document, good) == 1
    assert task.score(document, bad) == 0


def test_a_function_of_a_file_is_a_metric(own):
    Path("judge.py").write_text(
        "def score(answer, row):\n    return row['weight'] / 4\n"
        "def always(answer, row):\n    return True\n"
    )
    rows = [{"question": f"Say {n}", "weight": n} for n in (1, 2)]
    assert own(rows, metric="python:judge.py").right == (0.25, 0.5)
    assert own(rows, metric="python:judge.py:always", output="two").right == (1.0, 1.0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def other(a, r): pass", "defines no function score"),
        ("def score(a, r): return 2", "returned 2 for the answer ''"),
        ("def score(a, r): return a[0]", "raised IndexError"),
        ("1/0", "cannot be imported"),
    ],
)
def test_a_function_that_cannot_judge_is_found_before_the_model_is_asked(own, code, message):
    Path("judge.py").write_text(code)
    with pytest.raises(PluginError, match=message):
        own(metric="python:judge.py")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"question": "q"}, {"metric": "exact"}, "line 2 has no 'answer' or 'target'"),
        ({"question": "q", "answer": None}, {"metric": "exact"}, "line 2: .* is null"),
        ({"question": "q", "answer": ""}, {"metric": "exact"}, "line 2: answer is empty"),
        ({"question": "q", "answer": "x"}, {"metric": "last_number"}, "must be text with a number"),
        ({"question": "q", "answer": "xy"}, {"metric": "letter"}, "must be a capital letter"),
        ({"question": "q", "answer": "x"}, {"metric": "choice"}, "line 2 has no 'choices'"),
        (
            {"question": "q", "choices": ["a", "b"], "answer": "c"},
            {"metric": "choice"},
            "line 2: answer='c' must be the text of one of its 2 choices",
        ),
        (
            {"question": "q", "answer": "x"},
            {"metric": "exact", "prompt": "{{title}}"},
            "line 2 has no 'title', but 'question', 'answer'",
        ),
    ],
)
def test_a_row_that_cannot_be_asked_or_judged_ends_the_run_with_its_line(
    own, row, settings, message
):
    good = {"question": "q", "answer": "A", "choices": ["A", "7"], "title": "t"}
    good["answer"] = "7" if settings["metric"] == "last_number" else "A"
    with pytest.raises(ConfigError, match=message):
        own([good, row], **settings)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs metric=NAME"),
        ({"metric": "exacte"}, "did you mean 'exact'"),
        ({"metric": "python:x.txt"}, "names no Python file"),
        ({"metric": "exact", "prompt": "no field"}, "names no field"),
        ({"metric": "exact", "prompt": "{{a"}, "cannot be read"),
        ({"metric": "exact", "shots": "none.jsonl"}, "shots='none.jsonl' is no file"),
        ({"metric": "exact", "data": "."}, "data='.' has no effect"),
        ({"metric": "choice", "stop": "x"}, "stop='x' has no effect"),
        ({"task": "gone.jsonl", "metric": "exact"}, "'gone.jsonl' is no file"),
        ({"task": "gsm9k"}, "did you mean 'gsm8k'.*a file of your own ends in .jsonl"),
        ({"task": "word_problem", "metric": "exact"}, "metric='exact' has no effect"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    write(Path("mine.jsonl"), ROWS)
    with pytest.raises(ConfigError, match=message):
        EvalSettings.from_dict({"task": "mine.jsonl", **settings})


YAML = """
include: base.yaml
task: my_task
process_results: !function judge.judge
metric_list:
  - {metric: good, aggregation: mean, higher_is_better: true}
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 16}
"""
BASE = """
custom_dataset: !function judge.documents
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
"""
JUDGE = """
import datasets

def documents(**_):
    rows = [{"question": "Say a", "answer": "a"}, {"question": "Say b", "answer": "b"}]
    return {"test": datasets.Dataset.from_list(rows)}

def judge(doc, results):
    return {"good": float(doc["answer"] == "b")}
"""


@pytest.fixture
def yaml_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"my.yaml": YAML, "base.yaml": BASE, "judge.py": JUDGE}.items():
        Path(name).write_text(text)


def test_a_task_file_of_lm_eval_runs_in_the_same_folder_and_table(yaml_task, own):
    results = own(None, task="my.yaml", gen_length=None)
    assert (results.task, results.right) == ("my_task", (0.0, 1.0))
    assert results.resolved["gen_length"] == 16
    assert Results.read(Path("run")).scores["good,none"] == 0.5


def test_a_task_file_that_cannot_be_run_is_an_error_in_plain_words(yaml_task, own):
    with pytest.raises(ConfigError, match="metric=exact_match: task=my.yaml has good"):
        own(None, task="my.yaml", metric="exact_match")
    with pytest.raises(ConfigError, match="has the filters none"):
        own(None, task="my.yaml", metric="good,strict")
    with pytest.raises(ConfigError, match="prompt='x' has no effect: task=my.yaml has its own"):
        own(None, task="my.yaml", prompt="x")
    Path("judge.py").write_text("def judge(doc, results): pass")
    with pytest.raises(ConfigError, match="cannot be loaded by lm-eval"):
        own(None, task="my.yaml")
    Path("my.yaml").write_text("group: many\ntask: [a, b]\n")
    with pytest.raises(ConfigError, match="is not one task of lm-eval"):
        own(None, task="my.yaml")
    Path("my.yaml").write_text("task: rolling\noutput_type: loglikelihood_rolling\n")
    with pytest.raises(ConfigError, match="gives no document a score"):
        own(None, task="my.yaml")
    Path("my.yaml").write_text(YAML + "unsafe_code: true\n")
    with pytest.raises(ConfigError, match="give leave with confirm_run_unsafe_code=true"):
        own(None, task="my.yaml")
    Path("my.yaml").write_text("include: my.yaml\n")
    with pytest.raises(ConfigError, match="or itself"):
        own(None, task="my.yaml")


def test_a_run_folder_is_no_task_of_lm_eval(own):
    from lm_eval.tasks import TaskManager

    own(metric="exact", limit=1)
    assert TaskManager(include_path=".", include_defaults=False).all_tasks == []


def test_the_config_of_a_run_is_read_again_and_that_of_an_older_version_too(own, tmp_path):
    from unmask.config import Sources, compose
    from unmask.config.settings import settings_of

    own(metric="exact", prompt="costs ${{question}}", limit=1)
    path = Path("run/config.yaml")
    text = path.read_text()
    first = EvalSettings.from_dict(
        {
            **FAST,
            "task": "mine.jsonl",
            "metric": "exact",
            "prompt": "costs ${{question}}",
            "output": "run",
            "limit": 1,
        }
    )
    for content in (text, text.replace("dataset.name:", "task:")):
        Path("older.yaml").write_text(content)
        again = settings_of(compose([], Sources(config_file=Path("older.yaml"))))
        assert again.fingerprint() == first.fingerprint()
    path.write_text(text.replace("dataset.name:", "task:"))
    own(metric="exact", prompt="costs ${{question}}", limit=1)  # no warning, nothing asked anew
    assert len(Path("run/samples.jsonl").read_text().splitlines()) == 1


def test_eval_takes_own_tasks_as_flags(tmp_path, monkeypatch, capsys):
    from unmask.cli.main import main

    monkeypatch.chdir(tmp_path)
    write(Path("mine.jsonl"), ROWS)
    words = ["eval", "--task", "mine.jsonl", "--prompt", "{{question}}", "--metric", "last_number"]
    words += ["--decoder", "threshold", "--gen-length", "16", "generation.block_length=16"]
    assert main([*words, "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "| mine: threshold(block_length=16) |" in out
    assert "results: runs/eval/mine-demo-threshold-" in out
    assert main(["eval", "--task", "mine.jsonl", "--metric", "nothing"]) == 2
    assert "unknown metric 'nothing'" in capsys.readouterr().err


def test_numbers_are_found_as_people_write_them():
    found = [last_number(text) for text in ("3-4", "a 1,000.50 b", "none", "x.5", "1e3")]
    assert [None if each is None else float(each) for each in found] == [4, 1000.5, None, 0.5, 1000]


def test_the_metrics_are_listed_in_the_reference():
    from unmask.data.own_metrics import METRICS

    page = (Path(__file__).parents[1] / "docs/how-to/own-task.md").read_text(encoding="utf-8")
    for name in METRICS:
        assert f"| `{name}` | {metric_of(name).about}" in page


def bench(tmp_path, monkeypatch, capsys, *words):
    """Run `unmask bench` on rows; return the JSON of a comparison, or the error."""
    from unmask.cli.main import main

    monkeypatch.chdir(tmp_path)
    write(Path("mine.jsonl"), ROWS)
    status = main(["bench", *words, "--gen-length", "8", "--block-length", "8", "--json", "-"])
    found = capsys.readouterr()
    return json.loads(found.out) if status == 0 else found.err


def test_bench_decode_judges_rows_by_a_metric(tmp_path, monkeypatch, capsys, llm):
    (tmp_path / "judge.py").write_text("def score(answer, row):\n    return 'How' in str(row)\n")
    words = ["decode", "-d", "threshold", "--task", "mine.jsonl", "--metric", "python:judge.py"]
    found = bench(tmp_path, monkeypatch, capsys, *words, "--limit", "2")
    assert [row["result"]["right"] for row in found["rows"]] == [[True, True]] * 2
    assert (found["setting"]["limit"], found["setting"]["metric"]) == (2, "python:judge.py")
    assert "--task mine.jsonl " in found["command"]
    outs = llm.generate(
        [row["question"] for row in ROWS[:2]], "threshold", gen_length=8, block_length=8
    )
    assert found["rows"][1]["result"]["num_forwards"] == sum(out.num_forwards for out in outs)


def test_prompts_without_targets_are_compared_with_the_baselines_answers(
    tmp_path, monkeypatch, capsys
):
    words = ["-d", "threshold(threshold=0.1)", "--prompts", "mine.jsonl"]
    found = bench(tmp_path, monkeypatch, capsys, "decode", *words, "--prompt", "Say {{question}}")
    assert found["rows"][0]["result"]["right"] == [True] * 3, "vanilla is the baseline"
    assert not all(found["rows"][1]["result"]["right"])
    assert "--prompts mine.jsonl" in found["command"]
    assert "--task" not in found["command"]
    caches = ["--caches", "prefix", "--prompts", "mine.jsonl", "--limit", "2"]
    found = bench(tmp_path, monkeypatch, capsys, "cache", *caches)
    assert found["caches"][0]["right"] == [True, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "mine.jsonl"], "needs --metric"),
        (["--task", "mine.jsonl", "--metric", "choice"], "give letter or exact"),
        (["--task", "mine.jsonl", "--metric", "letter"], "must be a capital letter"),
        (["--task", "gone.jsonl", "--metric", "exact"], "'gone.jsonl' is no file"),
        (["--task", "mine.txt"], "unknown task 'mine.txt'"),
        (["--metric", "exact"], "--metric 'exact' has no effect with --task word_problem"),
        (["--prompts", "mine.jsonl", "--metric", "exact"], "'exact' has no effect with --prompts"),
        (["--prompts", "mine.jsonl", "--task", "sudoku"], "contradict"),
    ],
)
def test_bench_refuses_what_it_cannot_do(tmp_path, monkeypatch, capsys, words, message):
    found = bench(tmp_path, monkeypatch, capsys, "decode", "-d", "threshold", *words)
    assert isinstance(found, str)
    assert message in found


def test_tune_searches_on_rows(tmp_path, monkeypatch, capsys):
    from unmask.cli.main import main

    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(4)]
    write(Path("mine.jsonl"), rows)
    words = ["tune", "--task", "mine.jsonl", "--metric", "last_number", "--decoder", "threshold"]
    words += ["--gen-length", "8", "generation.block_length=8", "--trials", "2", "--prompts", "2"]
    words += ["--held-out", "2", "--constraint", "none", "--plot", "front.svg"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "held out, best against defaults" in out
    assert "generation=runs/tune/mine-demo-threshold/preset.yaml" in out


def test_a_task_file_that_grows_without_end_is_refused(tmp_path):
    (tmp_path / "circle.yaml").write_text("task: a\ninclude: [circle.yaml, circle.yaml]\n")
    layers = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for name, inner in pairwise("abcdefgh"):
        layers += f"{inner}: &{inner} [{', '.join([f'*{name}'] * 9)}]\n"
    (tmp_path / "bomb.yaml").write_text(layers)
    for name, said in (("circle", "more than 20 files, or itself"), ("bomb", "100000 values")):
        with pytest.raises(ConfigError, match=said):
            read_yaml(tmp_path / f"{name}.yaml")
