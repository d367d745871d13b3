"""The check of golden conversations at the start of a server."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from kwise.engine.artifact.manifest import ErrorBounds
from kwise.engine.artifact.read import read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import check_golden, new_encoder
from kwise.engine.model.session import Pass
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ArtifactError
from tests.sum_session import SumSession


class OrderSession(SumSession):
    """A session whose rewards are 0.25 higher in a batch of several sequences."""

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        rewards = np.full(len(batch), 0.25 * (len(batch) > 1), np.float32)
        return Pass(rewards=rewards, num_rows=len(batch))


@pytest.mark.parametrize(
    ("order_varies", "max_order_change", "passes"),
    [(False, 0.2, False), (True, 0.2, True), (True, 0.1, False)],
)
def test_only_where_the_order_of_summation_varies_may_a_reward_change_by_it(
    tiny_artifact: Path, order_varies: bool, max_order_change: float, passes: bool
) -> None:
    artifact = read_artifact(tiny_artifact)
    bounds = ErrorBounds(
        max_error=0, max_batch_change=0.1, max_order_change=max_order_change, report={}
    )
    artifact = replace(
        artifact,
        manifest=structs.replace(artifact.manifest, error_bounds={Precision.FP32: bounds}),
        golden=tuple(replace(golden, reward=0.0) for golden in artifact.golden),
    )
    encoder = new_encoder(artifact, EngineConfig())
    if passes:
        check_golden(artifact, encoder, OrderSession(), order_varies=order_varies)
    else:
        with pytest.raises(ArtifactError, match="the largest change allowed is 0"):
            check_golden(artifact, encoder, OrderSession(), order_varies=order_varies)
