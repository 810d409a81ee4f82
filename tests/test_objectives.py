"""Objectives as functions: hand-computed values, and means over draws against exact expectations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import MASK, tiny_model

import unmask
from unmask import objectives
from unmask.errors import ConfigError
from unmask.train.config import NoiseConfig

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
RESPONSE = torch.tensor([[False, True, True, True], [False, False, True, True]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cross_entropy(model, noisy, clean, masked, shift=False):
    """Sum of the cross-entropies of the masked positions of one row, through the plain forward."""
    logits = model(noisy[None])[0]
    total = 0.0
    for place in masked:
        row = place - 1 if shift else place
        total += F.cross_entropy(logits[row][None], clean[place][None]).item()
    return total


def exact(model, clean, maskable, weight, shift=False) -> float:
    """Expectation over all masks, with `weight(m)` the probability-weighted factor of m masked tokens."""
    places = [k for k in maskable.nonzero()[:, 0].tolist() if not (shift and k == 0)]
    total = 0.0
    for count in range(1, len(places) + 1):
        for chosen in itertools.combinations(places, count):
            noisy = clean.clone()
            noisy[list(chosen)] = MASK
            total += weight(count, len(places)) * cross_entropy(model, noisy, clean, chosen, shift)
    return total


def inverse(count: int, size: int) -> float:
    """Integral of p^m (1 - p)^(n - m) / p over the levels."""
    low = 1e-3
    grid = torch.linspace(low, 1.0, 200_001, dtype=torch.float64)
    values = grid ** (count - 1) * (1 - grid) ** (size - count)
    return float(torch.trapezoid(values, grid) / (1 - low))


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("kind", ["llada", "sft"])
def test_the_mean_over_draws_equals_the_formula(family, kind):
    model = tiny_model(family, sure=0.3)
    shift = family == "dream"
    noise = NoiseConfig(levels="stratified")
    flags = RESPONSE if kind == "sft" else torch.ones_like(RESPONSE)
    expected = 0.0
    for clean, maskable in zip(IDS, flags, strict=True):
        size = int(maskable.sum()) if kind == "sft" else 4
        expected += exact(model, clean, maskable, inverse, shift) / size / 2
    with torch.no_grad():
        many, repeated = IDS.repeat(400, 1), flags.repeat(400, 1)
        losses = []
        for seed in range(10):
            if kind == "sft":
                loss = objectives.sft_loss(
                    model, many, repeated, generator=generator(seed), noise=noise
                )
            else:
                loss = objectives.llada_loss(model, many, generator=generator(seed), noise=noise)
            losses.append(loss.item())
    error = torch.tensor(losses).std().item() / math.sqrt(len(losses))
    assert sum(losses) / len(losses) == pytest.approx(expected, abs=5 * error + 1e-3)


@pytest.mark.parametrize("shift", [False, True])
def test_block_diffusion_means_over_blocks_with_the_clean_ones_before(shift):
    """With one token a block: the expectation is the mean cross-entropy of each token after the clean
    ones."""
    model = tiny_model("dream" if shift else "llada", block_size=1)
    expected, count = 0.0, 0
    for clean in IDS:
        for place in range(1 if shift else 0, 4):
            noisy = clean[: place + 1].clone()
            noisy[place] = MASK
            logits = model(noisy[None])[0]
            row = place - 1 if shift else place
            expected += F.cross_entropy(logits[row][None], clean[place][None]).item()
            count += 1
    noise = NoiseConfig(low=0.5, complementary=False)
    with torch.no_grad():
        many = IDS.repeat(500, 1)
        loss = objectives.block_diffusion_loss(model, many, generator=generator(1), noise=noise)
    assert loss.item() == pytest.approx(expected / count, rel=0.03)


def test_causal_loss_is_the_mean_of_the_next_tokens():
    model = tiny_model("dream")
    visible = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    logits = model(IDS, visible)
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, 64), IDS[:, 1:].reshape(-1))
    assert objectives.causal_loss(model, IDS).item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ConfigError, match="needs a model with shifted logits"):
        objectives.causal_loss(tiny_model(), IDS)


def test_dream_loss_weighs_by_the_clean_neighbors():
    model = tiny_model("dream")
    noise = NoiseConfig(low=0.4, high=0.6)
    plain = objectives.dream_loss(model, IDS, RESPONSE, generator=generator(3), noise=noise)
    uniform = NoiseConfig(low=0.4, high=0.6, weight="uniform")
    other = objectives.dream_loss(model, IDS, RESPONSE, generator=generator(3), noise=uniform)
    assert 0 < plain.item() < other.item()  # the weights of CART are below 1


def test_confidence_loss_is_the_entropy_of_what_is_right():
    model = tiny_model()
    states = torch.randn(6, 32, generator=generator(2))
    logits = model.head(states)
    targets = logits.argmax(-1)
    targets[3:] = (targets[3:] + 1) % 64
    p = logits[:3].softmax(-1)
    expected = -(p * p.log()).sum(-1).mean()
    assert objectives.confidence_loss(model, states, targets).item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    wrong = (logits.argmax(-1) + 1) % 64
    assert objectives.confidence_loss(model, states, wrong).item() == 0.0


def test_trajectory_loss_asks_what_the_next_forwards_decide():
    model = tiny_model()
    forwards = torch.tensor([[-1, 0, 0, 0], [-1, -1, 0, 0]])  # one forward: the cut is always 0
    expected = 0.0
    for clean, decided in zip(IDS, forwards, strict=True):
        places = (decided == 0).nonzero()[:, 0].tolist()
        noisy = clean.clone()
        noisy[places] = MASK
        expected += cross_entropy(model, noisy, clean, places) / len(places) / 2
    loss = objectives.trajectory_loss(model, IDS, forwards, generator=generator())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="decide a position in every row"):
        objectives.trajectory_loss(model, IDS, torch.full_like(IDS, -1), generator=generator())


def test_one_step_log_probs_are_those_of_the_masked_answer_and_repeat_with_their_seed():
    model = tiny_model()
    found = objectives.one_step_log_probs(model, IDS, RESPONSE, seed=1, prompt_mask=0.0)
    for row in range(2):
        noisy = torch.where(RESPONSE[row], MASK, IDS[row])
        log_p = model(noisy[None])[0].log_softmax(-1)
        for place in RESPONSE[row].nonzero()[:, 0].tolist():
            assert found[row, place].item() == pytest.approx(
                log_p[place, IDS[row, place]].item(), rel=1e-4
            )
    assert (found[~RESPONSE] == 0).all()
    masked = [
        objectives.one_step_log_probs(model, IDS, RESPONSE, seed=s, prompt_mask=0.5) for s in (4, 4)
    ]
    assert torch.equal(*masked)


def test_diffu_grpo_clips_the_ratio_and_penalizes_distance_by_hand():
    response = torch.tensor([[True, True]])
    new, old = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    result = objectives.diffu_grpo_loss(new, old, None, torch.tensor([2.0]), response, clip=0.5)
    assert result.loss.item() == pytest.approx(-(1 * 2 + 1.5 * 2) / 2)
    assert result.clipped_share == pytest.approx(0.5)
    lowered = objectives.diffu_grpo_loss(new, old, None, torch.tensor([-2.0]), response, clip=0.5)
    assert lowered.loss.item() == pytest.approx((1 * 2 + 3 * 2) / 2)
    kept = objectives.diffu_grpo_loss(
        torch.zeros(1, 2), old, torch.full((1, 2), 0.5), torch.zeros(1), response, beta=0.1
    )
    assert kept.loss.item() == pytest.approx(0.1 * (math.exp(0.5) - 0.5 - 1), rel=1e-5)


def test_a_loop_of_ones_own_learns():
    model = tiny_model().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(30):
        loss = objectives.sft_loss(model, IDS, RESPONSE, generator=generator(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5]) / 3


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (IDS[0], None, "must be int64"),
        (IDS.float(), None, "must be int64"),
        (IDS, RESPONSE[:1], "must be bool"),
        (IDS, RESPONSE.long(), "must be bool"),
    ],
)
def test_inputs_of_other_shapes_are_refused(ids, mask, message):
    with pytest.raises(ConfigError, match=message):
        objectives.llada_loss(tiny_model(), ids, mask, generator=generator())
    with pytest.raises(ConfigError, match="the model has no blocks"):
        objectives.block_diffusion_loss(tiny_model(), IDS, generator=generator())


def test_objectives_and_train_are_parts_of_the_package():
    assert unmask.objectives is objectives
    assert callable(unmask.train)
