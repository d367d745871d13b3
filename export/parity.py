"""Check that an artifact gives the checkpoint's rewards, on real text.

The checkpoint's rewards (`parity_cases.py`) are compared with those of the code that serves,
`ConversationEncoder` and `GraphSession`: of each conversation alone, of all of them in batches of
unlike lengths, and of some again after that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact.manifest import GraphContract
from kwise.engine.artifact.read import Artifact
from kwise.engine.model.layouts.table import LAYOUTS
from kwise.engine.model.session import GraphSession, Session
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.trie import sort_key
from kwise.errors import InvalidRequest
from kwise.export.parity_cases import ParityCase
from kwise.types import Group

_MAX_ROWS = 4096
# The number of short conversations that are scored again after the long ones.
_AGAIN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Differences between checkpoint and artifact, in units of the raw reward, over all members.

    Attributes:
        shortest_tokens: Length of the shortest conversation, in tokens; longest_tokens likewise.
        max_error: Largest difference, each conversation scored alone; mean_error likewise.
        max_batch_change: Largest change of a reward if conversations share a batch, or come after
            others.
        reward_std: Standard deviation of the checkpoint's rewards; with members, the smallest.
        tolerance: Largest difference that was allowed, see `allowed_difference`.
    """

    num_sequences: int
    shortest_tokens: int
    longest_tokens: int
    max_error: float
    mean_error: float
    max_batch_change: float
    reward_std: float
    tolerance: float


class ParityError(Exception):
    """The artifact does not give the checkpoint's rewards, so nothing is written."""


def allowed_difference(tolerance: float, rewards: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the largest difference from the checkpoint's reward, in units of the raw reward.

    It is `tolerance`, times the standard deviation of `rewards` if that is above 1, because
    rounding errors grow with the rewards, and because their spread decides how responses rank. The
    export, the golden check at the start of a server, and the tests all use this rule.

    Args:
        tolerance: The largest difference of rewards with a standard deviation of up to 1.
        rewards: [N], or [N, M] of M members, of which the smallest deviation counts.
    """
    return tolerance * max(1.0, _reward_std(rewards))


def _reward_std(rewards: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.std(rewards, axis=0).min())


def check_parity(
    cases: Sequence[ParityCase],
    encoder: ConversationEncoder,
    session: Session,
    *,
    layout: str,
    tolerance: float,
) -> ParityReport:
    """Compare the engine's rewards with the checkpoint's.

    Raises:
        ParityError: Token ids differ, or a reward differs by more than `allowed_difference` or is
            NaN.
    """
    sequences = [encoded(encoder, case) for case in cases]
    expected = np.array([case.reward for case in cases])
    single = np.array([session.run([sequence]).rewards[0] for sequence in sequences], np.float64)
    together = np.concatenate(
        [session.run(part).rewards for part in _batches(sequences, layout)]
    ).astype(np.float64)
    # Again, after the others: nothing may be left of them in the session.
    again = [int(index) for index in np.argsort([len(s.token_ids) for s in sequences])[:_AGAIN]]
    afterwards = np.array([session.run([sequences[i]]).rewards[0] for i in again], np.float64)
    differences = np.abs(single - expected)
    report = ParityReport(
        num_sequences=len(sequences),
        shortest_tokens=min(len(sequence.token_ids) for sequence in sequences),
        longest_tokens=max(len(sequence.token_ids) for sequence in sequences),
        max_error=float(differences.max()),
        mean_error=float(differences.mean()),
        max_batch_change=float(
            max(np.abs(together - single).max(), np.abs(afterwards - single[again]).max())
        ),
        reward_std=_reward_std(expected),
        tolerance=allowed_difference(tolerance, expected),
    )
    # Negated, so that NaN fails too.
    if not max(report.max_error, report.max_batch_change) <= report.tolerance:
        worst = int(differences.reshape(len(sequences), -1).max(axis=1).argmax())
        num_tokens = len(sequences[worst].token_ids)
        raise ParityError(
            f"rewards differ from the checkpoint's by up to {report.max_error:.2e} (at "
            f"{num_tokens} tokens) and change with the batch composition by up to "
            f"{report.max_batch_change:.2e}; {report.tolerance:.1e} is allowed at their standard "
            f"deviation of {report.reward_std:.2g} (--tolerance)"
        )
    return report


def check_cuda_graph(
    artifact: Artifact,
    contract: GraphContract,
    sequences: Sequence[EncodedSequence],
    expected: NDArray[np.float32],
    tolerance: float,
) -> None:
    """Check on this CPU that the graph for CUDA gives the rewards of the fp32 graph for CPUs.

    Args:
        artifact: The artifact, with the fp32 graph for CPUs.
        contract: The contract of the fp32 graph for CUDA.
        sequences: What to score, in one batch.
        expected: The rewards that the graph for CPUs gives.
        tolerance: The largest difference that is allowed.

    Raises:
        ParityError: A reward differs by more, or is NaN.
    """
    session = GraphSession(artifact.with_graph(Precision.FP32, contract))
    rewards = session.run(sequences).rewards
    difference = float(np.abs(rewards - expected).max())
    if not difference <= tolerance:  # negated, so that NaN fails too
        raise ParityError(
            f"the graph for CUDA gives rewards that differ by {difference:.2e} from those of the "
            f"graph for CPUs; {tolerance:.1e} is allowed"
        )


def encoded(encoder: ConversationEncoder, case: ParityCase) -> EncodedSequence:
    """Encode the case as the engine does.

    Raises:
        ParityError: The engine refuses the conversation, or its token ids are not transformers'.
    """
    group: Any = Group(prompt=case.prompt, responses=(case.response,))  # type: ignore[arg-type]
    (outcome,) = encoder.encode(group)
    if isinstance(outcome, InvalidRequest):
        raise ParityError(f"the engine refuses a conversation that the checkpoint takes: {outcome}")
    token_ids, expected = outcome.token_ids, case.token_ids
    if outcome.num_tokens != len(expected) or (token_ids != expected[: len(token_ids)]).any():
        raise ParityError("the engine and transformers tokenise a conversation differently")
    return outcome


def _batches(sequences: Sequence[EncodedSequence], layout: str) -> list[list[EncodedSequence]]:
    """Split the sequences, in order, into batches of up to `_MAX_ROWS` rows.

    One batch of all, padded to the longest, would need gigabytes.
    """
    batches: list[list[EncodedSequence]] = []
    batch = LAYOUTS[layout].new_batch(())
    for sequence in sequences:
        key = sort_key(sequence.token_ids)
        if not batches or batch.rows_with(key) > _MAX_ROWS:
            batches.append([])
            batch = LAYOUTS[layout].new_batch(())
        batch.add(key)
        batches[-1].append(sequence)
    return batches
