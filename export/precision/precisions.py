"""An artifact's graphs beside fp32: each is written from the fp32 graph, measured against it, and kept if it is good enough.

Where all products in the precision are not good enough, those kinds stay in fp32 that err the most for the time that they save.
Which they are is measured, and the manifest names them. Texts that choose how weights are rounded are none of those that measure.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from msgspec import structs

from kwise.engine.artifact import Artifact, ErrorBounds, GraphContract, graph_name
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.export.parity import ParityCase, ParityError, encoded
from kwise.export.precision.agreement import (
    Agreement,
    Groups,
    Rewards,
    Texts,
    encode_groups,
    error_bounds,
    measure,
    rewards_of,
    shortcomings,
    split,
)
from kwise.export.precision.half import write_half
from kwise.export.precision.int8 import write_int8
from kwise.export.precision.matmuls import ATTENTION, Rounded, kinds
from kwise.export.precision.rounding import round_weights

# The harm of each kind is measured on a few groups: it is for their order only.
_FEW_GROUPS = 5
Open = Callable[[Sequence[str]], GraphSession]
"""Writes a precision's graph, the kinds that it is given in fp32, and gives a session that computes what this computes."""


def contract_of(precision: Precision, fp32: GraphContract) -> GraphContract:
    """Return the contract of the graph that is written in `precision` from the fp32 graph."""
    if precision is Precision.FP32:
        return fp32
    trie = fp32.num_tile_groups > 0
    return structs.replace(
        fp32,
        file=graph_name(precision),
        # int8 computes last rows to more bits. As inner rows of another sequence they would change its
        # reward.
        separate_last_tokens=trie and precision is Precision.INT8,
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
    texts: Sequence[Texts],
    min_agreement: float,
) -> dict[Precision, ErrorBounds]:
    """Write the graphs of `precisions` other than fp32 into the artifact's directory.

    Args:
        reference: of the fp32 graph.
        texts: what to measure on. min_agreement: see `ExportConfig`.

    Raises:
        ParityError: one is not good enough.
        ConfigError: there are no groups to measure on.
    """
    others = [precision for precision in precisions if precision is not Precision.FP32]
    if not others:
        return {}
    groups, calibrating = split(encode_groups(encoder, texts))
    if reference.layout.pads_sequences:  # padding is no text
        calibrating = [[sequence] for group in calibrating for sequence in group]
    expected = rewards_of(reference, groups)
    known = [(encoded(encoder, case), case.reward) for case in golden]
    with TemporaryDirectory(dir=artifact.path) as scratch:
        rounded = round_weights(
            artifact.graph_path(), others, reference, calibrating, Path(scratch)
        )
        bounds: dict[Precision, ErrorBounds] = {}
        for precision in others:
            # Given away, for they map files that are deleted at the end.
            bounds[precision] = _add(
                artifact, precision, rounded.pop(precision), groups, expected, known, min_agreement
            )
        return bounds


def _add(
    artifact: Artifact,
    precision: Precision,
    rounded: Rounded,
    groups: Groups,
    expected: Sequence[Rewards],
    known: Sequence[tuple[EncodedSequence, float]],
    min_agreement: float,
) -> ErrorBounds:
    sizes = kinds(artifact.graph_path(), attention=precision is not Precision.INT8)
    if not sizes:
        raise ParityError(
            f"{precision.value}: the model has no products of rows with weight matrices"
        )
    with TemporaryDirectory(dir=artifact.path) as scratch:
        open_session = _writer(artifact, precision, rounded, Path(scratch))

        def judged(session: GraphSession) -> tuple[Agreement, str]:
            found = measure(session, groups, expected)
            return found, shortcomings(precision, found, min_agreement)

        kept: Sequence[str] = ()
        session = open_session(kept)
        found, problem = judged(session)
        if problem:
            del session
            order = _by_harm(open_session, sizes, groups[:_FEW_GROUPS], expected[:_FEW_GROUPS])
            kept, found = _least_kept(order, lambda kept: judged(open_session(kept)))
            session = open_session(kept)  # the last attempt may have been another
        alone = np.array([session.run([sequence]).rewards[0] for sequence, _ in known])
        together = session.run([sequence for sequence, _ in known]).rewards
        del session  # it maps what is deleted now
    golden_error = float(np.abs(alone - [reward for _, reward in known]).max())
    emulated = precision is not Precision.INT8
    details = {
        "kept_in_fp32": list(kept),
        "share_of_products": _share(sizes, kept),
        "emulated": emulated,
    }
    bounds = error_bounds(found, golden_error, details=details, emulated=emulated)
    if (
        not np.abs(together - alone).max() <= bounds.max_batch_change
    ):  # the server's own check at its start
        raise ParityError(
            f"{precision.value}: the reward of a golden conversation changes with its batch"
        )
    onnx.checker.check_model(str(artifact.graph_path(precision)))
    return bounds


def _share(sizes: dict[str, int], kept: Sequence[str]) -> float:
    """How much of the products with weights is not kept in fp32."""
    weights = {kind: size for kind, size in sizes.items() if kind != ATTENTION}
    return 1 - sum(weights.get(kind, 0) for kind in kept) / sum(weights.values())


def _least_kept(
    order: Sequence[str], attempt: Callable[[Sequence[str]], tuple[Agreement, str]]
) -> tuple[Sequence[str], Agreement]:
    """As few kinds as are enough, by bisection, from the beginning of `order`; with none kept it was not enough.

    Raises:
        ParityError: it is not enough with all but one kept.
    """
    too_few, enough = 0, max(len(order) - 1, 0)
    found, problem = attempt(order[:enough])
    if problem:
        raise ParityError(problem)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        tried, problem = attempt(order[:middle])
        if problem:
            too_few = middle
        else:
            enough, found = middle, tried
    return order[:enough], found


def _writer(artifact: Artifact, precision: Precision, rounded: Rounded, scratch: Path) -> Open:
    source, destination = artifact.graph_path(), artifact.graph_path(precision)

    def open_int8(kept: Sequence[str]) -> GraphSession:
        write_int8(source, destination, kept, rounded)
        return GraphSession(artifact, precision=precision)

    def open_half(kept: Sequence[str]) -> GraphSession:
        """Measured by an emulation, for the machine that exports may have no such units."""
        emulation = replace(artifact, path=scratch)
        write_half(source, destination, precision, kept, rounded)
        write_half(source, emulation.graph_path(precision), precision, kept, rounded, emulated=True)
        return GraphSession(emulation, precision=precision)

    return open_int8 if precision is Precision.INT8 else open_half


def _by_harm(
    open_session: Open, sizes: dict[str, int], groups: Groups, expected: Sequence[Rewards]
) -> list[str]:
    """The kinds, those first whose error, alone in the precision, is the largest for their number of weights, which is their
    time. Errors of several kinds add up as squares."""
    harm = {}
    for kind, size in sizes.items():
        session = open_session([other for other in sizes if other != kind])
        errors = np.concatenate(rewards_of(session, groups)) - np.concatenate(expected)
        harm[kind] = float(np.mean(errors**2)) / size
        del session
    return sorted(harm, key=lambda kind: harm[kind], reverse=True)
