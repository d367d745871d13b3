"""Add lower precisions to an artifact: write each graph, measure it against fp32, check the result.

If a precision with all matmuls in it does not rank as fp32 does, the layer groups that err most
for the time they save stay in fp32, as few as are enough. Their sensitivity is measured, and the
manifest names them. The text that decides how weights are rounded is not used to measure.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import onnx
from msgspec import structs

from kwise.engine.artifact.manifest import ErrorBounds, GraphContract
from kwise.engine.artifact.names import graph_name
from kwise.engine.artifact.read import Artifact
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.export.parity import ParityError, encoded
from kwise.export.parity_cases import ParityCase
from kwise.export.precision.agreement import (
    Agreement,
    Groups,
    Rewards,
    error_bounds,
    measure,
    rewards_of,
    shortcomings,
    split,
)
from kwise.export.precision.half import write_half
from kwise.export.precision.int8 import write_int8
from kwise.export.precision.matmuls import ATTENTION, RoundedWeights, layer_groups
from kwise.export.precision.rounding import round_weights
from kwise.export.precision.text_groups import TextGroup, encode_groups
from kwise.types import RawReward

# Groups of text to measure the sensitivity of layer groups on: only their order matters.
_NUM_SENSITIVITY_GROUPS = 5


class OpenSession(Protocol):
    """Writes a precision's graph, with the given layer groups in fp32, and opens a session of it.

    With `split_sums`, the session sums up in another order; see `write_half`.
    """

    def __call__(self, fp32_layers: Sequence[str], *, split_sums: bool = False) -> GraphSession: ...


def contract_of(
    precision: Precision, fp32: GraphContract, *, mean_pooling: bool = False
) -> GraphContract:
    """Return the contract of the graph that is written in `precision` from the fp32 graph.

    Args:
        mean_pooling: the head reads all tokens of a response.
    """
    if precision is Precision.FP32:
        return fp32
    trie = fp32.num_tile_groups > 0
    return structs.replace(
        fp32,
        file=graph_name(precision),
        # int8 gives last rows more bits, which must not reach another sequence's reward.
        separate_last_tokens=trie and precision is Precision.INT8 and not mean_pooling,
        # A difference in the last bit may flip a rounding to few bits.
        aligned_keys=trie,
    )


def add_precisions(
    artifact: Artifact,
    encoder: ConversationEncoder,
    reference: GraphSession,
    precisions: Sequence[Precision],
    golden: Sequence[ParityCase],
    *,
    text_groups: Sequence[TextGroup],
    min_agreement: float,
    tell: Callable[[str], None],
) -> dict[Precision, ErrorBounds]:
    """Write the graphs of `precisions` other than fp32 into the artifact's directory.

    Args:
        reference: A session of the graph in fp32.
        golden: Conversations that a server checks at its start.
        text_groups: Text to measure on, and to choose how weights are rounded.
        min_agreement: See `kwise.export.config.ExportConfig`.
        tell: Gets the lines that name the text that is left out.

    Returns:
        The error bounds of each precision.

    Raises:
        ParityError: A precision does not rank as fp32 does.
        ConfigError: No group of text fits the model.
    """
    lower_precisions = [precision for precision in precisions if precision is not Precision.FP32]
    if not lower_precisions:
        return {}
    groups, calibration = split(encode_groups(encoder, text_groups, tell))
    if reference.layout.pads_sequences:  # one by one, because padding is not text
        calibration = [[sequence] for group in calibration for sequence in group]
    expected = rewards_of(reference, groups)
    golden_rewards = [(encoded(encoder, case), case.reward) for case in golden]
    with TemporaryDirectory(dir=artifact.path) as scratch:
        rounded = round_weights(
            artifact.graph_path(), lower_precisions, reference, calibration, Path(scratch)
        )
        # Rounded weights map files in `scratch`, so nothing may hold them at the end.
        return {
            precision: _add(
                artifact,
                precision,
                rounded.pop(precision),
                groups,
                expected,
                golden_rewards,
                min_agreement,
            )
            for precision in lower_precisions
        }


def _add(
    artifact: Artifact,
    precision: Precision,
    rounded: RoundedWeights,
    groups: Groups,
    expected: Sequence[Rewards],
    golden_rewards: Sequence[tuple[EncodedSequence, RawReward]],
    min_agreement: float,
) -> ErrorBounds:
    """Write one precision's graph and return its error bounds; raise as `add_precisions`."""
    sizes = layer_groups(artifact.graph_path(), attention=precision is not Precision.INT8)
    if not sizes:
        raise ParityError(
            f"{precision.value}: the model has no products of rows with weight matrices"
        )
    with TemporaryDirectory(dir=artifact.path) as scratch:
        open_session = _writer(artifact, precision, rounded, Path(scratch))

        def evaluate(session: GraphSession) -> tuple[Agreement, str]:
            agreement = measure(session, groups, expected)
            return agreement, shortcomings(precision, agreement, min_agreement)

        fp32_layers: Sequence[str] = ()
        session = open_session(fp32_layers)
        agreement, problem = evaluate(session)
        if problem:
            del session
            order = _by_sensitivity(
                open_session,
                sizes,
                groups[:_NUM_SENSITIVITY_GROUPS],
                expected[:_NUM_SENSITIVITY_GROUPS],
            )
            fp32_layers, agreement = _min_fp32_layers(
                order, lambda layers: evaluate(open_session(layers))
            )
            session = open_session(fp32_layers)  # the last attempt may have been another
        alone = np.array([session.run([sequence]).rewards[0] for sequence, _ in golden_rewards])
        together = session.run([sequence for sequence, _ in golden_rewards]).rewards
        order_change = 0.0
        emulated = precision is not Precision.INT8
        if emulated:
            measured = np.concatenate(rewards_of(session, groups))
            del session  # one emulation in memory at a time
            session = open_session(fp32_layers, split_sums=True)
            order_change = float(
                np.abs(np.concatenate(rewards_of(session, groups)) - measured).max()
            )
        del session  # it maps files that are deleted now
    bounds = error_bounds(
        agreement,
        golden_error=float(np.abs(alone - [reward for _, reward in golden_rewards]).max()),
        order_change=order_change,
        emulated=emulated,
        details={
            "fp32_layers": list(fp32_layers),
            "matmul_share": _matmul_share(sizes, fp32_layers),
            "emulated": emulated,
            "max_order_change": order_change / agreement.reward_std,
        },
    )
    # A server checks this at its start.
    if not np.abs(together - alone).max() <= bounds.max_batch_change:
        raise ParityError(
            f"{precision.value}: the reward of a golden conversation depends on the batch "
            "composition"
        )
    onnx.checker.check_model(str(artifact.graph_path(precision)))
    return bounds


