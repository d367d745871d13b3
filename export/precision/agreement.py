"""How far are a precision's rewards from those in fp32, and does it rank as fp32 does? Measured on groups of real text.

Errors are in units of the standard deviation of the fp32 rewards over all responses. Agreement counts the pairs of responses to one
prompt, for these are compared; where two rewards lie closer than a twentieth of that deviation, which of them is higher says
little, so the other pairs, the clear ones, are counted apart.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact import ErrorBounds
from kwise.engine.model.session import Session
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.errors import ConfigError, InvalidRequest
from kwise.export.parity import shipped_conversations
from kwise.train.rankings.read import read_rankings
from kwise.types import Conversation, Group, Message

_CLEAR = 0.05
_MAX_BATCH_CHANGE = 0.01
# What a precision must reach to be written: of clear pairs, the share that it orders as fp32 does.
_LEAST_AGREEMENT = {Precision.FP16: 0.995, Precision.BF16: 0.995, Precision.INT8: 0.98}
_MOST_GROUPS = 16
# On OpenVINO, which rounds scores before their softmax too, bf16's mean error was 1.8 times the emulation's, the largest 1.5 times.
_BEYOND_EMULATION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A precision beside fp32; in the manifest, for people.

    measured_with: the runtime that computed it. reward_std: of the fp32 rewards, in raw units. max_error, mean_error:
    differences from fp32, each response scored in its group, in units of reward_std. max_batch_change: between a
    response scored alone and in its group, likewise. agreement, clear_agreement: share of pairs ordered as in fp32, of all
    and of those `clear_pairs` whose margin in fp32 is at least 5 % of reward_std. kendall_tau: mean over groups.
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
Texts = tuple[Conversation, tuple[str, ...]]
T = TypeVar("T")


def read_texts(rankings: str, most: int = 2 * _MOST_GROUPS) -> list[Texts]:
    """Prompts with their responses: the first `most` of a file of rankings (JSON Lines, .gz or not); without a file, all
    shipped ones, each with seven responses: its own, two parts of it, and those of four other prompts.

    Raises:
        RankingsError, OSError: it is no such file.
    """
    if not rankings:
        return _shipped()
    return [
        (ranking.prompt, ranking.responses)
        for ranking in read_rankings(rankings, allow_tied=True)[:most]
    ]


def split(groups: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """(one half, at most 16, to measure on; as many of the others to choose by how weights are rounded). A single one is both."""
    measured = min(-(-len(groups) // 2), _MOST_GROUPS)
    return groups[:measured], groups[measured:][:_MOST_GROUPS] or groups


def encode_groups(
    encoder: ConversationEncoder, texts: Sequence[Texts]
) -> list[list[EncodedSequence]]:
    """The groups of at least two responses that the model can read.

    Raises:
        ConfigError: there is none.
    """
    groups = []
    for prompt, responses in texts:
        outcomes = encoder.encode(Group(prompt=prompt, responses=responses))
        group = [outcome for outcome in outcomes if not isinstance(outcome, InvalidRequest)]
        if len(group) > 1:
            groups.append(group)
    if not groups:
        raise ConfigError(
            "--rankings, --max-tokens: no prompt has two responses that fit, to measure precisions on"
        )
    return groups


def rewards_of(session: Session, groups: Groups) -> list[Rewards]:
    """Each group in a batch of its own: raw rewards, one array a group."""
    return [session.run(group).rewards.astype(np.float64) for group in groups]


def measure(session: Session, groups: Groups, expected: Sequence[Rewards]) -> Agreement:
    """Compare `session` with the fp32 rewards of the same groups."""
    found = rewards_of(session, groups)
    std = float(np.concatenate(expected).std()) or 1.0  # where all are alike no pair is clear
    errors = np.abs(np.concatenate(found) - np.concatenate(expected)) / std
    changes = [
        abs(float(session.run([group[end]]).rewards[0]) - rewards[end])
        for group, rewards in zip(groups, found, strict=True)
        for end in (0, -1)
    ]
    same: list[bool] = []
    clear: list[bool] = []
    taus: list[float] = []
    for wanted, got in zip(expected, found, strict=True):
        i, j = np.triu_indices(len(wanted), 1)
        margins = wanted[i] - wanted[j]
        signs = np.sign(margins) * np.sign(got[i] - got[j])
        taus.append(float(signs.mean()))
        same.extend(signs[margins != 0] > 0)
        clear.extend(signs[(margins != 0) & (np.abs(margins) >= _CLEAR * std)] > 0)
    return Agreement(
        measured_with=session.runtime,
        num_groups=len(groups),
        num_responses=len(errors),
        reward_std=std,
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        max_batch_change=float(np.max(changes)) / std,
        agreement=float(np.mean(same)) if same else 0.0,
        clear_agreement=float(np.mean(clear)) if clear else 0.0,
        clear_pairs=len(clear),
        kendall_tau=float(np.mean(taus)),
    )


def shortcomings(precision: Precision, found: Agreement, min_agreement: float) -> str:
    """Why a precision is not good enough to be written; "" where it is. min_agreement: of clear pairs; 0 for the default."""
    required = min_agreement or _LEAST_AGREEMENT[precision]
    if not found.clear_pairs:
        return f"{precision.value}: no two rewards of a prompt have a clear margin in fp32, so there is nothing to measure it by"
    if not isfinite(found.max_error):
        return f"{precision.value}: a reward is not a finite number"
    if not found.clear_agreement >= required:
        return (
            f"{precision.value} orders {found.clear_agreement:.2%} of {found.clear_pairs} clear pairs as fp32 does, and "
            f"{required:.2%} is required (--min-agreement); its rewards differ from fp32 by {found.mean_error:.1%} of their "
            f"standard deviation, {found.max_error:.1%} at most"
        )
    if not found.max_batch_change <= _MAX_BATCH_CHANGE:
        return (
            f"{precision.value}: a reward changes with its batch by {found.max_batch_change:.2%} of the rewards' "
            f"standard deviation; {_MAX_BATCH_CHANGE:.0%} is allowed"
        )
    return ""


def error_bounds(
    found: Agreement, golden_error: float, *, emulated: bool, details: dict[str, Any]
) -> ErrorBounds:
    """What the manifest says of a precision. golden_error: the largest on the golden conversations, in raw units. emulated:
    errors are those of an emulation; a runtime may have so much more. details: of how it was made, for the report."""
    change = _MAX_BATCH_CHANGE * found.reward_std
    largest = max(found.max_error * found.reward_std, golden_error) * (
        _BEYOND_EMULATION if emulated else 1
    )
    return ErrorBounds(
        max_error=largest + change, max_batch_change=change, report=asdict(found) | details
    )


def _shipped() -> list[Texts]:
    """Those of one half, see `split`, take no response of the other's."""
    pairs = shipped_conversations()
    half = -(-len(pairs) // 2)
    return _with_others(pairs[:half]) + _with_others(pairs[half:])


def _with_others(pairs: Sequence[tuple[str, str]]) -> list[Texts]:
    groups: list[Texts] = []
    for number, (prompt, response) in enumerate(pairs):
        words = response.split(" ")
        half = len(words) // 2
        parts = (" ".join(words[: half + 1]), " ".join(words[half:]))
        others = [pairs[(number + step) % len(pairs)][1] for step in (1, 2, 3, 4)]
        responses = dict.fromkeys((response, *parts, *others))
        groups.append(((Message(role="user", content=prompt),), tuple(responses)))
    return groups
