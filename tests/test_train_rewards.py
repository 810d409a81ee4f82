"""Reinforcement learning: rollouts, advantages and updates by hand, the command, rewards of the tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import EOS, MASK, tiny_model

import unmask
from unmask.cli.main import main
from unmask.errors import ConfigError, PluginError
from unmask.evals import rewards
from unmask.train.config import RlConfig, compose
from unmask.train.grpo import DiffuGrpo, Rollout, Update
from unmask.train.rewards import PromptRow, exact_match, find_reward
from unmask.train.run import FileTrainer

ROWS = [{"prompt": f"{a} {b}", "response": f"{b} {a}"} for a in "abcd" for b in "efgh"]
SMALL = {
    "init": None,
    "model": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 48, "vocab_size": 300},
    "batch_size": 2,
    "micro_batch_size": 3,
    "objective": "diffu_grpo",
    "optim.lr": 1e-3,
}
RL = {"rl.group": 3, "rl.inner": 2, "rl.gen_length": 4, "rl.block_length": 4}


class Letters:
    """A tokenizer of letters: token 7 is "h"."""

    chat_template = None
    eos_token_id = EOS

    def __len__(self):
        return 62

    def get_vocab(self):
        return {chr(97 + k): k for k in range(26)}

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(letter) - 97 for letter in text if letter.isalpha()]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(97 + k) if k < 26 else "?" for k in ids)


def rows_of(text):
    return [
        PromptRow([ord(letter) - 97], {"prompt": letter, "response": letter}, letter)
        for letter in text
    ]


def early(row, answer):
    return sum(letter < "h" for letter in answer) / 4


def policy(config, *, reward=early, rows=64, **changes):
    model = tiny_model(sure=0.2, **changes).requires_grad_(True)
    return DiffuGrpo(model, Letters(), reward, config, rows=rows)


def optimizer_step(model, lr=3e-3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    def optimize():
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        return norm

    return optimize


def two_answers():
    """Prompt of two tokens, an answer of three; prompt of one, an answer that ends at its second token."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, EOS, MASK, EOS, EOS]])
    answer = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]]).bool()
    canvas = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]).bool()
    inside = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]).bool()
    return Rollout(ids, answer, canvas, inside, torch.tensor([1.0, 0.0]), ["", ""])


def alone(model, ids, prompt, answer, length):
    """Return the log-probabilities of an answer from one forward of its row without any padding."""
    noisy = torch.tensor([ids[:prompt] + [MASK] * (length - prompt)])
    logits = model(noisy)[0].log_softmax(-1)
    return torch.stack([logits[place, ids[place]] for place in answer])


def test_advantages_are_rewards_minus_the_mean_of_their_group():
    rollout = two_answers()
    found = Rollout(
        *(getattr(rollout, f"{n}_BT") for n in ("ids", "answer", "canvas", "inside")),
        torch.tensor([1.0, 0.0, 0.0, 3.0, 3.0, 0.0]),
        [],
    ).advantages(3)
    third = 1 / 3
    assert found.tolist() == pytest.approx([2 * third, -third, -third, 1.0, 1.0, -2.0])


@pytest.mark.parametrize("rows", [1, 2])
def test_an_update_is_the_formulas_gradient_whatever_the_rows_of_a_forward(rows):
    """On-policy the ratio is 1: the gradient is that of the mean of -advantage times log-probability."""
    config = RlConfig(group=2, inner=1, beta=0.0, prompt_mask=0.0)
    trained = policy(config, rows=rows)
    found = {}

    def optimize():
        found.update({k: v.grad.clone() for k, v in trained.model.named_parameters()})
        return 2.5

    done = trained.update(two_answers(), 1, optimize)
    assert done.norm == 2.5
    assert done.clipped == 0.0
    assert done.loss == pytest.approx(0.0, abs=1e-6)  # -(0.5 - 0.5) / 2
    model = tiny_model(sure=0.2).requires_grad_(True)
    first = alone(model, [1, 2, 3, 4, 5, 6], 2, [2, 3, 4, 5], 6)
    second = alone(model, [9, 8, EOS, MASK], 1, [1, 2], 4)
    (-(0.5 * first.mean() - 0.5 * second.mean()) / 2).backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.grad, atol=1e-6, rtol=1e-4)


