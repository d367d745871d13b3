"""Comparisons of the responses to one prompt, made into rankings: nothing lost, nothing invented.

Comparisons that determine one total preorder (an order with ties) become one ranking of all their responses. A preorder
is determined when its topological order is unique, which `graphlib` tells: there is never more than one group of tied
responses that could come next. What comparisons leave open stays open: each is then a ranking of its own, of its two
sides and what is tied with them.

A comparison on a cycle (a > b and b > a; a > b > c > a; a > b and a = b) contradicts others. It is never merged, for the
other side of the contradiction would be lost, and comes out as a ranking of two: how often each side was said is all
that such comparisons can teach.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

Order = tuple[tuple[str, ...], ...]
"""Groups of tied responses, the best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`better` is preferred to `worse`, a different response; or, `tied`, neither is."""

    better: str
    worse: str
    tied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The rankings that comparisons make; an order of one group is all ties. `num_contradictions` counts comparisons."""

    orders: tuple[Order, ...]
    num_contradictions: int


def merge(comparisons: Sequence[Comparison]) -> Merged:
    """The rankings that `comparisons`, all of one prompt, determine. In linear time; a comparison said twice counts once,
    unless it is contradicted."""
    edges = [(c.better, c.worse) for c in comparisons] + [
        (c.worse, c.better) for c in comparisons if c.tied
    ]
    knot = _strong_components(
        edges
    )  # of responses that are, by some way round, better than each other
    cut = {knot[c.better] for c in comparisons if not c.tied and knot[c.better] == knot[c.worse]}
    contradictions = [
        c for c in comparisons if knot[c.better] == knot[c.worse] and knot[c.better] in cut
    ]
    consistent = [
        c for c in comparisons if knot[c.better] != knot[c.worse] or knot[c.better] not in cut
    ]
    orders = [order for component in _connected(consistent) for order in _orders(component)]
    orders += [
        ((c.better, c.worse),) if c.tied else ((c.better,), (c.worse,)) for c in contradictions
    ]
    return Merged(orders=tuple(orders), num_contradictions=len(contradictions))


def _connected(comparisons: Sequence[Comparison]) -> Collection[list[Comparison]]:
    """The comparisons in groups that have no response in common."""
    component = _strong_components(
        edge for c in comparisons for edge in ((c.better, c.worse), (c.worse, c.better))
    )
    groups = defaultdict(list)
    for comparison in comparisons:
        groups[component[comparison.better]].append(comparison)
    return groups.values()


def _orders(comparisons: Sequence[Comparison]) -> list[Order]:
    """One order where connected comparisons without cycles determine it; else one of each two groups that are compared."""
    responses = [response for c in comparisons for response in (c.better, c.worse)]
    ties = [
        edge for c in comparisons if c.tied for edge in ((c.better, c.worse), (c.worse, c.better))
    ]
    name = _strong_components(
        ties + [(response, response) for response in responses]
    )  # a group is named for one of it
    group = defaultdict(list)
    for response in dict.fromkeys(responses):
        group[name[response]].append(response)
    betters: dict[str, dict[str, None]] = {
        label: {} for label in group
    }  # inner dicts are sets that keep their order
    for c in comparisons:
        if not c.tied:
            betters[name[c.worse]][name[c.better]] = None
    if (order := _unique_order(betters)) is not None:
        return [tuple(tuple(group[label]) for label in order)]
    return [
        (tuple(group[above]), tuple(group[label]))
        for label, all_above in betters.items()
        for above in all_above
    ]


def _unique_order(predecessors: Mapping[str, Iterable[str]]) -> list[str] | None:
    """The topological order where there is only one."""
    sorter = TopologicalSorter(predecessors)
    sorter.prepare()
    order: list[str] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        if len(ready) > 1:
            return None
        order += ready
        sorter.done(*ready)
    return order


def _strong_components(edges: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each node one that names its component: nodes on a common cycle have the same. Kosaraju's two passes, with
    stacks of our own, for a chain of comparisons may be longer than Python's."""
    successors: dict[str, list[str]] = defaultdict(list)
    predecessors: dict[str, list[str]] = defaultdict(list)
    nodes: dict[str, None] = {}
    for start, end in edges:
        nodes |= {start: None, end: None}
        successors[start].append(end)
        predecessors[end].append(start)
    finished: dict[str, None] = {}
    seen: set[str] = set()
    for root in nodes:
        stack = [(root, False)]
        while stack:
            node, is_done = stack.pop()
            if is_done:
                finished[node] = None
            elif node not in seen:
                seen.add(node)
                stack += [(node, True), *((successor, False) for successor in successors[node])]
    component: dict[str, str] = {}
    for root in reversed(finished):
        pending = [root] if root not in component else []
        while pending:
            node = pending.pop()
            if node not in component:
                component[node] = root
                pending += predecessors[node]
    return component
