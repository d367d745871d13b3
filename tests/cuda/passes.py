"""Passes of the model for the tests on CUDA, and what they did."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from tests.cuda.standin.events import Event, StandIn

# What the names of attention's kernels contain.
_ATTENTION_KERNELS = {
    "flash": "flash_fwd",
    "memory-efficient": "attention_kernel_batched_impl",
    "unfused": "UnfusedSoftmaxKernel",
}

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


def second_pass(session: GraphSession, stand_in: StandIn) -> list[Event]:
    """Return what a pass does after one of the same shapes, which has planned its memory."""
    session.run(batch())
    stand_in.clear()
    session.run(batch(1))
    return stand_in.events()


def copies(events: Sequence[Event], kind: str) -> list[int]:
    """Return the bytes of each copy of this kind. Copies of empty arrays move nothing."""
    return [event.size for event in events if event.kind == kind and event.size]


def nodes(session: GraphSession) -> dict[str, Counter[str]]:
    """Count the operators that each of ONNX Runtime's providers runs."""
    assigned: dict[str, Counter[str]] = {}
    for part in inner_session(session).get_provider_graph_assignment_info():
        assigned.setdefault(part.ep_name, Counter()).update(n.op_type for n in part.get_nodes())
    return assigned


def attention_kernels(events: Sequence[Event]) -> Counter[str]:
    """Count the kernels of attention by their names in `_ATTENTION_KERNELS`."""
    return Counter(
        name
        for event in events
        for name, kernel in _ATTENTION_KERNELS.items()
        if event.kind == "kernel" and kernel in event.name
    )


def num_attention_calls(session: GraphSession) -> int:
    return nodes(session)["CUDAExecutionProvider"]["Attention"]
