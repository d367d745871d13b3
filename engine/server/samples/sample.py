"""Samples: one response with its prompt, from the fields of a request of another protocol.

An adapter turns the fields of a request into samples, `scoring.py` scores them, and the adapter
writes the rewards in its own form. There are three forms of text:

- a pair of plain texts: a user's turn and the answer to it (a query and a document);
- messages, of which the last one is the assistant's and is scored;
- a whole conversation with the chat template applied, as text or as token ids.

Each sample knows the fields that its texts come from, so that an error names the caller's field.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import cast

from kwise.engine.server.conversation import plain
from kwise.engine.slices import in_slices_of_ids
from kwise.errors import InvalidRequest
from kwise.types import Conversation, TemplatedText, TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One response to score.

    Attributes:
        prompt: a conversation, or a text or token ids with the chat template applied.
        response: token ids if the prompt is token ids, a text otherwise.
        prompt_field: the field of the request that the prompt comes from ("text_1[2]").
        response_field: the field of the request that the response comes from ("text_2[2]").
        is_split: True if prompt and response come from separate texts; False if both come from one
            text, so that the end of the prompt is not known.
    """

    prompt: Conversation | TemplatedText | TokenIds
    response: str | TokenIds
    prompt_field: str
    response_field: str
    is_split: bool = True


def of_templated(texts: Sequence[str], fields: Sequence[str]) -> list[Sample]:
    """Return the samples of whole conversations with the chat template applied."""
    whole = TemplatedText(text="")
    return [
        Sample(
            prompt=whole, response=text, prompt_field=field, response_field=field, is_split=False
        )
        for text, field in zip(texts, fields, strict=True)
    ]


async def of_token_ids(
    sequences: Sequence[Sequence[int]], fields: Sequence[str], max_tokens: int
) -> list[Sample]:
    """Return the samples of whole conversations in token ids. Converted in slices.

    The common prefix of all sequences counts as their prompt, so that they form one group. The
    prompt of a single sequence is all but its last token, so that the prompt cache keeps it for the
    next call.

    Args:
        sequences: the token ids of each conversation.
        fields: the field that each sequence comes from.
        max_tokens: the most tokens of a conversation.

    Raises:
        InvalidRequest: a sequence is empty or too long.
    """
    # Before the conversion, which takes seconds for a body of tens of megabytes.
    for sequence, field in zip(sequences, fields, strict=True):
        if not sequence:
            raise InvalidRequest(field, "it has no token ids; give at least one")
        check_num_ids(field, len(sequence), max_tokens)
    ids: list[TokenIds] = []
    async for part in in_slices_of_ids(sequences, len):
        ids += map(tuple, part)
    first, last = min(ids), max(ids)
    shared = cast(TokenIds, commonprefix([first, last])) if first != last else first[:-1] or first
    return [
        _sample_of_ids(sequence, len(shared) or max(len(sequence) - 1, 1), field)
        for sequence, field in zip(ids, fields, strict=True)
    ]


def _sample_of_ids(ids: TokenIds, prompt_length: int, field: str) -> Sample:
    return Sample(
        prompt=ids[:prompt_length],
        response=ids[prompt_length:],
        prompt_field=field,
        response_field=field,
        is_split=False,
    )


def check_num_ids(field: str, num_ids: int, max_tokens: int) -> None:
    """Check the number of token ids of a conversation. Handlers call this before they convert it.

    Raises:
        InvalidRequest: there are more than the model reads.
    """
    if num_ids > max_tokens:
        problem = f"the conversation has {num_ids} tokens and the limit is {max_tokens}"
        raise InvalidRequest(field, problem, over_limit=True)


def of_pair(prompt: str, response: str, prompt_field: str, response_field: str) -> Sample:
    """Return the sample of two plain texts."""
    return Sample(
        prompt=plain(prompt),
        response=response,
        prompt_field=prompt_field,
        response_field=response_field,
    )


def of_candidates(prompt: str, responses: Sequence[str], fields: tuple[str, str]) -> list[Sample]:
    """Return the samples of plain answers to one plain prompt.

    Args:
        prompt: the user's turn.
        responses: the answers.
        fields: the names of the two fields.

    Raises:
        InvalidRequest: there is no answer.
    """
    prompt_field, response_field = fields
    if not responses:
        raise InvalidRequest(response_field, "the list is empty; give at least one")
    shared = plain(prompt)
    return [
        Sample(
            prompt=shared,
            response=response,
            prompt_field=prompt_field,
            response_field=f"{response_field}[{index}]",
        )
        for index, response in enumerate(responses)
    ]
