"""The model card of a trained model: base, data, settings, results."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import yaml

from unmask.models import BUNDLED
from unmask.train.config import TrainConfig, as_tree
from unmask.train.files import find_sources
from unmask.train.loop import LOG
from unmask.train.prepare import Prepared
from unmask.version import __version__


def changed(config: TrainConfig) -> list[str]:
    """Return the words that give these settings, without those that are the defaults."""
    words = []
    default, tree = as_tree(TrainConfig()), as_tree(config)
    for key, value in tree.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        before = default[key]
        for name, inner in pairs:
            old = before[name] if isinstance(before, dict) else before
            if inner != old:
                full = f"{key}.{name}" if name else key
                if full == "data.path" and isinstance(inner, list) and len(inner) == 1:
                    inner = inner[0]
                text = inner if isinstance(inner, str) else json.dumps(inner)
                words.append(f"{'data' if full == 'data.path' else full}={text}")
    return words


def write_card(config: TrainConfig, prepared: Prepared, output: Path, folder: Path) -> None:
    """Write `README.md` with the hub's metadata, the command, hashes of the data, and the losses."""
    head: dict[str, object] = {
        "license": config.license,
        "library_name": "unmask",
        "pipeline_tag": "text-generation",
        "tags": ["masked-diffusion"],
    }
    if config.init is not None and config.init not in BUNDLED and not Path(config.init).exists():
        head["base_model"] = config.init
    account = prepared.store.account
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# A model trained with unmask {__version__}\n",
        f"Start: `{config.init or 'a new network'}`, family {prepared.start.spec.family}, objective "
        f"{config.objective}.\n",
        "```",
        shlex.join(["unmask", "train", *changed(config)]),
        "```\n",
        "| data | SHA-256 |",
        "|---|---|",
    ]
    for source in find_sources(config.data.path, config.data.split):
        lines.append(f"| {source.path} | `{source.digest()}` |")
    lines += [
        f"\n{account.rows} rows ({account.held_out} held out, {account.truncated} cut, {account.dropped} "
        f"too long, {account.bad} unreadable), {account.tokens} tokens, {account.trained_tokens} trained\n",
        *_results(output / LOG),
        'Use: `unmask generate -m FOLDER "..."`, `unmask serve FOLDER`.',
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _results(log: Path) -> list[str]:
    """Return the table of losses: the first and the last steps, and the held-out losses."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if not entries:
        return []
    scored = [each for each in entries if each.get("eval_loss") is not None]
    shown = {
        each["step"]: each
        for each in (entries[0], *scored[:: max(1, len(scored) // 8)], entries[-1])
    }
    rows = ["| step | loss | held-out loss |", "|---|---|---|"]
    for step, each in sorted(shown.items()):
        held_out = each.get("eval_loss")
        text = "" if held_out is None else f"{held_out:.4f}"
        rows.append(f"| {step} | {each['loss']:.4f} | {text} |")
    return [*rows, ""]
