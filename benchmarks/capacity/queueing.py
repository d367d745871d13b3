"""Does the simulation reproduce the queue of a real server?

Physics: one server is a queue with one pass at a time. Groups arrive at random (Poisson, an open
loop), so latency is the wait for earlier work and the pass itself. Near capacity the wait decides,
and it magnifies every error of the pass time: at 90 % of capacity an error of 1 % moves the mean
wait by about 10 %.

One round per seed:

    1  single calls to the idle server give passes of known sizes, and the time of a call outside
       queue and model; before the first and after each run of 2
    2  for each load, calls arrive at the server at the seed's times with the seed's texts
    3  the same calls at the same times go through the simulation: once with the pass time fitted to
       the passes of 1 around the run, and once with that pass time scaled to the server's busy
       seconds in the run, which removes the drift of a shared machine's speed

On a machine that is busy with other work, `--paced` compares the queue alone: see paced.py.
Capacity is the rate at which the simulation answers groups that wait together.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kwise.benchmarks.capacity.measuring import Round, Run, measure, timed_sizes
from kwise.benchmarks.capacity.one_replica import (
    QUANTILES,
    Simulated,
    quantiles,
    seeded_calls,
    simulate_one,
)
from kwise.benchmarks.capacity.options import QueueBenchConfig
from kwise.benchmarks.capacity.paced import measure_paced
from kwise.benchmarks.capacity.pass_time import PassTime, fit_pass_time, relative_errors
from kwise.benchmarks.capacity.replica import ReplicaConfig
from kwise.benchmarks.options import Cell
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.workload import read_trie_artifact
from kwise.errors import ConfigError


def run(config: QueueBenchConfig) -> None:
    """Print measured and simulated quantiles side by side, and write them to `config.json`."""
    artifact, cell = read_trie_artifact(config.artifact), config.parsed_cell()
    vocab_size = artifact.manifest.vocab_size
    if len(timed_sizes(cell)) < 3:
        raise ConfigError(f"--cell is {cell}; a batch is too small for it, choose a smaller one")

    def save(rounds: Sequence[Round], results: dict[str, Any]) -> None:
        if config.json:
            measured = [asdict(measured_round) for measured_round in rounds]
            write_results(config.json, "queue", config, {**results, "rounds": measured})

    if config.measured:
        rounds = read_rounds(config.measured, config.cell)
    else:
        # A run takes minutes, so each is saved.
        way = measure_paced if config.paced else measure
        rounds = way(artifact, config, cell, on_run=lambda rounds: save(rounds, {}))
    save(rounds, compare(rounds, cell, vocab_size))


def read_rounds(path: str, cell: str) -> list[Round]:
    """Return the rounds in a result file of this benchmark.

    Raises:
        ConfigError: the file is something else, or its groups have another size.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        rounds = [Round.read(item) for item in content["rounds"]]
        measured_cell = content["options"]["cell"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--measured {path}: not a file of kwise bench queue") from error
    if measured_cell != cell:
        raise ConfigError(
            f"--measured {path}: its groups are {measured_cell}, and --cell is {cell}"
        )
    return rounds


def compare(rounds: Sequence[Round], cell: Cell, vocab_size: int) -> dict[str, Any]:
    """Simulate what was measured, print both, and return the figures of each run and load."""
    compared: list[Compared] = []
    for measured in rounds:
        for run in measured.runs:
            replica = ReplicaConfig(
                pass_time=fit_pass_time(run.timed),
                overhead_s=run.overhead_s,
                prompt_cache_tokens=measured.prompt_cache_tokens,
            )
            calls = seeded_calls(
                cell,
                vocab_size,
                seed=measured.seed,
                count=len(run.seconds),
                rate_per_s=run.rate_per_s,
            )
            fitted = simulate_one(calls, replica)
            factor = run.busy_s / fitted.busy_s
            scaled = simulate_one(
                calls, replace(replica, pass_time=replica.pass_time.scaled(factor))
            )
            compared.append(
                Compared(
                    seed=measured.seed,
                    measured=run,
                    pass_time=replica.pass_time,
                    fitted=fitted,
                    scaled=scaled,
                    factor=factor,
                )
            )
    for item in compared:
        _print_run(item)
    return {"runs": [run.figures() for run in compared], "loads": _by_load(compared)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A measured run and its simulations; `factor` scales the pass time of the second."""

    seed: int
    measured: Run
    pass_time: PassTime
    fitted: Simulated
    scaled: Simulated
    factor: float

    def figures(self) -> dict[str, Any]:
        """Return the quantiles and counters of all three."""
        run = self.measured
        ways: dict[str, Run | Simulated] = {
            "measured": run,
            "fitted": self.fitted,
            "scaled": self.scaled,
        }
        return {
            "load": run.load,
            "seed": self.seed,
            # The load that it turned out to be, at the server's speed in the run.
            "offered": run.rate_per_s * run.busy_s / len(run.seconds),
            "factor": self.factor,
            "pass_time": asdict(self.pass_time),
            "pass_error": statistics.median(map(abs, relative_errors(self.pass_time, run.timed))),
            **{
                name: {**quantiles(way.seconds), "passes": way.passes, "rows": way.rows}
                for name, way in ways.items()
            },
        }


def _print_run(compared: Compared) -> None:
    figures, pass_time = compared.figures(), compared.pass_time
    print(
        f"seed {compared.seed}, load {compared.measured.load:.0%} (at the speed in the run "
        f"{figures['offered']:.0%}): a pass takes "
        f"{1e3 * pass_time.fixed_s:.1f} ms, {1e3 * pass_time.per_row_s:.4f} ms a row and "
        f"{1e9 * pass_time.per_pair_s:.0f} ns a pair, with an error of "
        f"{figures['pass_error']:.1%} (median);\n    measured, fitted, scaled by "
        f"{compared.factor:.3f}: "
        + "; ".join(
            f"{name} "
            + " ".join(f"{figures[way][name]:.2f}" for way in ("measured", "fitted", "scaled"))
            for name in QUANTILES
        )
        + " s"
    )


def _by_load(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Return, for each load, the quantiles of all its runs together, and print them.

    errors: (simulated − measured) / measured quantiles, of each run by itself.
    """
    rows = []
    print(
        "load   quantile   measured    fitted: error, of each run           "
        "scaled: error, of each run"
    )
    for load in sorted({run.measured.load for run in compared}):
        runs = [run for run in compared if run.measured.load == load]
        pooled = {
            "measured": [s for run in runs for s in run.measured.seconds],
            "fitted": [s for run in runs for s in run.fitted.seconds],
            "scaled": [s for run in runs for s in run.scaled.seconds],
        }
        row: dict[str, Any] = {name: quantiles(seconds) for name, seconds in pooled.items()}
        row["errors"] = {
            way: {name: [_error(run, way, name) for run in runs] for name in QUANTILES}
            for way in ("fitted", "scaled")
        }
        rows.append({"load": load, "seeds": len(runs), **row})
        for name in QUANTILES:
            measured_s = row["measured"][name]
            text = f"{load:4.0%}   {name:8s} {measured_s:8.2f} s"
            for way in ("fitted", "scaled"):
                errors = row["errors"][way][name]
                text += f"   {row[way][name]:6.2f} s {row[way][name] / measured_s - 1:+7.1%}"
                text += f" ({min(errors):+6.1%} to {max(errors):+6.1%})"
            print(text)
    return rows


def _error(compared: Compared, way: str, name: str) -> float:
    figures = compared.figures()
    return float(figures[way][name] / figures["measured"][name] - 1)
