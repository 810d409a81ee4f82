"""The parts of the study, and the cells of each.

Methods are spelled as `unmask generate --decoder` takes them. The parallel methods run on the dual cache
that CadLLM was published with, unless a part says otherwise.
"""

from __future__ import annotations

from cells import Cell

MANY, SOME, FEW = 256, 200, 64
"""Prompts of a parallel method's cell, of one with a token a forward, and of a cell of the large grids."""
GEN = 64

ONE = "vanilla"
THRESHOLD = "threshold(threshold=0.9)"
FACTOR = "factor(factor=1.0)"
CADLLM = "cadllm"
PAPER = "cadllm(variant=paper)"
TASKS = ("word", "sudoku")


def cell(prompts: str, method: str, cache: str = "dual", **changes: object) -> Cell:
    """Return a cell of the bundled model with the usual sizes."""
    n = SOME if method == ONE or "compat=true" in method else MANY
    values = {"model": "demo", "gen_length": GEN, "n": n, **changes}
    return Cell(prompts=prompts, method=method, cache=cache, **values)


def without(*names: str, rest: str = "") -> str:
    """Return CadLLM with some of its policies disabled."""
    switches = [f"adaptive_{name}=false" for name in names]
    return f"cadllm({', '.join([*switches, *filter(None, [rest])])})"


def scaled(*off: str, variant: str = "code") -> str:
    """Return CadLLM with a quarter of its lengths and some policies disabled (threshold: 0.9 instead)."""
    knobs = [f"variant={variant}"] * (variant != "code")
    knobs += ["initial_block_length=6", "initial_steps=6"]
    knobs += [] if "blocks" in off else ["min_block=2", "max_block=16"]
    knobs += [] if "steps" in off else ["max_steps=24"]
    return without(*off, rest=", ".join(knobs + [RIGHT] * ("threshold" in off)))


RIGHT = "threshold=0.9"
ALL = ("blocks", "steps", "vocab_size", "threshold")
BASELINE = {
    "one token a forward": (ONE, "none"),
    "threshold 0.9": (THRESHOLD, "dual"),
    "factor 1.0": (FACTOR, "dual"),
    "CadLLM": (CADLLM, "dual"),
}
ABLATION = {
    "all on": CADLLM,
    "no vocabulary": without("vocab_size"),
    "no step": without("steps"),
    "no block": without("blocks"),
    "no threshold: 0.9 instead": without("threshold", rest=RIGHT),
    "no threshold, as published": without("threshold", "blocks", rest="compat=true"),
    "all off: 0.9 instead": without(*ALL, rest=RIGHT),
    "all off, as published": without(*ALL, rest="compat=true"),
    "vocabulary alone": without("blocks", "steps", "threshold", rest=RIGHT),
    "block alone": without("steps", "vocab_size", "threshold", rest=RIGHT),
    "threshold alone": without("blocks", "steps", "vocab_size"),
    "threshold and step": without("blocks", "vocab_size"),
    "Fast-dLLM threshold 0.9": THRESHOLD,
    "Fast-dLLM threshold 0.85": "threshold(threshold=0.85)",
    "Fast-dLLM threshold 0.8": "threshold(threshold=0.8)",
    "Fast-dLLM threshold 0.7": "threshold(threshold=0.7)",
    "Fast-dLLM factor 1.0": FACTOR,
}
SCALED_BLOCK = "threshold(threshold=0.9, block_length=8)"
SCALED = {
    "all on": scaled(),
    "no vocabulary": scaled("vocab_size"),
    "no step": scaled("steps"),
    "no block": scaled("blocks"),
    "no threshold: 0.9 instead": scaled("threshold"),
    "all off: 0.9 instead": scaled(*ALL),
    "threshold alone": scaled("blocks", "steps", "vocab_size"),
    "paper's equations": scaled(variant="paper"),
    "Fast-dLLM threshold 0.9, blocks of 8": SCALED_BLOCK,
    "Fast-dLLM threshold 0.7, blocks of 8": "threshold(threshold=0.7, block_length=8)",
}
"""CadLLM with blocks and steps a quarter as long: as many blocks an answer as GSM8K's have with its own."""
VOCABULARIES = {
    "none": "vocabulary=none",
    "static 1000": "vocabulary=static, vocab_size=1000",
    "static 100": "vocabulary=static, vocab_size=100",
    "static 35": "vocabulary=static, vocab_size=35",
    "static 5": "vocabulary=static, vocab_size=5",
    "frequency 1000": "vocabulary=frequency, vocab_size=1000",
    "frequency 300": "vocabulary=frequency, vocab_size=300",
    "frequency 100": "vocabulary=frequency, vocab_size=100",
    "adaptive": "vocabulary=adaptive",
    "union 300": "vocabulary=union, vocab_size=300",
    "union 100": "vocabulary=union, vocab_size=100",
    "union 100, bounded": "vocabulary=union, vocab_size=100, max_missed=0.05",
}
SHIFTED = ("word", "names", "reworded", "noise", "distractor", "large", "sudoku", "dots")
SHARPNESS = (0.5, 0.7, 1.0, 1.5, 2.0, 4.0)
LENGTHS = (64, 128, 256, 512, 900)
SHAPES = {"demo": "dual", "dream": "dual", "blocks": "block_causal"}
CACHES = ("none", "prefix", "dual", "vicinity")
DECODERS = {
    "vanilla": "vanilla",
    "ar": "ar",
    "block_diffusion": "block_diffusion",
    "threshold": THRESHOLD,
    "factor": FACTOR,
    "cadllm": CADLLM,
    "pc_sampler": "pc_sampler",
    "eb_sampler": "eb_sampler(gamma=0.1)",
    "klass": "klass",
    "wino": "wino",
    "daedal": "daedal",
    "prophet": "prophet(inner=threshold)",
    "dream": "dream(steps=16)",
    "hierarchy": "hierarchy",
    "credit": "credit",
    "joint_threshold": "joint_threshold",
    "speculative": "speculative(inner=threshold)",
}


