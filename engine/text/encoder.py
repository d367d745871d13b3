"""Turn a group into one token sequence per response, exactly as training tokenised it.

The tokens are always those of `apply_chat_template` on the whole conversation: the K conversations
are rendered whole, and `shared_text.py` tokenises their common part once. If the caller has applied
the template, `template_frame.py` makes the text begin and end as in training. Models without a chat
template (cross-encoders) read prompt and response as a pair of texts with different type ids.

An error in one response is an `InvalidRequest` in its place; see `ConversationEncoder.encode`.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from os.path import commonprefix
from typing import cast

import numpy as np
from tokenizers import Tokenizer

from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.chat_template import ChatTemplate
from kwise.engine.text.limits import ControlTokens, EncoderLimits, Overlong
from kwise.engine.text.outcomes import Outcomes
from kwise.engine.text.shared_text import SharedTextTokenizer, Tokens, any_of, ids_of
from kwise.engine.text.template_frame import END_TOKENS, TemplateFrame
from kwise.engine.text.templated_text import TemplatedTextEncoder
from kwise.engine.trie import Int64
from kwise.errors import InvalidRequest
from kwise.libraries.errors import cause_of, is_foreign
from kwise.roles import standard_role
from kwise.types import Conversation, Group, Message, TemplatedText, TokenIds


class ConversationEncoder:
    """Encodes groups as token sequences. Thread-safe: nothing is written after construction.

    Args:
        tokenizer: the model's tokenizer.
        template: the chat template, or None for models that read a pair of texts.
        special_tokens: names that templates use, such as `bos_token`, and their text.
        limits: the limits on characters, tokens and token ids.
        trailing_pad_id: a token that is cut off at the end; None cuts nothing. transformers' causal
            classifiers read the reward at the last token that is not this one, and in a causal
            model later tokens change nothing.

    Raises:
        jinja2.TemplateSyntaxError: the template is malformed.
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
        self._template = None if template is None else ChatTemplate(template)
        self._special_tokens = dict(special_tokens)
        self._limits = limits
        self._texts = SharedTextTokenizer(tokenizer)
        added = tokenizer.get_added_tokens_decoder().values()
        self._control = any_of([token.content for token in added if token.special])
        self._outcomes = Outcomes(limits, trailing_pad_id)
        self._templated = (
            None
            if template is None
            else TemplatedTextEncoder(self._texts, self._template_frame(), limits, self._outcomes)
        )
        # The type id of the second text: 1 for BERT and its relatives, 0 for RoBERTa and its
        # relatives, whose table of types has one row.
        self._second_type = (
            max(self._tokenizer.encode("a", "b").type_ids, default=1) if template is None else 0
        )

    def check(self, group: Group) -> None:
        """Check the group as a whole, as far as that is possible without tokenising.

        The scorer calls this with the whole group, before other requests can wait for a part of it,
        so that an error names a response by its place in the request. It runs on the event loop and
        spends no Python time per token id.

        Raises:
            InvalidRequest: the prompt is missing, has a nonstandard name for a standard role, ends
                with an assistant's turn, or has more characters or ids than a conversation may
                have; the list of responses is empty; a token id of the prompt is outside the
                vocabulary; or the model or the server does not accept a templated text.
        """
        if not group.responses:
            raise InvalidRequest("responses", "the list is empty; give at least one response")
        if isinstance(group.prompt, TemplatedText):
            self._templated_encoder().check(group.prompt)
            return
        if not group.prompt:
            raise InvalidRequest("prompt", "it is empty")
        if isinstance(group.prompt[0], Message):
            _check_roles(group.prompt)
            if group.prompt[-1].role == "assistant":
                problem = (
                    "the prompt ends with an assistant's turn, and the response is one too; "
                    "training refuses such rankings as well"
                )
                raise InvalidRequest(f"prompt.messages[{len(group.prompt) - 1}].role", problem)
            if (length := _characters(group.prompt)) > self._limits.max_characters:
                raise self._outcomes.too_many_characters("prompt", length)
            return
        if len(group.prompt) > self._limits.max_tokens:
            raise self._outcomes.prompt_too_long(len(group.prompt))
        if error := self._outcomes.outside_vocabulary("prompt.token_ids", group.prompt):
            raise error

    def encode(self, group: Group) -> list[EncodedSequence | InvalidRequest]:
        """Return the token sequence of each response, in order, or the error of that response.

        The group is refused as a whole only if none of its responses could be scored. Otherwise
        requests that wait for some of the same responses would share the error of the others.

        Raises:
            InvalidRequest: the group is malformed as a whole, its prompt leaves no room even for an
                empty response, or the chat template refuses it with every response.
        """
        self.check(group)
        if isinstance(group.prompt, TemplatedText):
            responses = cast(tuple[str, ...], group.responses)
            return self._templated_encoder().encode(group.prompt, responses)
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
                outcomes.append(self._outcomes.too_long(index, num_tokens, has_turns=False))
            elif error := self._outcomes.outside_vocabulary("token_ids", response, index):
                outcomes.append(error)
            else:
                ids = np.array(prompt + response, np.int64)
                type_ids = self._type_ids(len(prompt), len(response))
                tokens = Tokens(ids, type_ids, num_shared=len(prompt))
                outcomes.append(self._outcomes.sequence(index, tokens))
        return outcomes

    def _type_ids(self, prompt_length: int, response_length: int) -> Int64 | None:
        """Return int64[length], 0 for the prompt and the second text's type id for the response.

        Returns None for models with a chat template.
        """
        if self._template is not None:
            return None
        return np.repeat(
            np.array([0, self._second_type], np.int64), [prompt_length, response_length]
        )

    # Templated texts

    def _templated_encoder(self) -> TemplatedTextEncoder:
        """Return the encoder of templated texts.

        Raises:
            InvalidRequest: the model has no chat template.
        """
        if self._templated is None:
            raise InvalidRequest(
                "prompt.templated_text",
                "this model has no chat template; give the prompt as text, and each response",
            )
        return self._templated

    def _template_frame(self) -> TemplateFrame | None:
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        named = [self._special_tokens.get(name, "") for name in ("eos_token", "pad_token")]

        def frame(*system: Message) -> TemplateFrame | None:
            return TemplateFrame.of(
                partial(self._rendered, system),
                lambda text: [match.span() for match in self._control.finditer(text)],
                self._special_tokens.get("bos_token", ""),
                [token for token in dict.fromkeys((*named, *END_TOKENS)) if token in special],
            )

        return frame() or frame(Message(role="system", content="kwise-system"))

    def _rendered(
        self,
        system: Conversation,
        prompt: str,
        response: str | None = None,
        *,
        is_open: bool = False,
    ) -> str | None:
        turns = (*system, Message(role="user", content=prompt))
        if response is not None:
            turns += (Message(role="assistant", content=response),)
        text = self._render(turns, is_open=is_open)
        return text if isinstance(text, str) else None

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
            raise InvalidRequest("prompt", _spelled_out(count))
        room = self._limits.max_characters - _characters(prompt)
        readable = [response if len(response) <= room else "" for response in responses]
        control = [self._count_control(response) for response in readable]
        outcomes: list[EncodedSequence | InvalidRequest] = []
        for index, tokens in enumerate(self._tokenise(prompt, readable)):
            if (length := len(responses[index])) > room:
                num_characters = _characters(prompt) + length
                outcomes.append(self._outcomes.too_many_characters("text", num_characters, index))
            elif refuse and control[index]:
                outcomes.append(
                    InvalidRequest("text", _spelled_out(control[index]), response=index)
                )
            elif isinstance(tokens, InvalidRequest):
                outcomes.append(tokens)
            elif len(tokens.ids) > self._limits.max_tokens:
                outcomes.append(
                    self._shortened(
                        prompt, responses[index], index, len(tokens.ids), control[index]
                    )
                )
            else:
                outcomes.append(
                    self._outcomes.sequence(index, tokens, control_tokens=control[index])
                )
        self._raise_for_group(prompt, outcomes)
        return outcomes

    def _raise_for_group(
        self, prompt: Conversation, outcomes: Sequence[EncodedSequence | InvalidRequest]
    ) -> None:
        """Raise one error instead of K if no response can be scored because of the prompt."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, InvalidRequest)]
        if len(errors) < len(outcomes):
            return
        if all(error.response is None for error in errors):
            raise errors[0]
        min_length = self._min_length(prompt)
        if min_length is not None and min_length > self._limits.max_tokens:
            raise self._outcomes.prompt_too_long(min_length)

    def _min_length(self, prompt: Conversation) -> int | None:
        """Return the tokens of the conversation with an empty response; drop old turns if allowed.

        Returns None if the template refuses it.
        """
        if self._limits.overlong is Overlong.DROP_TURNS and (
            shorter := _without_oldest_turns(prompt)
        ):
            prompt = shorter[-1]
        (tokens,) = self._tokenise(prompt, [""])
        return None if isinstance(tokens, InvalidRequest) else len(tokens.ids)

    def _tokenise(
        self, prompt: Conversation, responses: Sequence[str]
    ) -> list[Tokens | InvalidRequest]:
        """Return the tokens of each whole conversation, however long, or the template's refusal."""
        if self._template is None:
            pairs = [(_only_user_turn(prompt), response) for response in responses]
            return [
                Tokens(ids_of(e), np.array(e.type_ids, np.int64))
                for e in self._tokenizer.encode_batch(pairs)
            ]
        rendered = [
            self._render((*prompt, Message(role="assistant", content=response)))
            for response in responses
        ]
        texts = [text for text in rendered if isinstance(text, str)]
        if not texts:
            return [text for text in rendered if isinstance(text, InvalidRequest)]
        tokens = iter(self._texts.encode(texts, self._shared_text(prompt, texts)))
        return [text if isinstance(text, InvalidRequest) else next(tokens) for text in rendered]

    def _shared_text(self, prompt: Conversation, texts: Sequence[str]) -> str:
        """Return the longest common prefix of the conversations.

        If all are equal, it is their common prefix with the conversation with an empty response.
        """
        if min(texts) == max(texts) and isinstance(
            empty := self._render((*prompt, Message(role="assistant", content=""))), str
        ):
            texts = [*texts, empty]
        return commonprefix([min(texts), max(texts)])

    def _render(self, messages: Conversation, *, is_open: bool = False) -> str | InvalidRequest:
        assert self._template is not None
        try:
            return self._template.render(
                messages=[
                    {"role": message.role, "content": message.content} for message in messages
                ],
                add_generation_prompt=is_open,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except Exception as error:  # a template can divide by zero, or index an empty list
            if not is_foreign(error):
                raise
            return InvalidRequest(
                "prompt.messages",
                f"the chat template refuses the conversation: {cause_of(error)}",
                is_quoting=True,
            )

    def _shortened(
        self, prompt: Conversation, response: str, index: int, full_length: int, control_tokens: int
    ) -> EncodedSequence | InvalidRequest:
        """Drop as few of the oldest turns as necessary; return an error if that is not enough."""
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
            return self._outcomes.too_long(index, full_length)
        tokens = tried[dropped_turns]
        if isinstance(tokens, InvalidRequest):
            return tokens
        dropped = full_length - len(tokens.ids)
        return self._outcomes.sequence(
            index, tokens, dropped_tokens=dropped, control_tokens=control_tokens
        )

    def _count_control(self, text: str) -> int:
        return len(self._control.findall(text))


def _check_roles(prompt: Conversation) -> None:
    """Raise InvalidRequest for a nonstandard name of a standard role, as training does."""
    for index, message in enumerate(prompt):
        if (standard := standard_role(message.role)) != message.role:
            raise InvalidRequest(
                f"prompt.messages[{index}].role",
                f"is {message.role[:40]!a}; write {standard!r}",
                is_quoting=True,
            )


def _characters(prompt: Conversation) -> int:
    """Count characters, plus one per message, because each message costs the template time."""
    return sum(1 + len(message.role) + len(message.content) for message in prompt)


def _spelled_out(num_control_tokens: int) -> str:
    return (
        f"its text spells out {num_control_tokens} control tokens, which this server refuses "
        "(--control-tokens reject)"
    )


def _only_user_turn(prompt: Conversation) -> str:
    """Return the text of a prompt that is one user turn.

    Raises:
        InvalidRequest: the prompt is anything else.
    """
    if len(prompt) != 1 or prompt[0].role != "user":
        raise InvalidRequest(
            "prompt.messages",
            "this model has no chat template: it takes one user turn, without a system message",
        )
    return prompt[0].content


def _without_oldest_turns(prompt: Conversation) -> list[Conversation]:
    """Return the prompt without its first exchange, without its first two, and so on.

    The last one is the last user turn alone. System messages at the start stay. An exchange is a
    user turn and everything up to the next one, so roles still alternate, as templates demand.
    """
    system = tuple(takewhile(lambda message: message.role == "system", prompt))
    turns = prompt[len(system) :]
    starts = [index for index, message in enumerate(turns) if message.role == "user"]
    return [system + turns[start:] for start in starts if start > 0]
