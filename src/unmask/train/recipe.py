"""Training recipes: all settings of a run, read from a preset and `key=value` words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml

from unmask.durable import write_text
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import field_names, set_field
from unmask.yaml_text import parse_yaml

LONGEST_ROW = 128
"""Maximum number of tokens of an example (a drill of 12 equations)."""


@dataclass(frozen=True)
class Recipe:
    """Network, data, objective and schedule of a run. Rates are per optimizer step, lengths in tokens."""

    recipe: str = "demo"
    output: str = "runs/demo"
    """Folder of checkpoints, log and final model."""
    seed: int = 0
    init: str | None = None
    """Bundled name or checkpoint folder whose weights to start from; default: freshly initialized."""
    steps: int = 1000
    rows_per_step: int = 128
    """Examples of one optimizer step, all tasks together."""
    micro_batches: int = 4
    """Number of parts, sorted by length, into which a step's fine-tuning rows are cut."""
    tokens_per_micro_batch: int = 4096
    """Upper bound of rows times length of a part; rows beyond it are dropped."""
    length_multiple: int = 8
    """Batches are padded to a multiple of this many positions."""
    # network
    d_model: int = 256
    num_layers: int = 6
    num_heads: int = 4
    d_ff: int = 768
    max_length: int = 1024
    rope_theta: float = 10000.0
    shift_logits: bool = False
    """As in Dream, the row before a position predicts it, and attention layers have biases."""
    block_size: int | None = None
    """Block-causal attention in blocks of this many positions, from the first token; default:
    bidirectional attention."""
    # data
    drill_start: float = 0.3
    """Share of drills among the fine-tuning rows at step 0 ..."""
    drill_end: float = 0.15
    """... and from step `drill_steps` on."""
    drill_steps: int = 1000
    level_steps: tuple[int, ...] = (200, 600, 1200)
    """Steps at which the curriculum reaches level 2, 3 (the hardest) and 4 (the final mixture)."""
    mix: tuple[float, ...] = (0.62, 0.15, 0.12, 0.11)
    """Shares of word problems, Sudoku, Countdown and sentences; drills replace rows of the first three."""
    random_length: float = 0.01
    # objective
    objective: Literal["demo", "llada"] = "demo"
    """demo: the keys of this section; llada: exactly LLaDA's published loss, where they have no effect."""
    stratified: bool = True
    """Noise levels stratified over a batch instead of independent."""
    count_weight: bool = True
    """Weigh by the number of masked tokens instead of its expectation: a row's mean, not LLaDA's loss."""
    block_share: float = 0.4
    """Share of fine-tuning rows in a state of block-wise decoding."""
    digit_share: float = 0.0
    """Share of word problems that mask digits only."""
    reading_at: int = 1_000_000_000
    """Step from which `reading_mix` and `reading_states` replace the shares above."""
    reading_mix: tuple[float, ...] = (0.62, 0.15, 0.12, 0.11)
    reading_states: tuple[float, ...] = (0.1, 0.25, 0.2, 0.35, 0.1)
    """Shares of the states any, block, digits, prefix (all masked from a cut on) and full (all masked)."""
    full_blocks: float = 0.4
    """Share of a block-causal model's blocks that are masked entirely; the states above are not used."""
    embed_std: float = 0.5
    """Standard deviation of the embeddings at the start."""
    # optimization
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    decay_steps: int = 250
    """Linear decay to `final_lr` of the rate over the last steps."""
    final_lr: float = 0.02
    clip: float = 1.0
    autocast: bool = True
    """bfloat16 autocast of the matrix products."""
    compile: bool = False
    # bookkeeping
    checkpoint_every: int = 200
    resume: bool = True
    """Continue from the newest checkpoint in `output`; false: such a folder is an error."""

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be used in training."""
        for allowed, (names, fits) in _RANGES.items():
            for name in names:
                if not fits(getattr(self, name)):
                    raise ConfigError(f"{name}={getattr(self, name)} must be {allowed}")
        for name, count in (("mix", "four"), ("reading_mix", "four"), ("reading_states", "five")):
            shares = getattr(self, name)
            if len(shares) != {"four": 4, "five": 5}[count] or min(shares) < 0 or sum(shares) <= 0:
                raise ConfigError(
                    f"{name}={shares} must hold {count} shares, none negative, not all 0"
                )
        if len(self.level_steps) != 3:
            raise ConfigError(f"level_steps={self.level_steps} must hold three step numbers")
        if self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2:
            raise ConfigError(
                f"num_heads={self.num_heads} must divide d_model={self.d_model} into even widths"
            )
        if self.shift_logits and self.block_size is not None:
            raise ConfigError(
                f"block_size={self.block_size} cannot be trained with shift_logits=true; leave one out"
            )
        if self.block_size is not None and self.block_size < 1:
            raise ConfigError(f"block_size={self.block_size} must be at least 1")
        if self.tokens_per_micro_batch < self.max_length // 2:
            raise ConfigError(
                f"tokens_per_micro_batch={self.tokens_per_micro_batch} cannot hold a row of "
                f"max_length/2={self.max_length // 2}"
            )


_SIZES = (
    "steps",
    "micro_batches",
    "tokens_per_micro_batch",
    "length_multiple",
    "d_model",
    "rows_per_step",
)
_MORE_SIZES = ("num_layers", "num_heads", "d_ff", "checkpoint_every")
_SHARES = (
    "drill_start",
    "drill_end",
    "random_length",
    "block_share",
    "digit_share",
    "full_blocks",
    "final_lr",
)
_RANGES: dict[str, tuple[tuple[str, ...], Callable[[float], bool]]] = {
    "at least 1": ((*_SIZES, *_MORE_SIZES), lambda value: value >= 1),
    "between 0 and 1": (_SHARES, lambda value: 0 <= value <= 1),
    "greater than 0": (
        ("muon_lr", "adam_lr", "clip", "rope_theta", "embed_std"),
        lambda value: value > 0,
    ),
    "at least 0": (
        ("warmup_steps", "decay_steps", "drill_steps", "weight_decay", "reading_at"),
        lambda value: value >= 0,
    ),
    f"at least {LONGEST_ROW}, the longest row": (
        ("max_length",),
        lambda value: value >= LONGEST_ROW,
    ),
}


DEMO_OBJECTIVE = (
    "stratified",
    "count_weight",
    "block_share",
    "digit_share",
    "reading_states",
    "full_blocks",
)
"""Keys of the demo's objective, which have no effect with `objective=llada`."""


