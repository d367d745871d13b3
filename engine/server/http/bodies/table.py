"""The endpoints of all families of bodies.

Where several have the same path, the first one whose marks fit gets the request, and the one
without marks gets the rest. So infinity's `raw_scores` comes before vLLM's `input`.
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