def test_the_divergence_is_from_the_model_at_the_start():
    """After a change of the policy, with ratios at 1, the loss is beta times exp(d) - d - 1."""
    config = RlConfig(group=2, inner=1, beta=0.5, prompt_mask=0.0)
    trained = policy(config)
    with torch.no_grad():
        for value in trained.model.parameters():
            value.mul_(1.1)
    done = trained.update(two_answers(), 1, lambda: 1.0)
    before = tiny_model(sure=0.2)
    parts = []
    for row, prompt, answer, length in (
        ([1, 2, 3, 4, 5, 6], 2, [2, 3, 4, 5], 6),
        ([9, 8, EOS, MASK], 1, [1, 2], 4),
    ):
        d = alone(before, row, prompt, answer, length) - alone(
            trained.model, row, prompt, answer, length
        )
        parts.append((d.exp() - d - 1).mean().item())
    assert done.loss == pytest.approx(0.5 * sum(parts) / 2, rel=1e-3)
    assert done.loss > 1e-4


def test_later_inner_steps_are_clipped_by_hand():
    """The second inner step starts from changed weights: clip=1e-6 clips every token on both sides."""
    config = RlConfig(group=2, inner=2, beta=0.0, prompt_mask=0.0, clip=1e-6)
    trained = policy(config)
    done = trained.update(two_answers(), 1, optimizer_step(trained.model))
    assert done.clipped == pytest.approx(0.5)  # none in the first step, all in the second


def test_answers_end_with_the_token_that_ends_them_and_repeat_with_their_seed():
    config = RlConfig(group=4, gen_length=6, block_length=6)
    trained = policy(config)
    one, again = (trained.answer(rows_of("ab"), 5, group=4, temperature=1.0) for _ in range(2))
    assert torch.equal(one.ids_BT, again.ids_BT)
    assert one.texts == again.texts
    other = trained.answer(rows_of("ab"), 6, group=4, temperature=1.0)
    assert not torch.equal(one.ids_BT, other.ids_BT)
    assert one.ids_BT.shape == (8, 7)
    for ids, answer, canvas, text in zip(
        one.ids_BT, one.answer_BT, one.canvas_BT, one.texts, strict=True
    ):
        tokens = ids[answer].tolist()
        ends = [token in (EOS, 58) for token in tokens]
        assert not any(ends[:-1])
        assert len(tokens) == 6 or ends[-1]
        assert len(text) == len(tokens) - ends[-1]
        assert canvas.tolist() == [False] + [True] * 6
    assert one.rewards_B.tolist() == pytest.approx([early(None, text) for text in one.texts])


def test_rewards_raise_the_share_of_rewarded_answers():
    config = RlConfig(group=8, inner=2, gen_length=4, block_length=4, temperature=1.0, beta=0.01)
    trained = policy(config)
    optimize = optimizer_step(trained.model)
    means = []
    for step in range(12):
        rollout = trained.answer(rows_of("abcd"), 100 * step, group=8, temperature=1.0)
        trained.update(rollout, step, optimize)
        means.append(float(rollout.rewards_B.mean()))
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.1


def test_equal_rewards_change_nothing():
    config = RlConfig(group=2, gen_length=2, block_length=2)
    trained = policy(config, reward=lambda row, answer: 1.0)
    rollout = trained.answer(rows_of("a"), 0, group=2, temperature=0.9)

    def optimize():
        raise AssertionError("no step is taken")

    assert trained.update(rollout, 0, optimize) == Update()
    assert exact_match({"response": "b a"}, " b a ") == 1.0
    assert exact_match({"response": "b a"}, "b b") == 0.0


@pytest.fixture
def function_file(tmp_path) -> Path:
    path = tmp_path / "score.py"
    path.write_text(
        "def length(row, answer):\n"
        "    return len(answer) / 10 + len(row['prompt']) * 0 + (row['response'] == '') \n"
        "def broken(row, answer):\n    raise KeyError('nothing')\n"
        "def words(row, answer):\n    return 'good'\n"
    )
    return path


def config_of(tmp_path, name, **more):
    from unmask.train.api import settings_of

    return settings_of(ROWS, {**SMALL, **RL, "output": tmp_path / name, **more})