def pairs() -> list[tuple[str, str, str]]:
    """Return label and both methods of the comparisons in the findings."""
    return [
        ("CadLLM, threshold 0.85", CADLLM, ABLATION["Fast-dLLM threshold 0.85"]),
        ("CadLLM, factor 1.0", CADLLM, FACTOR),
        ("CadLLM, its threshold alone", CADLLM, ABLATION["threshold alone"]),
        ("CadLLM, without vocabulary", CADLLM, ABLATION["no vocabulary"]),
        ("CadLLM, without step", CADLLM, ABLATION["no step"]),
        ("CadLLM, without block", CADLLM, ABLATION["no block"]),
        ("shorter blocks: all on, without block", SCALED["all on"], SCALED["no block"]),
        ("shorter blocks: all on, without step", SCALED["all on"], SCALED["no step"]),
        ("shorter blocks: all on, without vocabulary", SCALED["all on"], SCALED["no vocabulary"]),
        (
            "shorter blocks: all on, without threshold",
            SCALED["all on"],
            SCALED["no threshold: 0.9 instead"],
        ),
        (
            "shorter blocks: all on, threshold 0.85 in blocks of 32",
            SCALED["all on"],
            ABLATION["Fast-dLLM threshold 0.85"],
        ),
    ]


def variants() -> list[tuple[str, int]]:
    """Return prompt set and length of the comparison of CadLLM's code and paper."""
    return [(task, length) for task in TASKS for length in (64, 256)]


def variant_cell(prompts: str, method: str, length: int) -> Cell:
    """Return the cell of a method in a canvas of 64 positions, or on fewer prompts in a longer one."""
    return cell(prompts, method, gen_length=length, n=MANY if length == GEN else 2 * FEW)


def vocabulary_method(method: str, knobs: str) -> str:
    """Return a method with the knobs of a vocabulary."""
    name, _, rest = method.partition("(")
    inside = ", ".join(filter(None, [rest.removesuffix(")"), knobs]))
    return f"{name}({inside})"


def vocabulary_cell(method: str, label: str) -> Cell:
    """Return the cell of a method with one of VOCABULARIES."""
    options: tuple[tuple[str, str], ...] = ()
    if label.startswith("frequency"):
        options = (("frequencies", "frequencies.json"),)
    return cell("word", vocabulary_method(method, VOCABULARIES[label]), options=options)


def shift_cell(prompts: str, method: str) -> Cell:
    """Return the cell of a method on one of SHIFTED."""
    return cell(prompts, method, n=SOME)


def sharp_cell(method: str, sharpness: float) -> Cell:
    """Return the cell of a method on the model with scaled logits."""
    return cell("word", method, n=SOME, sharpness=sharpness)


def length_cell(method: str, length: int) -> Cell:
    """Return the cell of a method on short answers in a canvas of any length."""
    return cell("word", method, gen_length=length, n=FEW)


def shape_cell(model: str, prompts: str, method: str) -> Cell:
    """Return the cell of a method on one of SHAPES; one token per forward without an inexact cache."""
    cache = "none" if method == ONE and model != "blocks" else SHAPES[model]
    return cell(prompts, method, cache, model=model, n=SOME)


def front_cell(model: str, label: str, cache: str) -> Cell:
    """Return the cell of one of DECODERS with a cache."""
    return cell("word", DECODERS[label], cache, model=model, n=FEW)


def cells() -> dict[str, list[Cell]]:
    """Return the cells of each part."""
    arms = (ONE, THRESHOLD, FACTOR, CADLLM)
    return {
        "baseline": [cell(task, *arm) for task in TASKS for arm in BASELINE.values()],
        "ablation": [cell(task, arm) for task in TASKS for arm in ABLATION.values()],
        "scaled": [cell(task, arm) for task in TASKS for arm in SCALED.values()],
        "variants": [
            variant_cell(task, arm, length)
            for task, length in variants()
            for arm in (THRESHOLD, CADLLM, PAPER)
        ],
        "vocabulary": [
            vocabulary_cell(method, label)
            for method in (THRESHOLD, CADLLM)
            for label in VOCABULARIES
            if method == THRESHOLD or not label.startswith(("static", "adaptive"))
        ],
        "calibration": [
            *(shift_cell(name, arm) for name in SHIFTED for arm in (THRESHOLD, CADLLM, ONE)),
            *(sharp_cell(arm, factor) for factor in SHARPNESS for arm in (THRESHOLD, CADLLM)),
        ],
        "lengths": [
            length_cell(arm, length) for length in LENGTHS for arm in (THRESHOLD, CADLLM, PAPER)
        ],
        "shapes": [
            shape_cell(model, task, arm) for model in SHAPES for task in TASKS for arm in arms
        ]
        + [shape_cell("dream", task, "cadllm(path=dream)") for task in TASKS],
        "front": [
            *(front_cell("demo", label, cache) for cache in CACHES for label in DECODERS),
            *(front_cell("blocks", label, "block_causal") for label in DECODERS),
        ],
    }
