"""Schema of the keys of an evaluation: type, unit, range, default, aliases, and refused keys.

Keys under `generation.` and `cache.` are also the knobs of the chosen decoder and cache, with their own
types and ranges (`docs/reference/decoders.md`, `caches.md`). Source: the keys of d2Cache's Hydra tree
(arXiv:2509.23094), which are accepted with their meaning or refused with a reason.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from unmask.errors import ConfigError

T = TypeVar("T")


def key(default: T, help: str, *, low: float | None = None, unit: str = "") -> T:
    """Return a dataclass field with its description, minimum and unit."""
    return field(default=default, metadata={"help": help, "low": low, "unit": unit})


@dataclass(frozen=True)
class EvalKeys:
    """Keys of no group."""

    batch_size: int = key(1, "prompts per forward", low=1, unit="prompts")
    seed: int = key(
        0, "seed of all randomness; a row's draws do not depend on its neighbors", low=0
    )
    limit: int | None = key(None, "number of examples; default: all", low=1, unit="examples")
    offset: int = key(0, "number of examples to skip first", low=0, unit="examples")
    mc_num: int = key(
        128, "Monte-Carlo samples of a log-likelihood (LLaDA, arXiv:2502.09992, Eq. 6)", low=1
    )
    chat: bool | None = key(
        None, "format prompts with the model's chat template; default: if the model has one"
    )
    dtype: Literal["float32", "bfloat16", "float16", "half", "float64", "auto"] | None = key(
        None,
        "type of the weights; auto: the checkpoint's, but float32 for float16 on a CPU; default: float32 "
        "on a CPU, else bfloat16",
    )
    device: str | None = key(None, "cpu, cuda or cuda:N; default: cuda if available, else cpu")
    output: str | None = key(
        None,
        "folder of results, samples and config; default: runs/eval/ and a name made of the settings",
    )
    resume: bool = key(True, "resume an interrupted run in the same output folder")
    confirm_run_unsafe_code: bool = key(
        False,
        "run the programs that the model writes (humaneval, mbpp), behind a wall of the kernel; false: "
        "store them, to be judged by `unmask eval --judge RUN`; default: true if $HF_ALLOW_CODE_EVAL is 1",
    )
    trace: bool = key(False, "store the trace of every answer, for the plots of `unmask report`")


@dataclass(frozen=True)
class DatasetKeys:
    """Keys of group `dataset`."""

    name: str | None = key(
        None,
        "task, e.g. gsm8k, humaneval or word_problem; or a file: rows (.jsonl, .csv, ...), or a task file "
        "of lm-eval (.yaml)",
    )
    path: str | None = key(
        None, "folder of the data files; default: $UNMASK_DATA; bundled tasks need none"
    )
    n_shot: int | None = key(
        None,
        "worked examples before the question; default: that of the task",
        low=0,
        unit="examples",
    )
    system_prompt: str | None = key(None, "first message of the chat; default: none")
    prompt: str | None = key(
        None,
        "prompt of each row of an own file, such as '{{question}}'; default: its field prompt, instruction "
        "or question",
    )
    target: str | None = key(
        None,
        "expected answer to each row of an own file, such as '{{answer}}'; default: its field answer, "
        "target, label, response or output",
    )
    metric: str | None = key(
        None,
        "what makes an answer to an own file right: last_number, exact, contains, letter, math, choice (by "
        "likelihood) or python:FILE; of a task file: METRIC or METRIC,FILTER; default: its first",
    )
    shots: str | None = key(
        None, "file of worked examples for an own file; default: n_shot other rows of the file"
    )
    stop: str | None = key(None, "text that ends an answer to an own file; default: none")


@dataclass(frozen=True)
class ModelKeys:
    """Keys of group `model`."""

    name: str = key("demo", "name of the preset and of the folder in $UNMASK_MODELS")
    path: str | None = key(
        None,
        "bundled name, checkpoint folder or hub id; default: from $UNMASK_MODELS, else of the preset",
    )
    revision: str | None = key(
        None, "branch, tag or commit of a hub id, as in owner/name@revision; default: main"
    )


@dataclass(frozen=True)
class GenerationKeys:
    """Keys of group `generation` besides the knobs of the decoders."""

    strategy: str = key("vanilla", "decoder, also set by `generation=NAME`")
    gen_length: int | None = key(
        None, "positions of the answer; default: that of the task", low=1, unit="positions"
    )
    alg: Literal["maskgit_plus", "entropy", "topk_margin"] | None = key(
        None, "d2Cache's name of score: confidence, entropy, margin (decoder dream has its own)"
    )
    num_transfer_tokens: int | None = key(
        None,
        "d2Cache's schedule: tokens per forward, so steps = gen_length / this; only 1 for a decoder "
        "without a schedule, which is the minimum that it commits",
        low=1,
        unit="tokens",
    )


@dataclass(frozen=True)
class CacheKeys:
    """Keys of group `cache` besides the knobs of the caches."""

    name: str = key("none", "cache, also set by `cache=NAME`")


KeyClass = (
    type[EvalKeys] | type[ModelKeys] | type[DatasetKeys] | type[GenerationKeys] | type[CacheKeys]
)
GROUPS: dict[str, KeyClass] = {
    "model": ModelKeys,
    "dataset": DatasetKeys,
    "generation": GenerationKeys,
    "cache": CacheKeys,
}
CHOICES = (*GROUPS, "recipe")
"""Groups that have presets: `model=llada-inst`."""

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
    "dataset.prompt": ("prompt",),
    "dataset.target": ("target",),
    "dataset.metric": ("metric",),
    "dataset.shots": ("shots",),
    "dataset.stop": ("stop",),
    "generation.strategy": ("decoder",),
    "generation.gen_length": ("gen_length",),
    "cache.name": ("cache.strategy",),
}
"""Aliases of keys: names of d2Cache, of lm-eval, and of flags."""


@dataclass(frozen=True)
class Refused:
    """A key of d2Cache without effect here: the values that are accepted, and why no others are."""

    allowed: tuple[object, ...]
    reason: str


REFUSED: dict[str, Refused] = {
    "max_length": Refused((None,), "the model's own context bounds prompt and answer"),
    "use_eval_cache": Refused((False, None), "an interrupted run is resumed anyway (resume=true)"),
    "is_check_greedy": Refused(
        (None,), "the task determines whether a likelihood needs the greedy answer"
    ),
    "add_bos_token": Refused((None,), "the tokenizer determines whether a text has a first token"),
    "nll_type": Refused(
        ("mc", None), "log-likelihoods are LLaDA's Monte-Carlo estimate; see mc_num"
    ),
    "log_type": Refused(("ftb", None), "the likelihood is that of the answer given the prompt"),
    "eval_args.log_samples": Refused((True, None), "samples.jsonl is always written"),
    "gen_args_script": Refused((None,), "presets set the defaults; see `unmask config show`"),
    "attn_implementation": Refused(
        ("sdpa", None), "there is one attention; cache d2cache computes its maps separately"
    ),
    "generation.output_probs": Refused(
        (False, None), "trace=true stores the confidence of each committed token"
    ),
    "generation.stop_until_eos": Refused(
        (True, None), "an answer always ends when everything before its end token is decided"
    ),
    "generation.mask_token_id": Refused((None,), "it comes from the checkpoint and its tokenizer"),
    "generation.eos_token_id": Refused((None,), "it comes from the checkpoint and its tokenizer"),
    "generation.pad_token_id": Refused((None,), "rows are packed; nothing is padded"),
    "generation.add_bos_token": Refused((None,), "the tokenizer determines whether a text has one"),
}
for _name in ("mask_token_id", "eos_token_id", "pad_token_id", "add_bos_token"):
    REFUSED[f"model.generation.{_name}"] = REFUSED[f"generation.{_name}"]


def static_defaults() -> dict[str, object]:
    """Return the tree of all keys of the schema with their defaults."""
    tree: dict[str, object] = {item.name: item.default for item in fields_of(None).values()}
    for group in GROUPS:
        tree[group] = {item.name: item.default for item in fields_of(group).values()}
    return tree


def canonical(name: str) -> str:
    """Return the key that an alias stands for, or the name itself."""
    return next((own for own, others in ALIASES.items() if name in others), name)


def fields_of(group: str | None) -> dict[str, dataclasses.Field[object]]:
    """Return the fields of a group by name; None: the keys of no group."""
    cls = EvalKeys if group is None else GROUPS[group]
    return {item.name: item for item in dataclasses.fields(cls)}


def check_range(name: str, item: dataclasses.Field[object], value: object) -> None:
    """Raise ConfigError for a number below the minimum of its field."""
    low = item.metadata["low"]
    if low is not None and isinstance(value, (int, float)) and value < low:
        unit = item.metadata["unit"]
        raise ConfigError(f"{name}={value} must be at least {low:g}{' ' + unit if unit else ''}")
