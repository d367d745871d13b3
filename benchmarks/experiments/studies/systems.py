"""Measure how much of a reward is knowledge of the system that wrote the response.

All prompts have responses of the same systems, so a reward may order their styles. Three measures:
the rule that gives each response the mean rank of its system in the training part; a classifier
that names the system of a response from its features; and a head that has seen no response of one
system, evaluated on the pairs with that system, beside one that has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kwise.benchmarks.experiments.head import Labelled
from kwise.benchmarks.experiments.inputs import Inputs, ranks_of
from kwise.benchmarks.experiments.scoring import counts_of, is_pair, right_pairs
from kwise.train.options.objectives import ObjectiveConfig

ALL = "all"
_PENALTY = 0.03  # of the classifier, relative to the number of responses


class Kind(Enum):
    """The kind of measure."""

    RULE = "system's mean rank"
    NAMED = "system named"
    SEEN = "system seen"
    UNSEEN = "system unseen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measure; `system` is the number of the system that is left out, or "all"."""

    model: str
    kind: str
    system: str
    seed: int


def cells(inputs: Inputs, num_seeds: int) -> Sequence[Cell]:
    """Return all cells, none if the data does not name the systems."""
    systems = inputs.responses.systems
    if systems is None:
        return []
    names = [str(system) for system in systems.unique().tolist()]
    pairs = [(kind, ALL) for kind in (Kind.RULE, Kind.NAMED)]
    pairs += [(kind, name) for name in names for kind in (Kind.SEEN, Kind.UNSEEN)]
    return [
        Cell(model=inputs.main_model, kind=kind.value, system=system, seed=seed)
        for seed in range(num_seeds)
        for kind, system in pairs
    ]


def measure(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    """Return the counts of one rule or head, or the share of responses whose system is named."""
    where, systems = inputs.split(cell.seed), inputs.responses.systems
    assert systems is not None, "there are no cells then"
    match Kind(cell.kind):
        case Kind.RULE:
            rewards = -_mean_ranks(inputs.responses.ranks[where.training], systems[where.training])
            counts = counts_of(rewards[systems[where.test]], inputs.responses, where.test)
            return {"right": counts.right, "right_near": counts.right_near}
        case Kind.NAMED:
            return {"named": _share_named(inputs, systems, cell)}
        case kind:
            return _with_one_system(inputs, systems, cell, leaves_out=kind is Kind.UNSEEN)


def _mean_ranks(ranks: Tensor, systems: Tensor) -> Tensor:
    number = int(systems.max()) + 1
    sums = torch.zeros(number).index_add(0, systems.flatten(), ranks.flatten().float())
    return sums / systems.flatten().bincount(minlength=number).clamp(min=1)


def _share_named(inputs: Inputs, systems: Tensor, cell: Cell) -> float:
    """Return the share of test responses that ridge regression on one-hot labels names rightly."""
    where, states = inputs.split(cell.seed), inputs.states(cell.model)
    learned = states[where.training].flatten(0, 1).double()
    mean, scale = learned.mean(0), learned.std(0).clamp(min=1e-6)
    inputs_ND = (learned - mean) / scale
    targets = F.one_hot(systems[where.training].flatten()).double()
    gram = inputs_ND.T @ inputs_ND + _PENALTY * len(inputs_ND) * torch.eye(inputs_ND.shape[1])
    weights = torch.linalg.solve(gram, inputs_ND.T @ (targets - targets.mean(0)))
    tested = (states[where.test].flatten(0, 1).double() - mean) / scale
    named = (tested @ weights + targets.mean(0)).argmax(1)
    return float((named == systems[where.test].flatten()).double().mean())


def _with_one_system(
    inputs: Inputs, systems: Tensor, cell: Cell, *, leaves_out: bool
) -> dict[str, Any]:
    """Return the counts on the pairs with the cell's system, of a head that has seen it or not.

    The other head has not seen the next system instead, so that both learn from as many responses.
    """
    where, states, ranks = (
        inputs.split(cell.seed),
        inputs.states(cell.model),
        inputs.responses.ranks,
    )
    system = int(cell.system)
    absent = system if leaves_out else (system + 1) % (int(systems.max()) + 1)
    prompts = where.training
    is_in = systems[prompts] != absent
    # A system that wrote several responses to a prompt leaves fewer; such prompts are not used.
    prompts = prompts[is_in.sum(1) == systems.shape[1] - 1]
    columns = (systems[prompts] != absent).nonzero()[:, 1].view(len(prompts), -1)
    rows = prompts[:, None]
    group = Labelled(
        states=states[rows, columns],
        ranks=ranks_of(-ranks[rows, columns]),
        scores=inputs.responses.quality[rows, columns],
    )
    head = inputs.head([group], ObjectiveConfig())
    rewards, test = head.rewards(states[where.test]), where.test
    return {**_pairs_with(rewards, inputs, systems[test] == system, test), "penalty": head.penalty}


def _pairs_with(rewards: Tensor, inputs: Inputs, is_system: Tensor, test: Tensor) -> dict[str, Any]:
    """Return the right pairs of the marked responses with the others, and their number."""
    pairs = is_pair(inputs.responses.ranks[test])
    counted = pairs & (is_system[:, :, None] ^ is_system[:, None])
    return {
        "right": right_pairs(rewards, counted).sum((1, 2)).tolist(),
        "pairs": counted.sum((1, 2)).tolist(),
    }
