"""Settings of a training on one's own data: one dataclass, read from presets, YAML and `key=value` words.

A group is a dataclass of its own, and its keys have its name before them: `data.format=text`. The string
below a field is its help text.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import yaml

from unmask.durable import write_text
from unmask.errors import ConfigError, cut_text, unknown_name
from unmask.knobs import set_field
from unmask.options import check_fields, option
from unmask.yaml_text import parse_yaml

Objective = Literal["auto", "llada", "dream", "block_diffusion", "causal", "diffu_grpo"]
Format = Literal["auto", "text", "prompt_response", "messages", "input_ids"]


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Base of the groups: types and bounds are those of the fields."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Group):
    """Rows: where they come from, how they are read, and which are left out."""

    path: tuple[str, ...] = ()
    """Files (.jsonl, .json, .csv, .parquet, each also .gz where text; .txt), folders of them, or the id of
    a dataset on the hub; `data=FILE` is short for it. Several: `data=[a.jsonl,b.txt]`."""
    format: Format = "auto"
    """Form of the rows; auto: found by their fields. text: a document; prompt_response: prompt and response
    (also instruction/input/output, question/answer); messages: a conversation; input_ids: token ids, with
    an optional loss_mask."""
    weights: tuple[float, ...] = ()
    """Share of each of several paths in the rows that are drawn; default: one epoch is every row once."""
    split: str = "train"
    """Split of a dataset from the hub or from `save_to_disk`."""
    eval: str | None = None
    """File of held-out rows; default: a part of the data, see `data.eval_fraction`."""
    eval_fraction: Annotated[float, option(least=0, most=0.5)] = 0.0
    """Share of the rows that is held out, chosen by a hash of each row's content. 0: none; 0.5: half."""
    packing: Literal["auto", "none", "within", "across", "pack"] = "auto"
    """Rows of a batch. none: one example a row; within: a document is cut into windows of max_length;
    across: documents one after the other, cut into windows; pack: whole examples share rows and do not see
    each other, which equals separate rows. auto: across for texts, else none."""
    too_long: Literal["truncate", "drop", "error"] = "truncate"
    """Rows longer than max_length: keep their beginning, leave them out, or stop."""
    skip_bad_rows: Annotated[int, option(least=0)] = 0
    """Maximum number of unreadable rows to leave out (listed in bad_rows.jsonl); 0: the first one stops."""
    cache: str | None = None
    """Folder of the tokenized rows, shared by runs; default: `tokens` in the output folder."""


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(_Group):
    """Noise levels, weights and normalization of the diffusion objectives."""

    low: Annotated[float, option(least=0.0, most=1)] = 1e-3
    """Lowest masking probability. Toward 0: rows with few masks and large weights."""
    high: Annotated[float, option(above=0, most=1)] = 1.0
    """Highest masking probability. Below 1: fully masked answers are never trained."""
    levels: Literal["stratified", "independent", "antithetic"] = "stratified"
    """Draws of a batch's levels: one in each of equal strata, independent, or in pairs t and 1 - t."""
    weight: Literal["auto", "inverse", "count", "uniform", "cart"] = "auto"
    """Weight of a masked token: inverse 1/p (the likelihood bound); count: the number of masked tokens
    instead of its expectation (less variance); uniform: 1; cart: Dream's, by the clean tokens nearby. auto:
    inverse, for objective=dream cart."""
    denominator: Literal["auto", "sequence", "tokens", "batch"] = "auto"
    """Normalization. sequence: by each answer's length, then the mean of rows (LLaDA's fine-tuning);
    tokens: by all trainable tokens of the step; batch: by all positions (LLaDA's pre-training). auto: batch
    for texts, else sequence."""
    cart_p: Annotated[float, option(above=0, most=1)] = 0.3
    """Parameter of CART's geometric kernel. Toward 0: distant tokens count; 1: the nearest only."""
    complementary: bool = False
    """Train each row twice, the second time with the other tokens masked (block diffusion)."""
    random_length: Annotated[float, option(least=0, most=1)] = 0.01
    """Share of batches of texts that are cut to a random length. 0: none; 1: all."""
    full_blocks: Annotated[float, option(least=0, most=1)] = 0.0
    """Share of blocks that are masked entirely (block diffusion), the state in which a block begins."""
    confidence: Annotated[float, option(least=0)] = 0.0
    """Weight of the entropy of predictions that are right already, for parallel decoding (LLaDA2's CAP).
    0: none; large values make the model sure before it is right."""


