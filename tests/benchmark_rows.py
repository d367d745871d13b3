"""Rows with the columns and types of the public benchmarks, with texts of our own.

The columns are those of the data sets' cards: https://huggingface.co/datasets/allenai/reward-bench,
…/allenai/pref-test-sets, …/allenai/reward-bench-2, …/THU-KEG/RM-Bench, …/ScalerLab/JudgeBench.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

JsonRow = dict[str, Any]


def reward_bench_row(subset: str, number: int) -> JsonRow:
    """Return a row of RewardBench's split `filtered`."""
    return {
        "prompt": f"Question {number} of {subset}?",
        "chosen": f"A right answer to {number}.",
        "chosen_model": "good-model",
        "rejected": f"A wrong answer to {number}, which is longer.",
        "rejected_model": "bad-model",
        "subset": subset,
        "id": number,
    }


def prior_set_row(number: int) -> JsonRow:
    """Return a row of a prior test set. The column `subset` is not the name of the set."""
    return {
        "prompt": [
            {"content": f"Question {number}?", "role": "user"},
            {"content": "What do you mean?", "role": "assistant"},
            {"content": "I mean it.", "role": "user"},
        ],
        "chosen": "A helpful answer.",
        "rejected": "An answer that helps less.",
        "subset": "other",
    }


def reward_bench_2_row(subset: str, number: int, *, num_correct: int = 1) -> JsonRow:
    """Return a row with three wrong responses outside Ties; `id` is that of a row outside Ties."""
    num_incorrect = 3
    return {
        "id": str(number),
        "prompt": f"Question {number} of {subset}?",
        "chosen": [f"Right answer {i} to {number}." for i in range(num_correct)],
        "rejected": [f"Wrong answer {i} to {number}." for i in range(num_incorrect)],
        "num_correct": num_correct,
        "num_incorrect": num_incorrect,
        "total_completions": num_correct + num_incorrect,
        "models": ["a-model"] * (num_correct + num_incorrect),
        "subset": subset,
        "additional_metadata": {"category": None, "correct": None, "index": float(number)},
    }


def ties_rows(number: int, *, num_correct: int = 3) -> list[JsonRow]:
    """Return the reference row and the tied row of a question of the subset Ties."""
    reference = reward_bench_2_row("Ties", 2 * number) | {"id": f"ref:{number}"}
    tied = reward_bench_2_row("Ties", 2 * number + 1, num_correct=num_correct)
    return [reference, tied | {"id": f"tied:{number}"}]


def rm_bench_row(domain: str, number: int) -> JsonRow:
    """Return a row of `total_dataset.json`."""
    styles = ("short", "long, with reasons", "long, with **Markdown**")
    return {
        "id": f"{domain}-{number}",
        "prompt": f"Question {number} of {domain}?",
        "chosen": [f"Right: {style} {number}" for style in styles],
        "rejected": [f"Wrong: {style} {number}" for style in styles],
        "domain": domain,
    }


def judge_bench_row(
    source: str, number: int, *, label: str = "A>B", model: str = "gpt-4o-2024-05-13"
) -> JsonRow:
    """Return a pair of JudgeBench."""
    return {
        "pair_id": f"pair-{number}",
        "original_id": str(number),
        "source": source,
        "question": f"Question {number} of {source}?",
        "response_model": model,
        "response_A": f"Response A to {number}.",
        "response_B": f"Response B to {number}.",
        "label": label,
    }


def write_rows(path: Path, rows: Sequence[JsonRow]) -> Path:
    """Write `rows` as Parquet, as a JSON array, as Arrow or as JSON Lines, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".arrow":
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.Table.from_pylist(list(rows))
        with (
            pyarrow.OSFile(str(path), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as w,
        ):
            w.write_table(table)
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows), indent=1), encoding="utf-8")
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path
