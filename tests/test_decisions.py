"""Decisions: probabilities of answers from one forward, orders, independence, and calibration."""

from __future__ import annotations

import asyncio
import itertools
import json
import math

import numpy as np
import pytest
import torch

import unmask
from unmask.decisions import (
    Calibration,
    Decisions,
    QuestionAnswer,
    choice,
    predicate,
    score,
)
from unmask.decisions.asking import DecisionRequests
from unmask.decisions.calibration import (
    calibrated,
    calibration_error,
    fit_temperature,
    log_loss,
)
from unmask.decisions.canvases import DecisionOptions, RowLimits, labels_of, orders_of
from unmask.decisions.labelled import read_labelled
from unmask.decisions.questions import question_list
from unmask.engine.async_llm import AsyncLLM
from unmask.engine.config import EngineConfig
from unmask.errors import ConfigError, LengthError
from unmask.models.digests import weights_digest

SUMS = [
    choice(f"{a}+{b}=", [str(a + b + k) for k in (-2, -1, 0, 1, 2)])
    for a, b in ((7, 11), (26, 15), (9, 33))
]
CLOZE = {"layout": "cloze"}


def naive(llm, ids, positions, tokens):
    """ln p of tokens at positions, by a plain forward of one canvas."""
    from unmask.models.transformer import topology

    with torch.inference_mode():
        row = torch.tensor([ids])
        at = torch.arange(len(ids))[None]
        hidden = llm.model.hidden(row, at, topology(llm.spec, at, None))
        logits = llm.model.head(hidden[0]).float().log_softmax(-1)
    return sum(float(logits[p, t]) for p, t in zip(positions, tokens, strict=True))


def naive_shares(llm, questions, at, estimator):
    """Probabilities of the values of question `at` in a shared cloze canvas, and their label mass."""
    encode = lambda text: llm.prompts.encode(text, special=False)  # noqa: E731
    mask, end = llm.spec.mask_id, llm.facts.turn_end_id
    logs, sizes = [], []
    for value in questions[at].values:
        tokens, total = encode(value), 0.0
        for done in [0] if estimator == "slots" else range(len(tokens)):
            ids, start = list(llm.prompts.begin), 0
            for number, question in enumerate(questions):
                ids += encode(question.instructions)
                if number == at:
                    start = len(ids)
                    ids += [*tokens[:done], *[mask] * (len(tokens) - done)]
                else:  # the others have the blank of their own content of the same number
                    ids += others(
                        llm, question, estimator, len(tokens), tokens[:done], questions[at]
                    )
                ids += encode("\n")
            ids.append(end)
            read = range(len(tokens)) if estimator == "slots" else [done]
            total += naive(llm, ids, [start + i for i in read], [tokens[i] for i in read])
        logs.append(total)
        sizes.append(len(tokens))
    shares = np.exp(np.array(logs) - max(logs))
    masses = [
        sum(math.exp(v) for v, n in zip(logs, sizes, strict=True) if n == size)
        for size in set(sizes)
    ]
    return shares / shares.sum(), max(masses)


def others(llm, question, estimator, size, given, asked):
    """The content of another question's blank, where all questions have values of 2 and 3 tokens."""
    if estimator == "slots":
        return [llm.spec.mask_id] * size
    contents = []
    for each in (asked, question):
        tokens = [tuple(llm.prompts.encode(v, special=False)) for v in each.values]
        contents.append(sorted({(len(t), t[:i]) for t in tokens for i in range(len(t))}))
    number = contents[0].index((size, tuple(given)))
    length, own = contents[1][min(number, len(contents[1]) - 1)]
    return [*own, *[llm.spec.mask_id] * (length - len(own))]


