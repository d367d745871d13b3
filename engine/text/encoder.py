"""A group → one token sequence per response, exactly as training tokenised it.

The tokens are those of `apply_chat_template` on the whole conversation, always. Tokenising a prompt once for its K
responses is exact only where the text is cut at a special token: added tokens split a text before anything else looks at
it. So the K conversations are rendered whole, the text that they share is cut before its last special token, and the head
is tokenised once. Cutting before the token, not after it, keeps a tail from being its text's first piece, which some
tokenizers treat differently (Metaspace's `prepend_scheme="first"`).

Models without a chat template (cross-encoders) read prompt and response as a pair of texts, told apart by type ids.

What is wrong with one response is an `InvalidRequest` in its place. The group as a whole is refused only where no response
could be scored: whoever shares a reward with another group's responses must not share their fate.

Knows templates, tokens and limits; nothing of batches, caches or rewards. Thread-safe: nothing is written after
construction.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from os.path import commonprefix
from typing import NamedTuple, cast

import numpy as np
from jinja2 import TemplateError
from tokenizers import Encoding, Tokenizer

from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.chat_template import compile_template
from kwise.engine.text.limits import ControlTokens, EncoderLimits, Overlong
from kwise.engine.trie import Int64
from kwise.errors import InvalidRequest
from kwise.types import Conversation, Group, Message, TokenIds


class Tokens(NamedTuple):
    """int64[length] each: ids, and type ids for models that want them; `num_shared` as `EncodedSequence.prompt_tokens`."""

    ids: Int64
    type_ids: Int64 | None = None
    num_shared: int = 0


class ConversationEncoder:
    """Groups to token sequences.

    `template` is the chat template, or None for models that read a pair of texts. `special_tokens` are the names that
    templates use (`bos_token`, …). `trailing_pad_id`: transformers' causal classifiers read the reward at the last token
    that is not this one, and in a causal model later tokens change nothing, so they are cut; None cuts nothing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: str | None,
        special_tokens: Mapping[str, str],
        limits: EncoderLimits,
        trailing_pad_id: int | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._template = None if template is None else compile_template(template)
        self._special_tokens = dict(special_tokens)
        self._limits = limits
        self._trailing_pad_id = trailing_pad_id
        added = tokenizer.get_added_tokens_decoder().values()
        raw = [token for token in added if not token.normalized]
        self._added = _any_of([token.content for token in raw])
        self._longest_added = max((len(token.content) for token in raw), default=0)
        # A word-bound token makes where the tokenizer splits depend on its neighbours: then nothing is cut.
        cuttable = (
            []
            if any(t.single_word for t in raw)
            else [t for t in raw if not (t.lstrip or t.rstrip)]
        )
        self._cuttable = {token.content for token in cuttable}
        self._control = _any_of([token.content for token in added if token.special])
        # 1 for BERT and its kin, 0 for RoBERTa's, whose table of types has one row.
        self._second_type = (
            max(self._tokenizer.encode("a", "b").type_ids, default=1) if template is None else 0
        )

    def check(self, group: Group) -> None:
        """What makes a group malformed as a whole and can be told without tokenising.

        The scorer calls this with the whole group, so that an error names a response by its place in the request, and before
        other requests can wait for a part of it. Takes no time in Python per token id: it runs on the event loop.

        Raises:
            InvalidRequest: no prompt, one that ends with an assistant's turn, no responses, more characters or ids in the prompt
                than a conversation may have, or a token id outside the vocabulary.
        """
        if not group.responses:
            raise InvalidRequest("responses", "there are none; give at least one")
        if not group.prompt:
            raise InvalidRequest("prompt", "it is empty")
        if isinstance(group.prompt[0], Message):
            if group.prompt[-1].role == "assistant":
                problem = "an assistant's turn ends the prompt, and the response is one; training refuses such rankings too"
                raise InvalidRequest(f"prompt.messages[{len(group.prompt) - 1}].role", problem)
            if (length := _characters(group.prompt)) > self._limits.max_characters:
                raise InvalidRequest("prompt", self._too_many_characters(length))
            return
        if len(group.prompt) > self._limits.max_tokens:
            raise self._prompt_too_long(len(group.prompt))
        self._check_ids("prompt.token_ids", group.prompt)
        for index, response in enumerate(cast(tuple[TokenIds, ...], group.responses)):
            if (
                len(group.prompt) + len(response) <= self._limits.max_tokens
            ):  # the others are refused for their length
                self._check_ids("token_ids", response, index)

    def encode(self, group: Group) -> list[EncodedSequence | InvalidRequest]:
        """One outcome per response, in order.

        Raises:
            InvalidRequest: the group as a whole is malformed, or its prompt leaves no room even for an empty response, or the
                chat template refuses it with every response.
        """
        self.check(group)
        if isinstance(group.prompt[0], Message):
            return self._encode_texts(group.prompt, cast(tuple[str, ...], group.responses))
        return self._encode_token_ids(group.prompt, cast(tuple[TokenIds, ...], group.responses))

    # Token ids

    def _encode_token_ids(
        self, prompt: TokenIds, responses: Sequence[TokenIds]
    ) -> list[EncodedSequence | InvalidRequest]:
        outcomes: list[EncodedSequence | InvalidRequest] = []
        for index, response in enumerate(responses):
            num_tokens = len(prompt) + len(response)
            if num_tokens > self._limits.max_tokens:
                outcomes.append(self._too_long(index, num_tokens))
            else:
                ids, types = (
                    np.array(prompt + response, np.int64),
                    self._types_of_ids(len(prompt), len(response)),
                )
                tokens = Tokens(ids, types, num_shared=len(prompt))
                outcomes.append(self._outcome(index, tokens))
        return outcomes

    def _types_of_ids(self, prompt_length: int, response_length: int) -> Int64 | None:
        """int64[length], 0 for the prompt's ids and the second text's type for the response's; None under a template."""
        if self._template is not None:
            return None
        return np.repeat(
            np.array([0, self._second_type], np.int64), [prompt_length, response_length]
        )

    def _check_ids(self, field: str, ids: TokenIds, response: int | None = None) -> None:
        if not ids or (min(ids) >= 0 and max(ids) < self._limits.vocab_size):
            return
        index, token_id = next(
            (i, id_) for i, id_ in enumerate(ids) if not 0 <= id_ < self._limits.vocab_size
        )
        problem = f"{token_id} is outside the vocabulary of {self._limits.vocab_size}"
        raise InvalidRequest(f"{field}[{index}]", problem, response=response)

    # Texts

    def _encode_texts(
        self, prompt: Conversation, responses: Sequence[str]
    ) -> list[EncodedSequence | InvalidRequest]:
        refuse = self._limits.control_tokens is ControlTokens.REJECT
        if refuse and (
            count := sum(
                self._count_control(m.role) + self._count_control(m.content) for m in prompt
            )
        ):
            raise InvalidRequest(
                "prompt", f"its text spells out {count} control tokens, which this server refuses"
            )
        room = self._limits.max_characters - _characters(prompt)
        readable = [response if len(response) <= room else "" for response in responses]
        control = [self._count_control(response) for response in readable]
        outcomes: list[EncodedSequence | InvalidRequest] = []
        for index, tokens in enumerate(self._tokenise(prompt, readable)):
            if (length := len(responses[index])) > room:
                problem = self._too_many_characters(_characters(prompt) + length)
                outcomes.append(InvalidRequest("text", problem, response=index))
            elif refuse and control[index]:
                problem = f"its text spells out {control[index]} control tokens, which this server refuses"
                outcomes.append(InvalidRequest("text", problem, response=index))
            elif isinstance(tokens, InvalidRequest):
                outcomes.append(tokens)
            elif len(tokens.ids) > self._limits.max_tokens:
                outcomes.append(
                    self._shortened(
                        prompt, responses[index], index, len(tokens.ids), control[index]
                    )
                )
            else:
                outcomes.append(self._outcome(index, tokens, control_tokens=control[index]))
        self._raise_for_group(prompt, outcomes)
        return outcomes

    def _raise_for_group(
        self, prompt: Conversation, outcomes: Sequence[EncodedSequence | InvalidRequest]
    ) -> None:
        """Where no response can be scored, and the prompt is why, say so once instead of K times."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, InvalidRequest)]
        if len(errors) < len(outcomes):
            return
        if all(error.response is None for error in errors):
            raise errors[0]
        if (least := self._least_length(prompt)) is not None and least > self._limits.max_tokens:
            raise self._prompt_too_long(least)

    def _least_length(self, prompt: Conversation) -> int | None:
        """Tokens of the conversation with an empty response, after the length policy; None where the template refuses it."""
        if self._limits.overlong is Overlong.DROP_TURNS and (
            shorter := _without_oldest_turns(prompt)
        ):
            prompt = shorter[-1]
        (tokens,) = self._tokenise(prompt, [""])
        return None if isinstance(tokens, InvalidRequest) else len(tokens.ids)

    def _tokenise(
        self, prompt: Conversation, responses: Sequence[str]
    ) -> list[Tokens | InvalidRequest]:
        """The tokens of each whole conversation, of whatever length, or why the template refuses it."""
        if self._template is None:
            pairs = [(_only_user_turn(prompt), response) for response in responses]
            return [
                Tokens(_ids(e), np.array(e.type_ids, np.int64))
                for e in self._tokenizer.encode_batch(pairs)
            ]
        rendered = [
            self._render((*prompt, Message(role="assistant", content=response)))
            for response in responses
        ]
        texts = [text for text in rendered if isinstance(text, str)]
        if not texts:
            return [text for text in rendered if isinstance(text, InvalidRequest)]
        cut = self._cut(self._shared_text(prompt, texts))
        head, *tails = self._tokenizer.encode_batch_fast(
            [texts[0][:cut], *(text[cut:] for text in texts)], add_special_tokens=False
        )
        head_ids, tail_ids = _ids(head), map(_ids, tails)
        return [
            text
            if isinstance(text, InvalidRequest)
            else Tokens(np.concatenate([head_ids, next(tail_ids)]), num_shared=len(head))
            for text in rendered
        ]

    def _shared_text(self, prompt: Conversation, texts: Sequence[str]) -> str:
        """What the conversations have in common from the start; with one response, what it has with an empty one."""
        if min(texts) == max(texts) and isinstance(
            empty := self._render((*prompt, Message(role="assistant", content=""))), str
        ):
            texts = [*texts, empty]
        return commonprefix([min(texts), max(texts)])

    def _cut(self, shared_text: str) -> int:
        """Where the last special token of the shared text starts, or 0.

        Tokenizers match added tokens leftmost and longest first, as this pattern does. A match is trusted only where no
        text behind `shared_text` could have made it longer.
        """
        starts = (
            match.start()
            for match in self._added.finditer(shared_text)
            if match.group() in self._cuttable
            and match.start() + self._longest_added <= len(shared_text)
        )
        return max(starts, default=0)

    def _render(self, messages: Conversation) -> str | InvalidRequest:
        assert self._template is not None
        try:
            return self._template.render(
                messages=[
                    {"role": message.role, "content": message.content} for message in messages
                ],
                add_generation_prompt=False,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError) as error:
            return InvalidRequest(
                "prompt.messages", f"the chat template refuses the conversation: {error}"
            )

    def _shortened(
        self, prompt: Conversation, response: str, index: int, full_length: int, control_tokens: int
    ) -> EncodedSequence | InvalidRequest:
        """The conversation without as many of its oldest turns as it takes, or why it cannot be scored."""
        shorter = (
            _without_oldest_turns(prompt) if self._limits.overlong is Overlong.DROP_TURNS else []
        )
        tried: dict[int, Tokens | InvalidRequest] = {}

        def ends_search(turns: int) -> bool:
            (tokens,) = self._tokenise(shorter[turns], [response])
            tried[turns] = tokens
            return isinstance(tokens, InvalidRequest) or len(tokens.ids) <= self._limits.max_tokens

        dropped_turns = bisect_left(range(len(shorter)), True, key=ends_search)
        if dropped_turns == len(shorter):
            return self._too_long(index, full_length)
        tokens = tried[dropped_turns]
        if isinstance(tokens, InvalidRequest):
            return tokens
        dropped = full_length - len(tokens.ids)
        return self._outcome(index, tokens, dropped_tokens=dropped, control_tokens=control_tokens)

    # Both

    def _outcome(
        self, index: int, tokens: Tokens, *, dropped_tokens: int = 0, control_tokens: int = 0
    ) -> EncodedSequence | InvalidRequest:
        num_tokens = length = len(tokens.ids)
        if not num_tokens:
            return InvalidRequest(
                "", "the conversation has no tokens: there is nothing to score", response=index
            )
        if self._trailing_pad_id is not None:
            read = np.flatnonzero(tokens.ids != self._trailing_pad_id)
            length = int(read[-1]) + 1 if len(read) else 1
        return EncodedSequence(
            token_ids=tokens.ids[:length],
            type_ids=None if tokens.type_ids is None else tokens.type_ids[:length],
            num_tokens=num_tokens,
            prompt_tokens=tokens.num_shared,
            dropped_tokens=dropped_tokens,
            control_tokens=control_tokens,
        )

    def _count_control(self, text: str) -> int:
        return len(self._control.findall(text))

    def _too_long(self, index: int, num_tokens: int) -> InvalidRequest:
        return InvalidRequest(
            "",
            f"the conversation has {num_tokens} tokens and the limit is {self._limits.max_tokens}",
            response=index,
        )

    def _too_many_characters(self, length: int) -> str:
        return f"the conversation has {length} characters and the limit is {self._limits.max_characters}"

    def _prompt_too_long(self, num_tokens: int) -> InvalidRequest:
        return InvalidRequest(
            "prompt",
            f"it has {num_tokens} tokens with an empty response, and the limit of a conversation is {self._limits.max_tokens}",
        )


def _characters(prompt: Conversation) -> int:
    """At least one a message, for each costs the template time."""
    return sum(1 + len(message.role) + len(message.content) for message in prompt)


def _only_user_turn(prompt: Conversation) -> str:
    if len(prompt) != 1 or prompt[0].role != "user":
        raise InvalidRequest(
            "prompt.messages",
            "this model has no chat template: it takes one user turn, without a system message",
        )
    return prompt[0].content


def _without_oldest_turns(prompt: Conversation) -> list[Conversation]:
    """The prompt without its first exchange, without its first two, … down to its last user turn.

    System messages at the start stay. An exchange is a user turn and what follows it, so that roles still alternate as
    templates demand.
    """
    system = tuple(takewhile(lambda message: message.role == "system", prompt))
    turns = prompt[len(system) :]
    starts = [index for index, message in enumerate(turns) if message.role == "user"]
    return [system + turns[start:] for start in starts if start > 0]


def _ids(encoding: Encoding) -> Int64:
    return np.array(encoding.ids, np.int64)


def _any_of(contents: Sequence[str]) -> re.Pattern[str]:
    """A pattern for any of the strings, longest first; without strings, one that never matches."""
    ordered: Callable[[str], int] = len
    longest_first = sorted(contents, key=ordered, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if longest_first else r"(?!)")
