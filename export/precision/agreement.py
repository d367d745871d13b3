"""Measure how far a precision's rewards are from those in fp32, and whether it ranks as fp32 does.

It is measured on groups of real text. Errors are in units of the standard deviation of the fp32
rewards over all responses. Agreement counts pairs of responses to one prompt, because these are
compared. If two fp32 rewards are closer than a twentieth of that deviation, which of them is higher
says little, so the other pairs, those with a clear margin, are also counted apart.

Of a model with members, pairs are ordered by the mean of the members' raw rewards, and errors are
those of each member.

Dimensions: K responses in a group, M members.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact.manifest import ErrorBounds
from kwise.engine.model.session import Session
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence

# In standard deviations of the fp32 rewards: the smallest clear margin, and the largest change of a
# reward with the batch composition.
_CLEAR_MARGIN = 0.05
_MAX_BATCH_CHANGE = 0.01
# The share of clear pairs that a precision must order as fp32 does.
_MIN_AGREEMENT = {Precision.FP16: 0.995, Precision.BF16: 0.995, Precision.INT8: 0.98}
MAX_GROUPS = 16  # that measure, and as many that choose the rounding
# On OpenVINO, which also rounds scores before their softmax, bf16's mean error was 1.8 times the
# emulation's, the largest 1.5 times.
_BEYOND_EMULATION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A precision compared with fp32; written to the manifest for people.

    Attributes:
        measured_with: The runtime that computed the rewards.
        reward_std: Standard deviation of the fp32 rewards, in raw units; of the members' mean, if
            the model has members.
        max_error: Largest difference from fp32, each response scored in its group, in units of
            reward_std, over all members; mean_error likewise.
        max_batch_change: Largest difference between a response scored alone and in its group, in
            units of reward_std.
        agreement: Share of pairs that are ordered as in fp32.
        clear_agreement: The same of the `clear_pairs`, whose margin in fp32 is at least 5 % of
            reward_std.
        kendall_tau: Kendall's tau-b, mean over the groups whose fp32 rewards are not all equal.
    """

    measured_with: str
    num_groups: int
    num_responses: int
    reward_std: float
    max_error: float
    mean_error: float
    max_batch_change: float
    agreement: float
    clear_agreement: float
    clear_pairs: int
    kendall_tau: float


Groups = Sequence[Sequence[EncodedSequence]]
Rewards = NDArray[np.float64]
T = TypeVar("T")


def split(groups: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Split groups into those that measure a precision and those that choose its rounding.

    Each part has at most 16. A single group is in both.
    """
    num_measured = min(-(-len(groups) // 2), MAX_GROUPS)
    return groups[:num_measured], groups[num_measured:][:MAX_GROUPS] or groups


def rewards_of(session: Session, groups: Groups) -> list[Rewards]:
    """Return the raw rewards of each group, scored in a batch of its own: [K], or [K, M]."""
    return [session.run(group).rewards.astype(np.float64) for group in groups]


def measure(session: Session, groups: Groups, expected: Sequence[Rewards]) -> Agreement:
    """Compare the rewards of `session` with `expected`, the fp32 rewards of the same groups."""
    from scipy.stats import kendalltau  # imports for 0.7 s

    measured = rewards_of(session, groups)
    means = [_member_mean(rewards) for rewards in expected]
    std = float(np.concatenate(means).std()) or 1.0  # if all are equal, no pair is clear
    errors = np.abs(np.concatenate(measured) - np.concatenate(expected)) / std
    changes = [
        np.abs(session.run([group[end]]).rewards[0].astype(np.float64) - rewards[end]).max()
        for group, rewards in zip(groups, measured, strict=True)
        for end in (0, -1)
    ]
    same_order: list[bool] = []
    clear: list[bool] = []
    taus: list[float] = []
    for fp32, rewards in zip(means, map(_member_mean, measured), strict=True):
        i, j = np.triu_indices(len(fp32), 1)
        margins = fp32[i] - fp32[j]
        signs = np.sign(margins) * np.sign(rewards[i] - rewards[j])
        same_order.extend(signs[margins != 0] > 0)
        clear.extend(signs[(margins != 0) & (np.abs(margins) >= _CLEAR_MARGIN * std)] > 0)
        if margins.any():  # tau-b is undefined for equal rewards; in the precision, they count 0
            taus.append(float(np.nan_to_num(kendalltau(fp32, rewards).statistic)))
    return Agreement(
        measured_with=session.runtime,
        num_groups=len(groups),
        num_responses=len(errors),
        reward_std=std,
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        max_batch_change=float(np.max(changes)) / std,
        agreement=float(np.mean(same_order)) if same_order else 0.0,
        clear_agreement=float(np.mean(clear)) if clear else 0.0,
        clear_pairs=len(clear),
        kendall_tau=float(np.mean(taus)) if taus else 0.0,
    )


def _member_mean(rewards: Rewards) -> Rewards:
    """[K] → [K]; the rewards of members, [K, M] → their mean, [K]."""
    return rewards if rewards.ndim == 1 else rewards.mean(axis=1)


def shortcomings(precision: Precision, agreement: Agreement, min_agreement: float) -> str:
    """Return why a precision is not good enough to be written, or "" if it is.

    Args:
        min_agreement: The share of clear pairs to be ordered as in fp32; 0 for the default.
    """
    required = min_agreement or _MIN_AGREEMENT[precision]
    if not agreement.clear_pairs:
        return (
            f"{precision.value} cannot be measured: no two responses to a prompt have fp32 rewards "
            f"that differ by {_CLEAR_MARGIN:.0%} of the rewards' standard deviation"
        )
    if not isfinite(agreement.max_error):
        return f"{precision.value}: a reward is not a finite number"
    if not agreement.clear_agreement >= required:
        return (
            f"{precision.value} orders {agreement.clear_agreement:.2%} of {agreement.clear_pairs} "
            f"pairs with clear margins as fp32 does; at least {required:.2%} are required "
            f"(--min-agreement). Its rewards differ from fp32 by {agreement.mean_error:.1%} of "
            f"their standard deviation on average, {agreement.max_error:.1%} at most"
        )
    if not agreement.max_batch_change <= _MAX_BATCH_CHANGE:
        return (
            f"{precision.value}: a reward changes with the batch composition by "
            f"{agreement.max_batch_change:.2%} of the rewards' standard deviation; at most "
            f"{_MAX_BATCH_CHANGE:.0%} is allowed"
        )
    return ""


def error_bounds(
    agreement: Agreement,
    *,
    golden_error: float,
    order_change: float,
    emulated: bool,
    details: dict[str, Any],
) -> ErrorBounds:
    """Return the error bounds of a precision for the manifest.

    Args:
        golden_error: The largest error on the golden conversations, in raw units.
        order_change: The largest change of a reward with the order of summation, in raw units.
        emulated: Whether errors were measured on an emulation, which a runtime may exceed.
        details: How the graph was made, for the report.
    """
    max_batch_change = _MAX_BATCH_CHANGE * agreement.reward_std
    max_error = max(agreement.max_error * agreement.reward_std, golden_error)
    if emulated:
        max_error *= _BEYOND_EMULATION
    return ErrorBounds(
        max_error=max_error + max_batch_change,
        max_batch_change=max_batch_change,
        # Each of two batches may have an order of its own.
        max_order_change=_BEYOND_EMULATION * order_change,
        report=asdict(agreement) | details,
    )
