"""Rewards for a data set of Ray Data, which Ray reads, computes and writes on all machines.

    dataset = ray.data.read_parquet("s3://bucket/groups")
    score_dataset(dataset, "/models/reward", workers=8).write_parquet("s3://bucket/rewards")

`kwise rerank --ray` reads and writes in one process, and has more to offer: forms of output,
progress, `--resume`. This function is for data that one process cannot read fast enough.
"""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa

from kwise.bulk.input.groups import Columns
from kwise.bulk.input.row import BadRow
from kwise.bulk.scorers.engine import EngineScorer
from kwise.engine.config import EngineConfig
from kwise.errors import KwiseError
from kwise.train.data.files.arrow_rows import batch_rows
from kwise.train.data.rows.items import RowProblem
from kwise.types import Group, Reward, ScoredGroup

# Groups that are batched together. Sorted by prefix, they share what they have in common.
_BATCH_GROUPS = 64


def score_dataset(
    dataset: Any,
    artifact: str,
    *,
    workers: int,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
    columns: Columns | None = None,
    engine: EngineConfig | None = None,
    batch_groups: int = _BATCH_GROUPS,
) -> Any:
    """Return the data set with the columns `rewards` and `errors`.

    `rewards` has one number per response, None for one that was not scored. `errors` has the
    reasons in the same places, or one reason for the row if it describes no group. If the model
    has members, there are the columns `std`, `min` and `members` too, with one entry per response.

    Args:
        dataset: a `ray.data.Dataset` with a column of prompts and one of lists of responses.
        artifact: the path of the artifact, the same on each machine.
        workers: the processes that hold the model.
        cpus_per_worker: the CPUs that Ray reserves for each, and the threads of its runtime.
        gpus_per_worker: the GPUs that Ray reserves for each.
        columns: the names of the columns.
        engine: the options of the engine.
        batch_groups: the rows that are batched together.
    """
    from ray.data import ActorPoolStrategy  # pyright: ignore[reportMissingImports]

    return dataset.map_batches(
        ScoreBatch,
        fn_constructor_kwargs={
            "artifact": artifact,
            "columns": columns or Columns(),
            "engine": engine or EngineConfig(threads=cpus_per_worker),
        },
        batch_size=batch_groups,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker,
    )


class ScoreBatch:
    """Adds rewards to tables, for `map_batches`. One worker of Ray Data has one.

    Args:
        artifact: the path of the artifact.
        columns: the names of the columns of prompt and responses.
        engine: the options of the engine.
    """

    def __init__(self, artifact: str, columns: Columns, engine: EngineConfig) -> None:
        self._columns = columns
        self._scorer = EngineScorer.load(Path(artifact), engine)
        self._runner = asyncio.Runner()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with the columns `rewards` and `errors`, rows in order."""
        rows = [self._group(row) for row in batch_rows(table)]
        groups = [row for row in rows if isinstance(row, Group)]
        results = iter(self._runner.run(self._scorer.score(groups)))
        outcomes = [next(results) if isinstance(row, Group) else row for row in rows]
        rewards = [_rewards(outcome) for outcome in outcomes]
        errors = [_errors(outcome) for outcome in outcomes]
        numbers = pa.list_(pa.float64())
        table = table.append_column("rewards", pa.array(rewards, numbers))
        if self._scorer.num_members > 1:
            for name, kind in (("std", numbers), ("min", numbers), ("members", pa.list_(numbers))):
                column = [_of_rewards(outcome, name) for outcome in outcomes]
                table = table.append_column(name, pa.array(column, kind))
        return table.append_column("errors", pa.array(errors, pa.list_(pa.string())))

    def close(self) -> None:
        """Release the model and the event loop. Ray ends the worker's process instead."""
        self._runner.run(self._scorer.close())
        self._runner.close()

    def _group(self, row: Any) -> Group | BadRow:
        if isinstance(row, RowProblem):
            return BadRow.of(row)
        try:
            return self._columns.group(row)
        except BadRow as problem:
            return problem


def _rewards(outcome: ScoredGroup | KwiseError) -> list[float | None]:
    return list(outcome.values) if isinstance(outcome, ScoredGroup) else []


def _of_rewards(outcome: ScoredGroup | KwiseError, name: str) -> list[Any]:
    """Return a field of each reward, None for a response that was not scored."""
    if not isinstance(outcome, ScoredGroup):
        return []
    return [getattr(r, name) if isinstance(r, Reward) else None for r in outcome.rewards]


def _errors(outcome: ScoredGroup | KwiseError) -> list[str | None]:
    if not isinstance(outcome, ScoredGroup):
        return [str(outcome)]
    return [str(r) if isinstance(r, KwiseError) else None for r in outcome.rewards]
