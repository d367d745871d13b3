"""slime's remote reward model: POST /slime/reward and /slime/reward/templated.

`--rm-type remote_rm --rm-url http://HOST:PORT/slime/reward` (read in slime 0.3.1 at 624b824a8:
slime/rollout/rm_hub/__init__.py). A call has one sample, and the reply is a bare number.

The body does not say whether the chat template is applied to `prompt`, but the user knows, so there
are two paths:

- /slime/reward: the prompt is messages or the user's text, as in the data set;
- /slime/reward/templated: the prompt is text with the template applied (`--apply-chat-template`).

The client tries 10 times with growing pauses, whatever the status, and then the run ends. Its log
has the status only, so the server logs why a sample cannot be scored.
"""

from typing import Any

import msgspec

from kwise.engine.server.call import Call
from kwise.engine.server.conversation import plain
from kwise.engine.server.http.bodies.fields import STATUSES, reply
from kwise.engine.server.http.bodies.inputs import ChatMessage, conversation
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.samples.sample import Sample
from kwise.engine.server.samples.scoring import score_samples
from kwise.errors import InvalidRequest
from kwise.types import TemplatedText


class SampleRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One sample. `label` does not change the reward, and is not read."""

    prompt: str | list[ChatMessage]
    response: str
    label: Any = None


class TemplatedSampleRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One sample whose prompt has the chat template applied. `label` is not read."""

    prompt: str
    response: str
    label: Any = None


async def score(call: Call, body: SampleRequest) -> Reply:
    """Score a sample whose prompt is messages or the user's text."""
    prompt = (
        plain(body.prompt) if isinstance(body.prompt, str) else conversation(body.prompt, "prompt")
    )
    sample = Sample(
        prompt=prompt,
        response=body.response,
        prompt_field="prompt",
        response_field="response",
    )
    scored = await score_samples(call, [sample])
    if num_control := scored.rewards[0].control_tokens:
        raise InvalidRequest(
            "response",
            f"it spells out {num_control} special tokens; a response of slime ends with the "
            "policy's end token, which would be scored as a part of the answer: set "
            "--rollout-skip-special-tokens, or --apply-chat-template and /slime/reward/templated",
        )
    return reply(scored.rewards[0].value, scored)


async def score_templated(call: Call, body: TemplatedSampleRequest) -> Reply:
    """Score a sample whose prompt has the chat template applied."""
    sample = Sample(
        prompt=TemplatedText(text=body.prompt),
        response=body.response,
        prompt_field="prompt",
        response_field="response",
    )
    scored = await score_samples(call, [sample])
    return reply(scored.rewards[0].value, scored)


_TAG = "slime"
ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/slime/reward",
        handler=score,
        summary="Score one response to messages or to the user's text",
        tag=_TAG,
        request=SampleRequest,
        response=float,
        error_statuses=STATUSES,
        logs_for="slime",
    ),
    Endpoint(
        method="POST",
        path="/slime/reward/templated",
        handler=score_templated,
        summary="Score one response to a prompt that has the chat template applied",
        tag=_TAG,
        request=TemplatedSampleRequest,
        response=float,
        error_statuses=STATUSES,
        logs_for="slime",
    ),
)
