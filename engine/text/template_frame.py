"""Make a text with the chat template applied begin and end as the template's conversations do.

RL libraries decode the token ids of a rollout and send the text. It may have the first token of a
conversation twice (template and tokenizer both added it) or not at all (the library took it off).
It may lack what the template writes after the end-of-turn token (a newline), or the whole end,
because the rollout reached its limit of tokens. The reward is read at the last token, so the end
decides which token that is: it must be the one that training used.
"""

from collections.abc import Callable
from dataclasses import dataclass

# A prompt and a response that no template contains.
_PROMPT, _RESPONSE = "kwise-prompt", "kwise-response"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFrame:
    """What a chat template writes around the texts of a conversation.

    Attributes:
        bos: the token that starts a text; "" if the tokenizer has none.
        starts_with_bos: True if the template's conversations start with `bos`.
        response_header: what comes directly before a response ("<|im_start|>assistant\\n").
        end: what comes after a response ("<|im_end|>\\n"); "" if that is not known.
        special_ends: `end` up to each of its special tokens, the longest first ("<|im_end|>").
    """

    bos: str = ""
    starts_with_bos: bool = False
    response_header: str = ""
    end: str = ""
    special_ends: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        render: Callable[[str, str], str | None],
        find_special: Callable[[str], list[tuple[int, int]]],
        bos: str,
    ) -> "TemplateFrame":
        """Return the frame of a template.

        Args:
            render: returns the conversation of one prompt and one response, or None if the template
                refuses it.
            find_special: returns where the special tokens of a text start and end.
            bos: the token that starts a text, or "".
        """
        text = render(_PROMPT, _RESPONSE)
        if text is None or text.count(_PROMPT) != 1 or text.count(_RESPONSE) != 1:
            return cls()
        start, _, rest = text.partition(_PROMPT)
        between, _, end = rest.partition(_RESPONSE)
        last_special = max((begin for begin, _ in find_special(between)), default=0)
        return cls(
            bos=bos,
            starts_with_bos=bool(bos) and start.startswith(bos),
            response_header=between[last_special:],
            end=end,
            special_ends=tuple(end[:stop] for _, stop in reversed(find_special(end))),
        )

    def complete(self, text: str) -> str:
        """Return the text with the template's beginning and end, each once."""
        return self._with_end(self._with_start(text))

    def shared_part(self, text: str) -> str:
        """Return the text up to its last response, as far as that can be told."""
        if not self.response_header:
            return ""
        place = text.rfind(self.response_header)
        return "" if place < 0 else text[: place + len(self.response_header)]

    def _with_start(self, text: str) -> str:
        if not self.bos:
            return text
        rest = text
        while rest.startswith(self.bos):
            rest = rest[len(self.bos) :]
        return self.bos + rest if self.starts_with_bos else rest

    def _with_end(self, text: str) -> str:
        # Space after the end-of-turn token is no part of the response.
        stripped = text.rstrip()
        for end in self.special_ends:
            if stripped.endswith(end):
                while stripped.endswith(end + end):  # padding with the same token, decoded
                    stripped = stripped[: -len(end)]
                return stripped[: -len(end)] + self.end
        return text if text.endswith(self.end) else text + self.end
