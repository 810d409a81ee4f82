"""Every key of an evaluation: type, unit, range, default, and what other projects' keys mean here.

Keys under `generation.` and `cache.` are the knobs of the decoder and of the cache that are chosen, with
their own types and ranges (`docs/reference/decoders.md`, `caches.md`); the rest is below. Sources: the
founding documents' commands; the keys of d2Cache's Hydra tree (arXiv:2509.23094), which are taken with
their meaning or refused with a reason.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from unmask.errors import ConfigError


def key(default: Any, help: str, *, low: float | None = None, unit: str = "") -> Any:
    """A field with its description, its least value and its unit."""
    return field(default=default, metadata={"help": help, "low": low, "unit": unit})


@dataclass(frozen=True)
class EvalKeys:
    """Keys of no group."""

    batch_size: int = key(1, "prompts that share a forward", low=1, unit="prompts")
    seed: int = key(
        0, "seed of all randomness; a row's draws do not depend on its neighbors", low=0
    )
    limit: int | None = key(None, "only so many examples; default: all", low=1, unit="examples")
    offset: int = key(0, "skip so many examples first", low=0, unit="examples")
    mc_num: int = key(
        128, "Monte-Carlo samples of a log-likelihood (LLaDA, arXiv:2502.09992, Eq. 6)", low=1
    )
    chat: bool | None = key(
        None, "put prompts into the model's chat template; default: if the model has one"
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = key(
        None, "type of the weights; default: float32 on a CPU, else as stored"
    )
    device: str | None = key(None, "cpu, cuda or cuda:N; default: what there is")
    output: str | None = key(
        None,
        "folder of results, samples and config; default: runs/eval/ and a name of the settings",
    )
    resume: bool = key(True, "go on where a killed run of the same output folder stopped")
    confirm_run_unsafe_code: bool = key(
        False, "run the code that the model writes (humaneval, mbpp), in a restricted process"
    )
    trace: bool = key(False, "keep every answer's trace, for the pictures of `unmask report`")


@dataclass(frozen=True)
class DatasetKeys:
    """Keys of group `dataset`."""

    name: str | None = key(None, "the task, e.g. gsm8k, humaneval or word_problem")
    path: str | None = key(
        None, "folder of the data files; default: $UNMASK_DATA; the bundled tasks need none"
    )
    n_shot: int | None = key(
        None, "worked examples before the question; default: the task's own", low=0, unit="examples"
    )
    system_prompt: str | None = key(None, "the chat's first message; default: none")


@dataclass(frozen=True)
class ModelKeys:
    """Keys of group `model`."""

    name: str = key("demo", "the preset's name; also that of the folder in $UNMASK_MODELS")
    path: str | None = key(
        None,
        "bundled name, checkpoint folder or hub id; default: $UNMASK_MODELS, else the preset's",
    )


@dataclass(frozen=True)
class GenerationKeys:
    """Keys of group `generation` that no decoder has as a knob of its own."""

    strategy: str = key("vanilla", "the decoder; what `generation=NAME` sets")
    gen_length: int | None = key(
        None, "positions of the answer; default: the task's", low=1, unit="positions"
    )
    alg: Literal["maskgit_plus", "entropy", "topk_margin"] | None = key(
        None, "d2Cache's name of score: confidence, entropy, margin (decoder dream has its own)"
    )
    num_transfer_tokens: int | None = key(
        None,
        "d2Cache's name of a schedule: tokens a forward, so steps = gen_length / this; for a decoder "
        "without a schedule only 1, the least it commits anyway",
        low=1,
        unit="tokens",
    )


@dataclass(frozen=True)
class CacheKeys:
    """Keys of group `cache` that no cache has as a knob of its own."""

    name: str = key("none", "the cache; what `cache=NAME` sets")


GROUPS: dict[str, type[Any]] = {
    "model": ModelKeys,
    "dataset": DatasetKeys,
    "generation": GenerationKeys,
    "cache": CacheKeys,
}
CHOICES = (*GROUPS, "recipe")
"""Names that may be given a preset: `model=llada-inst`."""

ALIASES = {
    "batch_size": ("dataset.batch_size", "eval_args.batch_size"),
    "limit": ("dataset.size", "eval_args.limit"),
    "seed": (
        "eval_args.random_seed",
        "eval_args.numpy_random_seed",
        "eval_args.torch_random_seed",
        "eval_args.fewshot_random_seed",
    ),
    "confirm_run_unsafe_code": ("eval_args.confirm_run_unsafe_code",),
    "dataset.name": ("eval_args.tasks", "task"),
    "dataset.n_shot": ("eval_args.num_fewshot", "num_fewshot"),
    "dataset.system_prompt": ("system_prompt",),
    "dataset.path": ("data",),
    "generation.strategy": ("decoder",),
    "generation.gen_length": ("gen_length",),
    "cache.name": ("cache.strategy",),
}
"""Other names of keys: d2Cache's, lm-eval's, and those of flags."""


@dataclass(frozen=True)
class Refused:
    """A key of d2Cache's that cannot be followed: the values that change nothing, and why no others."""

    allowed: tuple[Any, ...]
    reason: str


