"""Passes of the model for the tests on CUDA."""

from typing import Any

import numpy as np

from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence

PRECISIONS = [Precision.FP32, Precision.FP16, Precision.BF16]


def inner_session(session: GraphSession) -> Any:
    """Return ONNX Runtime's session."""
    graph: Any = session._graph
    return getattr(graph, "graph", graph)._session


def batch(
    seed: int = 0, *, prompt: int = 256, response: int = 128, num: int = 14
) -> list[EncodedSequence]:
    """Return `num` responses to one prompt, in random tokens: by default 2,048 rows."""
    random = np.random.default_rng(seed)
    start = random.integers(6, 262, prompt)
    return [
        EncodedSequence(
            token_ids=np.concatenate([start, random.integers(6, 262, response)]),
            type_ids=None,
            num_tokens=prompt + response,
            prompt_tokens=prompt,
        )
        for _ in range(num)
    ]
