"""Training on data files: batches, noise, the head, resumption, the final folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import tiny_model

import unmask
from unmask.cli.main import main
from unmask.errors import ConfigError
from unmask.models import BUNDLED, read_spec
from unmask.train import head
from unmask.train.batches import FileData, Units, pack
from unmask.train.config import NoiseConfig, compose
from unmask.train.corrupt import cart_weights
from unmask.train.dataset import Batch
from unmask.train.noise import Draw, Layout, corrupt_rows, level
from unmask.train.predict import masked_states
from unmask.train.prepare import prepare
from unmask.train.run import FileTrainer

ROWS = [{"prompt": f"Reverse: {a} {b}", "response": f"{b} {a}"} for a in "abcd" for b in "efgh"]
SMALL = [
    *("init=null", "model.d_model=32", "model.num_layers=2", "model.num_heads=2", "model.d_ff=48"),
    *("model.vocab_size=300", "batch_size=4", "micro_batch_size=2", "watch.checkpoint_every=2"),
]


@pytest.fixture
def rows(tmp_path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def data_of(tmp_path, file, *words) -> FileData:
    given = {word.partition("=")[0] for word in words}
    small = [word for word in SMALL if word.partition("=")[0] not in given]
    config = compose([f"data={file}", *small, f"output={tmp_path}", *words])
    prepared = prepare(config, tmp_path)
    length = prepared.reading.max_length
    units = Units(prepared.store, prepared.packing, length, config.seed)
    return FileData(config, prepared.start.spec, units)


def layout(lengths=(8, 8), prompt=2, *, is_packed=False) -> Layout:
    width = max(lengths)
    ids = torch.arange(len(lengths) * width).reshape(-1, width) + 10
    at = torch.arange(width)[None]
    inside = at < torch.tensor(lengths)[:, None]
    segments = torch.where(inside, torch.arange(len(lengths))[:, None], -1)
    return Layout(ids, inside & (at >= prompt), segments, at.expand(ids.shape), False, is_packed)


def test_an_epoch_is_every_row_once_and_the_next_another_order(tmp_path, rows):
    units = data_of(tmp_path, rows).units
    first, second = ([tuple(units.unit(e * 16 + k).ids) for k in range(16)] for e in (0, 1))
    assert len(set(first)) == 16
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_mixture_has_its_shares_and_every_row_of_a_source_once_an_epoch(tmp_path, rows):
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(json.dumps({"prompt": f"p{k}", "response": "r"}) + "\n" for k in range(5))
    )
    data = data_of(tmp_path, f"[{rows},{other}]", "data.weights=[1,3]")
    drawn = [tuple(data.units.unit(k, (1.0, 3.0)).ids) for k in range(1000)]
    counts = np.unique([hash(ids) for ids in drawn], return_counts=True)[1]
    assert sorted(counts) == sorted([15] * 6 + [16] * 10 + [150] * 5)


def test_windows_cross_documents_and_lose_nothing(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.txt").write_text(f"document {k} " * (20 + k))
    data = data_of(tmp_path, tmp_path, "max_length=16")
    units = data.units
    seen = np.concatenate([units.unit(k).ids for k in range(units.per_epoch)])
    assert all(len(units.unit(k).ids) == 16 for k in range(units.per_epoch))
    assert 0 <= len(seen) - units.total < 16
    wanted, found = (np.bincount(x, minlength=400) for x in (units.store.ids, seen))
    assert (found >= wanted).all()


def test_windows_within_documents_hold_one_document(tmp_path):
    for k, name in enumerate("ab"):
        (tmp_path / f"{name}.txt").write_text(name * (30 + k))
    units = data_of(tmp_path, tmp_path, "max_length=4", "data.packing=within").units
    seen = [units.unit(k).ids for k in range(units.per_epoch)]
    assert sum(map(len, seen)) == units.total
    assert max(map(len, seen)) == 4


def test_batches_are_a_function_of_the_step_and_processes_share_them(tmp_path, rows):
    data = data_of(tmp_path, rows)
    one, again = data.batches(3), data_of(tmp_path, rows).batches(3)
    for a, b in zip(one, again, strict=True):
        assert torch.equal(a.noisy.ids_BT, b.noisy.ids_BT)
        assert torch.equal(a.noisy.weights_BT, b.noisy.weights_BT)
    shared = [FileData(data.config, data.spec, data.units, rank, 2).batches(3) for rank in (0, 1)]
    assert [len(part) for part in shared] == [1, 1]
    for whole, (part,) in zip(one, shared, strict=True):
        assert torch.equal(whole.noisy.weights_BT, part.noisy.weights_BT)


def test_prompts_are_never_masked_and_end_of_text_belongs_to_the_answer(tmp_path, rows):
    data = data_of(tmp_path, rows, "sft.tail=8", "noise.low=0.999")
    for batch in data.batches(0):
        turn_end = data.units.store.ids[-1]
        for clean, masked in zip(batch.clean_BT, batch.noisy.masked_BT, strict=True):
            end = int((clean == turn_end).nonzero()[0])
            assert not masked[: end + 1].any()
            assert masked[end + 1 :].float().mean() > 0.9


def test_packed_examples_equal_separate_rows(tmp_path, rows):
    words = ("max_length=64", "noise.random_length=0", "sft.pad_loss=false", "noise.low=0.5")
    words += ("batch_size=8", "micro_batch_size=8")
    plain = data_of(tmp_path, rows, *words)
    packed = data_of(tmp_path, rows, *words, "data.packing=pack")
    model = tiny_model(vocab_size=512, mask_id=plain.spec.mask_id)
    totals = []
    for data in (plain, packed):
        (batch,) = data.batches(0)
        states = masked_states(model, model.hidden, batch)
        masked = batch.noisy.masked_BT
        total, _ = head.weighted_loss(
            model, states, batch.clean_BT[masked], batch.noisy.weights_BT[masked]
        )
        totals.append(total.item())
    assert len(packed.batches(0)[0].clean_BT) < 8
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)


@pytest.mark.parametrize("shift", [False, True])
def test_packed_blocks_equal_separate_rows(tmp_path, rows, shift):
    words = ("max_length=64", "sft.pad_loss=false", "noise.low=0.5", "model.block_size=4")
    words += (f"model.shift_logits={shift}".lower(), "micro_batch_size=8", "batch_size=8")
    totals = []
    for packing in ("none", "pack"):
        data = data_of(tmp_path, rows, *words, f"data.packing={packing}")
        changes = {"vocab_size": 512, "mask_id": data.spec.mask_id, "block_size": 4}
        model = tiny_model("dream" if shift else "llada", **changes)
        (batch,) = data.batches(0)
        masked = batch.noisy.masked_BT
        states = masked_states(model, model.hidden, batch)
        weights = batch.noisy.weights_BT[masked]
        totals.append(head.weighted_loss(model, states, batch.clean_BT[masked], weights)[0].item())
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)


def test_packing_fills_rows_and_splits_nothing():
    made = pack([5, 3, 9, 2, 4], 9)
    assert sorted(k for row in made for k in row) == [0, 1, 2, 3, 4]
    assert made == [[2], [0, 4], [1, 3]]


@pytest.mark.parametrize("kind", ["stratified", "antithetic", "independent"])
def test_levels_are_uniform_in_their_own_way(kind):
    draw = Draw(seed=5, rows=16, maskable=0)
    levels = [level(draw, k, kind) for k in range(16)]
    assert all(0 <= t < 1 for t in levels)
    if kind == "stratified":
        assert sorted(int(t * 16) for t in levels) == list(range(16))
    if kind == "antithetic":
        sums = [a + b for a, b in zip(levels[::2], levels[1::2], strict=True)]
        assert sums == pytest.approx([1.0] * 8)


def test_weights_are_the_table_of_the_survey_by_hand():
    noise = NoiseConfig(low=0.3999999, high=0.4, levels="independent")
    rows, draw = layout((8, 6)), Draw(seed=1, rows=2, maskable=10)
    for kind, denominator, expected in (
        ("inverse", "sequence", (1 / 0.4 / 6, 1 / 0.4 / 4)),
        ("inverse", "tokens", (2 / 0.4 / 10,) * 2),
        ("inverse", "batch", (1 / 0.4 / 8, 1 / 0.4 / 6)),
        ("uniform", "sequence", (1 / 6, 1 / 4)),
    ):
        settings = replace(noise, weight=kind, denominator=denominator)
        noisy = corrupt_rows(rows, settings, draw, "llada", 99)
        for weights, masked, value in zip(noisy.weights_BT, noisy.masked_BT, expected, strict=True):
            assert masked.any()
            assert weights[masked].numpy() == pytest.approx(value, rel=1e-5)
    counted = corrupt_rows(
        rows, replace(noise, weight="count", denominator="sequence"), draw, "llada", 99
    )
    assert counted.weights_BT.sum(-1).numpy() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("objective", "complementary"),
    [
        ("llada", True),
        ("block_diffusion", False),
        pytest.param("llada", False, marks=pytest.mark.slow),
        pytest.param("block_diffusion", True, marks=pytest.mark.slow),
    ],
)
def test_the_mean_over_many_draws_is_every_tokens_share(objective, complementary):
    """With weights 1/p, each trained token's mean weight is 1/n, whatever the levels."""
    noise = NoiseConfig(
        low=0.1, denominator="sequence", complementary=complementary, levels="independent"
    )
    rows, sums, count = layout((8, 6)), torch.zeros(2, 8), 3000
    for seed in range(count):
        noisy = corrupt_rows(rows, noise, Draw(seed, 2, 10, block_size=4), objective, 99)
        sums += noisy.weights_BT.reshape(-1, 2, 8).sum(0)
    expected = torch.where(rows.maskable_BT, torch.tensor([[1 / 6], [1 / 4]]), 0.0)
    assert torch.allclose(sums / count, expected, atol=0.02)