def test_the_command_trains_by_rewards_and_goes_on_bit_for_bit(tmp_path, function_file, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = [
        f"data={data}",
        "preset=grpo",
        f"rl.reward={function_file}:length",
        *(f"{k}={v}" for k, v in RL.items()),
        *("init=null", "model.d_model=32", "model.num_layers=2", "model.num_heads=2"),
        *("model.d_ff=48", "model.vocab_size=300", "optim.lr=1e-3", "batch_size=2"),
        *("micro_batch_size=3", "steps=4", "watch.eval_every=2", "data.eval_fraction=0.3"),
    ]
    assert main(["train", *words, f"output={tmp_path}/whole", "watch.checkpoint_every=2"]) == 0
    entries = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert all(0 <= entry["scores"]["reward"] <= 1 for entry in entries)
    assert ["held_out_reward" in entry["scores"] for entry in entries] == [False, True] * 2
    assert "reward" in capsys.readouterr().out
    run = FileTrainer(compose([*words, f"output={tmp_path}/cut", "watch.checkpoint_every=2"]))
    for entry in run:
        if entry.step == 3:
            break
    run.close()
    assert main(["train", *words, f"output={tmp_path}/cut", "watch.checkpoint_every=2"]) == 0
    one, other = (load_file(tmp_path / n / "final/model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    saved = json.loads((tmp_path / "cut/step-000004/progress.json").read_text())
    assert saved["eval_reward"] == entries[-1]["scores"]["held_out_reward"]


def test_a_function_of_python_is_the_reward(tmp_path):
    seen = []

    def reward(row, answer):
        seen.append((row["prompt"], row["response"]))
        return float(len(answer))

    done = unmask.train(ROWS, output=tmp_path / "run", steps=1, reward=reward, **SMALL, **RL)
    assert done.steps == 1
    assert len(seen) == 2 * 3
    assert set(seen) <= {(row["prompt"], row["response"]) for row in ROWS}
    with pytest.raises(ConfigError, match="reward has no effect with objective='auto'"):
        unmask.train(ROWS, output=tmp_path / "other", reward=reward, init=None)


def test_rows_may_be_prompts_alone(tmp_path):
    seen = []

    def reward(row, answer):
        seen.append(dict(row))
        return float(len(answer))

    rows = [{"prompt": f"{a} b", "goal": k} for k, a in enumerate("abcd")]
    rows.append({"prompt": "x y", "response": "y x", "goal": 4})
    more = {**SMALL, **RL, "steps": 3, "rl.gen_length": 2}
    done = unmask.train(rows, output=tmp_path / "run", reward=reward, **more)
    assert done.steps == 3
    for row in seen:
        own = rows[row["goal"]]
        assert row == own
    assert {row["goal"] for row in seen} >= {0, 1}
    with pytest.raises(ConfigError, match="line 1 has no response, which rl.reward=exact_match"):
        unmask.train(rows, output=tmp_path / "other", **more)


def test_a_prompt_alone_is_encoded_as_before_its_answer():
    from unmask.data.records import DataRow
    from unmask.engine.tokenizer import load_tokenizer
    from unmask.models import BUNDLED, read_spec
    from unmask.train.rows import RowEncoder

    spec = read_spec("demo")
    encoder = RowEncoder(load_tokenizer(BUNDLED["demo"]), spec, needs_answer=False)

    def encoded(**values):
        return encoder.encode(DataRow(Path("x"), "line 1", values))

    pair, alone = encoded(prompt="One?", response="Two"), encoded(prompt="One?")
    begin = pair.loss.index(True)
    assert (alone.form, pair.form) == ("prompt", "prompt_response")
    assert alone.ids == [*pair.ids[:begin], spec.eos_id]
    assert alone.loss == [False] * begin + [True]
    turns = [{"role": "user", "content": "One?"}]
    assert encoded(messages=turns).ids == alone.ids
    answered = encoded(messages=[*turns, {"role": "assistant", "content": "Two"}])
    assert answered.ids == pair.ids
    strict = RowEncoder(encoder.tokenizer, spec)
    for values in ({"prompt": "One?"}, {"messages": turns}):
        with pytest.raises(ConfigError, match="no 'response'|no turn of the assistant"):
            strict.encode(DataRow(Path("x"), "line 1", values))


def test_a_file_of_python_has_the_function_reward(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def reward(row, answer):\n    return len(answer)\n")
    assert find_reward(f"python:{path}")({}, "abc") == 3
    path.write_text("def other(row, answer):\n    return 1\n")
    with pytest.raises(PluginError, match="defines no function reward"):
        find_reward(f"python:{path}")


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"rl.reward": "exact"}, ConfigError, "neither exact_match nor FILE.py:NAME"),
        ({"rl.reward": "{file}:nothing"}, PluginError, "defines no function nothing"),
        ({"rl.reward": "{file}:broken"}, ConfigError, "line 1.*KeyError.*correct the function"),
        ({"rl.reward": "{file}:words"}, ConfigError, "returned 'good' for .*finite number"),
        ({"rl.gen_length": 1023}, ConfigError, "lower rl.gen_length, or shorten"),
        ({"rl.gen_length": 8, "rl.decoder": "vanila"}, ConfigError, "did you mean"),
    ],
)
def test_what_cannot_be_judged_or_decoded_is_told(tmp_path, function_file, more, kind, message):
    more = {k: v.format(file=function_file) if isinstance(v, str) else v for k, v in more.items()}
    if "line 1" in message:
        message = message.replace("line 1", r"line \d+")
    with pytest.raises(kind, match=message):
        list(FileTrainer(config_of(tmp_path, "run", steps=1, **more)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rl.group=4"], "rl.* has no effect with objective=auto"),
        (["preset=grpo", "noise.low=0.1"], "noise.* has no effect with objective=diffu_grpo"),
        (["preset=grpo", "sft.tail=3"], "sft.* has no effect"),
        (["preset=grpo", "lora.rank=2", "lora.dropout=0.1"], "lora.dropout has no effect"),
        (["preset=grpo", "data.packing=pack"], "data.packing has no effect"),
        (["preset=grpo", "watch.sample_every=1"], "watch.sample_every has no effect"),
        (["preset=grpo", "parallel=fsdp"], "parallel=fsdp is not for objective=diffu_grpo"),
        (["preset=grpo", "rl.group=1"], "rl.group=1 must be at least 2"),
    ],
)
def test_settings_without_effect_are_refused(words, message):
    with pytest.raises(ConfigError, match=message.replace("*", r"\*")):
        compose(["data=a.jsonl", *words])


