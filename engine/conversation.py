"""A group → one token sequence per response, exactly as training tokenised it.

The tokens are those of `apply_chat_template` on the whole conversation, always. Tokenising a prompt once for its K
responses is exact only where the text is cut at a special token: added tokens split a text before anything else looks at
it. So the K conversations are rendered whole, the text that they share is cut before its last special token, and the head
is tokenised once. Cutting before the token, not after it, keeps a tail from being its text's first piece, which some
tokenizers treat differently (Metaspace's `prepend_scheme="first"`).

Models without a chat template (cross-encoders) read prompt and response as a pair of texts.

Knows templates, tokens and limits; nothing of batches, caches or rewards. Thread-safe: nothing is written after
construction.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile
from json import dumps
from os.path import commonprefix
from typing import Any, NoReturn, cast

import numpy as np
from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Encoding, Tokenizer

from kwise.engine.errors import InvalidRequest
from kwise.engine.trie import Int64
from kwise.engine.types import Conversation, Group, Message, TokenIds


class Overlong(Enum):
    """What becomes of a conversation longer than the limit."""

    REJECT = "reject"  # its reward carries an error
    DROP_TURNS = "drop-turns"  # the oldest turns of the prompt go, the response and the last turn stay whole


class ControlTokens(Enum):
    """What becomes of text in which a special token is spelled out, such as `<|im_end|>` in a response."""

    ACCEPT = "accept"  # tokenised as the special token, as transformers does in training; counted in the reply
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSequence:
    """One conversation as the model reads it.

    token_ids: int64[length]; type_ids: int64[length] or None, the segment (0 prompt, 1 response) for models that want it.
    num_tokens: tokens of the conversation, which exceeds `length` where unread padding at the end was cut.
    """

    token_ids: Int64
    type_ids: Int64 | None
    num_tokens: int
    prompt_tokens: int = 0
    dropped_tokens: int = 0
    control_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLimits:
    """max_tokens: longest conversation that is scored, in tokens; vocab_size: token ids are below it."""

    max_tokens: int
    vocab_size: int
    overlong: Overlong = Overlong.REJECT
    control_tokens: ControlTokens = ControlTokens.ACCEPT


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
        cuttable = [] if any(t.single_word for t in raw) else [t for t in raw if not (t.lstrip or t.rstrip)]
        self._cuttable = {token.content for token in cuttable}
        self._control = _any_of([token.content for token in added if token.special])

    def check(self, group: Group) -> None:
        """What makes a group malformed as a whole and can be told without tokenising.

        The scorer calls this with the whole group, so that an error names a response by its place in the request, and before
        other requests can wait for a part of it.

        Raises:
            InvalidRequest: no prompt, no responses, or a token id outside the vocabulary.
        """
        if not group.responses:
            raise InvalidRequest("responses", "there are none; give at least one")
        if not group.prompt:
            raise InvalidRequest("prompt", "it is empty")
        if not isinstance(group.prompt[0], Message):
            self._check_ids("prompt.token_ids", group.prompt)
            for index, response in enumerate(cast(tuple[TokenIds, ...], group.responses)):
                self._check_ids(f"responses[{index}].token_ids", response)

    def encode(self, group: Group) -> list[EncodedSequence | InvalidRequest]:
        """One outcome per response, in order.

        Raises:
            InvalidRequest: the group as a whole is malformed, or its prompt too long by itself.
        """
        self.check(group)
        if isinstance(group.prompt[0], Message):
            return self._encode_texts(group.prompt, cast(tuple[str, ...], group.responses))
        return self._encode_token_ids(group.prompt, cast(tuple[TokenIds, ...], group.responses))

    # Token ids

    def _encode_token_ids(self, prompt: TokenIds, responses: Sequence[TokenIds]) -> list[EncodedSequence | InvalidRequest]:
        outcomes: list[EncodedSequence | InvalidRequest] = []
        for index, response in enumerate(responses):
            token_ids = np.array(prompt + response, np.int64)
            if len(token_ids) > self._limits.max_tokens:
                outcomes.append(self._too_long(index, len(token_ids)))
            else:
                outcomes.append(self._sequence(token_ids, None))
        if len(prompt) >= self._limits.max_tokens and all(isinstance(outcome, InvalidRequest) for outcome in outcomes):
            self._raise_prompt_too_long(len(prompt))
        return outcomes

    def _check_ids(self, field: str, ids: TokenIds) -> None:
        for index, token_id in enumerate(ids):
            if not 0 <= token_id < self._limits.vocab_size:
                problem = f"{token_id} is outside the vocabulary of {self._limits.vocab_size}"
                raise InvalidRequest(f"{field}[{index}]", problem)

    # Texts

    def _encode_texts(self, prompt: Conversation, responses: Sequence[str]) -> list[EncodedSequence | InvalidRequest]:
        refuse = self._limits.control_tokens is ControlTokens.REJECT
        if refuse and (count := sum(self._count_control(m.role) + self._count_control(m.content) for m in prompt)):
            raise InvalidRequest("prompt", f"its text spells out {count} control tokens, which this server refuses")
        control = [self._count_control(response) for response in responses]
        outcomes: list[EncodedSequence | InvalidRequest] = []
        encodings = self._tokenise(prompt, responses)
        for index, (response, encoding) in enumerate(zip(responses, encodings, strict=True)):
            if refuse and control[index]:
                problem = f"its text spells out {control[index]} control tokens, which this server refuses"
                outcomes.append(InvalidRequest(f"responses[{index}].text", problem))
            elif len(encoding[0]) > self._limits.max_tokens:
                outcomes.append(self._shortened(prompt, response, index, len(encoding[0]), control[index]))
            else:
                outcomes.append(self._sequence(*encoding, control_tokens=control[index]))
        return outcomes

    def _tokenise(self, prompt: Conversation, responses: Sequence[str]) -> list[tuple[Int64, Int64 | None]]:
        """(token ids, type ids) of each whole conversation, of whatever length."""
        if self._template is None:
            pairs = [(_only_user_turn(prompt), response) for response in responses]
            return [(_ids(e), np.array(e.type_ids)) for e in self._tokenizer.encode_batch(pairs)]  # _fast loses type ids
        texts = [self._render((*prompt, Message(role="assistant", content=response))) for response in responses]
        cut = self._cut(commonprefix([min(texts), max(texts)]))
        head, *tails = self._tokenizer.encode_batch_fast(
            [texts[0][:cut], *(text[cut:] for text in texts)], add_special_tokens=False
        )
        head_ids = _ids(head)
        return [(np.concatenate([head_ids, _ids(tail)]), None) for tail in tails]

    def _cut(self, shared_text: str) -> int:
        """Where the last special token of the shared text starts, or 0.

        Tokenizers match added tokens leftmost and longest first, as this pattern does. A match is trusted only where no
        text behind `shared_text` could have made it longer.
        """
        starts = (
            match.start()
            for match in self._added.finditer(shared_text)
            if match.group() in self._cuttable and match.start() + self._longest_added <= len(shared_text)
        )
        return max(starts, default=0)

    def _render(self, messages: Conversation, *, add_generation_prompt: bool = False) -> str:
        assert self._template is not None
        try:
            return self._template.render(
                messages=[{"role": message.role, "content": message.content} for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest("prompt.messages", f"the chat template refuses the conversation: {error}") from None

    def _shortened(
        self, prompt: Conversation, response: str, index: int, full_length: int, control_tokens: int
    ) -> EncodedSequence | InvalidRequest:
        """The conversation without as many of its oldest turns as it takes, or why it cannot be scored."""
        shorter = _without_oldest_turns(prompt) if self._limits.overlong is Overlong.DROP_TURNS else []
        lengths: dict[int, tuple[Int64, Int64 | None]] = {}

        def fits(turns: int) -> bool:
            lengths[turns] = self._tokenise(shorter[turns], [response])[0]
            return len(lengths[turns][0]) <= self._limits.max_tokens

        dropped_turns = bisect_left(range(len(shorter)), True, key=fits)
        if dropped_turns < len(shorter):
            token_ids, type_ids = lengths[dropped_turns]
            dropped = full_length - len(token_ids)
            return self._sequence(token_ids, type_ids, dropped_tokens=dropped, control_tokens=control_tokens)
        shortest = shorter[-1] if shorter else prompt
        if (alone := self._prompt_length(shortest)) >= self._limits.max_tokens:
            self._raise_prompt_too_long(alone)
        return self._too_long(index, full_length)

    def _prompt_length(self, prompt: Conversation) -> int:
        """Tokens of a prompt up to where the response begins."""
        if self._template is None:
            return len(self._tokenise(prompt, [""])[0][0])
        text = self._render(prompt, add_generation_prompt=True)
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    # Both

    def _sequence(
        self, token_ids: Int64, type_ids: Int64 | None, *, dropped_tokens: int = 0, control_tokens: int = 0
    ) -> EncodedSequence:
        num_tokens, length = len(token_ids), len(token_ids)
        if self._trailing_pad_id is not None:
            read = np.flatnonzero(token_ids != self._trailing_pad_id)
            length = int(read[-1]) + 1 if len(read) else 1
        return EncodedSequence(
            token_ids=token_ids[:length],
            type_ids=None if type_ids is None else type_ids[:length],
            num_tokens=num_tokens,
            dropped_tokens=dropped_tokens,
            control_tokens=control_tokens,
        )

    def _count_control(self, text: str) -> int:
        return len(self._control.findall(text))

    def _too_long(self, index: int, num_tokens: int) -> InvalidRequest:
        return InvalidRequest(
            f"responses[{index}]",
            f"the conversation has {num_tokens} tokens and the limit is {self._limits.max_tokens}",
        )

    def _raise_prompt_too_long(self, num_tokens: int) -> NoReturn:
        raise InvalidRequest(
            "prompt", f"it alone has {num_tokens} tokens and the limit of a conversation is {self._limits.max_tokens}"
        )


def compile_template(source: str) -> Template:
    """The chat template in Jinja's immutable sandbox, with what transformers gives its templates
    (transformers.utils.chat_template_utils), except for today's date: a reward must not change overnight.

    Raises:
        jinja2.TemplateSyntaxError: the template is malformed.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_template_error
    return environment.from_string(source)


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks text by the assistant; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which would change the tokens.
    return dumps(value, ensure_ascii=options.pop("ensure_ascii", False), **options)


def _raise_template_error(message: str) -> NoReturn:
    raise TemplateError(message)


def _only_user_turn(prompt: Conversation) -> str:
    if len(prompt) != 1 or prompt[0].role != "user":
        raise InvalidRequest(
            "prompt.messages", "this model has no chat template: it takes one user turn, without a system message"
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