@dataclass(frozen=True, kw_only=True)
class SftConfig(_Group):
    """End-of-text positions after an answer."""

    pad_loss: bool = True
    """Train the end-of-text positions after an answer as a part of it, as LLaDA does; false: they are
    invisible and not trained."""
    tail: Annotated[int, option(least=0)] = 16
    """Maximum number of end-of-text positions beyond the longest answer of a micro-batch, drawn anew for
    each. 0: none, and answers of equal length never show how they end; large: long canvases are learned."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Group):
    """Network of `init=null`; sizes of a loaded model are its own."""

    d_model: Annotated[int, option(least=2)] = 256
    """Width of the states. Small: fast, learns little; parameters and time grow with its square."""
    num_layers: Annotated[int, option(least=1)] = 6
    """Number of layers. 1: no steps of thought; time and memory grow in proportion."""
    num_heads: Annotated[int, option(least=1)] = 4
    """Number of attention heads, which share the width. 1: one pattern a layer; many: narrow ones."""
    d_ff: Annotated[int, option(least=1)] = 768
    """Width of the feed-forward part, mostly 3 times d_model. Small: little is stored; large: slow."""
    max_length: Annotated[int, option(least=2)] = 1024
    """Maximum number of positions of the network's context."""
    rope_theta: Annotated[float, option(above=0)] = 10000.0
    """Base of the rotary position angles. Small: distant positions look alike; large: near ones do."""
    vocab_size: Annotated[int, option(least=300)] = 2048
    """Size of the tokenizer that is learned from the data when none is given."""
    embed_std: Annotated[float, option(above=0)] = 0.5
    """Standard deviation of the embeddings at the start."""
    shift_logits: bool | None = None
    """The row before a position predicts it, as in Dream. Default: of a causal `init` true, else as it
    is."""
    block_size: Annotated[int | None, option(least=1)] = None
    """Block-causal attention in blocks of this many positions. Default: that of `init`."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(_Group):
    """Opening of a causal model's attention."""

    anneal_steps: Annotated[int, option(least=0)] = 0
    """Steps over which positions to the right become visible one after the other. 0: at once."""
    block_schedule: tuple[int, ...] = ()
    """Block sizes of equal parts of the run, e.g. [1,4,32]: warm-up, stable, decay as in LLaDA2.0. The
    model keeps the last one; 0 stands for full attention."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(_Group):
    """Optimizer and schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw; muon: Muon for the layers' matrices, AdamW for the rest."""
    lr: Annotated[float | None, option(above=0)] = None
    """Peak learning rate. Default: 3e-4 for full training, 1e-3 for LoRA, and a thirtieth of these for
    objective=diffu_grpo. Too high: the loss jumps; too low: nothing is learned in the given steps."""
    muon_lr: Annotated[float, option(above=0)] = 0.01
    """Peak rate of Muon's matrices."""
    weight_decay: Annotated[float, option(least=0)] = 0.01
    """Decay of matrices, times the rate, per step. 0: none; 1 and more: weights shrink to nothing."""
    warmup: Annotated[float, option(least=0, most=1)] = 0.05
    """Share of the steps in which the rate rises linearly from 0."""
    decay: Annotated[float, option(least=0, most=1)] = 0.3
    """Share of the steps, at the end, in which the rate falls linearly to `optim.final` of its peak."""
    final: Annotated[float, option(least=0, most=1)] = 0.05
    """Rate of the last step as a share of the peak. 0: the end changes nothing; 1: no decay."""
    clip: Annotated[float, option(above=0)] = 1.0
    """Maximum norm of the gradient. Toward 0: all steps have one size; large: a bad batch may do harm."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig(_Group):
    """Low-rank adapters in PEFT's format; `lora.rank` switches them on."""

    rank: Annotated[int, option(least=0)] = 0
    """Rank of the adapters; 0: all weights are trained. 4: few parameters; 128: close to full training."""
    alpha: Annotated[float | None, option(above=0)] = None
    """Scale of an adapter is alpha/rank. Default: twice the rank."""
    dropout: Annotated[float, option(least=0, most=0.9)] = 0.0
    """Share of an adapter's inputs that are zeroed in training. 0: none; 0.9: little is learned."""
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """Matrices with adapters: of q, k, v, o (attention), gate, up, down (feed-forward)."""
    base: Literal["float", "int8", "int4"] = "float"
    """Weights of these matrices below the adapters (QLoRA). int8: a quarter of float32's memory; int4: an
    eighth, and the model itself is worse; the model in `final/` has the rounded weights too."""