REFUSED: dict[str, Refused] = {
    "max_length": Refused((None,), "the model's own context bounds prompt and answer"),
    "use_eval_cache": Refused((False, None), "a killed run goes on by itself (resume=true)"),
    "is_check_greedy": Refused(
        (None,), "whether a likelihood needs the greedy answer is the task's to say"
    ),
    "add_bos_token": Refused((None,), "the tokenizer says whether a text has a first token"),
    "nll_type": Refused(
        ("mc", None), "log-likelihoods are LLaDA's Monte-Carlo estimate; see mc_num"
    ),
    "log_type": Refused(("ftb", None), "the answer is judged given the prompt"),
    "eval_args.log_samples": Refused((True, None), "samples.jsonl is always written"),
    "gen_args_script": Refused((None,), "presets fill what is not said; see `unmask config show`"),
    "attn_implementation": Refused(
        ("sdpa", None), "there is one attention; d2cache computes its maps beside it"
    ),
    "generation.output_probs": Refused(
        (False, None), "trace=true keeps each committed token's confidence"
    ),
    "generation.stop_until_eos": Refused(
        (True, None), "an answer always ends when everything before its end token is decided"
    ),
    "generation.mask_token_id": Refused((None,), "the checkpoint's config and tokenizer say it"),
    "generation.eos_token_id": Refused((None,), "the checkpoint's config and tokenizer say it"),
    "generation.pad_token_id": Refused((None,), "rows are packed; nothing is padded"),
    "generation.add_bos_token": Refused((None,), "the tokenizer says whether a text has one"),
}
for _name in ("mask_token_id", "eos_token_id", "pad_token_id", "add_bos_token"):
    REFUSED[f"model.generation.{_name}"] = REFUSED[f"generation.{_name}"]


def static_defaults() -> dict[str, Any]:
    """The tree of all keys that are always there, with their defaults."""
    tree: dict[str, Any] = {item.name: item.default for item in dataclasses.fields(EvalKeys)}
    for group, cls in GROUPS.items():
        tree[group] = {item.name: item.default for item in dataclasses.fields(cls)}
    return tree


def canonical(name: str) -> str:
    """A key by its own name, if it is given by another."""
    return next((own for own, others in ALIASES.items() if name in others), name)


def fields_of(group: str | None) -> dict[str, dataclasses.Field[Any]]:
    """The fixed keys of a group (None: of none) by name."""
    cls = EvalKeys if group is None else GROUPS[group]
    return {item.name: item for item in dataclasses.fields(cls)}


def check_range(name: str, item: dataclasses.Field[Any], value: Any) -> None:
    """Raise ConfigError for a number below its least value."""
    low = item.metadata["low"]
    if low is not None and value is not None and value < low:
        unit = item.metadata["unit"]
        raise ConfigError(f"{name}={value} must be at least {low:g}{' ' + unit if unit else ''}")
