"""Group the responses of a batch by prompt.

Prompts are compared by the message that the client sends, because messages are often dicts and
token ids are often arrays, which are not hashable.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kwise.client.messages import PromptLike, to_prompt, to_response

ResponseLike: TypeAlias = str | Sequence[int]


@dataclass(slots=True, kw_only=True)
class Request:
    """One prompt, and the responses to it.

    Attributes:
        key: equal for equal prompts.
        prompt: the prompt.
        responses: the responses, as the caller gives them.
        indices: the index of each response in the caller's list.
    """

    key: bytes
    prompt: PromptLike
    responses: list[Any] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)


def group_by_prompt(
    prompts: Sequence[PromptLike], responses: Sequence[ResponseLike]
) -> list[Request]:
    """Return one request per distinct prompt, in the order of first appearance.

    Raises:
        TypeError, ValueError: a prompt or a response has a wrong type or value, or the numbers of
            prompts and responses differ. The error names the item.
    """
    if isinstance(prompts, str) or isinstance(responses, str):
        raise TypeError("prompts and responses must be lists, with one prompt per response")
    if len(prompts) != len(responses):
        raise ValueError(
            f"there are {len(prompts)} prompts and {len(responses)} responses; give each response "
            "its prompt"
        )
    requests: dict[bytes, Request] = {}
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        key = to_prompt(f"prompts[{index}]", prompt).SerializeToString(deterministic=True)
        to_response(f"responses[{index}]", response)  # a check: the client does not know the index
        request = requests.setdefault(key, Request(key=key, prompt=prompt))
        request.responses.append(response)
        request.indices.append(index)
    return list(requests.values())


def split(requests: Sequence[Request], max_responses: int) -> list[Request]:
    """Return requests of at most `max_responses` responses each, in the same order."""
    return [
        Request(
            key=request.key,
            prompt=request.prompt,
            responses=request.responses[start : start + max_responses],
            indices=request.indices[start : start + max_responses],
        )
        for request in requests
        for start in range(0, len(request.indices), max_responses)
    ]