@pytest.mark.parametrize("estimator", ["slots", "likelihood"])
def test_probabilities_are_those_of_plain_forwards(demo_llm, estimator):
    questions = [
        choice(f"{a}+{b}=", [str(a + b), str(a + b + 1), str(a + b + 90)])
        for a, b in ((7, 11), (9, 33))
    ]
    found = demo_llm.decide("", questions, estimator=estimator, **CLOZE)
    for at, answer in enumerate(found.answers):
        shares, mass = naive_shares(demo_llm, questions, at, estimator)
        assert answer.probabilities == pytest.approx(shares, abs=1e-5)
        assert answer.label_mass == pytest.approx(mass, abs=1e-5)


def test_sums_are_right_in_one_forward(demo_llm):
    found = demo_llm.decide("", SUMS, **CLOZE)
    assert [answer.value for answer in found.answers] == ["18", "41", "42"]
    assert found.num_rows == 1
    for answer in found.answers:
        assert sum(answer.probabilities) == pytest.approx(1)
        assert answer.label_mass > 0.9
        assert answer.confidence > 0.9


def test_independent_questions_see_no_other(demo_llm):
    other = choice("1+1=", ["2", "3"])
    alone = demo_llm.decide("", [SUMS[0]], independent=True, **CLOZE).answers[0]
    beside = demo_llm.decide("", [SUMS[0], other], independent=True, **CLOZE).answers[0]
    joint = demo_llm.decide("", [other, SUMS[0]], **CLOZE).answers[1]
    assert beside.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
    assert beside.label_mass == pytest.approx(alone.label_mass, abs=1e-6)
    assert joint.label_mass != pytest.approx(alone.label_mass, abs=1e-6)


