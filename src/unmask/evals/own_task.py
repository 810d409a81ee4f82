"""Tasks of users: a file of rows with a prompt and a metric, or a task file in lm-eval's format."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from unmask.data.own_metrics import CHOICE, METRICS, PYTHON
from unmask.data.own_rows import GEN_LENGTH, RowDocument, RowTask, lead_of, name_of
from unmask.data.records import SUFFIXES, read_text
from unmask.errors import ConfigError, cut_text, unknown_name
from unmask.evals.catalog import CATALOG, TaskEntry
from unmask.yaml_text import parse_yaml

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

RIGHT = "right"
YAML = (".yaml", ".yml")
MAX_INCLUDES = 20


@dataclass(frozen=True)
class OwnTask:
    """A task of the user's. `task`: its file; the others are described in `EvalSettings`."""

    task: str
    prompt: str | None = None
    target: str | None = None
    metric: str | None = None
    shots: str | None = None
    stop: str | None = None

    @property
    def is_yaml(self) -> bool:
        """True for a task file in lm-eval's format, False for a file of rows."""
        return self.task.endswith(YAML)

    @property
    def draws_from_itself(self) -> bool:
        """True if examples are other rows of the file."""
        return not self.is_yaml and self.shots is None

    @property
    def rows(self) -> RowTask:
        """The rows, with what makes an answer right."""
        return RowTask(Path(self.task), self.prompt, self.target, self.metric)

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """Content of a task file, functions by name, included files merged. Raises ConfigError."""
        config = read_yaml(Path(self.task))
        name = config.get("task")
        if not isinstance(name, str) or "group" in config or "class" in config:
            raise ConfigError(
                f"task={self.task} is not one task of lm-eval: it needs `task: NAME`, and no group or "
                f"class; give the files of a group one by one"
            )
        return config

    @property
    def name(self) -> str:
        """Name of the task in tables."""
        return str(self.config["task"]) if self.is_yaml else name_of(Path(self.task))

    def entry(self) -> TaskEntry:
        """Return what the catalog says of its own tasks. Raises ConfigError."""
        if not self.is_yaml:
            is_choice = self.metric == CHOICE
            metric = "acc" if is_choice else RIGHT
            return TaskEntry(f"rows of {self.task}", metric, needs_data=False, choices=is_choice)
        config = self.config
        output_type = config.get("output_type", "generate_until")
        if output_type == "loglikelihood_rolling":
            raise ConfigError(
                f"task={self.task} has output_type {output_type}, which gives no document a score; run it "
                f"by `python -m unmask.evals run --model unmask`, lm-eval's command line"
            )
        metric, _, filter_name = (self.metric or "").partition(",")
        options = config.get("generation_kwargs") or {}
        return TaskEntry(
            f"task file {self.task}",
            metric or _first_metric(config),
            filter=filter_name or _first_filter(config),
            needs_data=False,
            gen_length=int(options.get("max_gen_toks", GEN_LENGTH)),
            num_fewshot=int(config.get("num_fewshot") or 0),
            choices=output_type != "generate_until",
        )

    def check(self, *, may_run_code: bool) -> None:
        """Raise ConfigError for a task that cannot be run, before a model is loaded."""
        if self.is_yaml:
            for name in ("prompt", "target", "shots", "stop"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{name}={cut_text(str(getattr(self, name)))!r} has no effect: task={self.task} "
                        f"has its own; change the file"
                    )
            self.entry()
            if self.config.get("unsafe_code") and not may_run_code:
                raise ConfigError(
                    f"task={self.task} runs code that a model wrote (unsafe_code), with all your rights "
                    f"and not behind unmask's wall; give leave with confirm_run_unsafe_code=true"
                )
            return
        if self.metric is None:
            raise ConfigError(
                f"task={self.task} needs metric=NAME, what makes an answer right: one of "
                f"{', '.join(METRICS)}, or {PYTHON}FILE.py"
            )
        if self.metric == CHOICE and self.stop is not None:
            raise ConfigError(
                f"stop={self.stop!r} has no effect: metric={CHOICE} generates no text"
            )
        self.rows.check()
        if self.shots is not None and not Path(self.shots).is_file():
            raise ConfigError(
                f"shots={self.shots!r} is no file; give a file of rows like the task's"
            )

    def spec(self, num_fewshot: int | None) -> str | dict[str, Any]:
        """Return the task for lm-eval: the path of its file, or its configuration.

        Raises ConfigError with file and line for a row that cannot be used.
        """
        if self.is_yaml:
            return self.task
        return _configuration(self, self.rows, num_fewshot)


