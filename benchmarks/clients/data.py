"""Questions for the clients from the bundled model's held-out sets, without network.

    python data.py FOLDER [UNMASK_DATA]

Writes conversations (`sharegpt.json`), `gsm8k.jsonl`, `mmlu/*_test.csv` and lm-eval's `words.yaml`. With a
folder of the real sets, GSM8K and MMLU are links to its files.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from unmask.demo.tasks import held_out_set

NUM_CONVERSATIONS = 16
NUM_EXAM = 64


def main(folder: Path, real: Path | None) -> None:
    """Write everything."""
    examples = held_out_set("word_problem", NUM_EXAM)
    turns = [[{"value": each.prompt}, {"value": each.answer}] for each in examples]
    talks = [{"conversations": pair} for pair in turns[:NUM_CONVERSATIONS]]
    (folder / "sharegpt.json").write_text(json.dumps(talks))
    records = [{"question": each.prompt, "answer": each.answer} for each in examples]
    words = folder / "words.jsonl"
    words.write_text("".join(json.dumps(each) + "\n" for each in records))
    (folder / "words.yaml").write_text(task(words))
    if real is not None:
        (folder / "gsm8k.jsonl").symlink_to((real / "gsm8k" / "test.jsonl").resolve(strict=True))
        (folder / "mmlu").symlink_to((real / "mmlu" / "test").resolve(strict=True))
        return
    (folder / "gsm8k.jsonl").symlink_to(words)
    (folder / "mmlu").mkdir()
    with (folder / "mmlu" / "arithmetic_test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(choices(index) for index in range(NUM_EXAM))


def task(words: Path) -> str:
    """Return a task of lm-eval over a local file, as JSON, which is valid YAML."""
    return json.dumps(
        {
            "task": "words",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(words)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 64, "temperature": 0.0},
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            ],
        }
    )


def choices(index: int) -> list[str]:
    """Return a sum in MMLU's form: question, four choices, and the index of the right one."""
    left, right, place = index + 3, 2 * index + 1, index % 4
    answers = [left + right + step - place for step in range(4)]
    return [f"What is {left} + {right}?", *map(str, answers), str(place)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
