"""The demo model's synthetic tasks and tokenizer."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from unmask.demo import phrases, problems, puzzles, sentences, tasks, words
from unmask.demo.story import LevelRanges
from unmask.demo.tokenizer import SPECIAL_TOKENS, VOCABULARY, build_tokenizer

HELD_OUT_TASKS = tuple(task for task in tasks.TASKS if task != "drill")
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def is_right(equation: str) -> bool:
    match = EQUATION.fullmatch(equation)
    assert match is not None, equation
    left, right, result = int(match[1]), int(match[3]), int(match[4])
    if match[2] == "/":
        return right * result == left
    return {"+": left + right, "-": left - right, "*": left * right}[match[2]] == result


def draw(task: str, count: int, level: int = 4, seed: int = 0) -> list[tasks.Example]:
    rng = random.Random(seed)
    return [tasks.training_example(task, rng, level) for _ in range(count)]


@pytest.mark.parametrize("task", HELD_OUT_TASKS)
def test_training_and_held_out_share_nothing(task: str) -> None:
    held_out = tasks.held_out_set(task, 60)
    assert len({example.key for example in held_out}) == 60
    assert all(tasks.is_held_out(example) for example in held_out)
    trained = {example.key for example in draw(task, 3000)}
    assert trained.isdisjoint(example.key for example in held_out)


def test_held_out_sentences_never_occur_in_training_texts() -> None:
    seen = {
        part
        for example in draw("sentence", 3000)
        for part in sentences.split_sentences(example.key)
    }
    assert not any(tasks.is_held_out(tasks.Example("sentence", "", s, s)) for s in seen)


def test_public_puzzles_are_held_out() -> None:
    for puzzle in ("0200\n4302\n3401\n0004", "1000\n0002\n4003\n0000"):
        assert tasks.is_held_out(tasks.Example("sudoku", "", "", puzzle))
    key = puzzles.countdown_key([15, 44, 79], 50)
    assert tasks.is_held_out(tasks.Example("countdown", "", "", key))


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_same_seed_same_examples_and_answers_check(task: str, level: int) -> None:
    examples = draw(task, 200, level)
    assert examples == draw(task, 200, level)
    assert examples != draw(task, 200, level, seed=1)
    for example in examples:
        assert example.task == task
        assert tasks.check(example, example.answer)
        assert tasks.check(example, f"\n {example.answer} \n")
        assert not tasks.check(example, example.answer + " 7")
        assert not tasks.check(example, example.answer + "\nSo.")
        assert not tasks.check(example, "")


@pytest.mark.slow
def test_held_out_set_is_deterministic_and_checks_its_options() -> None:
    assert tasks.held_out_set("sudoku", 9, seed=4) == tasks.held_out_set("sudoku", 9, seed=4)
    assert tasks.held_out_set("sudoku", 9, seed=4) != tasks.held_out_set("sudoku", 9, seed=5)
    for example in tasks.held_out_set("sudoku", 9, blanks=8):
        assert example.prompt.count("0") == 8
    for example in tasks.held_out_set("word_problem", 9, equations=3):
        assert example.answer.count("=") == 3
    with pytest.raises(ValueError, match="never held out"):
        tasks.held_out_set("drill", 1)
    with pytest.raises(ValueError, match="distinct held-out"):
        tasks.held_out_set("word_problem", 500, level=1)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("chess", {}),
        ("sudoku", {"level": 5}),
        ("sudoku", {"equations": 2}),
        ("sudoku", {"blanks": 13}),
        ("countdown", {"blanks": 8}),
        ("word_problem", {"equations": 4}),
    ],
)
def test_sample_refuses(task: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown task|must be|option of|blanks, not"):
        tasks.sample(task, random.Random(0), **options)


def test_word_problems_chain_to_their_answer() -> None:
    lengths = [0, 0, 0, 0]
    for example in draw("word_problem", 3000):
        *worked, final = example.answer.split("\n")
        equations = [line.rsplit(": ", 1)[1] for line in worked]
        lengths[len(equations)] += 1
        known = set(re.findall(r"\d+", example.prompt)) | {"2", "3"}
        for equation in equations:
            assert is_right(equation)
            left, right, result = re.findall(r"\d+", equation)
            assert {left, right} <= known, example
            assert 1 <= int(result) <= 80
            known.add(result)
        assert final == "#### " + equations[-1].split("=")[1]
        assert "{" not in example.prompt + example.answer
    assert lengths[0] == 0
    assert 0.30 < lengths[1] / 3000 < 0.40
    assert 0.50 < lengths[2] / 3000 < 0.60


def test_word_problem_levels_and_key() -> None:
    assert {e.answer.count("=") for e in draw("word_problem", 300, level=1)} == {1}
    assert {e.answer.count("=") for e in draw("word_problem", 300, level=2)} == {1, 2}
    steps = [("In boxes", 4, "*", 3, 12), ("Then", 12, "+", 5, 17)]
    assert problems.key_of(steps) == "3*4=12;12+5=17"


def test_word_problem_check_wants_the_final_line() -> None:
    example = tasks.Example("word_problem", "", "In boxes: 3*4=12\n#### 12", "3*4=12")
    assert tasks.check(example, "3*4=12\n#### 12")
    for wrong in ("#### 13", "12", "#### 12 pens", "####12", "#### 12\n#### 13", "x #### 12"):
        assert not tasks.check(example, wrong)


def test_the_problem_of_the_readme_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wording = {
        "CONTAINERS": "{N} has {a} {cs} with {b} {os} each.",
        "GAIN": "{S} buys {n} more {os}.",
        "ASK": "How many {os} does {s} have?",
    }
    for name, template in wording.items():
        assert template in getattr(phrases, name)
        monkeypatch.setattr(phrases, name, (template,))
    pen = words.Thing("pen", "pens")
    assert "Tom" in words.BOYS
    assert pen in words.THINGS
    assert "boxes" in words.CONTAINERS
    monkeypatch.setattr(words, "BOYS", ("Tom",))
    monkeypatch.setattr(words, "THINGS", (pen,))
    monkeypatch.setattr(words, "CONTAINERS", ("boxes",))
    monkeypatch.setattr(problems, "LIMITS", (LevelRanges(6, 50, 4, 6, 5),) * 4)
    monkeypatch.setattr(problems, "WEIGHTS", (1, 0, 0, 0, 0, 0, 0))
    prompt = "Tom has 3 boxes with 4 pens each. He buys 5 more pens. How many pens does he have?"
    rng = random.Random(0)
    told = (problems.word_problem(rng, equations=2) for _ in range(20_000))
    answers = {example.answer for example in told if example.prompt == prompt}
    assert "In boxes: 3*4=12\nThen: 12+5=17\n#### 17" in answers


def test_sudoku_has_one_solution() -> None:
    assert len(puzzles.grids()) == 288
    for example in draw("sudoku", 300):
        puzzle = example.key.replace("\n", "")
        assert 4 <= puzzle.count("0") <= 10
        assert example.prompt == "Sudoku\n" + example.key
        assert puzzles.solutions(puzzle) == [example.answer.replace("\n", "")]
        assert not tasks.check(example, example.answer[5:] + "\n" + example.answer[:4])
    for line in ("1243\n4312\n3421\n2134", "1234\n3412\n4123\n2341"):
        assert line.replace("\n", "") in puzzles.grids()
    assert len(puzzles.solutions("0" * 16)) == 288


def test_countdown_is_valid() -> None:
    for example in draw("countdown", 500):
        *numbers, target = map(int, example.prompt.removeprefix("Countdown ").split(","))
        assert all(1 <= n <= 99 for n in (*numbers, target))
        first, second = example.answer.split(",")
        assert is_right(first)
        assert is_right(second)
        assert second.endswith(f"={target}")


def test_countdown_check_is_by_arithmetic() -> None:
    example = tasks.Example("countdown", "Countdown 15,44,79,50", "44-15=29,79-29=50", "")
    for right in ("44-15=29,79-29=50", "15+79=94,94-44=50", "79-44=35,35+15=50"):
        assert tasks.check(example, right)
    for wrong in (
        "44-15=29",
        "44-15=29,79-29=51",
        "44-15=30,79-30=49",
        "44-15=29,29+21=50",
        "79-29=50,44-15=29",
        "44-15=29,79-29=50,50-0=50",
        "44-15=29, 79-29=50",
        "044-15=29,79-29=50",
        "25+25=50,50+0=50",
    ):
        assert not tasks.check(example, wrong)


def test_sentences_are_exactly_the_grammar() -> None:
    for text in (
        "The cat sat on the mat.",
        "Every morning Anna drinks hot tea in the kitchen.",
        "The small dog ran to the park because it was sunny.",
        "Tom gave his mother a flower for his birthday.",
    ):
        assert sentences.is_sentence(text)
    for text in (
        "",
        "The mat sat on the cat.",
        "the cat sat on the mat.",
        "The cat sat on the mat",
        "The cat sat on the mat. The cat sat on the mat.",
        "Tom gave her mother a flower for her birthday.",
        "The cat sat on the matt.",
    ):
        assert not sentences.is_sentence(text)
    for example in draw("sentence", 1000):
        assert 1 <= len(sentences.split_sentences(example.answer)) <= 2


def test_every_position_is_used_and_filled() -> None:
    used = set(re.findall(r"\{(\w+)\}", "".join(sentences.PATTERNS))) - {"person", "his"}
    assert used | {"girl", "boy"} == set(sentences.POSITIONS)


def test_drills_mask_only_results() -> None:
    for example in draw("drill", 300):
        lines = example.answer.split("\n")
        assert 6 <= len(lines) <= 8
        assert all(is_right(line) for line in lines)
        assert example.maskable is not None
        spans = [example.answer[start:end] for start, end in example.maskable]
        assert spans == [line.split("=")[1] for line in lines]
        assert not tasks.is_held_out(example)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
def test_tokenizer_ids(tokenizer: Any) -> None:
    assert len(tokenizer) == VOCABULARY == 2046
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(2040, 2046))
    assert tokenizer.bos_token_id == 2040
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2041
    assert tokenizer.encode("<|mdm_mask|>", add_special_tokens=False) == [2042]


def test_plain_text_begins_with_the_start_token(tokenizer: Any) -> None:
    assert tokenizer.encode("") == [2040]
    assert tokenizer.encode("12") == [2040, *tokenizer.encode("12", add_special_tokens=False)]


def test_tokenizer_pieces(tokenizer: Any) -> None:
    for token in tokenizer.get_vocab():
        if not token.startswith("<|"):
            text = tokenizer.convert_tokens_to_string([token])
            assert len(text) == 1 or not any(c.isdigit() or c == "\n" for c in text), token
    assert len(tokenizer.encode("12+345=357", add_special_tokens=False)) == 10
    assert len(tokenizer.encode("\n\n", add_special_tokens=False)) == 2
    assert len(tokenizer.encode(" pens boxes Anna kitchen", add_special_tokens=False)) == 4
    assert len(tokenizer.encode("#### 17", add_special_tokens=False)) == 3


def test_tokenizer_round_trips(tokenizer: Any) -> None:
    texts = ["", " a  b ", "naïve 日本 \t\r\n\n x", "it 's , not . ok", "12  34", "####  5: 6:7"]
    texts += [e.prompt + e.answer for task in tasks.TASKS for e in draw(task, 50)]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_tokenizer_is_short_enough(tokenizer: Any) -> None:
    examples = draw("word_problem", 300)
    assert (
        sum(len(tokenizer.encode(e.prompt, add_special_tokens=False)) for e in examples) < 55 * 300
    )
    assert (
        sum(len(tokenizer.encode(e.answer, add_special_tokens=False)) for e in examples) < 32 * 300
    )


@pytest.mark.slow
def test_tokenizer_is_deterministic(folder: Path, tmp_path: Path) -> None:
    build_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_chat_template(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": " Hi \n"}, {"role": "assistant", "content": "Yes"}]
    wanted = "<|startoftext|>Hi<|eot_id|>"
    for prompt in (False, True):
        text = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=prompt)
        assert text == wanted
    assert tokenizer.apply_chat_template(chat, tokenize=False) == wanted + "Yes<|eot_id|>"
    call = {"type": "function", "function": {"name": "add", "arguments": {"left": 3}}}
    calls = [
        *chat[:1],
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "5"},
    ]
    shown = '{"name": "add", "arguments": {"left": 3}}<|eot_id|>5<|eot_id|>'
    assert tokenizer.apply_chat_template(calls, tokenize=False) == wanted + shown
    with pytest.raises(Exception, match="unknown role critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": ""}], tokenize=False)