def own_task(task: str, **others: str | None) -> OwnTask | None:
    """Return the user's task that a path names; None for a task of the catalog.

    Raises ConfigError for another name, and for settings that only a user's task has.
    """
    if task in CATALOG:
        for name, value in others.items():
            if value is not None:
                raise ConfigError(
                    f"{name}={cut_text(value)!r} has no effect: task={task} has its own; leave it out, or "
                    f"give a file of yours, task=FILE"
                )
        return None
    if not task.endswith((*SUFFIXES, *YAML)):
        error = unknown_name("task", task, CATALOG)
        endings = ", ".join((*SUFFIXES, YAML[0]))
        raise ConfigError(f"{error}; a file of your own ends in {endings}")
    if not Path(task).is_file():
        raise ConfigError(f"task={cut_text(task)!r} is no file; give the path of one")
    return OwnTask(task, **others)


def check_metric(task: ConfigurableTask, entry: TaskEntry, path: str) -> None:
    """Raise ConfigError if lm-eval's task has no score of a document by the entry's metric and filter."""
    scored = [name for name in task.aggregation() if is_mean(task, name)]
    if entry.metric not in scored:
        listed = ", ".join(scored) or "none: it scores no single document"
        raise ConfigError(
            f"metric={entry.metric}: task={path} has {listed}; give metric=NAME of these"
        )
    filters = [item.name for item in getattr(task, "_filters", ())]
    if entry.filter not in filters:
        raise ConfigError(
            f"metric={entry.metric},{entry.filter}: task={path} has the filters {', '.join(filters)}; give "
            f"metric=NAME,FILTER"
        )


def is_mean(task: ConfigurableTask, metric: str) -> bool:
    """Return True if a metric of lm-eval's task is the mean of scores of documents."""
    how = task.aggregation().get(metric)
    return bool(getattr(how, "__name__", how) == "mean")


def _configuration(own: OwnTask, task: RowTask, num_fewshot: int | None) -> dict[str, Any]:
    """Return lm-eval's configuration of a task of rows, whose documents are read here."""
    documents = task.documents()
    examples = documents if own.shots is None else task.documents(Path(own.shots))
    if num_fewshot is None:
        num_fewshot = 0 if own.shots is None else len(examples)

    def judge(doc: Mapping[str, int], results: list[str]) -> dict[str, float]:
        return {RIGHT: task.score(documents[doc["number"]], results[0])}

    splits = {"test": _dataset(documents), "examples": _dataset(examples)}
    config: dict[str, Any] = {
        "task": own.name,
        "custom_dataset": lambda **_: splits,
        "test_split": "test",
        "fewshot_split": "test" if own.shots is None else "examples",
        "fewshot_config": {"sampler": "default" if own.shots is None else "first_n"},
        "num_fewshot": num_fewshot,
        "doc_to_text": lambda doc: doc["prompt"],
        "metadata": {"version": 1.0},
    }
    if task.metric == CHOICE:
        return config | {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda doc: doc["choices"],
            "doc_to_target": lambda doc: doc["right"],
            "metric_list": [{"metric": name} for name in ("acc", "acc_norm")],
        }
    delimiter = "\n\n"
    begins_next = f"{delimiter}{lead_of(task.prompt)}" if num_fewshot else None
    until = [text for text in (own.stop, begins_next) if text is not None]
    return config | {
        "output_type": "generate_until",
        "doc_to_target": lambda doc: doc["target"],
        "process_results": judge,
        "metric_list": [{"metric": RIGHT, "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": until, "max_gen_toks": GEN_LENGTH},
        "fewshot_delimiter": delimiter,
    }


def _dataset(documents: list[RowDocument]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "number": number,
                "prompt": each.prompt,
                "target": each.target,
                "choices": list(each.choices),
                "right": each.right,
            }
            for number, each in enumerate(documents)
        ]
    )


class _Loader(yaml.SafeLoader):
    """YAML with lm-eval's `!function`, whose functions stay names."""


def _name_of_function(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return str(node.value)


_Loader.add_constructor("!function", _name_of_function)


def read_yaml(path: Path, read: list[Path] | None = None) -> dict[str, Any]:
    """Read a task file and the files that it includes; its own keys come last. Raises ConfigError.

    `read` collects the files, of which one task may have MAX_INCLUDES.
    """
    read = [] if read is None else read
    read.append(path)
    if len(read) > MAX_INCLUDES:
        raise ConfigError(
            f"{read[0]} includes more than {MAX_INCLUDES} files, or itself; break the circle"
        )
    try:
        config = parse_yaml(read_text(path), _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML: {cut_text(reason, 200)}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no keys; give a task file of lm-eval")
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        merged |= read_yaml(path.parent / str(name), read)
    return merged | config


def _first_metric(config: Mapping[str, Any]) -> str:
    for item in config.get("metric_list") or ():
        if isinstance(item, dict) and isinstance(item.get("metric"), str):
            return str(item["metric"]).rpartition(".")[2]
    return (
        "exact_match" if config.get("output_type", "generate_until") == "generate_until" else "acc"
    )


def _first_filter(config: Mapping[str, Any]) -> str:
    for item in config.get("filter_list") or ():
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            return str(item["name"])
    return "none"
