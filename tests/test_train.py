"""The trainer: objectives against hand-computed values, data, schedule, exact resumption."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.demo.tokenizer import build_tokenizer
from unmask.demo.training_data import DemoData, demo_spec
from unmask.errors import ConfigError, ModelError
from unmask.models import read_spec
from unmask.train.corrupt import (
    EPS,
    block_noise,
    block_state,
    corrupt,
    draw_t,
    random_length,
    row_losses,
)
from unmask.train.dataset import Batch
from unmask.train.loop import Trainer, build
from unmask.train.optim import rate
from unmask.train.predict import masked_logits
from unmask.train.recipe import DEMO_OBJECTIVE, Recipe, compose, presets
from unmask.train.start import SpecialTokens, network_spec

MASK = 99
TINY = [
    "recipe=demo",
    "d_model=32",
    "num_layers=2",
    "num_heads=2",
    "d_ff=48",
    "rows_per_step=16",
    "tokens_per_micro_batch=512",
    "micro_batches=2",
    "max_length=256",
    "warmup_steps=2",
    "decay_steps=2",
    "drill_start=0.3",
    "drill_end=0.3",
]


def trainer(recipe: Recipe, tokenizer, folder: Path) -> Trainer:
    spec = demo_spec(recipe, tokenizer)
    return Trainer(recipe, spec, DemoData(recipe, spec, tokenizer), folder)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    from unmask.engine.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer_folder)


def test_pretraining_weight_is_one_over_p_times_length():
    ids = torch.arange(12).reshape(2, 6)
    t = torch.tensor([[0.5], [0.25]])
    noisy = corrupt(ids, torch.ones_like(ids, dtype=torch.bool), MASK, generator(), t_B1=t)
    masked = noisy.ids_BT == MASK
    assert masked.any()
    assert not masked.all()
    assert torch.equal(masked, noisy.masked_BT)
    assert torch.equal(noisy.ids_BT[~masked], ids[~masked])
    for row, p in enumerate(((1 - EPS) * 0.5 + EPS, (1 - EPS) * 0.25 + EPS)):
        expected = torch.full((6,), 1 / (p * 6)) * masked[row]
        assert torch.allclose(noisy.weights_BT[row], expected)


def test_fine_tuning_never_masks_the_prompt_and_divides_by_the_response_with_its_padding():
    ids = torch.arange(20).reshape(2, 10)
    response = torch.tensor([[False] * 4 + [True] * 6, [False] * 7 + [True] * 3])
    noisy = corrupt(ids, response, MASK, generator(1), t_B1=torch.tensor([[0.9], [0.9]]))
    assert not noisy.masked_BT[~response].any()
    p = (1 - EPS) * 0.9 + EPS
    for row, length in enumerate((6, 3)):
        got = noisy.weights_BT[row][noisy.masked_BT[row]]
        assert torch.allclose(got, torch.full_like(got, 1 / (p * length)))


def test_loss_equals_the_published_formula_computed_by_hand():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    targets = torch.tensor([0, 0, 2])
    p = torch.tensor([0.5, 0.5, 0.8])
    length = 4
    nll = [
        math.log(math.exp(2) + 2) - 2,
        math.log(math.exp(1) + 2) - 0,
        math.log(math.exp(3) + 2) - 3,
    ]
    by_hand = sum(n / q for n, q in zip(nll, p.tolist(), strict=True)) / (2 * length)
    masked = torch.tensor([[True, False, True, False], [False, False, False, True]])
    losses = row_losses(logits, targets, 1 / (p * length), masked)
    assert losses.shape == (2,)
    assert losses.mean().item() == pytest.approx(by_hand, rel=1e-6)
    assert losses[1].item() == pytest.approx(nll[2] / (0.8 * length), rel=1e-6)


def test_masking_is_bernoulli_with_the_rows_probability():
    ids = torch.zeros(4, 20_000, dtype=torch.long)
    t = torch.tensor([[0.05], [0.3], [0.7], [1.0 - 1e-7]])
    noisy = corrupt(ids, torch.ones_like(ids, dtype=torch.bool), MASK, generator(2), t_B1=t)
    share = noisy.masked_BT.float().mean(-1)
    expected = ((1 - EPS) * t + EPS)[:, 0]
    assert torch.allclose(share, expected, atol=0.015)


def test_the_estimate_is_unbiased_for_a_constant_loss():
    ids = torch.zeros(4000, 8, dtype=torch.long)
    everything = torch.ones_like(ids, dtype=torch.bool)
    noisy = corrupt(ids, everything, MASK, generator(3))
    assert noisy.weights_BT.sum(-1).mean().item() == pytest.approx(1.0, abs=0.1)
    counted = corrupt(ids, everything, MASK, generator(3), count_weight=True)
    sums = counted.weights_BT.sum(-1)
    assert torch.allclose(sums[sums > 0], torch.ones(()))


def test_weights_by_count_have_another_expectation_than_the_published_ones():
    """Six tokens of cross-entropy 1 at t = 0.05: summed over all 64 masks, not sampled."""
    length, p = 6, (1 - EPS) * 0.05 + EPS
    published = counted = 0.0
    for mask in range(1, 2**length):
        m = mask.bit_count()
        chance = p**m * (1 - p) ** (length - m)
        published += chance * m / (p * length)
        counted += chance * m / m
    assert published == pytest.approx(1.0)
    assert counted == pytest.approx(1 - (1 - p) ** length) == pytest.approx(0.27, abs=0.005)
    ids, t = torch.zeros(20_000, length, dtype=torch.long), torch.full((20_000, 1), 0.05)
    everything = torch.ones_like(ids, dtype=torch.bool)
    for by_count, expected in ((False, published), (True, counted)):
        noisy = corrupt(ids, everything, MASK, generator(3), t_B1=t, count_weight=by_count)
        assert noisy.weights_BT.sum(-1).mean().item() == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("recipe", presets())
def test_the_switch_trains_any_recipe_with_the_published_loss(recipe, tokenizer):
    """One level a row, 1 / (p L) for each masked token, every token of the response maskable."""
    words = [word for word in TINY if not word.startswith("recipe=")]
    composed = compose([f"recipe={recipe}", *words, "init=null", "objective=llada"])
    data = DemoData(composed, demo_spec(composed, tokenizer), tokenizer)
    seen, levels, shares = set(), [], []
    for batch in [
        batch for step in (0, 5000) for at in range(6) for batch in data.batches(step + at)
    ]:
        clean, masked, weights = batch.clean_BT, batch.noisy.masked_BT, batch.noisy.weights_BT
        for task, ids, is_masked, weight in zip(batch.tasks, clean, masked, weights, strict=True):
            seen.add(task)
            prompt = {"sentence": 0, "drill": 1}.get(task)
            if prompt is None:
                prompt = int((ids == data.turn_end_id).nonzero()[0]) + 1
            if composed.shift_logits:
                prompt = max(prompt, 1)
            size = len(ids) - prompt
            assert not is_masked[:prompt].any()
            if is_masked.any():
                p = 1 / (weight[is_masked] * size)
                assert torch.allclose(p, p[0])
                assert EPS * 0.99 <= float(p[0]) <= 1
                levels.append(float(p[0]))
                shares.append(is_masked.sum().item() / (float(p[0]) * size))
    assert "drill" in seen
    assert "sentence" in seen
    assert sum(shares) / len(shares) == pytest.approx(1, abs=0.1)
    quarters = [
        sum(low <= p < low + 0.25 for p in levels) / len(levels) for low in (0.0, 0.5, 0.75)
    ]
    assert all(0.15 < share < 0.35 for share in quarters)


@pytest.mark.parametrize("key", DEMO_OBJECTIVE)
def test_every_key_of_the_demos_objective_is_refused_beside_the_published_one(key):
    default = getattr(Recipe(), key)
    value = list(default) if isinstance(default, tuple) else default
    with pytest.raises(ConfigError, match=f"{key}=.* has no effect with objective=llada"):
        compose(["recipe=demo", "objective=llada", f"{key}={value}".lower()])


def test_the_switch_changes_no_other_loss(tokenizer):
    one, other = (compose([*TINY, *words]) for words in ([], ["objective=demo"]))
    spec = demo_spec(one, tokenizer)
    drawn = [DemoData(recipe, spec, tokenizer).batches(2) for recipe in (one, other)]
    assert equal_batches(*drawn)


def test_stratified_levels_put_one_row_in_every_stratum():
    levels = draw_t(16, generator(4), stratified=True)[:, 0]
    assert sorted((levels * 16).long().tolist()) == list(range(16))


def test_random_length_cuts_one_batch_in_a_hundred():
    gen = generator(5)
    lengths = [random_length(64, gen) for _ in range(4000)]
    cut = [length for length in lengths if length != 64]
    assert 15 <= len(cut) <= 75
    assert min(lengths) >= 1
    assert random_length(64, gen, share=0.0) == 64


def test_block_state_knows_the_left_and_masks_everything_right_of_the_block():
    ids = torch.arange(400).reshape(4, 100) + 1000
    response = torch.zeros(4, 100, dtype=torch.bool)
    response[:, 20:] = True
    noisy = block_state(ids, response, MASK, generator(6), block_length=16)
    assert not noisy.masked_BT[:, :20].any()
    for row in noisy.masked_BT:
        assert row.any()
        tail = 100
        while tail > 0 and row[tail - 1]:
            tail -= 1
        first = int(row.nonzero()[0])
        assert tail - first <= 16
    assert torch.all(noisy.weights_BT.sum(-1) <= 1 + 1e-5)


def test_block_state_takes_a_block_length_a_row():
    ids = torch.arange(400).reshape(4, 100) + 1000
    response = torch.ones_like(ids, dtype=torch.bool)
    lengths = torch.tensor([[1], [8], [50], [100]])
    noisy = block_state(ids, response, MASK, generator(6), lengths)
    known = [int(row.nonzero()[0]) for row in noisy.masked_BT]
    for row, first, length in zip(noisy.masked_BT, known, lengths[:, 0].tolist(), strict=True):
        assert row[first + length :].all()
    assert not noisy.masked_BT[3].all()


def test_block_noise_gives_each_block_its_part_of_the_rows_weight():
    ids = torch.arange(120).reshape(4, 30) + 1000
    response = torch.zeros(4, 30, dtype=torch.bool)
    response[:, 6:] = True
    noisy = block_noise(ids, response, MASK, generator(7), block_size=8)
    assert not noisy.masked_BT[:, :6].any()
    assert torch.equal(noisy.ids_BT == MASK, noisy.masked_BT)
    for weights, masked in zip(noisy.weights_BT, noisy.masked_BT, strict=True):
        for start, size in ((0, 2), (8, 8), (16, 8), (24, 6)):
            inside = slice(start, start + 8)
            expected = size / 24 if masked[inside].any() else 0.0
            assert weights[inside].sum().item() == pytest.approx(expected)
    everything = block_noise(ids, response, MASK, generator(7), block_size=8, full_share=1.0)
    assert torch.equal(everything.masked_BT, response)


def test_block_noise_draws_a_level_for_each_block():
    ids = torch.zeros(1, 8 * 4000, dtype=torch.long)
    noisy = block_noise(ids, torch.ones_like(ids, dtype=torch.bool), MASK, generator(8), 4000)
    shares = noisy.masked_BT.view(8, 4000).float().mean(-1)
    assert sorted((shares * 8).long().tolist()) == pytest.approx(list(range(8)), abs=1)


def adapted(tokenizer, *words):
    recipe = compose([*TINY, *words])
    spec = demo_spec(recipe, tokenizer)
    return build(spec, 0, 0.5), DemoData(recipe, spec, tokenizer)


def test_every_noisy_block_is_predicted_as_decoding_would_ask_for_it(tokenizer):
    model, data = adapted(tokenizer, "block_size=8")
    batch = data.batches(3)[1]
    ids, masked = batch.noisy.ids_BT, batch.noisy.masked_BT
    predicted = masked_logits(model, model.hidden, batch)
    row_N, place_N = masked.nonzero().T
    for row in range(3):
        for start in range(0, ids.shape[1], 8):
            end = min(start + 8, ids.shape[1])
            chosen = (row_N == row) & (place_N >= start) & (place_N < end)
            known = torch.cat((batch.clean_BT[row, :start], ids[row, start:end]))
            alone = model(known[None])[0, place_N[chosen]]
            torch.testing.assert_close(predicted[chosen], alone, atol=1e-4, rtol=1e-4)


def test_with_shifted_logits_the_row_before_answers_and_nothing_is_asked_of_the_first(tokenizer):
    model, data = adapted(tokenizer, "shift_logits=true")
    for batch in data.batches(0):
        row_N, place_N = batch.noisy.masked_BT.nonzero().T
        assert place_N.min() >= 1
        plain = model(batch.noisy.ids_BT)[row_N, place_N - 1]
        predicted = masked_logits(model, model.hidden, batch)
        torch.testing.assert_close(predicted, plain, atol=1e-4, rtol=1e-4)


def equal_batches(one, other):
    return len(one) == len(other) and all(
        a.tasks == b.tasks
        and torch.equal(a.clean_BT, b.clean_BT)
        and torch.equal(a.noisy.ids_BT, b.noisy.ids_BT)
        and torch.equal(a.noisy.weights_BT, b.noisy.weights_BT)
        for a, b in zip(one, other, strict=True)
    )


def test_batches_are_a_pure_function_of_seed_and_step(tokenizer):
    recipe = compose(TINY)
    spec = demo_spec(recipe, tokenizer)
    one, other = DemoData(recipe, spec, tokenizer), DemoData(recipe, spec, tokenizer)
    for _ in range(3):
        other.batches(7)
    assert equal_batches(one.batches(5), other.batches(5))
    assert not equal_batches(one.batches(6), one.batches(5))


def test_batches_mask_only_what_their_task_allows(tokenizer):
    recipe = compose(TINY)
    spec = demo_spec(recipe, tokenizer)
    data = DemoData(recipe, spec, tokenizer)
    seen = set()
    for batch in [batch for step in range(20) for batch in data.batches(step)]:
        seen.update(batch.tasks)
        assert batch.clean_BT.shape[1] <= spec.max_length
        assert batch.noisy.masked_BT.any()
        clean, masked = batch.clean_BT, batch.noisy.masked_BT
        assert torch.equal(batch.noisy.ids_BT[~masked], clean[~masked])
        assert (batch.noisy.ids_BT[masked] == spec.mask_id).all()
        for row, task in enumerate(batch.tasks):
            if task == "drill":
                text = [tokenizer.decode([token]) for token in clean[row][masked[row]].tolist()]
                assert all(piece.isdigit() for piece in text)
            elif task != "sentence":
                prompt_end = int((clean[row] == data.turn_end_id).nonzero()[0])
                assert not masked[row, : prompt_end + 1].any()
    assert seen == {"drill", "word_problem", "sudoku", "countdown", "sentence"}


def test_every_step_holds_the_recipes_mixture_in_parts_of_similar_length(tokenizer):
    recipe = compose(["recipe=demo", "level_steps=[0,0,0]", "drill_end=0.2", "drill_steps=0"])
    data = DemoData(recipe, demo_spec(recipe, tokenizer), tokenizer)
    tasks, real, all_ = [], 0, 0
    for step in range(10):
        batches = data.batches(step)
        assert len(batches) == recipe.micro_batches + 1
        assert set(batches[0].tasks) == {"sentence"}
        tasks += [task for batch in batches for task in batch.tasks]
        real += sum(int((batch.clean_BT != data.spec.eos_id).sum()) for batch in batches)
        all_ += sum(batch.clean_BT.numel() for batch in batches)
    assert 0.15 < tasks.count("drill") / len(tasks) < 0.25
    assert tasks.count("sentence") == 10 * round(recipe.rows_per_step * 0.1 / 0.95)
    assert real / all_ > 0.6


def test_schedule_warms_up_stays_and_decays():
    recipe = Recipe(steps=100, warmup_steps=10, decay_steps=20, final_lr=0.1)
    rates = [rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[79] == 1.0
    assert rates[80] == 1.0
    assert rates[99] == pytest.approx(0.1 + 0.9 * 0.05)
    assert all(a >= b for a, b in zip(rates[80:], rates[81:], strict=False))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_resumed_run_continues_bit_for_bit(tmp_path, tokenizer, tokenizer_folder, autocast):
    def run(folder: Path, checkpoint_every: int, stop: int | None = None) -> list[float]:
        words = [*TINY, "steps=6", f"output={folder}", f"autocast={autocast}"]
        recipe = compose([*words, f"checkpoint_every={checkpoint_every}"])
        losses = []
        for entry in trainer(recipe, tokenizer, tokenizer_folder):
            losses.append(entry.loss)
            if entry.step == stop:
                break
        return losses

    straight = run(tmp_path / "straight", 100)
    first = run(tmp_path / "broken", 3, stop=4)
    rest = run(tmp_path / "broken", 3)
    assert first[:3] + rest == straight
    weights = [
        load_file(tmp_path / name / "step-000006" / "model.safetensors")
        for name in ("straight", "broken")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_training_lowers_the_loss_logs_every_step_and_leaves_a_loadable_model(
    tmp_path, tokenizer, tokenizer_folder
):
    recipe = compose([*TINY, "steps=12", f"output={tmp_path}", "checkpoint_every=100"])
    entries = list(trainer(recipe, tokenizer, tokenizer_folder))
    assert [entry.step for entry in entries] == list(range(1, 13))
    assert entries[-1].loss < entries[0].loss
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in logged] == [entry.loss for entry in entries]
    assert {"grad_norm", "lr", "tokens_per_s", "eta_s"} <= set(logged[0])
    assert "step 00012/00012" in entries[-1].line()
    llm = unmask.LLM(tmp_path / "model", dtype="float32")
    out = llm.generate("Tom has 3 pens.", gen_length=8, block_length=8)[0]
    assert len(out.canvas_ids) == out.prompt_length + 8


FIRST_LOSSES = """
    7.621 7.825 7.717 7.626 7.761 7.240 7.491 7.343 7.160 7.132 7.087 7.024 7.201 7.024 6.947 6.967 6.471
    6.437 6.745 6.037 6.103 5.720 5.701 5.440 5.791 5.733 5.141 5.095 4.869 4.725 4.430 4.551 4.561 3.693
    3.937 3.662 3.580 3.348 3.519 3.298 3.077 2.975 2.805 2.632 3.016 2.899 2.331 2.790 2.852 2.676
