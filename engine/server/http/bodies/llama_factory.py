"""LLaMA-Factory's reward server: POST /v1/score/evaluation.

`reward_model_type: api` and `reward_model: http://HOST:PORT/v1/score/evaluation`. The path is that
of LLaMA-Factory's own server (read in 0.9.5: llamafactory/train/ppo/ppo_utils.py,
llamafactory/api/protocol.py). A message is a whole conversation, decoded with its special tokens.

The client does not check the status and never tries again: a refused call ends the run. Therefore a
call that the queue has no room for is held, and the server logs why a message cannot be scored. The
client's `model` is always "model", which stands for the first model unless one is called so.
"""

from typing import Annotated, Literal

import msgspec

from kwise.engine.server.call import Call
from kwise.engine.server.http.bodies.fields import STATUSES_WITH_MODEL, check_not_cut, new_id, reply
from kwise.engine.server.http.bodies.openai_errors import OPENAI_ERRORS
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.samples.sample import of_templated
from kwise.engine.server.samples.scoring import HOLD_S, check_size, score_samples
from kwise.errors import InvalidRequest

# The model of every body that the client sends.
_CLIENTS_MODEL = "model"


class EvaluationRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Conversations to score."""

    messages: list[str]
    model: str = _CLIENTS_MODEL
    max_length: Annotated[int, msgspec.Meta(gt=0)] | None = None


class EvaluationReply(msgspec.Struct, kw_only=True):
    """The rewards, one per message."""

    id: str
    model: str
    scores: list[float]
    object: Literal["score.evaluation"] = "score.evaluation"


async def evaluate(call: Call, body: EvaluationRequest) -> Reply:
    """Score the conversations."""
    if not body.messages:
        raise InvalidRequest("messages", "the list is empty; give at least one")
    check_size(call, "messages", len(body.messages))
    fields = [f"messages[{index}]" for index in range(len(body.messages))]
    samples = of_templated(body.messages, fields)
    model = call.without_placeholder(body.model, _CLIENTS_MODEL)
    scored = await score_samples(call, samples, model=model, hold_s=HOLD_S)
    check_not_cut("max_length", body.max_length, samples, scored)
    answer = EvaluationReply(
        id=new_id("scoreval"),
        model=scored.model,
        scores=[reward.value for reward in scored.rewards],
    )
    return reply(answer, scored)


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/score/evaluation",
        handler=evaluate,
        summary="Score whole conversations that have the chat template applied",
        description=(
            f"A call that the queue has no room for is held for up to {HOLD_S:g} s, because "
            "LLaMA-Factory ends a run whose calls are refused."
        ),
        tag="LLaMA-Factory",
        request=EvaluationRequest,
        response=EvaluationReply,
        error_statuses=STATUSES_WITH_MODEL,
        logs_for="LLaMA-Factory",
        errors=OPENAI_ERRORS,
    ),
)
