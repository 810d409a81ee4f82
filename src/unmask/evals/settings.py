"""Settings of one evaluation."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from unmask.data.own_metrics import PYTHON
from unmask.errors import ConfigError
from unmask.evals.catalog import CATALOG, TaskEntry
from unmask.evals.own_task import OwnTask, own_task
from unmask.knobs import set_field, whole
from unmask.method import MethodSpec, Source

OF_THE_PART = ("limit", "offset")
"""Settings that may change when a run is resumed: the part of the task to answer."""
LEAVE = (
    "give leave with confirm_run_unsafe_code=true, or HF_ALLOW_CODE_EVAL=1 in the environment; they run "
    "within the limits of docs/explanation/running-code.md"
)
"""What allows programs of a model to be run, for messages."""
OF_OWN_TASKS = ("prompt", "target", "metric", "shots", "stop")
"""Settings of a task that is a file of the user's."""
OF_NO_ANSWER = (*OF_THE_PART, "output", "resume", "confirm_run_unsafe_code")


@dataclass(frozen=True)
class EvalSettings:
    """Task, model, decoding method and run folder of an evaluation.

    `model`: bundled name, checkpoint folder or hub id. `gen_length`, `num_fewshot`: None: the task's
    default. `data`: folder of the data files (docs/reference/tasks.md), not for bundled tasks. `limit`:
    number of documents from `offset` on; None: all. `batch_size`: answers per forward. `chat`: format the
    prompt, examples included, as one user turn of the chat template; None: if the model has one. `output`:
    run folder. `resume`: reuse the answers in the run folder; False: delete them. `mc_num`: Monte-Carlo
    samples of a log-likelihood. `confirm_run_unsafe_code`: run programs that the model wrote; without it
    they are stored and not judged. `trace`: store the trace of every answer, for the plots.

    For a `task` that is a file of the user's (docs/how-to/own-task.md): `prompt` and `target` are templates
    of fields, such as "{{question}}"; `metric`: what makes an answer right; `shots`: file of examples;
    `stop`: text that ends an answer.
    """

    task: str
    model: str = "demo"
    method: MethodSpec = field(default_factory=MethodSpec.parse)
    gen_length: int | None = None
    data: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    offset: int = 0
    batch_size: int = 1
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    chat: bool | None = None
    system_prompt: str | None = None
    output: str = "runs/eval/run"
    resume: bool = True
    confirm_run_unsafe_code: bool = False
    mc_num: int = 128
    trace: bool = False
    prompt: str | None = None
    target: str | None = None
    metric: str | None = None
    shots: str | None = None
    stop: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a value that is not allowed."""
        for item in fields(self):
            if item.name != "method":
                value = set_field(type(self), item.name, getattr(self, item.name))
                object.__setattr__(self, item.name, value)
        if self.own is not None:
            self.own.check(may_run_code=self.confirm_run_unsafe_code)
        for name, minimum in (("limit", 1), ("gen_length", 1), ("num_fewshot", 0)):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), minimum)
        for name, minimum in (("offset", 0), ("batch_size", 1), ("mc_num", 1)):
            whole(name, getattr(self, name), minimum)
        if not self.output.strip():
            raise ConfigError("output='' names no folder; give a path, e.g. runs/eval/first")
        self._check_task()

    def _check_task(self) -> None:
        entry = self.entry
        if entry.needs_data and self.data is None:
            raise ConfigError(
                f"task={self.task} needs data=FOLDER with {entry.files}; docs/reference/tasks.md says "
                f"where it comes from"
            )
        if self.data is not None and not Path(self.data).is_dir():
            raise ConfigError(
                f"data={self.data!r} is not a folder; give the folder with the task files"
            )
        if self.data is not None and not entry.files and not (self.own and self.own.is_yaml):
            where = "is a file" if self.own else "is bundled"
            raise ConfigError(f"data={self.data!r} has no effect: task={self.task} {where}")
        if self.num_fewshot and not entry.num_fewshot and self.own is None:
            raise ConfigError(
                f"num_fewshot={self.num_fewshot} has no effect: task={self.task} has none; leave it out"
            )

    @property
    def judges(self) -> bool:
        """True unless the answers are programs, which may not be run without leave."""
        return self.confirm_run_unsafe_code or not self.entry.runs_code

    @functools.cached_property
    def own(self) -> OwnTask | None:
        """The user's task; None for one of the catalog. Raises ConfigError for a name of neither."""
        others = {name: getattr(self, name) for name in OF_OWN_TASKS}
        return own_task(self.task, **others)

    @functools.cached_property
    def entry(self) -> TaskEntry:
        """Requirements and defaults of the task."""
        return CATALOG[self.task] if self.own is None else self.own.entry()

    @property
    def task_name(self) -> str:
        """Name of the task in results and tables."""
        return self.task if self.own is None else self.own.name

    def files(self) -> list[Path]:
        """Return the files of the user's that take part: task, examples, metric, decoder and cache."""
        python = (self.metric or "").removeprefix(PYTHON)
        code = [self.method.decoder_name, self.method.cache_name, python]
        names = [text[: text.rfind(".py") + 3] for text in code if ".py" in text]
        own = [self.task, self.shots] if self.own is not None else []
        return [Path(name) for name in (*own, *names) if name is not None and Path(name).is_file()]

    @property
    def folder(self) -> Path:
        """Path of the run folder."""
        return Path(self.output)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvalSettings:
        """Return the settings of names and values as results.json holds them. Raises ConfigError."""
        rest = {key: value for key, value in values.items() if key != "knobs"}
        knobs = values.get("knobs") or {}
        if not isinstance(knobs, Mapping):
            raise ConfigError(f"knobs={knobs!r} must map names to values")
        names: dict[str, object] = {k: rest.pop(k) for k in ("decoder", "cache") if k in rest}
        return cls(method=MethodSpec.parse(Source({**names, **knobs}), is_trusted=True), **rest)

    def as_dict(self) -> dict[str, object]:
        """Return names and values as results.json holds them: the method as `decoder`, `cache`, `knobs`."""
        method = {
            "decoder": self.method.decoder_name,
            "cache": self.method.cache_name,
            "knobs": dict(self.method.given),
        }
        values: dict[str, object] = {}
        for item in fields(self):
            values |= method if item.name == "method" else {item.name: getattr(self, item.name)}
        return values

    def identity(self) -> dict[str, object]:
        """Return the settings that must be equal to resume a run in its folder."""
        values = self.as_dict().items()
        return {
            key: value
            for key, value in values
            if key not in OF_NO_ANSWER and not (key in OF_OWN_TASKS and value is None)
        }

    def fingerprint(self) -> str:
        """Return a hash of `identity`, which every stored answer carries."""
        text = json.dumps(self.identity(), sort_keys=True, ensure_ascii=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def method_settings(
    model: str, batch_size: int | str, device: str | None, given: dict[str, Any]
) -> EvalSettings:
    """Return the settings for decoding from the names and texts of lm-eval's `--model_args`.

    Raises ConfigError for a setting that belongs to lm-eval's own command line.
    """
    if isinstance(batch_size, str) and not batch_size.isdigit():
        raise ConfigError(f"batch_size={batch_size!r} must be a whole number of at least 1")
    names = {"gen_length", "seed", "dtype", "mc_num"}
    elsewhere = {item.name for item in fields(EvalSettings)} - names | {"knobs"}
    for key in given:
        if key in elsewhere:
            raise ConfigError(
                f"{key}={given[key]} is not one of the model's arguments; lm-eval has an option for it"
            )
    values = {key: value for key, value in given.items() if key not in names}
    own = {key: value for key, value in given.items() if key in names}
    return EvalSettings(
        task="word_problem",
        model=model,
        batch_size=int(batch_size),
        device=device,
        method=MethodSpec.parse(Source(values), options=names, is_trusted=True),
        **own,
    )
