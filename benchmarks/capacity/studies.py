"""Simulate routers, single calls, autoscaling and the loss of a replica on 10 to 1,000 replicas.

Physics: a router without knowledge makes each replica a queue of its own, so that some wait while
others are idle. A router that sees the queues avoids this, and a router that hashes prompts brings
equal prompts together, where the caches are. If each response is a call of its own, a prompt that
is computed on K replicas costs K·(P + R) rows instead of P + K·R.

    groups    whole groups, of which some were asked for before
    singles   one call per response, spread over the seconds in which rollouts end
    scaling   twice the load from one moment on, and replicas that start with a lag
    loss      the replica with the most work dies

Load is relative to the capacity for whole groups that share nothing with each other.
"""

from dataclasses import replace
from typing import Any

from kwise.benchmarks.capacity.cluster import Autoscaling, Fleet, Outcome, quantile, simulate
from kwise.benchmarks.capacity.load import Load
from kwise.benchmarks.capacity.options import STUDIES, ClusterBenchConfig
from kwise.benchmarks.capacity.pass_time import PassSize, PassTime
from kwise.benchmarks.capacity.replica import ReplicaConfig
from kwise.benchmarks.capacity.routers import ROUTERS
from kwise.benchmarks.result_file import write_results
from kwise.engine.cache.reward_cache import ENTRY_BYTES
from kwise.engine.config import CPU_PROMPT_CACHE_BYTES, EngineConfig

_WARM_UP = 1 / 3
_OVERHEAD_S = 0.005
# Autoscaling: the cluster, its load before the step, the times of step and end, and the tokens of
# two groups as target.
_SCALING_REPLICAS, _SCALING_LOAD, _STEP_AT_S, _SCALING_END_S = 20, 0.6, 120.0, 900.0
_LOSS_ROUTERS = ("two-choices", "prompt-hash", "bounded-hash")

Row = dict[str, Any]


def run(config: ClusterBenchConfig) -> None:
    """Print one table per study and write all figures to `config.json`."""
    results: dict[str, list[Row]] = {}
    for study in config.studies or STUDIES:
        rows = results[study] = []
        for row in _STUDIES[study](config):
            if not rows:
                print(f"{study}:\n" + "  ".join(f"{name:>13s}" for name in row))
            print("  ".join(f"{_text(value):>13s}" for value in row.values()), flush=True)
            rows.append(row)
            if config.json:
                write_results(config.json, "cluster", config, results)


def replica_config(config: ClusterBenchConfig) -> ReplicaConfig:
    """Return the replica that the options describe, with the engine's default limits."""
    engine = EngineConfig()
    return ReplicaConfig(
        pass_time=PassTime(
            fixed_s=config.fixed_ms / 1e3,
            per_row_s=config.row_ms / 1e3,
            per_pair_s=config.pair_ns / 1e9,
        ),
        overhead_s=_OVERHEAD_S,
        prompt_cache_tokens=CPU_PROMPT_CACHE_BYTES // config.state_bytes,
        cached_rewards=engine.cache_bytes // ENTRY_BYTES,
    )


def group_seconds(config: ClusterBenchConfig) -> float:
    """Return the seconds that a replica takes for a group in a long queue of them.

    A batch holds as many groups as fit, so a group has its share of the fixed part of a pass.
    """
    size, replica = PassSize.of_group(config.parsed_cell()), replica_config(config)
    fixed_s = replica.pass_time.fixed_s * min(size.rows / replica.max_batch_tokens, 1.0)
    return fixed_s + replace(replica.pass_time, fixed_s=0.0).seconds(size)


def _load(config: ClusterBenchConfig, replicas: int, **changes: Any) -> Load:
    load = Load(
        cell=config.parsed_cell(),
        groups=max(config.groups * replicas, config.min_groups),
        rate_per_s=config.load * replicas / group_seconds(config),
        repeated=config.repeated,
        seed=config.seed,
    )
    return replace(load, **changes)