def presets() -> list[str]:
    """Return the names of the recipes that ship."""
    folder = resources.files("unmask.train").joinpath("recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir())


def compose(words: list[str]) -> Recipe:
    """Build the recipe of `recipe=NAME key=value...`. Raises ConfigError for unknown or ill-typed keys."""
    pairs = dict(split_word(word) for word in words)
    if "recipe" not in pairs:
        raise ConfigError(
            f"no recipe; add one, e.g. recipe=demo; there are: {', '.join(presets())}"
        )
    name = pairs["recipe"]
    if name not in presets():
        raise unknown_name("recipe", name, presets())
    text = resources.files("unmask.train").joinpath("recipes").joinpath(f"{name}.yaml").read_text()
    fields = field_names(Recipe)
    values = {}
    for key, value in {**yaml.safe_load(text), **pairs}.items():
        if key not in fields:
            raise unknown_name("recipe key", key, fields)
        values[key] = set_field(Recipe, key, value)
    recipe = Recipe(**values)
    idle = [key for key in DEMO_OBJECTIVE if key in pairs]
    if recipe.objective == "llada" and idle:
        raise ConfigError(
            f"{idle[0]}={pairs[idle[0]]} has no effect with objective=llada; leave one of them out"
        )
    return recipe


def split_word(word: str) -> tuple[str, str]:
    """Split `key=value` in two. Raises ConfigError for anything else."""
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"{word!r} is not of the form key=value; write e.g. steps=1000")
    return key.strip().replace("-", "_"), value


MAY_CHANGE = ("output", "init", "steps", "decay_steps", "checkpoint_every", "compile", "resume")
"""Keys that a resumed run may change: folders, durations and speed, nothing that changes the training."""


def same_recipe(recipe: Recipe, saved: Path, newest: str) -> None:
    """Raise ConfigError if the saved run, to be resumed at `newest`, began with other values."""
    try:
        before = parse_yaml(saved.read_text(encoding="utf-8")) if saved.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError):
        before = None
    if not isinstance(before, dict):
        raise ConfigError(
            f"{saved} cannot be read, so the run cannot be compared with it; restore it, or delete it to "
            f"go on with this recipe from {newest}"
        )
    for key in sorted(field_names(Recipe) - set(MAY_CHANGE)):
        now = getattr(recipe, key)
        then = set_field(Recipe, key, before[key]) if key in before else now
        if then != now:
            raise ConfigError(
                f"{key}={now} but the run in {recipe.output!r} began with {key}={then}; use that, or "
                f"another output folder"
            )


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as YAML that `compose` can read."""
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(recipe).items()
    }
    write_text(path, yaml.safe_dump(values, sort_keys=False))