@dataclass(frozen=True, kw_only=True)
class RlConfig(_Group):
    """Reinforcement learning by rewards (objective=diffu_grpo); `batch_size` counts prompts."""

    reward: str = "exact_match"
    """Function that scores an answer: exact_match (1 if equal to the row's response), `FILE.py:NAME`,
    `python:FILE.py` (its function `reward`) or `module:NAME`, such as `unmask.evals.rewards:countdown`. It
    gets the row, of which a prompt is enough, and the answer's text."""
    group: Annotated[int, option(least=2)] = 6
    """Answers to each prompt, whose mean is the baseline. 2: noisy advantages; many: slow steps."""
    inner: Annotated[int, option(least=1)] = 4
    """Optimizer steps on the answers of a step. 1: the ratio is 1, nothing is clipped; many: more is
    learned from each answer, until the clipping stops it."""
    decoder: str = "vanilla"
    """Decoder of the answers, with its knobs: `threshold(threshold=0.9)`."""
    gen_length: Annotated[int, option(least=1)] = 64
    """Number of positions of an answer. Small: longer answers are cut; large: slow."""
    block_length: Annotated[int | None, option(least=1)] = None
    """Block length of decoders that have one. Default: the decoder's."""
    temperature: Annotated[float, option(above=0)] = 0.9
    """Temperature of the answers. Toward 0: equal answers, no advantages; high: few right answers."""
    clip: Annotated[float, option(above=0, most=1)] = 0.5
    """Maximum distance from 1 of the ratio of new to old probability. Toward 0: hardly any change per
    step; 1: probabilities may double at once."""
    beta: Annotated[float, option(least=0)] = 0.04
    """Weight of the divergence from the model at the start. 0: none is computed, and no copy of the model
    is kept; large: the model stays as it was."""
    prompt_mask: Annotated[float, option(least=0, most=1)] = 0.15
    """Share of prompt tokens that are masked where log-probabilities are estimated, as in d1. 0: every
    inner step sees the same input; 1: the prompt is ignored."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig(_Group):
    """Reports and checkpoints; `*_every` in steps, 0: never."""

    checkpoint_every: Annotated[int, option(least=1)] = 200
    """Steps from one checkpoint to the next, and the most that a kill can cost. 1: mostly writing."""
    keep: Annotated[int, option(least=1)] = 2
    """Number of checkpoints that are kept, besides the best one by evaluation loss."""
    eval_every: Annotated[int, option(least=0)] = 50
    """Loss on the held-out rows every so many steps, if there are any."""
    sample_every: Annotated[int, option(least=0)] = 0
    """Answers to the first held-out (else training) prompts, written to samples.jsonl."""
    samples: Annotated[int, option(least=1)] = 4
    """Number of prompts that `watch.sample_every` answers."""
    tasks: tuple[str, ...] = ()
    """Tasks of `unmask eval`, names or files of your own, whose accuracy is measured while training, e.g.
    [countdown,sudoku] (extra `eval`)."""
    task_every: Annotated[int, option(least=0)] = 200
    """The tasks every so many steps, and at the end; 0: at the end only."""
    task_limit: Annotated[int, option(least=1)] = 50
    """Number of documents of each task. Small: wide intervals; large: slow."""
    tensorboard: bool = False
    """Write TensorBoard's event files to the output folder (extra `train`)."""
    wandb: str | None = None
    """Project of Weights & Biases to log to."""


