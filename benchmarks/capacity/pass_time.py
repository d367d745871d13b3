"""The seconds of one pass of the model, as a linear function of its rows and its pairs.

    seconds = fixed_s + per_row_s · rows + per_pair_s · pairs

A row is a token that is computed: the matmuls do the same work for each. A pair is a computed token
and one that it attends to: attention does the same work for each. The fixed part is what a pass
costs whatever its size. Measured passes of different sizes determine the three figures.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from kwise.benchmarks.capacity.hardware import DEFAULT_PASS
from kwise.benchmarks.capacity.machines import group_size
from kwise.benchmarks.options import Cell
from kwise.engine.model.packing import NOT_PAST
from kwise.engine.model.prefix_reuse import Reuse


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSize:
    """The work of one pass: computed rows, and pairs of a computed row and one it attends to."""

    rows: int
    pairs: int

    @classmethod
    def of(cls, reuse: Reuse) -> "PassSize":
        """Return the size of a planned pass. Rows from the prompt cache are not computed."""
        computed = reuse.past == NOT_PAST
        depths = reuse.trie.depths[computed]
        return cls(rows=int(computed.sum()), pairs=int((depths + 1).sum()))

    @classmethod
    def of_group(cls, cell: Cell) -> "PassSize":
        """Return the size of a pass over one whole group, with nothing from the prompt cache."""
        rows, pairs = group_size(cell)
        return cls(rows=rows, pairs=pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPass:
    """A pass that was timed."""

    size: PassSize
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTime:
    """The seconds of a pass, by its size."""

    fixed_s: float
    per_row_s: float
    per_pair_s: float = 0.0

    def seconds(self, size: PassSize) -> float:
        """Return the seconds of a pass."""
        return self.fixed_s + self.per_row_s * size.rows + self.per_pair_s * size.pairs

    def scaled(self, factor: float) -> "PassTime":
        """Return the times of a machine that takes `factor` times as long."""
        return PassTime(**{name: factor * value for name, value in asdict(self).items()})


def default_pass_time() -> PassTime:
    """Return the pass time of SmolLM2-135M in fp32 on two cores; see `DEFAULT_PASS`."""
    return PassTime(
        fixed_s=DEFAULT_PASS.fixed_ms / 1e3,
        per_row_s=DEFAULT_PASS.row_ms / 1e3,
        per_pair_s=DEFAULT_PASS.pair_ns / 1e9,
    )


def fit_pass_time(passes: Sequence[MeasuredPass]) -> PassTime:
    """Return the pass time that fits best, by least squares of the relative errors.

    Relative errors, because the errors of a measurement grow with its seconds. No figure is
    negative: one that would be is left out of the fit, and is 0.

    Raises:
        ValueError: there are fewer than three passes.
    """
    if len(passes) < 3:
        raise ValueError(f"{len(passes)} passes do not determine the three figures of a pass time")
    seconds = np.array([measured.seconds for measured in passes])
    terms = np.array([[1.0, measured.size.rows, measured.size.pairs] for measured in passes])
    relative, used = terms / seconds[:, None], [0, 1, 2]
    figures = np.zeros(3)
    while used:
        scale = relative[:, used].max(axis=0)  # the terms differ by a factor of a million
        solution = np.linalg.lstsq(relative[:, used] / scale, np.ones(len(passes)))[0] / scale
        if (solution >= 0).all():
            figures[used] = solution
            break
        del used[int(solution.argmin())]
    fixed_s, per_row_s, per_pair_s = figures.tolist()
    return PassTime(fixed_s=fixed_s, per_row_s=per_row_s, per_pair_s=per_pair_s)


def relative_errors(pass_time: PassTime, passes: Sequence[MeasuredPass]) -> list[float]:
    """Return (modelled − measured) / measured seconds of each pass."""
    return [pass_time.seconds(p.size) / p.seconds - 1 for p in passes]
