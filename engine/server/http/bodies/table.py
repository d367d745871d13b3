"""The endpoints of all families of bodies.

Several endpoints may have the same path. The first one that has a field of the body among its marks
gets the request, and the one without marks gets the others. infinity comes before vLLM, because
`raw_scores` marks a body of infinity even if it has vLLM's `input`.
"""

from kwise.engine.server.http.bodies import (
    infinity,
    llama_factory,
    openrlhf,
    rerank,
    score,
    sglang,
    slime,
    tei,
    vllm,
)
from kwise.engine.server.http.endpoint import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    *openrlhf.ENDPOINTS,
    *slime.ENDPOINTS,
    *llama_factory.ENDPOINTS,
    *infinity.ENDPOINTS,
    *vllm.ENDPOINTS,
    *sglang.ENDPOINTS,
    *tei.ENDPOINTS,
    *score.ENDPOINTS,
    *rerank.ENDPOINTS,
)
