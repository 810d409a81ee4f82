"""The flags of `unmask eval`, `config` and `tune`; other modules do the work, and import what is heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.eval_options import (
    BatchWord,
    CacheWord,
    ConfigDir,
    ConfigFile,
    DataWord,
    DecoderWord,
    DeviceWord,
    DtypeWord,
    KeyWords,
    LengthWord,
    LimitWord,
    ModelWord,
    OutputWord,
    SeedWord,
    TaskWord,
    as_words,
    sources,
)
from unmask.cli.help import Commands, DecodeCommand
from unmask.errors import ConfigError

ObjectiveFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--objective",
        metavar="METRIC",
        help="What is sought beside accuracy: tokens_per_forward (default; the same on every machine), "
        "tokens_per_second, forwards_per_answer, latency_mean_s, ...; may be repeated.",
    ),
]
ConstraintFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint",
        metavar="TEXT",
        help="METRIC>=NUMBER or METRIC<=NUMBER, the number perhaps times the baseline's. Default: "
        "'accuracy>=0.99*baseline'; 'none': none.",
    ),
]
SpaceFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--space",
        metavar="KNOB=RANGE",
        help="LOW:HIGH, A,B,C or off; changes or adds to the knobs that are searched.",
    ),
]
TrialsFlag = Annotated[
    int, typer.Option("--trials", metavar="N", help="Points in all; more go on with a study.")
]
PromptsFlag = Annotated[
    int, typer.Option("--prompts", metavar="N", help="Prompts that the search sees.")
]
HeldOutFlag = Annotated[
    int,
    typer.Option("--held-out", metavar="N", help="Further prompts for the check; 0: no check."),
]
FrontFlag = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="The front as .png, .svg or .pdf."),
]

config = typer.Typer(cls=Commands, help="See what a command would run with.", no_args_is_help=True)


def evaluate(
    words: KeyWords = None,
    model: ModelWord = None,
    task: TaskWord = None,
    data: DataWord = None,
    decoder: DecoderWord = None,
    cache: CacheWord = None,
    gen_length: LengthWord = None,
    limit: LimitWord = None,
    batch_size: BatchWord = None,
    seed: SeedWord = None,
    dtype: DtypeWord = None,
    device: DeviceWord = None,
    output: OutputWord = None,
    config_file: ConfigFile = None,
    config_dir: ConfigDir = None,
    multirun: Annotated[
        bool,
        typer.Option(
            "--multirun", "-m", help="Run every combination of words that list values (a=1,2)."
        ),
    ] = False,
    cfg: Annotated[
        str | None,
        typer.Option("--cfg", metavar="job", help="Print the configuration and stop."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a run instead of the table.")
    ] = False,
) -> None:
    """Answer a task and measure accuracy and speed.

    The keys are Hydra's: `dataset.name=gsm8k generation=klass model=llada-inst`. A run that was killed goes
    on when the same command is given again. Code that a model writes runs only with
    confirm_run_unsafe_code=true (or $HF_ALLOW_CODE_EVAL=1).
    """
    from unmask.cli import config as config_module
    from unmask.cli import evaluate as work

    flags = {"model": model, "task": task, "data": data, "decoder": decoder, "cache": cache}
    flags |= {"gen_length": gen_length, "limit": limit, "batch_size": batch_size, "seed": seed}
    flags |= {"dtype": dtype, "device": device, "output": output}
    said, where = as_words(words, flags), sources(config_file, config_dir)
    if cfg is None:
        work.run(said, where, multirun, as_json)
        return
    if cfg != "job":
        raise ConfigError(f"--cfg {cfg}: only job is there, the configuration of the run")
    if multirun:
        raise ConfigError("--cfg job prints one configuration; leave -m out")
    config_module.print_job(said, where)


@config.command("show", cls=DecodeCommand)
def show(
    words: KeyWords = None,
    config_file: ConfigFile = None,
    config_dir: ConfigDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every key, its value, and the layer that the value comes from.

    Lowest first: schema default, presets of dataset, model, cache and generation, recipe, config file,
    command line.
    """
    from unmask.cli import config as work

    work.show(words or [], sources(config_file, config_dir), as_json)


@config.command("reference")
def reference() -> None:
    """Print the reference of all keys and presets (Markdown)."""
    from unmask.docgen.config import markdown

    print(markdown(), end="")


def tune(
    words: KeyWords = None,
    decoder: DecoderWord = None,
    objective: ObjectiveFlag = None,
    constraint: ConstraintFlag = None,
    space: SpaceFlag = None,
    trials: TrialsFlag = 40,
    prompts: PromptsFlag = 100,
    held_out: HeldOutFlag = 200,
    plot: FrontFlag = None,
    model: ModelWord = None,
    task: TaskWord = None,
    data: DataWord = None,
    cache: CacheWord = None,
    gen_length: LengthWord = None,
    batch_size: BatchWord = None,
    seed: SeedWord = None,
    dtype: DtypeWord = None,
    device: DeviceWord = None,
    output: OutputWord = None,
    config_file: ConfigFile = None,
    config_dir: ConfigDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Search a decoder's knobs for speed at a quality that is kept.

    The decoder's published defaults are measured in the same run; the best point is compared with them on
    prompts that the search did not see. preset.yaml in the output folder is a preset for generation=.
    The same command goes on with a study that was stopped.
    """
    from unmask.cli import tune as work

    flags = {"model": model, "task": task, "data": data, "decoder": decoder, "cache": cache}
    flags |= {"gen_length": gen_length, "batch_size": batch_size, "seed": seed, "dtype": dtype}
    flags |= {"device": device, "output": output}
    asked = ["accuracy>=0.99*baseline"] if constraint is None else constraint
    wanted = work.TuneOptions(
        objectives=tuple(objective or ["tokens_per_forward"]),
        constraints=() if asked == ["none"] else tuple(asked),
        space=tuple(space or ()),
        num_trials=trials,
        num_prompts=prompts,
        num_held_out=held_out,
        plot=plot,
        as_json=as_json,
    )
    work.run(as_words(words, flags), sources(config_file, config_dir), wanted)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("eval", cls=DecodeCommand)(evaluate)
    app.command("tune", cls=DecodeCommand)(tune)
    app.add_typer(config, name="config")
