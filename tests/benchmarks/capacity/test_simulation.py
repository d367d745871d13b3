"""The simulation against theory, against the engine's own rows, and against itself."""

import itertools
import statistics
from dataclasses import replace

import pytest
import simpy

from kwise.benchmarks.capacity.cluster import Autoscaling, Fleet, quantile, simulate
from kwise.benchmarks.capacity.hardware import DEFAULT_PASS
from kwise.benchmarks.capacity.load import Call, Load, Response, arrival_times, distinct_group
from kwise.benchmarks.capacity.machines import group_size
from kwise.benchmarks.capacity.one_replica import simulate_one
from kwise.benchmarks.capacity.pass_time import (
    MeasuredPass,
    PassSize,
    PassTime,
    fit_pass_time,
    relative_errors,
)
from kwise.benchmarks.capacity.replica import NO_STATES, Replica, ReplicaConfig
from kwise.benchmarks.capacity.routers import ROUTERS
from kwise.benchmarks.options import Cell
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.prefix_reuse import plan_reuse
from kwise.engine.trie import build_trie
from tests.real_data import ROOT

# One sequence of 20 tokens fills a batch, and every pass takes a second: M/D/1.
ONE_AT_A_TIME = ReplicaConfig(
    pass_time=PassTime(fixed_s=1.0, per_row_s=0.0), max_batch_tokens=20, max_queue_tokens=10**9
)
CELL = Cell(P=40, R=10, K=3)
REPLICA = ReplicaConfig(
    pass_time=PassTime(fixed_s=0.01, per_row_s=0.001),
    max_batch_tokens=150,
    prompt_cache_tokens=1000,
    cached_rewards=10_000,
)
ROWS = CELL.P + CELL.R * CELL.K


def _single_calls(load: float, count: int, seed: int) -> list[Call]:
    cell = Cell(P=10, R=10, K=1)
    return [
        Call(arrives_s=time_s, prompt=number, responses=distinct_group(cell, number))
        for number, time_s in enumerate(arrival_times(load, count, seed))
    ]


def test_latencies_are_those_of_lindley_s_recursion() -> None:
    """With one sequence per batch, each call starts when it comes or when the last one ends."""
    calls = _single_calls(0.8, 400, seed=1)
    free_s, expected = 0.0, []
    for call in calls:
        free_s = max(free_s, call.arrives_s) + 1.0
        expected.append(free_s - call.arrives_s)
    assert simulate_one(calls, ONE_AT_A_TIME).seconds == pytest.approx(expected)


def test_the_mean_wait_is_that_of_an_m_d_1_queue() -> None:
    """Pollaczek and Khinchine: with constant service of 1 s, load / (2 · (1 − load))."""
    load = 0.5
    seconds = simulate_one(_single_calls(load, 1500, seed=2), ONE_AT_A_TIME).seconds
    assert statistics.fmean(seconds) - 1.0 == pytest.approx(load / (2 * (1 - load)), rel=0.1)


def _served(config: ReplicaConfig, load: Load) -> Replica:
    env = simpy.Environment()
    replica = Replica(env, config, record_passes=True)

    def send(call: Call):  # type: ignore[no-untyped-def]
        yield env.timeout(call.arrives_s)
        yield replica.submit(call)

    env.run(env.all_of([env.process(send(call)) for call in load.calls()]))
    return replica


def test_the_model_is_never_idle_while_work_waits() -> None:
    load = Load(cell=CELL, groups=60, rate_per_s=8.0, seed=3)
    replica = _served(REPLICA, load)
    passes = list(replica.passes)
    arrivals = [call.arrives_s for call in load.calls()]
    for (_, ended_s, _), (started_s, _, _) in itertools.pairwise(passes):
        assert started_s == ended_s or any(started_s == pytest.approx(a) for a in arrivals)
    busy_s = sum(ended_s - started_s for started_s, ended_s, _ in passes)
    assert busy_s == pytest.approx(replica.counters.busy_s)