"""
"""Of the demo recipe with a small network, by the trainer that made the bundled model."""


@pytest.mark.slow
def test_the_demo_recipe_has_the_loss_curve_that_it_had(tmp_path, tokenizer, tokenizer_folder):
    words = [
        f"output={tmp_path}",
        "steps=50",
        "decay_steps=10",
        "rows_per_step=32",
        "tokens_per_micro_batch=1024",
    ]
    words += ["d_model=64", "num_layers=2", "num_heads=2", "d_ff=128"]
    run = trainer(compose(["recipe=demo", *words]), tokenizer, tokenizer_folder)
    losses = [entry.loss for entry in run]
    assert losses == pytest.approx([float(text) for text in FIRST_LOSSES.split()], abs=0.05)


def test_resume_false_refuses_a_folder_with_checkpoints(tmp_path, tokenizer, tokenizer_folder):
    words = [*TINY, "steps=1", f"output={tmp_path}"]
    list(trainer(compose(words), tokenizer, tokenizer_folder))
    with pytest.raises(ConfigError, match="holds checkpoints up to step-000001"):
        trainer(compose([*words, "resume=false"]), tokenizer, tokenizer_folder)


def test_a_training_in_the_folder_of_another_is_refused(tmp_path, tokenizer, tokenizer_folder):
    recipe = compose([*TINY, "steps=1", f"output={tmp_path}"])
    first = trainer(recipe, tokenizer, tokenizer_folder)
    with pytest.raises(ConfigError, match="being written by another training"):
        trainer(recipe, tokenizer, tokenizer_folder)
    assert [entry.step for entry in first] == [1]


def test_the_newest_readable_checkpoint_is_resumed_and_the_log_has_each_step_once(
    tmp_path, tokenizer, tokenizer_folder
):
    words = [*TINY, "steps=3", "checkpoint_every=1", f"output={tmp_path}"]

    def finish() -> Trainer:
        run = trainer(compose(words), tokenizer, tokenizer_folder)
        list(run)
        return run

    finish()
    newest, before = tmp_path / "step-000003", tmp_path / "step-000002"
    wanted = (tmp_path / "model" / "model.safetensors").read_bytes()
    weights, progress = newest / "model.safetensors", newest / "progress.json"
    good = {path: path.read_bytes() for path in (weights, progress)}
    for path, damage in (
        (weights, good[weights][:-100]),
        (weights, bytes(len(good[weights]))),
        (weights, None),
        (newest / "optimizer.safetensors", b""),
        (progress, b""),
        (progress, b"[]"),
        (progress, b'{"step": 999999}'),
        (progress, b'{"step": 3, "sha256": {}}'),
    ):
        path.unlink() if damage is None else path.write_bytes(damage)
        run = finish()
        assert [str(newest) in text for text in run.damaged] == [True]
        assert (tmp_path / "model" / "model.safetensors").read_bytes() == wanted
        steps = [
            json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()
        ]
        assert steps == [1, 2, 3]
    assert (tmp_path / "log.repeated.jsonl").read_text().count("\n") == 8
    (before / "config.json").write_text("{}")
    weights.write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"no checkpoint can be read: .*model.safetensors is damaged"
    ):
        finish()


def test_an_unreadable_recipe_is_told_with_the_way_on(tmp_path, tokenizer, tokenizer_folder):
    recipe = compose([*TINY, "steps=1", f"output={tmp_path}"])
    list(trainer(recipe, tokenizer, tokenizer_folder))
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ConfigError, match="delete it to go on with this recipe from step-000001"):
        trainer(recipe, tokenizer, tokenizer_folder)


@pytest.mark.parametrize(
    ("words", "family", "turn_end"),
    [
        (["shift_logits=true"], "dream", "<|im_end|>"),
        (["block_size=8"], "llada", "<|eot_id|>"),
    ],
)
def test_an_adapted_model_starts_from_other_weights_and_is_written_in_its_own_shape(
    tmp_path, tokenizer, tokenizer_folder, words, family, turn_end
):
    start = tmp_path / "start"
    list(trainer(compose([*TINY, "steps=1", f"output={start}"]), tokenizer, tokenizer_folder))
    output = tmp_path / "adapted"
    recipe = compose([*TINY, *words, "steps=2", f"init={start}/model", f"output={output}"])
    run = trainer(recipe, tokenizer, tokenizer_folder)
    begun = load_file(start / "model" / "model.safetensors")
    key = "model.transformer.blocks.1.attn_out.weight"
    assert torch.equal(run.model.layers[1].attn.o.weight, begun[key].float())
    list(run)
    spec = read_spec(output / "model")
    assert spec == replace(run.model.spec, turn_end=turn_end)
    assert (spec.family, spec.shift_logits, spec.block_size) == (
        family,
        recipe.shift_logits,
        recipe.block_size,
    )
    llm = unmask.LLM(output / "model")
    assert llm.tokenizer.convert_tokens_to_ids(turn_end) == run.data.turn_end_id
    out = llm.generate("Tom has 3 pens.", gen_length=8, block_length=8)[0]
    assert len(out.canvas_ids) == out.prompt_length + 8


def test_starting_weights_of_other_sizes_are_refused_by_name(tmp_path, tokenizer, tokenizer_folder):
    recipe = compose([*TINY, "init=demo", f"output={tmp_path}"])
    with pytest.raises(ModelError, match=r"demo: of other sizes.*embed\.weight"):
        trainer(recipe, tokenizer, tokenizer_folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=3"], "no recipe; add one"),
        (["recipe=demo-blocks", "shift_logits=true"], "cannot be trained with shift_logits=true"),
        (["recipe=demo-blocks", "block_size=0"], "block_size=0 must be at least 1"),
        (["recipe=dmo"], "did you mean 'demo'"),
        (["recipe=demo", "step=3"], "did you mean 'steps'"),
        (["recipe=demo", "steps=many"], "steps='many' must be a whole number"),
        (["recipe=demo", "steps=0"], "steps=0 must be at least 1"),
        (["recipe=demo", "block_share=2"], "block_share=2.0 must be between 0 and 1"),
        (["recipe=demo", "mix=[1,2]"], "four shares"),
        (["recipe=demo", "num_heads=7"], "must divide d_model"),
        (["recipe"], "not of the form key=value"),
        (["recipe=demo", "objective=lada"], "objective='lada': allowed are demo, llada"),
        (
            ["recipe=demo", "objective=llada", "count_weight=false"],
            "count_weight=false has no effect with objective=llada",
        ),
        (["recipe=demo-blocks", "full_blocks=0", "objective=llada"], "full_blocks=0 has no effect"),
    ],
)
def test_bad_recipes_are_refused_by_name(words, message):
    with pytest.raises(ConfigError, match=message):
        compose(words)


def test_any_dataset_can_be_trained_on(tmp_path, tokenizer_folder):
    class Repeats:
        """Rows `k k k k`: a masked token equals its neighbors."""

        def batches(self, step: int) -> list[Batch]:
            rows = torch.arange(8)[:, None].expand(8, 16) + step % 4
            everything = torch.ones_like(rows, dtype=torch.bool)
            return [Batch(["repeat"] * 8, rows, corrupt(rows, everything, 30, generator(step)))]

    recipe = compose([*TINY, "steps=20", f"output={tmp_path}", "checkpoint_every=100"])
    tokens = SpecialTokens(vocab_size=30, mask_id=30, eos_id=31, turn_end="<|eot_id|>")
    run = Trainer(
        recipe, network_spec(recipe, tokens, shift=recipe.shift_logits), Repeats(), tokenizer_folder
    )
    entries = list(run)
    assert entries[-1].loss < entries[0].loss / 2
    assert set(entries[-1].task_loss) == {"repeat"}
    assert read_spec(tmp_path / "model") == run.model.spec
