"""The batches of a window: which sequences run together, decided before the first one runs.

The server's policy decides at each batch anew, by what waits at that moment. Here all sequences are
known. So groups keep their prompt in one batch where they fit, and neighbours share the longest
prefixes. The plan depends on the sequences alone, and so do the bits of the rewards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kwise.engine.model.batch_builder import NewBatchBuilder, TrieBatchBuilder
from kwise.engine.trie import common_prefix, key_length

# How many groups a batch considers beyond the first one. Prefixes are sorted, so a distant group
# shares nothing.
_LOOK_AHEAD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """Sequences of one group that run in one batch: their indices and sort keys, sorted by key."""

    indices: list[int]
    keys: list[bytes]
    rows: int


def trie_batches(
    groups: Sequence[Sequence[int]], keys: Sequence[bytes], max_rows: int
) -> list[list[int]]:
    """Return batches of indices for the trie layout.

    A group that fits into a batch is not divided. One that does not is divided, as the server's
    policy does it, into batches of its own that may have up to twice the rows of a sequence.

    Args:
        groups: the indices of the sequences of each group.
        keys: the sort key of each sequence; see `kwise.engine.trie.sort_key`.
        max_rows: the largest number of rows of a batch.
    """
    units = [unit for group in groups for unit in _units(group, keys, max_rows)]
    waiting = sorted(units, key=lambda unit: unit.keys[0])
    batches = []
    while waiting:
        first = waiting.pop(0)
        batch, rows, last, passed = list(first.indices), first.rows, first.keys[-1], []
        for unit in waiting[:_LOOK_AHEAD]:
            added = unit.rows - common_prefix(last, unit.keys[0])
            if rows + added <= max_rows:
                batch += unit.indices
                rows, last = rows + added, unit.keys[-1]
            else:
                passed.append(unit)
        waiting[:_LOOK_AHEAD] = passed
        batches.append(batch)
    return batches


def _units(group: Sequence[int], keys: Sequence[bytes], max_rows: int) -> list[_Unit]:
    """Divide a group into parts that fit into a batch; one part if the whole group does."""
    units = []
    builder, indices = TrieBatchBuilder(), list[int]()
    for index in sorted(group, key=keys.__getitem__):
        if indices and not builder.fits(keys[index], max_rows):
            units.append(_unit(indices, keys, builder.rows))
            builder, indices = TrieBatchBuilder(), []
        builder.add(keys[index])
        indices.append(index)
    if indices:
        units.append(_unit(indices, keys, builder.rows))
    return units


def _unit(indices: list[int], keys: Sequence[bytes], rows: int) -> _Unit:
    return _Unit(indices=indices, keys=[keys[index] for index in indices], rows=rows)


def batches_by_length(
    keys: Sequence[bytes], new_batch: NewBatchBuilder, max_rows: int
) -> list[list[int]]:
    """Return batches of indices for layouts that share no prefixes, the longest sequences first."""
    batches: list[list[int]] = []
    builder, batch = new_batch(()), list[int]()
    for index in sorted(
        range(len(keys)), key=lambda index: (-key_length(keys[index]), keys[index])
    ):
        if batch and not builder.fits(keys[index], max_rows):
            batches.append(batch)
            builder, batch = new_batch(()), []
        builder.add(keys[index])
        batch.append(index)
    return [*batches, batch] if batch else batches


Plan = Callable[[Sequence[Sequence[int]], Sequence[bytes]], list[list[int]]]


def plan_of(layout: str, new_batch: NewBatchBuilder, max_rows: int) -> Plan:
    """Return the function that plans the batches of a window for a layout."""
    if layout == "trie":
        return lambda groups, keys: trie_batches(groups, keys, max_rows)
    return lambda groups, keys: batches_by_length(keys, new_batch, max_rows)
