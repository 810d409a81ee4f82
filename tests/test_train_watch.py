"""Watching a run: losses by noise level, tasks while training; recomputed activations."""

from __future__ import annotations

import json

import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.errors import ConfigError
from unmask.evals.while_training import task_scorer
from unmask.train.config import compose
from unmask.train.run import FileTrainer
from unmask.train.watch import figures

ROWS = [{"prompt": f"{a} {b}", "response": f"{b} {a}"} for a in "abcd" for b in "efgh"]
SMALL = {
    "init": None,
    "model": {"d_model": 32, "num_layers": 4, "num_heads": 2, "d_ff": 48, "vocab_size": 300},
    "batch_size": 8,
    "micro_batch_size": 4,
}


def trainer_of(tmp_path, name, **more) -> FileTrainer:
    from unmask.train.api import settings_of

    return FileTrainer(settings_of(ROWS, {**SMALL, "steps": 1, "output": tmp_path / name, **more}))


def test_losses_are_logged_by_noise_level_without_weights(tmp_path):
    """The mean of cross-entropies whose masks were drawn with a probability in each quarter."""
    run = trainer_of(tmp_path, "run")
    sums: dict[int, list[float]] = {}
    for batch in run.data.batches(0):
        masked = batch.noisy.masked_BT
        total, losses, levels = run._losses(batch)
        weights = batch.noisy.weights_BT[masked]
        assert total.item() == pytest.approx(float((losses * weights).sum()), rel=1e-5)
        assert ((levels > 0) & (levels <= 1)).all()
        for loss, level in zip(losses.tolist(), levels.tolist(), strict=True):
            sums.setdefault(min(3, int(level * 4)), []).append(loss)
    names = ("t0-0.25", "t0.25-0.5", "t0.5-0.75", "t0.75-1")
    (entry,) = list(run)
    assert set(entry.task_loss) == {names[k] for k in sums}
    assert len(sums) >= 3
    for k, values in sums.items():
        assert entry.task_loss[names[k]] == pytest.approx(sum(values) / len(values), rel=1e-4)
        assert f"loss_by_level/{names[k]}" in figures(entry)
    causal = trainer_of(tmp_path, "causal", objective="causal")
    (entry,) = list(causal)
    assert set(entry.task_loss) == {"t0.75-1"}  # everything is predicted, nothing is masked


@pytest.mark.parametrize("more", [{}, {"lora.rank": 2}])
def test_recomputed_activations_give_the_same_gradients_from_less_memory(tmp_path, more):
    """Memory: the bytes of all tensors that autograd keeps from the forward for the backward pass."""
    found = []
    for name, is_on in (("plain", False), ("recomputed", True)):
        run = trainer_of(tmp_path, name, checkpoint_activations=is_on, **more)
        kept: dict[int, int] = {}
        weights = {value.data_ptr() for value in run.network.model.parameters()}

        def keep(tensor, kept=kept, weights=weights):
            if tensor.data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        total = 0.0
        batch = run.data.batches(0)[0]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = run._losses(batch)[0]
        loss.backward()
        total += loss.item()
        gradients = {k: v.grad for k, v in run.network.trained.items()}
        found.append((total, gradients, sum(kept.values())))
        run.close()
    (loss, gradients, size), (again, others, smaller) = found
    assert again == pytest.approx(loss, rel=1e-6)
    for name, value in gradients.items():
        torch.testing.assert_close(others[name], value, atol=1e-7, rtol=1e-5)
    assert smaller < 0.5 * size


def test_numbers_of_ones_own_are_logged_every_so_many_steps(tmp_path):
    entries, modes = [], []

    def score(llm):
        modes.append(llm.model.training)
        return {"length": float(len(llm.generate([5, 6], gen_length=4)[0].canvas_ids))}

    unmask.train(
        ROWS,
        output=tmp_path / "run",
        score=score,
        report=entries.append,
        **{**SMALL, "steps": 5, "watch.task_every": 2},
    )
    assert [entry.scores for entry in entries] == [{}, {"length": 6.0}] * 2 + [{"length": 6.0}]
    assert modes == [False] * 3
    assert figures(entries[1])["score/length"] == 6.0


def test_tasks_are_measured_while_the_command_trains(tmp_path):
    pytest.importorskip("lm_eval")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = [f"data={data}", f"output={tmp_path}/run", "steps=1", "batch_size=2", "optim.lr=1e-9"]
    assert main(["train", *words, "watch.tasks=[word_problem]", "watch.task_limit=2"]) == 0
    entry = json.loads((tmp_path / "run/log.jsonl").read_text())
    assert entry["scores"] == {"word_problem": pytest.approx(1.0, abs=0.5)}


def test_every_key_is_explained_and_listed(capsys):
    from unmask.cli.train_files import key_help
    from unmask.train.config import keys

    assert main(["train"]) == 0
    page = capsys.readouterr().out
    for key, cls, name in keys():
        assert len(key_help(cls).get(name, "")) > 10, key
        assert f"{key} " in page, key


def test_tasks_that_cannot_be_measured_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'countdown'"):
        task_scorer(["countdwn"])
    with pytest.raises(ConfigError, match="needs|no data"):
        task_scorer(["gsm8k"])
    with pytest.raises(ConfigError, match=r"in Python give score="):
        trainer_of(tmp_path, "run", **{"watch.tasks": ["countdown"]})
    with pytest.raises(ConfigError, match="task_limit=0"):
        compose(["data=a.jsonl", "watch.task_limit=0"])
