"""Make a text with the chat template applied begin and end as the template's conversations do.

RL libraries decode the token ids of a rollout and send the text. It may have the first token of a
conversation twice (template and tokenizer both added it) or not at all (the library took it off).
It may lack the characters that the template writes after the end-of-turn token (a newline), or the
whole end, because the rollout reached its limit of tokens. The reward is read at the last token, so
the text must end with the token that training used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Protocol

# Tokens that end or pad the texts of common models, where they are special tokens of a tokenizer. A
# policy that was trained from a base model ends its texts with that model's token.
END_TOKENS = (
    *("<|endoftext|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
    *("</s>", "<eos>", "<end_of_turn>", "<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"),
)
# A prompt and a response that no template contains.
_PROMPT, _RESPONSE = "kwise-prompt", "kwise-response"


class Render(Protocol):
    """Renders a conversation with a chat template."""

    def __call__(
        self, prompt: str, response: str | None = None, *, is_open: bool = False
    ) -> str | None:
        """Return the conversation, or None if the template refuses it.

        Args:
            prompt: the user's turn.
            response: the assistant's turn; None for a conversation without one.
            is_open: True to end with the beginning of the assistant's turn, as a policy reads it.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFrame:
    """The text that a chat template writes around a prompt and its response.

    Attributes:
        bos: the token that starts a text; "" if the tokenizer has none.
        starts_with_bos: True if the template's conversations start with `bos`.
        response_header: the text before a response of the template and before a rollout of a policy
            ("<|im_start|>assistant\\n").
        end: the text after a response ("<|im_end|>\\n"); "" if it is not known.
        special_ends: `end` up to each of its special tokens, the longest first ("<|im_end|>").
        end_tokens: special tokens that end or pad a text, including those of `end`.
        first_token: the token of `end_tokens` that starts the template's conversations, or "".
    """

    bos: str = ""
    starts_with_bos: bool = False
    response_header: str = ""
    end: str = ""
    special_ends: tuple[str, ...] = ()
    end_tokens: tuple[str, ...] = ()
    first_token: str = ""

    @classmethod
    def of(
        cls,
        render: Render,
        find_special: Callable[[str], list[tuple[int, int]]],
        bos: str,
        end_tokens: Sequence[str],
    ) -> "TemplateFrame | None":
        """Return the frame of a template; None if the template refuses or changes the texts.

        Args:
            render: renders a conversation.
            find_special: returns the start and end of each special token of a text.
            bos: the token that starts a text, or "".
            end_tokens: special tokens that end or pad a text.
        """
        conversation = render(_PROMPT, _RESPONSE)
        if (
            conversation is None
            or _PROMPT not in conversation
            or conversation.count(_RESPONSE) != 1
        ):
            return None
        until_response, _, end = conversation.partition(_RESPONSE)
        start = until_response.partition(_PROMPT)[0]
        between = _until_rollout(until_response.rpartition(_PROMPT)[2], render)
        last_special = max((begin for begin, _ in find_special(between)), default=0)
        ends = find_special(end)
        return cls(
            bos=bos,
            starts_with_bos=bool(bos) and start.startswith(bos),
            response_header=between[last_special:],
            end=end,
            special_ends=tuple(end[:stop] for _, stop in reversed(ends)),
            end_tokens=(*end_tokens, *(end[begin:stop] for begin, stop in ends)),
            first_token=_first(start, end_tokens),
        )

    def complete(self, text: str) -> str:
        """Return the text with the template's beginning and end, each once."""
        return self._with_end(self.with_start(text))

    def shared_part(self, text: str) -> str:
        """Return the text up to the start of its last response; "" if that is not known."""
        if not self.response_header:
            return ""
        place = text.rfind(self.response_header)
        return "" if place < 0 else text[: place + len(self.response_header)]

    def with_start(self, text: str) -> str:
        """Return the text with the template's first token, once."""
        padding = [token for token in self.end_tokens if token != self.first_token]
        rest = text
        while token := _first(rest, (*padding, self.bos)):
            rest = rest[len(token) :]
        return self.bos + rest if self.starts_with_bos else rest

    def _with_end(self, text: str) -> str:
        # Whitespace after the end-of-turn token is not part of the response. More tokens may follow
        # it: decoded padding, or the end token of the policy's own model.
        without = text
        while token := _last(without.rstrip(), self.end_tokens):
            without = without.rstrip()[: -len(token)]
        for end in self.special_ends:
            if (place := text.find(end, max(len(without) - len(end), 0))) >= 0:
                return text[:place] + self.end
        return without if without.endswith(self.end) else without + self.end


def _until_rollout(header: str, render: Render) -> str:
    """Return the part of a response's header that a rollout of a policy has, too.

    Templates of thinking models write an empty think block before a response. A rollout has the
    policy's own thoughts there, so its header ends where the template's generation prompt does.

    Args:
        header: what the template writes between prompt and response.
        render: renders a conversation.
    """
    closed, opened = render(_PROMPT), render(_PROMPT, is_open=True)
    if closed is None or opened is None or closed == opened:
        return header  # the template has no generation prompt
    shared = commonprefix([header, opened.rpartition(_PROMPT)[2]])
    is_header = len(shared) > len(closed.rpartition(_PROMPT)[2])
    return shared if is_header else header


def _first(text: str, tokens: Sequence[str]) -> str:
    """Return the token that `text` starts with, or ""."""
    return next((token for token in tokens if token and text.startswith(token)), "")


def _last(text: str, tokens: Sequence[str]) -> str:
    """Return the token that `text` ends with, or ""."""
    return next((token for token in tokens if token and text.endswith(token)), "")