def test_complementary_rows_mask_each_trained_token_once():
    noise = NoiseConfig(complementary=True, denominator="sequence")
    rows = layout((8, 6))
    noisy = corrupt_rows(rows, noise, Draw(3, 2, 10, block_size=4), "block_diffusion", 99)
    first, second = (noisy.ids_BT == 99).chunk(2)
    assert torch.equal(first ^ second, rows.maskable_BT)


def test_cart_is_half_the_kernels_sum_over_clean_neighbors():
    masked = torch.tensor([[False, True, False, True]])
    weights = cart_weights(masked, torch.ones_like(masked), 0.3)
    assert weights[0, 1].item() == pytest.approx(0.5 * (0.3 + 0.3))
    assert weights[0, 3].item() == pytest.approx(0.5 * (0.3 * 0.7**2 + 0.3))
    hidden = cart_weights(masked, torch.tensor([[True, True, False, True]]), 0.3)
    assert hidden[0, 3].item() == pytest.approx(0.5 * 0.3 * 0.7**2)


@pytest.mark.parametrize("tied", [False, True])
def test_the_chunked_head_equals_the_whole_one(monkeypatch, tied):
    model = tiny_model(tie_embeddings=tied).requires_grad_(True)
    states = torch.randn(11, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    targets, weights = torch.arange(11), torch.linspace(0.1, 2, 11)
    found = []
    for limit in (1 << 25, 200):
        monkeypatch.setattr(head, "MAX_LOGITS", limit)
        total, losses = head.weighted_loss(model, states, targets, weights)
        (3 * total).backward()
        found.append((total.detach(), losses, states.grad, model.head_weight.grad))
        states.grad, model.head_weight.grad = None, None
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    logits = model.head(states.detach())
    assert found[0][1].tolist() == pytest.approx(
        F.cross_entropy(logits, targets, reduction="none").tolist()
    )


def test_shifted_blocks_are_predicted_from_the_context_of_decoding():
    """The first position of a block is read from the clean row before it, the others from the block."""
    model = tiny_model("dream", block_size=4)
    clean = torch.arange(12)[None]
    masked = torch.tensor([[False, True, False, True] * 3])
    masked[0, 4] = True
    from unmask.train.corrupt import Noisy

    noisy = Noisy(torch.where(masked, 60, clean), masked.float())
    states = masked_states(model, model.hidden, Batch(["x"], clean, noisy))
    places = masked[0].nonzero()[:, 0].tolist()
    for row, place in zip(states, places, strict=True):
        start = place // 4 * 4
        if place == start:
            alone = model.hidden(
                clean[:, :start], torch.arange(start)[None],
                (torch.arange(start)[:, None] // 4 >= torch.arange(start) // 4)[None, None],
            )[0, start - 1]  # fmt: skip
        else:
            ids = torch.cat((clean[:, :start], noisy.ids_BT[:, start : start + 4]), 1)
            block = torch.arange(start + 4) // 4
            visible = (block[:, None] >= block)[None, None]
            alone = model.hidden(ids, torch.arange(start + 4)[None], visible)[0, place - 1]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def finish(*words) -> FileTrainer:
    trainer = FileTrainer(compose([str(word) for word in words]))
    trainer.entries = list(trainer)
    return trainer


@pytest.mark.parametrize("more", [[], ["lora.rank=2", "lora.dropout=0.1"], ["precision=bf16"]])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, rows, more):
    words = [
        f"data={rows}",
        *SMALL,
        "steps=6",
        "data.eval_fraction=0.3",
        "watch.eval_every=2",
        *more,
    ]
    whole = finish(*words, f"output={tmp_path}/whole")
    run = FileTrainer(compose([*words, f"output={tmp_path}/cut"]))
    for entry in run:
        if entry.step == 5:
            break
    run.close()
    rest = finish(*words, f"output={tmp_path}/cut")
    assert [e.loss for e in rest.entries] == [e.loss for e in whole.entries[4:]]
    one, other = (tmp_path / name / "final" / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()
    steps = [entry["step"] for entry in log_of(tmp_path / "cut")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_passed_over_and_other_settings_are_refused(tmp_path, rows):
    words = [f"data={rows}", *SMALL, "steps=4", f"output={tmp_path}/run"]
    first = finish(*words)
    wanted = (first.output / "final" / "model.safetensors").read_bytes()
    path = first.output / "step-000004" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    again = finish(*words)
    assert "step-000004" in again.damaged[0]
    assert (first.output / "final" / "model.safetensors").read_bytes() == wanted
    with pytest.raises(ConfigError, match="seed=3 but the run in .* began with seed=0"):
        finish(*words, "seed=3")
    with pytest.raises(ConfigError, match="holds checkpoints up to step-000004"):
        finish(*words, "resume=false")
    holder = FileTrainer(compose(words))
    with pytest.raises(ConfigError, match="another training"):
        FileTrainer(compose(words))
    holder.close()


def test_fine_tuning_lowers_the_loss_and_the_final_folder_loads_with_a_card(tmp_path, rows, capsys):
    code = main(["train", f"data={rows}", f"output={tmp_path}/run", "steps=6", "batch_size=8"])
    assert code == 0
    entries = log_of(tmp_path / "run")
    assert entries[-1]["loss"] < entries[0]["loss"]
    final = tmp_path / "run/final"
    assert read_spec(final) == read_spec("demo")
    card = (final / "README.md").read_text()
    assert f"data={rows}" in card
    assert "SHA-256" in card
    llm = unmask.LLM(final)
    out = llm.generate("Reverse: a e", gen_length=8, block_length=8)[0]
    assert len(out.canvas_ids) == out.prompt_length + 8
    names = load_file(BUNDLED["demo"] / "model.safetensors").keys()
    assert load_file(final / "model.safetensors").keys() == names


def test_bad_rows_of_a_run_are_written_to_a_file(tmp_path, rows):
    rows.write_text(rows.read_text() + '{"foo": 1}\n')
    finish(f"data={rows}", *SMALL, "steps=1", f"output={tmp_path}/run", "data.skip_bad_rows=2")
    assert "line 17" in (tmp_path / "run/bad_rows.jsonl").read_text()


FAMILIES = ("dream", "fast_dllm_v2", "llada", "llada2_moe", "llada_moe", "sdar")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_a_step_and_keeps_its_layout(tmp_path, parity_folder, family):
    file = tmp_path / "ids.jsonl"
    row = {"input_ids": list(range(5, 29)), "loss_mask": [0] * 8 + [1] * 16}
    file.write_text((json.dumps(row) + "\n") * 4)
    source = tmp_path / "source"
    shutil.copytree(parity_folder(family), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "mask_token_id": 3}))
    finish(f"data={file}", f"init={source}", "steps=1", "batch_size=2", "micro_batch_size=2",
           f"output={tmp_path}/run", "optim.weight_decay=0", "sft.tail=0")  # fmt: skip
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "run/final"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert {name: (v.shape, v.dtype) for name, v in before.items()} == {
        name: (v.shape, v.dtype) for name, v in after.items()
    }
    unmask.load_model(tmp_path / "run/final", "float32")


@pytest.mark.parametrize(
    ("words", "family", "block_size"),
    [
        (["model.shift_logits=true"], "dream", None),
        (["model.shift_logits=true", "model.block_size=8"], "fast_dllm_v2", 8),
        (["model.block_size=8"], "llada", 8),
    ],
)
def test_the_bundled_model_is_trained_into_other_topologies(
    tmp_path, rows, words, family, block_size
):
    run = finish(
        f"data={rows}", *words, "steps=1", "batch_size=2", f"output={tmp_path}/run", "sft.tail=0"
    )
    spec = read_spec(run.output / "final")
    assert (spec.family, spec.block_size) == (family, block_size)
    assert spec.shift_logits == (family != "llada")
    llm = unmask.LLM(run.output / "final")
    assert llm.tokenizer.convert_tokens_to_ids(spec.turn_end) is not None
    assert spec.turn_end in llm.tokenizer.get_vocab()
    out = llm.generate("Reverse: a e", gen_length=8, block_length=8)[0]
    assert len(out.canvas_ids) == out.prompt_length + 8


def test_a_causal_model_is_trained_and_then_adapted(tmp_path, rows):
    causal = finish(
        f"data={rows}", *SMALL, "objective=causal", "steps=2", f"output={tmp_path}/causal"
    )
    config = json.loads((causal.output / "final/config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    start = causal.output / "final"
    words = [f"data={rows}", f"init={start}", "batch_size=4", "micro_batch_size=2"]
    grown = finish(*words, "steps=3", "adapt.block_schedule=[1,4,0]", f"output={tmp_path}/grown")
    assert [grown.data.block_size(step) for step in range(3)] == [1, 4, 0]
    spec = read_spec(grown.output / "final")
    assert (spec.family, spec.shift_logits, spec.block_size) == ("a2d", True, None)
    before, after = (load_file(f / "model.safetensors") for f in (start, grown.output / "final"))
    assert before.keys() == after.keys()
    annealed = finish(*words, "steps=2", "adapt.anneal_steps=2", f"output={tmp_path}/annealed")
    assert [annealed.data.batches(step)[0].reach for step in (0, 1, 2)] == [0, 512, None]
    blocks = finish(*words, "steps=1", "model.block_size=4", f"output={tmp_path}/blocks")
    assert read_spec(blocks.output / "final").block_size == 4


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_causal_checkpoints_of_transformers_gain_a_mask_token(tmp_path, rows, kind):
    import transformers

    from unmask.train.files import find_sources
    from unmask.train.vocabulary import learn_tokenizer

    folder = tmp_path / "causal"
    learn_tokenizer(find_sources([str(rows)], "train"), 300, folder)
    text = (folder / "tokenizer.json").read_text().replace("<|mdm_mask|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("mask_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}  # fmt: skip
    from transformers import AutoTokenizer

    count = len(AutoTokenizer.from_pretrained(folder))
    name = {"qwen3": "Qwen3", "llama": "Llama"}[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=count, tie_word_embeddings=False, eos_token_id=count - 3, **sizes
    )
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    theirs.save_pretrained(folder)
    run = finish(f"data={rows}", f"init={folder}", "steps=1", "batch_size=2", "optim.lr=1e-9",
                 f"output={tmp_path}/run", "optim.weight_decay=0")  # fmt: skip
    final = run.output / "final"
    spec = read_spec(final)
    assert (spec.mask_id, spec.vocab_size) == (count, count + 1)
    llm = unmask.LLM(final)
    assert llm.tokenizer.get_vocab()["<|mask|>"] == count
    ids = torch.randint(5, count, (1, 9), generator=torch.Generator().manual_seed(0))
    visible = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        expected, found = theirs(ids).logits, llm.model(ids, visible)[..., :count]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
