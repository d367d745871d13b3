"""Compute the machines that a load needs, from rows, operations and a device's rate.

Dimensions: P tokens of a prompt, R tokens of each response, K responses, N parameters of the
matmuls, L layers, W the width of attention (heads times head size).

    rows       P + K·R with shared prompts, else K·(P + R)
    pairs      P·(P+1)/2 + K·(R·P + R·(R+1)/2) with shared prompts, else K·(P+R)·(P+R+1)/2
    operations 2·N·rows + 4·L·W·pairs
    seconds    operations / (peak rate · share of peak), or rows / measured rows per second
    replicas   groups per second · seconds · (1 − share of rewards from the cache) / utilisation

A replica is one copy of the model: one device, or as many as its weights need. kwise itself runs a
model on one device. A plan with more devices per replica says what such a model would take at
least: it assumes that devices which share a model lose nothing.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from kwise.benchmarks.capacity.hardware import Device, ModelSize
from kwise.benchmarks.capacity.options import CapacityConfig
from kwise.benchmarks.options import Cell
from kwise.benchmarks.result_file import write_results
from kwise.engine.cache.reward_cache import ENTRY_BYTES

_CHARACTERS_PER_TOKEN = 4  # English; the engine's own estimate
# The share of a device's memory that weights may take. Activations, CUDA and the allocator need the
# rest.
_MEMORY_FOR_WEIGHTS = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The load that the machines have to serve.

    Attributes:
        cell: the size of a group.
        groups_per_s: groups per second.
        shares_prompts: whether a prompt is computed once per group: whole groups, or single
            responses that reach the same replica.
        cached: the share of rewards that come from the reward cache.
        utilisation: the share of the time in which a replica may be busy.
    """

    cell: Cell
    groups_per_s: float
    shares_prompts: bool = True
    cached: float = 0.0
    utilisation: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One value of the range: the replicas that a share of the peak, or a measured rate, implies.

    Attributes:
        rows_per_s: what a replica computes.
        seconds: the time of a group on a replica.
        replicas, devices: how many the demand needs.
    """

    rows_per_s: float
    seconds: float
    replicas: int
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The machines for a demand.

    Attributes:
        rows: computed rows of a group.
        operations: floating-point operations of a group.
        devices_per_replica: devices that hold one copy of the weights.
        worst, expected, best: at the lowest, the expected and the highest rate.
        weights_bytes: of one replica.
        state_bytes: keys and values of one token in the prompt cache, in fp32.
        network_bytes_per_s: text that all replicas receive together.
        day_cache_bytes: memory for the rewards of a day, all replicas together.
    """

    rows: int
    operations: float
    devices_per_replica: int
    worst: Estimate
    expected: Estimate
    best: Estimate
    weights_bytes: float
    state_bytes: int
    network_bytes_per_s: float
    day_cache_bytes: float


def group_size(cell: Cell, *, shares_prompts: bool = True) -> tuple[int, int]:
    """Return the rows and the pairs of a group, with nothing from the prompt cache."""
    P, R, K = cell.P, cell.R, cell.K
    if not shares_prompts:
        return K * (P + R), K * (P + R) * (P + R + 1) // 2
    return P + K * R, P * (P + 1) // 2 + K * (R * P + R * (R + 1) // 2)


def plan(demand: Demand, model: ModelSize, device: Device) -> Plan:
    """Return the machines that the demand needs; see the formulas above."""
    cell = demand.cell
    rows, pairs = group_size(cell, shares_prompts=demand.shares_prompts)
    operations = 2.0 * model.matmul_parameters * rows
    operations += 4.0 * model.layers * model.attention_width * pairs
    weights_bytes = float(model.parameters * device.bytes_per_parameter)
    # A power of two, so that attention heads divide.
    memory_bytes, devices = _MEMORY_FOR_WEIGHTS * device.memory_bytes, 1
    while devices * memory_bytes < weights_bytes:
        devices *= 2

    def estimate(rate: float) -> Estimate:
        if device.peak_flops is None:
            rows_per_s = rate
        else:
            rows_per_s = rows * devices * device.peak_flops * rate / operations
        seconds = rows / rows_per_s
        busy = demand.groups_per_s * seconds * (1.0 - demand.cached)
        # A rounding error must not add a machine.
        replicas = max(math.ceil(busy / demand.utilisation - 1e-9), 1)
        return Estimate(
            rows_per_s=rows_per_s, seconds=seconds, replicas=replicas, devices=replicas * devices
        )

    low, middle, high = device.rates
    tokens_sent = rows if demand.shares_prompts else cell.K * (cell.P + cell.R)
    day_s = 86_400.0
    return Plan(
        rows=rows,
        operations=operations,
        devices_per_replica=devices,
        worst=estimate(low),
        expected=estimate(middle),
        best=estimate(high),
        weights_bytes=weights_bytes,
        state_bytes=2 * model.layers * model.state_width * 4,
        network_bytes_per_s=demand.groups_per_s * tokens_sent * _CHARACTERS_PER_TOKEN,
        day_cache_bytes=demand.groups_per_s * cell.K * day_s * ENTRY_BYTES,
    )


def demand_of(config: CapacityConfig) -> Demand:
    """Return the demand that the options describe."""
    return Demand(
        cell=config.parsed_cell(),
        groups_per_s=config.groups_per_s(),
        shares_prompts=config.shared,
        cached=config.cached,
        utilisation=config.utilisation,
    )


def run(config: CapacityConfig) -> None:
    """Print the machines for the demand that the options describe."""
    demand, model = demand_of(config), config.model_size()
    rows, pairs = group_size(demand.cell, shares_prompts=demand.shares_prompts)
    print(
        f"demand: {demand.groups_per_s:.4g} groups/s of {demand.cell}, "
        f"{demand.groups_per_s * demand.cell.K:.4g} responses/s; "
        f"{rows} rows and {pairs / 1e6:.2f} million pairs a group\n"
        f"model:  {model.matmul_parameters / 1e9:.4g} billion parameters in matmuls, "
        f"{model.layers} layers, attention {model.attention_width} wide"
    )
    plans = {name: plan(demand, model, device) for name, device in config.devices().items()}
    print("device        per replica   rows/s a replica     s a group   replicas   devices")
    for name, result in plans.items():
        print(line(name, result))
    some = next(iter(plans.values()))
    print(
        f"network: {some.network_bytes_per_s / 1e6:.3g} MB/s of text; reward cache: "
        f"{some.day_cache_bytes / 1e9:.3g} GB for the rewards of a day; prompt cache: "
        f"{some.state_bytes / 1e3:.0f} KB a token"
    )
    if config.json:
        results: dict[str, Any] = {
            "demand": asdict(demand),
            "model": asdict(model),
            "plans": {name: asdict(result) for name, result in plans.items()},
        }
        write_results(config.json, "capacity", config, results)


def line(name: str, result: Plan) -> str:
    """Return a plan as a line of the printed table: expected values, and the range of devices."""
    expected = result.expected
    return (
        f"{name:12s}  {result.devices_per_replica:11d}   {expected.rows_per_s:16,.0f}   "
        f"{expected.seconds:11.4g}   {expected.replicas:8,d}   {expected.devices:,d} "
        f"({result.best.devices:,d} to {result.worst.devices:,d})"
    )