def _matmul_share(sizes: dict[str, int], fp32_layers: Sequence[str]) -> float:
    """Return the share of the matmuls' weights that are in the precision."""
    weights = {group: size for group, size in sizes.items() if group != ATTENTION}
    return 1 - sum(weights.get(group, 0) for group in fp32_layers) / sum(weights.values())


def _min_fp32_layers(
    order: Sequence[str], attempt: Callable[[Sequence[str]], tuple[Agreement, str]]
) -> tuple[Sequence[str], Agreement]:
    """Find, by bisection, how few layer groups from the beginning of `order` must stay in fp32.

    Args:
        order: All layer groups; with none of them in fp32 the precision is not good enough.
        attempt: Measures the precision with the given layer groups in fp32. Returns a problem,
            or "" if that is good enough.

    Raises:
        ParityError: All layer groups but one are not enough.
    """
    too_few, enough = 0, max(len(order) - 1, 0)
    agreement, problem = attempt(order[:enough])
    if problem:
        raise ParityError(problem)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        attempted, problem = attempt(order[:middle])
        if problem:
            too_few = middle
        else:
            enough, agreement = middle, attempted
    return order[:enough], agreement


def _writer(
    artifact: Artifact, precision: Precision, rounded: RoundedWeights, scratch: Path
) -> OpenSession:
    """Return the function that writes the precision's graph; emulations go into `scratch`."""
    source, destination = artifact.graph_path(), artifact.graph_path(precision)

    def open_int8(fp32_layers: Sequence[str], *, split_sums: bool = False) -> GraphSession:
        assert not split_sums, "int8 sums up exactly"
        write_int8(
            source,
            destination,
            fp32_layers,
            rounded,
            finer_last_rows=not artifact.manifest.mean_pooling,
        )
        return GraphSession(artifact, precision=precision)

    def open_half(fp32_layers: Sequence[str], *, split_sums: bool = False) -> GraphSession:
        """Open an emulation, because the machine that exports may not compute in fp16 or bf16."""
        emulation = replace(artifact, path=scratch)
        write_half(source, destination, precision, fp32_layers, rounded)
        write_half(
            source,
            emulation.graph_path(precision),
            precision,
            fp32_layers,
            rounded,
            emulated=True,
            split_sums=split_sums,
        )
        return GraphSession(emulation, precision=precision)

    return open_int8 if precision is Precision.INT8 else open_half


def _by_sensitivity(
    open_session: OpenSession,
    sizes: dict[str, int],
    groups: Groups,
    expected: Sequence[Rewards],
) -> list[str]:
    """Sort layer groups by falling sensitivity: the error they cause for the time they save.

    The error is the mean square error of rewards if this layer group alone is in the precision,
    because errors of several layer groups add up as squares. The time is its number of weights.
    """
    sensitivity = {}
    for group, size in sizes.items():
        session = open_session([other for other in sizes if other != group])
        errors = np.concatenate(rewards_of(session, groups)) - np.concatenate(expected)
        error = float(np.mean(errors**2))
        # A layer group that overflows gives NaN, which would spoil the order.
        sensitivity[group] = error / size if isfinite(error) else inf
        del session
    return sorted(sensitivity, key=lambda group: sensitivity[group], reverse=True)