def _groups(config: ClusterBenchConfig) -> Any:
    for replicas in config.replicas:
        for router in config.routers or ROUTERS:
            load = _load(config, replicas)
            yield _router_row(config, load, replicas, router)


def _singles(config: ClusterBenchConfig) -> Any:
    for replicas in config.replicas:
        for router in config.routers or ROUTERS:
            load = _load(config, replicas, is_single=True, spread_s=config.spread_s)
            yield _router_row(config, load, replicas, router)


def _router_row(config: ClusterBenchConfig, load: Load, replicas: int, router: str) -> Row:
    fleet = Fleet(replicas=replicas, replica=replica_config(config), router=router)
    outcome = simulate(load, fleet)
    last_s = max(call.arrives_s for call in outcome.calls)
    latencies = outcome.latencies(_WARM_UP * last_s)
    return {
        "replicas": replicas,
        "router": router,
        "p50_s": quantile(latencies, 0.5),
        "p99_s": quantile(latencies, 0.99),
        **_work(outcome),
        "busy": outcome.total("busy_s") / replicas / outcome.ended_s,
        "busiest": max(c.busy_s for c in outcome.counters) / outcome.ended_s,
    }


def _work(outcome: Outcome) -> Row:
    responses = outcome.total("responses")
    return {
        "rows_each": outcome.total("rows") / responses,
        "cached": outcome.total("cache_hits") / responses,
        "joined": outcome.total("joined") / responses,
    }


def _scaling(config: ClusterBenchConfig) -> Any:
    cell = config.parsed_cell()
    rate_per_s = _SCALING_LOAD * _SCALING_REPLICAS / group_seconds(config)
    load = Load(
        cell=cell,
        groups=int(rate_per_s * (2 * _SCALING_END_S - _STEP_AT_S)),
        rate_per_s=rate_per_s,
        step_at_s=_STEP_AT_S,
        step_factor=2.0,
        seed=config.seed,
    )
    for lag_s in config.lags_s:
        autoscaling = Autoscaling(target_tokens=2 * cell.K * (cell.P + cell.R), lag_s=lag_s)
        outcome = simulate(
            load,
            Fleet(
                replicas=_SCALING_REPLICAS,
                replica=replica_config(config),
                router="two-choices",
                autoscaling=autoscaling,
            ),
        )
        before = outcome.latencies(_WARM_UP * _STEP_AT_S, _STEP_AT_S)
        after = outcome.latencies(_STEP_AT_S)
        usual_s = 2 * quantile(before, 0.99)
        late = [c.arrives_s for c in outcome.calls if c.seconds > usual_s]
        yield {
            "lag_s": lag_s,
            "p99_before_s": quantile(before, 0.99),
            "p99_after_s": quantile(after, 0.99),
            "max_s": after[-1],
            "late_for_s": max(late, default=_STEP_AT_S) - _STEP_AT_S,
            "replicas_end": outcome.replicas[-1][1],
            "refusals": int(outcome.total("refused")),
        }


def _loss(config: ClusterBenchConfig) -> Any:
    for replicas in config.replicas:
        for router in _LOSS_ROUTERS:
            load = _load(config, replicas)
            at_s = load.groups / load.rate_per_s / 2
            outcome = simulate(
                load,
                Fleet(
                    replicas=replicas,
                    replica=replica_config(config),
                    router=router,
                    losses_s=(at_s,),
                ),
            )
            before, after = outcome.latencies(at_s / 2, at_s), outcome.latencies(at_s)
            retried = [call for call in outcome.calls if call.retries]
            yield {
                "replicas": replicas,
                "router": router,
                "p99_before_s": quantile(before, 0.99),
                "p99_after_s": quantile(after, 0.99),
                "calls_sent_again": len(retried),
                "slowest_again_s": max((call.seconds for call in retried), default=0.0),
                "answered": len(outcome.calls),
            }


_STUDIES = {
    "groups": _groups,
    "singles": _singles,
    "scaling": _scaling,
    "loss": _loss,
}


def _text(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