def test_documents_have_no_prompt_to_answer(tmp_path):
    from unmask.train.api import settings_of

    config = settings_of(
        [{"text": "some words"}] * 4, {**SMALL, **RL, "output": tmp_path / "run", "steps": 1}
    )
    with pytest.raises(
        ConfigError, match="line 1 has no prompt, which objective=diffu_grpo answers"
    ):
        FileTrainer(config)


def test_the_judges_of_the_tasks_are_rewards():
    puzzle = {"prompt": "Countdown 3,5,2,16", "response": "3+5=8,2*8=16"}
    assert rewards.countdown(puzzle, "3+5=8,8*2=16") == 1.0
    assert rewards.countdown(puzzle, "3+5=8,8+2=10") == 0.0
    assert rewards.countdown(puzzle, "") == 0.0
    inside = {**puzzle, "key": puzzle["prompt"], "prompt": "An example first. Countdown 1,1,1,3"}
    assert rewards.countdown(inside, "3+5=8,8*2=16") == 1.0
    story = {"prompt": "A story.", "response": "2+2=4\n#### 4"}
    assert rewards.word_problem(story, "2+2=4\n#### 4") == 1.0
    assert rewards.word_problem(story, "2+2=4\n#### 5") == 0.0
    grid = {"prompt": "Sudoku\n1234\n3412\n2143\n4320", "response": ""}
    assert rewards.sudoku(grid, "1234\n3412\n2143\n4321") == 1.0
    assert rewards.sudoku(grid, "1234\n3412\n2143\n4322") == 0.0
    assert rewards.last_number({"response": "#### 1,200"}, "so it is 1200.") == 1.0
    assert rewards.last_number({"response": "#### 12"}, "none") == 0.0
    assert math.isclose(rewards.last_number({"response": "x 3"}, "2 then 3.0"), 1.0)
