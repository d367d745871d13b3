"""Rewards on the device: their difference from fp32 on the CPU, and their change with the batch."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwise.benchmarks.gpu.figures import Tell, attempt
from kwise.benchmarks.gpu.subjects import Subject
from kwise.benchmarks.options import Cell
from kwise.engine.config import EngineConfig
from kwise.engine.load import golden_sequences, new_encoder
from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.model.runtime.cuda import CUDA_ENVIRONMENT
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence

Rewards = NDArray[np.float32]
# The prompts and responses that fill the largest batch beside the conversations.
_CROWD = Cell(P=256, R=128, K=3)
_NUM_CROWDS = 8
# Of the same batch, after a first one: three until it is captured as a CUDA graph, and a replay.
_NUM_UNTIL_REPLAY = 4
_ALLOWED_CHANGE = 0.01


def agree(subjects: Iterable[Subject], device: str, tell: Tell) -> None:
    """Compare each precision's rewards with fp32 on the CPU, and with the golden rewards."""
    for subject in subjects:
        groups, reference = subject.groups(), None
        if Precision.FP32 in subject.artifact.manifest.available_precisions:
            cpu = subject.session(Precision.FP32, Runtime.ONNXRUNTIME, "cpu")
            reference = _run_groups(cpu, groups)
            del cpu
        for precision, runtime in subject.precisions(device):
            with attempt(subject, precision, tell):
                session = subject.session(precision, runtime, device)
                parity: dict[str, Any] = {}
                if reference is not None:
                    parity["fp32 on the CPU"] = parity_of(_run_groups(session, groups), reference)
                if not subject.is_random:
                    parity["the golden rewards"] = _golden_parity(subject, session)
                for name, figures in parity.items():
                    tell(
                        f"{subject.name} {precision.value}: {parity_line(name, figures)}",
                        subject=subject.name,
                        precision=precision.value,
                        runtime=session.runtime,
                        reference=name,
                        **figures,
                    )


def change(subjects: Iterable[Subject], device: str, tell: Tell, *, keep_environment: bool) -> None:
    """Measure how much rewards change between batches: alone, together, and in a large batch.

    Args:
        keep_environment: use CUDA's libraries as they come, without the variables that kwise sets.
            The libraries read them when they load, so this needs a process of its own.
    """
    if keep_environment:
        for name in CUDA_ENVIRONMENT:
            os.environ.pop(name, None)
        CUDA_ENVIRONMENT.clear()
    # A CPU captures nothing. Its passes are repeated as often, so that the figures are the same.
    cpu = parse_devices(device)[0].kind is Kind.CPU
    replayed_as = "four passes later" if cpu else "replayed as a CUDA graph"
    for subject in subjects:
        sequences = subject.unlike()
        crowd = [s for n in range(_NUM_CROWDS) for s in _CROWD.group(subject.vocab_size, n)]
        for precision, runtime in subject.precisions(device):
            with attempt(subject, precision, tell):
                session = subject.session(precision, runtime, device)
                alone = np.concatenate([session.run([s]).rewards for s in sequences])
                again = np.concatenate([session.run([s]).rewards for s in sequences])
                together = session.run(sequences).rewards
                replayed = [session.run(sequences).rewards for _ in range(_NUM_UNTIL_REPLAY)][-1]
                crowded = session.run([*sequences, *crowd]).rewards[: len(sequences)]
                std = float(together.std()) or 1.0
                figures = {
                    "repeated": float(np.abs(again - alone).max()) / std,
                    "replayed": float(np.abs(replayed - together).max()) / std,
                    "alone_to_together": float(np.abs(together - alone).max()) / std,
                    "alone_to_crowd": float(np.abs(crowded - alone).max()) / std,
                    "allowed": _allowed(subject, precision, std),
                }
                environment = {name: os.environ.get(name) for name in _VARIABLES}
                tell(
                    f"{subject.name} {precision.value}, {_shown(environment)}: a reward alone "
                    f"changes by {figures['alone_to_together']:.1e} among {len(sequences)} and by "
                    f"{figures['alone_to_crowd']:.1e} among {len(sequences) + len(crowd)} (allowed "
                    f"{figures['allowed']:.1e}), repeated by {figures['repeated']:.1e} and "
                    f"{replayed_as} by {figures['replayed']:.1e} standard deviations at most",
                    subject=subject.name,
                    precision=precision.value,
                    environment=environment,
                    **figures,
                )


_VARIABLES = tuple(CUDA_ENVIRONMENT)  # before `change` clears it


def _allowed(subject: Subject, precision: Precision, std: float) -> float:
    """Return the change that a server allows, in standard deviations."""
    if subject.is_random:
        return _ALLOWED_CHANGE
    bounds = subject.artifact.manifest.error_bounds[precision]
    return (bounds.max_batch_change + bounds.max_order_change) / std


def _shown(environment: dict[str, str | None]) -> str:
    values = [f"{name}={value}" for name, value in environment.items() if value is not None]
    return " ".join(values) or "no variables set"


def _run_groups(session: GraphSession, groups: Sequence[Sequence[EncodedSequence]]) -> Rewards:
    return np.concatenate([session.run(group).rewards for group in groups])


def _golden_parity(subject: Subject, session: GraphSession) -> dict[str, float]:
    sequences = golden_sequences(subject.artifact, new_encoder(subject.artifact, EngineConfig()))
    expected = np.array([golden.reward for golden in subject.artifact.golden], np.float32)
    return parity_of(_run_groups(session, [[sequence] for sequence in sequences]), expected)


def parity_line(reference: str, figures: dict[str, float]) -> str:
    """Return the line that is printed for one reference."""
    return (
        f"difference from {reference}: max {figures['max_difference']:.1e}, "
        f"mean {figures['mean_difference']:.1e}; in standard deviations "
        f"{figures['max_in_std']:.1e} and {figures['mean_in_std']:.1e} "
        f"({figures['rewards']} rewards)"
    )


def parity_of(actual: Rewards, expected: Rewards) -> dict[str, float]:
    """Return differences, raw and in standard deviations of the expected rewards.

    NaN is passed on, because a reward that is NaN is a difference.
    """
    differences = np.abs(actual.astype(np.float64) - expected)
    figures = {"max": float(differences.max()), "mean": float(differences.mean())}
    std = float(expected.std()) or 1.0
    return (
        {"rewards": len(expected)}
        | {f"{name}_difference": value for name, value in figures.items()}
        | {f"{name}_in_std": value / std for name, value in figures.items()}
    )