def test_the_batch_size_changes_nothing(demo_llm):
    first, second = (
        demo_llm.decide("", SUMS, independent=True, max_batch_size=size, **CLOZE)
        for size in (1, 32)
    )
    for one, other in zip(first.answers, second.answers, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_all_orders_are_averaged_so_that_the_order_of_the_options_does_not_matter(demo_llm):
    values = ["red", "green", "blue"]
    shares = {}
    for options in itertools.permutations(values):
        answer = demo_llm.decide(
            "The cat is red.", [choice("Which color?", options)], orders=6
        ).answers[0]
        shares[options] = dict(zip(options, answer.probabilities, strict=True))
    first = shares[tuple(values)]
    for found in shares.values():
        assert found == pytest.approx(first, abs=1e-5)
    single = [
        dict(
            zip(
                options,
                demo_llm.decide("The cat is red.", [choice("Which color?", options)])
                .answers[0]
                .probabilities,
                strict=True,
            )
        )
        for options in (values, values[::-1])
    ]
    assert single[0] != pytest.approx(single[1], abs=1e-3)  # what orders are for


@pytest.mark.parametrize("count", [2, 3, 4])
def test_orders_are_distinct_permutations_and_the_given_one_comes_first(count):
    question = choice("Which?", [str(at) for at in range(count)])
    found = orders_of(question, 16)
    assert found[0] == tuple(range(count))
    assert len(set(found)) == len(found)
    assert all(sorted(order) == list(range(count)) for order in found)
    assert len(orders_of(question, 1)) == 1
    levels = score("How?", [str(at) for at in range(count)])
    assert orders_of(levels, 16) == [tuple(range(count)), tuple(range(count))[::-1]]


def test_more_than_26_values_have_numbers_for_labels():
    assert labels_of(choice("Which?", [f"v{at}" for at in range(26)]))[-1] == "Z"
    assert labels_of(choice("Which?", [f"v{at}" for at in range(27)]))[-1] == "27"


def test_the_prompt_lists_values_with_descriptions_in_the_order_of_the_row(demo_llm):
    question = choice("Which tone?", [("calm", "polite"), (True, None)])
    asked = DecisionRequests.about(
        demo_llm.requests,
        "Hi.",
        [question, predicate("Spam?", if_true="ads")],
        DecisionOptions(orders=2),
    )
    texts = [
        demo_llm.decode(row.canvas.tokens[: row.canvas.prompt_length].tolist())
        for row in asked.rows
    ]
    assert "1. Which tone?\nA. calm: polite\nB. true" in texts[0]
    assert "2. Spam?\nA. Yes: ads\nB. No" in texts[0]
    assert "1. Which tone?\nA. true\nB. calm: polite" in texts[-1]


def test_a_score_is_the_mean_level():
    question = score("How?", ["low", "mid", "high"])
    answer = QuestionAnswer(question, (0.25, 0.25, 0.5), 1.0)
    assert answer.score == 1.25
    assert answer.value == "high"
    assert answer.confidence == 0.25  # (3 * 0.5 - 1) / 2
    assert QuestionAnswer(question, (1 / 3, 1 / 3, 1 / 3), 1.0).confidence == pytest.approx(0)


BAD = [
    (lambda: choice("Which?", ["a"]), "2 to 255"),
    (lambda: choice("Which?", [f"v{at}" for at in range(256)]), "2 to 255"),
    (lambda: choice("Which?", ["a", "a"]), "twice"),
    (lambda: choice("Which?", ["a", " "]), "not empty"),
    (lambda: choice("Which?", "ab"), "list"),
    (lambda: score("How?", ["a", 1]), "level 1"),
    (lambda: choice(" ", ["a", "b"]), "not empty"),
    (lambda: choice("Which?", [("a", 3), ("b", None)]), "description"),
    (lambda: choice("a", [("x", "d", "e"), "y"]), "3 parts"),
    (lambda: choice("a", [("x",), "y"]), "1 parts"),
    (lambda: score("a", [(), "y"]), "level .* 0 parts"),
    (lambda: choice("a", None), "options=None"),
    (lambda: choice("a", [None, 5]), "option None"),
    (lambda: question_list(None), "questions=None must be a list"),
    (lambda: question_list(predicate("a")), "must be a list of questions"),
    (lambda: question_list({"a": predicate("a")}), "must be a list of questions"),
    (lambda: question_list("a"), "must be a list of questions"),
    (lambda: question_list([None]), "question None must be made by"),
    (lambda: DecisionOptions(orders=0), "1 to 16"),
    (lambda: DecisionOptions(layout="free"), "listed or cloze"),
    (lambda: DecisionOptions(estimator="x"), "slots or likelihood"),
    (lambda: DecisionOptions(independent=1), "True or False"),
    (lambda: DecisionOptions(orders=2, layout="cloze"), "no effect"),
    (lambda: DecisionOptions.of({"order": 2}), "orders"),
    (lambda: Calibration(0.0), "1/64|0.015625"),
    (lambda: Calibration(True), "must be a number"),
]


@pytest.mark.parametrize(("make", "words"), BAD)
def test_what_is_not_allowed_is_refused_in_plain_words(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_questions_that_cannot_be_asked_are_refused(demo_llm):
    with pytest.raises(ConfigError, match="written 'true'"):
        demo_llm.decide("", [choice("Is it?", ["true", True])], **CLOZE)
    assert demo_llm.decide("", [choice("Is it?", ["true", True])]).answers[0].label_mass >= 0
    with pytest.raises(ConfigError, match="describes its values"):
        demo_llm.decide("", [choice("Is it?", [("a", "x"), ("b", None)])], **CLOZE)
    with pytest.raises(LengthError, match="fewer or shorter values"):
        demo_llm.decide("", [choice("So?", [f"it is number {n}" for n in range(255)])])
    with pytest.raises(ConfigError, match="0 questions"):
        demo_llm.decide("", [])
    with pytest.raises(ConfigError, match="401 questions"):
        demo_llm.decide("", [SUMS[0]] * 401)
    for questions in (["is it?"], None, predicate("Is it?")):
        with pytest.raises(ConfigError, match=r"unmask\.decisions"):
            demo_llm.decide("", questions)
    assert demo_llm.decide("", (each for each in SUMS)).num_rows == 1


def test_one_forward_that_reads_too_much_is_refused(demo_llm, monkeypatch):
    whole = demo_llm.decide("", SUMS, **CLOZE)
    monkeypatch.setattr("unmask.decisions.canvases.MAX_CELLS", 20)
    found = demo_llm.decide("", SUMS, **CLOZE)
    assert (whole.num_rows, found.num_rows) == (1, len(SUMS))
    alone = demo_llm.decide("", SUMS, independent=True, **CLOZE)
    assert [each.probabilities for each in found.answers] == [
        pytest.approx(each.probabilities, abs=1e-6) for each in alone.answers
    ]
    monkeypatch.setattr("unmask.decisions.canvases.MAX_CELLS", 1)
    with pytest.raises(ConfigError, match="fewer or shorter values"):
        demo_llm.decide("", SUMS, **CLOZE)


def test_joint_questions_that_one_canvas_cannot_hold_share_several(demo_llm):
    questions = [predicate(f"Statement number {number} is true.") for number in range(60)]
    found = demo_llm.decide("The cat is red.", questions)
    assert 1 < found.num_rows < 8
    halves = [demo_llm.decide("The cat is red.", part) for part in (questions[:30], questions[30:])]
    assert [each.probabilities for each in found.answers] == [
        pytest.approx(each.probabilities, abs=1e-6) for half in halves for each in half.answers
    ]


def test_the_number_of_canvases_is_limited_with_the_ways_that_help(demo_llm):
    questions = [choice("So?", ["1", "2", "3"])] * 3
    builder, options = demo_llm.requests, DecisionOptions(independent=True, orders=2)
    limits = RowLimits(max_rows=5)
    with pytest.raises(ConfigError, match="fewer questions or fewer orders or independent=false"):
        DecisionRequests.about(builder, "", questions, options, limits)
    assert len(DecisionRequests.about(builder, "", questions[:2], options, limits).rows) == 4
    with pytest.raises(ConfigError, match="use fewer questions or estimator=slots"):
        DecisionRequests.about(
            builder,
            "",
            [choice("7+11=", ["18", "19"])],
            DecisionOptions(layout="cloze", estimator="likelihood"),
            RowLimits(max_rows=1),
        )


def test_many_questions_do_not_fill_the_queue_of_an_engine(demo_llm):
    async def run() -> Decisions:
        config = EngineConfig(max_num_seqs=2, max_queue=3)
        async with AsyncLLM(demo_llm, config=config) as llm:
            with pytest.raises(TimeoutError):
                await llm.decide("", SUMS * 20, independent=True, timeout_s=1e-4, **CLOZE)
            return await llm.decide("", SUMS * 4, independent=True, timeout_s=60.0, **CLOZE)

    found = asyncio.run(run())
    alone = demo_llm.decide("", SUMS, independent=True, **CLOZE).answers
    assert [each.probabilities for each in found.answers] == [
        pytest.approx(each.probabilities, abs=1e-5) for each in [*alone] * 4
    ]


def rows_at(temperature, count=2000):
    """Probabilities of a model that is too sure by 1 / temperature, with outcomes drawn from the truth."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        true = rng.dirichlet([0.7, 0.7, 0.7])
        rows.append((calibrated(true, 1 / temperature), int(rng.choice(3, p=true))))
    return rows


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_fitted_temperature_is_the_one_by_which_the_model_is_off(temperature):
    rows = rows_at(temperature)
    found = fit_temperature(rows)
    assert found == pytest.approx(temperature, rel=0.1)
    for other in (0.9 * found, 1.1 * found):  # it is the minimum of the loss
        assert log_loss([(calibrated(p, other), y) for p, y in rows]) > log_loss(
            [(calibrated(p, found), y) for p, y in rows]
        )


def test_calibration_lowers_the_error_and_changes_no_choice():
    rows = rows_at(2.5)
    found = fit_temperature(rows)
    after = [(calibrated(p, found), y) for p, y in rows]
    assert calibration_error(rows) > 0.1
    assert calibration_error(after) < 0.03
    assert [int(p.argmax()) for p, _ in rows] == [int(p.argmax()) for p, _ in after]


def test_a_fit_at_the_end_of_its_range_stays_there():
    sure = [(np.array([0.9, 0.1]), 0)] * 3
    assert fit_temperature(sure) == 1 / 64
    assert fit_temperature([(np.array([0.9, 0.1]), 1)] * 3) == 64
    with pytest.raises(ConfigError, match="no labelled question"):
        fit_temperature([])


def test_a_calibration_is_applied_and_belongs_to_its_weights(demo_llm, tmp_path):
    question = [choice("Which?", ["a", "b", "c"])]
    plain = demo_llm.decide("", question).answers[0]
    file = tmp_path / "calibration.json"
    Calibration(3.0, weights_digest(demo_llm.weights_folder), 10).save(file)
    flat = demo_llm.decide("", question, calibration=file).answers[0]
    assert flat.probabilities == pytest.approx(calibrated(np.array(plain.probabilities), 3.0))
    assert flat.label_mass == plain.label_mass
    Calibration(3.0, "0" * 64, 10).save(file)
    with pytest.raises(ConfigError, match="fitted for weights 000000000000"):
        demo_llm.decide("", question, calibration=file)
    assert demo_llm.decide("", question, calibration=Calibration(3.0)).answers[0] == flat


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"temperature": 1}',
        json.dumps({"temperature": "x", "weights": None, "num_questions": 1}),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path, text):
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="calibration"):
        Calibration.load(file)
    with pytest.raises(ConfigError, match="calibration"):
        Calibration.load(tmp_path / "missing.json")


ROWS = [
    {
        "input": "",
        "questions": [
            {
                "type": "choice",
                "instructions": f"{a}+{b}=",
                "choices": [{"value": str(a + b + k)} for k in (0, 1, 2)],
            }
        ],
        "answers": [str(a + b)],
    }
    for a, b in ((7, 11), (26, 15), (9, 33))
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tune_decisions_writes_the_calibration_of_labelled_rows(tmp_path, capsys):
    from unmask.cli.main import main

    rows, out = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "c.json"
    words = ["tune", "decisions", str(rows), "--layout", "cloze", "--output", str(out)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == 1
    assert found["loss_after"] <= found["loss_before"]
    made = Calibration.load(out)
    assert made.num_questions == 3
    assert made.temperature == found["calibration"]["temperature"]
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": ["0"]}, "is none of"),
        ({"answers": []}, "same length"),
        ({"questions": [{"type": "box"}]}, "predicate, choice, score"),
        (
            {"questions": [{"type": "predicate", "instructions": "x", "levels": []}]},
            "has no 'levels'",
        ),
        (
            {"questions": [{"type": "choice", "instructions": "x", "choices": ["a"]}]},
            "list of objects",
        ),
    ],
)
def test_a_row_that_is_not_labelled_is_refused_with_its_line(tmp_path, change, words):
    path = write_rows(tmp_path / "rows.jsonl", [ROWS[0], {**ROWS[1], **change}])
    with pytest.raises(ConfigError, match=words) as caught:
        read_labelled(path)
    assert "line 2" in str(caught.value)


def test_labels_of_all_kinds_are_found(tmp_path):
    questions = [
        {"type": "predicate", "instructions": "Is it?"},
        {
            "type": "choice",
            "instructions": "Which?",
            "choices": [{"value": True}, {"value": "true", "description": "d"}],
        },
        {"type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]},
    ]
    row = {"questions": questions, "answers": [False, "true", "high"]}
    (found,) = read_labelled(write_rows(tmp_path / "rows.jsonl", [row]))
    assert found.answers == (1, 1, 1)
    assert found.questions[1].descriptions == (None, "d")


def test_the_package_has_the_questions():
    assert unmask.decisions.choice is choice
