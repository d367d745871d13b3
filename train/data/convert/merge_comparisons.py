"""Merging of comparisons of the responses to one prompt into rankings.

Comparisons that determine one total preorder (an order with ties) become one ranking of all their
responses. They do so if the topological order is unique: at each step only one group of tied
responses can come next, which `graphlib` shows. Otherwise the order is not completed by guessing:
each comparison becomes a ranking of its two sides and the responses tied with them.

A comparison on a cycle (a > b and b > a; a > b > c > a; a > b and a = b) contradicts others. It
becomes a ranking of two and is never merged, because merging would lose the other side of the
contradiction. How often each side was chosen is all that such comparisons can teach.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

Order = tuple[tuple[str, ...], ...]
"""Groups of tied responses, best group first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`better` is preferred to `worse`, a different response; if `tied`, neither is better."""

    better: str
    worse: str
    tied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedComparisons:
    """The rankings that comparisons make. `num_contradictions` counts comparisons."""

    orders: tuple[Order, ...]
    num_contradictions: int


def merge_comparisons(comparisons: Sequence[Comparison]) -> MergedComparisons:
    """Return the rankings that `comparisons`, all of one prompt, determine. Takes linear time.

    A repeated comparison counts once, unless it is contradicted.
    """
    edges = [(c.better, c.worse) for c in comparisons]
    edges += [(c.worse, c.better) for c in comparisons if c.tied]
    # Responses in one component are, directly or indirectly, better than each other or tied.
    component = _strong_components(edges)
    contradictory_components = {
        component[c.better]
        for c in comparisons
        if not c.tied and component[c.better] == component[c.worse]
    }
    contradictions: list[Comparison] = []
    consistent: list[Comparison] = []
    for c in comparisons:
        is_contradiction = (
            component[c.better] == component[c.worse]
            and component[c.better] in contradictory_components
        )
        (contradictions if is_contradiction else consistent).append(c)
    orders = [order for connected in _connected(consistent) for order in _orders(connected)]
    orders += [
        ((c.better, c.worse),) if c.tied else ((c.better,), (c.worse,)) for c in contradictions
    ]
    return MergedComparisons(orders=tuple(orders), num_contradictions=len(contradictions))


def _connected(comparisons: Sequence[Comparison]) -> Collection[list[Comparison]]:
    """Return the comparisons in groups that have no response in common."""
    component = _strong_components(
        edge for c in comparisons for edge in ((c.better, c.worse), (c.worse, c.better))
    )
    groups = defaultdict(list)
    for comparison in comparisons:
        groups[component[comparison.better]].append(comparison)
    return groups.values()


def _orders(comparisons: Sequence[Comparison]) -> list[Order]:
    """Return the one order that connected comparisons without cycles determine.

    If they do not determine one, return an order for each two tied groups that are compared.
    """
    responses = [response for c in comparisons for response in (c.better, c.worse)]
    ties = [
        edge for c in comparisons if c.tied for edge in ((c.better, c.worse), (c.worse, c.better))
    ]
    # A tied group is named after one of its responses.
    group_name = _strong_components(ties + [(response, response) for response in responses])
    group = defaultdict(list)
    for response in dict.fromkeys(responses):
        group[group_name[response]].append(response)
    # The inner dicts serve as sets that keep their order.
    better_groups: dict[str, dict[str, None]] = {name: {} for name in group}
    for c in comparisons:
        if not c.tied:
            better_groups[group_name[c.worse]][group_name[c.better]] = None
    if (order := _unique_order(better_groups)) is not None:
        return [tuple(tuple(group[name]) for name in order)]
    return [
        (tuple(group[better]), tuple(group[name]))
        for name, all_better in better_groups.items()
        for better in all_better
    ]


def _unique_order(predecessors: Mapping[str, Iterable[str]]) -> list[str] | None:
    """Return the topological order if there is only one, else None."""
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
    """Return for each node the name of its strongly connected component, one of its nodes.

    This is Kosaraju's algorithm with explicit stacks, because a chain of comparisons may be
    longer than Python's recursion limit.
    """
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