def test_rows_are_those_of_the_trie() -> None:
    """Groups that wait together cost the rows of one trie each, however batches divide them."""
    whole = Load(cell=CELL, groups=20, rate_per_s=1e9, seed=4)
    replica = _served(replace(REPLICA, max_batch_tokens=190), whole)
    assert replica.counters.rows == 20 * ROWS
    assert replica.counters.rows + replica.counters.reused_rows > 20 * ROWS, "a group was divided"
    sequences = [r.sequence for call in whole.calls() for r in call.responses]
    assert build_trie([s.token_ids for s in sequences]).num_nodes == 20 * ROWS


def test_distinct_groups_cost_what_random_texts_cost() -> None:
    random_texts = Cell(P=40, R=10, K=3).group(vocab_size=49_152, seed=5)
    for sequences in (random_texts, [r.sequence for r in distinct_group(CELL, 5)]):
        size = PassSize.of(plan_reuse(sequences, PromptCache(0), NO_STATES))
        responses_pairs = CELL.K * (CELL.R * CELL.P + CELL.R * (CELL.R + 1) // 2)
        assert size == PassSize(rows=ROWS, pairs=CELL.P * (CELL.P + 1) // 2 + responses_pairs)


def test_a_call_asked_again_is_cached_and_one_in_flight_is_joined() -> None:
    env = simpy.Environment()
    replica = Replica(env, REPLICA)
    calls = [Call(arrives_s=0.0, prompt=0, responses=distinct_group(CELL, 0)) for _ in range(3)]
    first, second = replica.submit(calls[0]), replica.submit(calls[1])
    env.run(env.all_of([first, second]))
    env.run(replica.submit(calls[2]))
    counters = replica.counters
    assert (counters.joined, counters.cache_hits, counters.rows) == (3, 3, ROWS)


def _fleet(router: str, replicas: int = 4, **changes: object) -> Fleet:
    return Fleet(replicas=replicas, replica=REPLICA, router=router, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("router", ROUTERS)
def test_the_seed_determines_everything(router: str) -> None:
    load = Load(cell=CELL, groups=40, rate_per_s=20.0, is_single=True, spread_s=2.0, repeated=0.2)
    outcomes = [simulate(load, _fleet(router)) for _ in range(2)]
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0].calls) == 40 * CELL.K


def test_routers_that_hash_prompts_bring_single_responses_together() -> None:
    load = Load(cell=CELL, groups=80, rate_per_s=10.0, is_single=True, spread_s=2.0)
    rows = {router: simulate(load, _fleet(router, 10)).total("rows") for router in ROUTERS}
    assert rows["prompt-hash"] < 1.3 * 80 * ROWS
    assert rows["random"] > 1.4 * 80 * ROWS
    assert rows["prompt-hash"] <= rows["bounded-hash"] < rows["random"]


def test_a_router_that_sees_queues_balances_better() -> None:
    load = Load(cell=CELL, groups=400, rate_per_s=35.0)
    p99 = {name: quantile(simulate(load, _fleet(name)).latencies(), 0.99) for name in ROUTERS}
    assert p99["least-loaded"] < p99["two-choices"] < p99["random"]


def test_a_prompt_moves_only_if_its_replica_goes() -> None:
    env = simpy.Environment()
    replicas = [Replica(env, REPLICA, number) for number in range(10)]
    pick = ROUTERS["prompt-hash"](None)  # type: ignore[arg-type]
    before = [pick(replicas, prompt) for prompt in range(200)]
    after = [pick(replicas[1:], prompt) for prompt in range(200)]
    assert {was for was, now in zip(before, after, strict=True) if was is not now} == {replicas[0]}
    assert set(before) == set(replicas)


def test_a_replica_that_dies_loses_no_call() -> None:
    load = Load(cell=CELL, groups=100, rate_per_s=25.0)
    outcome = simulate(load, _fleet("two-choices", 3, losses_s=(2.0,)))
    assert len(outcome.calls) == 100
    assert any(call.retries for call in outcome.calls)
    assert [number for _, number in outcome.replicas] == [1, 2, 3, 2]


def test_replicas_start_after_their_lag() -> None:
    load = Load(cell=CELL, groups=200, rate_per_s=25.0)
    scaling = Autoscaling(target_tokens=500, every_s=1.0, lag_s=2.5, max_replicas=3)
    outcome = simulate(load, _fleet("two-choices", 1, autoscaling=scaling))
    assert [number for _, number in outcome.replicas] == [1, 2, 3]
    assert outcome.replicas[1][0] >= 1.0 + 2.5


def test_a_full_queue_refuses_and_the_call_comes_again() -> None:
    load = Load(cell=CELL, groups=30, rate_per_s=1000.0)
    limited = replace(REPLICA, max_queue_tokens=1000)
    outcome = simulate(load, Fleet(replicas=1, replica=limited, router="random"))
    assert len(outcome.calls) == 30
    assert outcome.total("refused") == sum(call.retries for call in outcome.calls) > 0


def test_the_fit_finds_the_figures_of_exact_passes() -> None:
    truth = PassTime(fixed_s=0.02, per_row_s=1e-3, per_pair_s=2e-7)
    sizes = [PassSize(rows=r, pairs=r * d) for r, d in [(100, 50), (400, 200), (2000, 60)]]
    sizes.append(PassSize(rows=1500, pairs=1_500_000))
    passes = [MeasuredPass(size=size, seconds=truth.seconds(size)) for size in sizes]
    fitted = fit_pass_time(passes)
    assert max(map(abs, relative_errors(fitted, passes))) < 1e-9
    assert fitted.per_pair_s == pytest.approx(truth.per_pair_s)
    with pytest.raises(ValueError, match="2 passes do not determine"):
        fit_pass_time(passes[:2])


def test_no_figure_of_a_fit_is_negative() -> None:
    sizes = [PassSize(rows=rows, pairs=rows * rows) for rows in (100, 300, 1000, 2000)]
    shorter = [
        MeasuredPass(size=size, seconds=1e-3 * size.rows - 1e-8 * size.pairs) for size in sizes
    ]
    fitted = fit_pass_time(shorter)
    assert min(fitted.fixed_s, fitted.per_row_s, fitted.per_pair_s) >= 0
    assert fitted.per_pair_s == 0


def test_the_default_pass_is_the_fit_to_the_published_sizes() -> None:
    page = (ROOT / "benchmarks" / "results" / "smollm2-fp32-48-cells.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line[1:2].isdigit()]
    passes = []
    for P, R, K, seconds, num_rows, *_ in rows:
        size = group_size(Cell(P=int(P), R=int(R), K=int(K)))
        assert size[0] == int(num_rows)
        if size[0] <= 2400:
            passes.append(
                MeasuredPass(size=PassSize(rows=size[0], pairs=size[1]), seconds=float(seconds))
            )
    fitted = fit_pass_time(passes)
    assert len(passes) == 28
    assert 1e3 * fitted.fixed_s == pytest.approx(DEFAULT_PASS.fixed_ms, rel=1e-2)
    assert 1e3 * fitted.per_row_s == pytest.approx(DEFAULT_PASS.row_ms, rel=1e-2)
    assert 1e9 * fitted.per_pair_s == pytest.approx(DEFAULT_PASS.pair_ns, rel=1e-2)
    assert statistics.median(map(abs, relative_errors(fitted, passes))) < 0.035


def test_responses_know_their_prompt() -> None:
    first, second = (Response(sequence) for sequence in CELL.group(vocab_size=1000, seed=1)[:2])
    assert first.prompt_key == second.prompt_key
    assert len(first.prompt_key) == 4 * CELL.P