GROUPS: dict[str, type[_Group]] = {
    "data": DataConfig,
    "noise": NoiseConfig,
    "sft": SftConfig,
    "model": ModelConfig,
    "adapt": AdaptConfig,
    "optim": OptimConfig,
    "lora": LoraConfig,
    "rl": RlConfig,
    "watch": WatchConfig,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Group):
    """All settings of a training on data files."""

    output: str = "runs/train"
    """Folder of checkpoints, logs and the final model (`final/`)."""
    init: str | None = "demo"
    """Model to start from: bundled name, folder or hub id, also a causal Qwen2, Qwen3 or Llama; null: a new
    network of `model.*`."""
    tokenizer: str | None = None
    """Folder of the tokenizer of `init=null`. Default: one is learned from the data."""
    objective: Objective = "auto"
    """llada: masked diffusion; dream: with CART's weights; block_diffusion: each block after the clean ones
    before it; causal: next token, of new networks; diffu_grpo: rewards of the model's own answers, see
    `rl.*`. auto: block_diffusion for models with blocks, else llada."""
    seed: Annotated[int, option(least=0)] = 0
    """Seed of order, noise, new weights and answers; equal seeds give equal runs on the same CPU."""
    steps: Annotated[int | None, option(least=1)] = None
    """Optimizer steps. Default: those of `epochs`."""
    epochs: Annotated[float, option(above=0)] = 3.0
    """Passes over the rows, if `steps` is not given."""
    batch_size: Annotated[int, option(least=1)] = 16
    """Rows of an optimizer step, over all processes."""
    micro_batch_size: Annotated[int, option(least=1)] = 8
    """Rows of one forward. Small: less memory; large: faster."""
    max_length: Annotated[int | None, option(least=2)] = None
    """Maximum number of tokens of a row. Default: the model's context, at most 1024."""
    precision: Literal["fp32", "autocast", "bf16"] = "fp32"
    """fp32; autocast: matrix products in bfloat16; bf16: weights in bfloat16 with float32 master
    weights."""
    checkpoint_activations: bool = False
    """Recompute each layer in the backward pass: less memory, about a third slower."""
    compile: bool = False
    """Compile the network with torch.compile; the first steps take a minute longer."""
    parallel: Literal["none", "fsdp"] = "none"
    """fsdp: share weights, gradients and optimizer state among the processes of torchrun."""
    resume: bool = True
    """Go on from the newest checkpoint in `output`; false: such a folder is an error."""
    dtype: Literal["float32", "bfloat16", "checkpoint"] = "checkpoint"
    """Type of the weights in `final/`; checkpoint: that of `init` (of a new network float32)."""
    license: str = "other"
    """Licence named in the model card."""
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for values, or combinations of them, that cannot be used."""
        super().__post_init__()
        if self.noise.low >= self.noise.high:
            raise ConfigError(
                f"noise.low={self.noise.low} must be below noise.high={self.noise.high}"
            )
        if self.data.weights and len(self.data.weights) != len(self.data.path):
            raise ConfigError(
                f"data.weights has {len(self.data.weights)} numbers for {len(self.data.path)} paths; give "
                f"one for each"
            )
        if self.data.weights and (min(self.data.weights) < 0 or sum(self.data.weights) <= 0):
            raise ConfigError(
                f"data.weights={self.data.weights} must not be negative, nor all of them 0"
            )
        unknown = [name for name in self.lora.targets if name not in LoraConfig().targets]
        if unknown or not self.lora.targets:
            raise unknown_name("lora.targets", (unknown or [""])[0], LoraConfig().targets)
        if self.lora.base != "float" and not self.lora.rank:
            raise ConfigError(
                f"lora.base={self.lora.base} has no effect without adapters; add lora.rank=16"
            )
        if self.lora.base != "float" and self.parallel == "fsdp":
            raise ConfigError(
                f"lora.base={self.lora.base} is not for parallel=fsdp; leave one of them out"
            )
        if self.data.eval is not None and self.data.eval_fraction:
            raise ConfigError("data.eval and data.eval_fraction: give one of them")
        self._check_rewards()

    def _check_rewards(self) -> None:
        """Raise ConfigError for settings of another objective than the run's."""
        if self.objective != "diffu_grpo":
            if self.rl != RlConfig():
                raise ConfigError(
                    f"rl.* has no effect with objective={self.objective}; add objective=diffu_grpo or "
                    f"leave it out"
                )
            return
        for name, is_default in (
            ("noise.*", self.noise == NoiseConfig()),
            ("sft.*", self.sft == SftConfig()),
            ("adapt.*", self.adapt == AdaptConfig()),
            ("lora.dropout", not self.lora.dropout),
            ("data.packing", self.data.packing in ("auto", "none")),
            ("watch.sample_every", not self.watch.sample_every),
        ):
            if not is_default:
                raise ConfigError(f"{name} has no effect with objective=diffu_grpo; leave it out")
        if self.parallel != "none":
            raise ConfigError(
                f"parallel={self.parallel} is not for objective=diffu_grpo, whose answers one process "
                f"decodes; leave it out"
            )


PRESETS: dict[str, dict[str, str]] = {
    "sft": {},
    "lora": {"lora.rank": "16"},
    "pretrain": {"init": "null", "optim.name": "muon", "optim.lr": "3e-3"},
    "block_diffusion": {"objective": "block_diffusion", "model.block_size": "32"},
    "adapt": {"model.shift_logits": "true", "adapt.block_schedule": "[1,4,32,0]"},
    "grpo": {"objective": "diffu_grpo", "optim.clip": "0.2", "optim.weight_decay": "0.1"},
}
"""Values by key of each preset; other words take precedence."""


def keys() -> Iterator[tuple[str, type[_Group], str]]:
    """Yield every key with the dataclass and the field that it sets."""
    for item in dataclasses.fields(TrainConfig):
        if item.name in GROUPS:
            group = GROUPS[item.name]
            for inner in dataclasses.fields(group):
                yield f"{item.name}.{inner.name}", group, inner.name
        else:
            yield item.name, TrainConfig, item.name


def compose(words: Sequence[str]) -> TrainConfig:
    """Build the settings of `key=value` words: preset < config=FILE < the other words.

    Raises ConfigError for unknown keys (with the nearest name), values of another type, and a key with two
    values.
    """
    given: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.strip().lstrip("+").replace("-", "_")
        if not equals or not key:
            raise ConfigError(
                f"{cut_text(word)!r} is not of the form key=value; write e.g. data=my.jsonl"
            )
        key = ALIASES.get(key, key)
        if given.setdefault(key, value) != value:
            raise ConfigError(f"{key} is given twice, as {given[key]} and {value}; leave one out")
    preset, file = given.pop("preset", None), given.pop("config", None)
    if preset is not None and preset not in PRESETS:
        raise unknown_name("preset", str(preset), PRESETS)
    values: dict[str, object] = dict(PRESETS[str(preset)]) if preset is not None else {}
    if file is not None:
        values |= read_config_file(Path(str(file)))
    return from_values({**values, **given})


ALIASES = {"data": "data.path"}


def read_config_file(path: Path) -> dict[str, object]:
    """Return the values of a YAML file by key. Raises ConfigError."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"config={path} cannot be read: {cut_text(' '.join(reason.split()), 300)}"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config={path} must hold keys and values, such as max_length: 512")
    return _flat(tree)


def _flat(tree: Mapping[object, object]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and key in GROUPS:
            result |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            result[ALIASES.get(str(key), str(key))] = value
    return result


def from_values(values: Mapping[str, object]) -> TrainConfig:
    """Build the settings of values (of Python, or text) by dotted key. Raises ConfigError."""
    known = {key: (group, name) for key, group, name in keys()}
    top: dict[str, object] = {}
    groups: dict[str, dict[str, object]] = {name: {} for name in GROUPS}
    for key, value in values.items():
        if key not in known:
            raise unknown_name("key", cut_text(key), known)
        cls, name = known[key]
        typed = _typed(cls, key, name, value)
        prefix = key.partition(".")[0]
        (groups[prefix] if cls is not TrainConfig else top)[name] = typed
    built = {}
    for name, fields in groups.items():
        try:
            built[name] = GROUPS[name](**fields)
        except ConfigError as error:
            raise ConfigError(f"{name}.{error}") from None
    return TrainConfig(**built, **top)  # type: ignore[arg-type]


def _typed(cls: type[_Group], key: str, name: str, value: object) -> object:
    """Convert a value to the type of its field; one text stands for a list of one."""
    hint = typing.get_type_hints(cls)[name]
    is_list = isinstance(value, (list, tuple)) or str(value).lstrip().startswith(("[", "("))
    if typing.get_origin(hint) is tuple and not is_list:
        value = [value]
    try:
        return set_field(cls, name, value)
    except ConfigError as error:
        prefix = key.rpartition(".")[0]
        raise ConfigError(f"{prefix}.{error}" if prefix else str(error)) from None


def as_tree(config: TrainConfig) -> dict[str, object]:
    """Return the settings as nested dicts of YAML's types."""

    def plain(value: object) -> object:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value

    tree = plain(dataclasses.asdict(config))
    assert isinstance(tree, dict), "a dataclass is a dict of its fields"
    return tree


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the settings as YAML that `config=FILE` reads."""
    write_text(path, yaml.safe_dump(as_tree(config), sort_keys=False))


MAY_CHANGE = frozenset(
    {"output", "steps", "epochs", "compile", "resume", "license", "dtype", "data.cache", "parallel"}
)
"""Keys, besides `watch.*`, that a resumed run may change: nothing that changes the training itself."""


def check_same(config: TrainConfig, saved: Path, newest: str) -> None:
    """Raise ConfigError if the run whose settings were saved, to be resumed at `newest`, had other
    values."""
    before = read_config_file(saved)
    now = _flat(as_tree(config))  # type: ignore[arg-type]
    for key, value in now.items():
        if key in MAY_CHANGE or key.startswith("watch.") or key not in before:
            continue
        if before[key] != value:
            raise ConfigError(
                f"{key}={value} but the run in {config.output!r}, at {newest}, began with "
                f"{key}={before[key]}; use that, or another output folder"
            )
