"""Conversations to which somebody has already applied a chat template.

A model's template would wrap such a text once more, so that it would be trained on markers inside
a turn. `parse_templated` takes the markers out again. A template belongs in `_TEMPLATES` if its
markers can hardly be typed by chance.
"""

import re
from dataclasses import dataclass

from kwise.roles import standard_role
from kwise.train.data.rows.transcript import without_empty_end
from kwise.types import Conversation, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    """The markers with which a template writes a conversation.

    turn: the marker before a turn; its group is the role.
    end: the markers after a turn; without one the next marker ends it.
    """

    turn: re.Pattern[str]
    end: str


_BEGIN = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>)?\s*"
)
_ENDS = (
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end|>",
    "<｜end▁of▁sentence｜>",
)
_TEMPLATES = {
    "ChatML": _Template(turn=re.compile(r"<\|im_start\|>([\w-]+)\n"), end="<|im_end|>"),
    "Llama 3's template": _Template(
        turn=re.compile(r"<\|start_header_id\|>([\w-]+)<\|end_header_id\|>\n\n"), end="<|eot_id|>"
    ),
    "Gemma's template": _Template(
        turn=re.compile(r"<start_of_turn>([\w-]+)\n"), end="<end_of_turn>"
    ),
    "Zephyr's template": _Template(turn=re.compile(r"<\|(system|user|assistant)\|>\n"), end="</s>"),
    "OpenAssistant's template": _Template(
        turn=re.compile(r"<\|(system|prompter|assistant)\|>"), end="<|endoftext|>"
    ),
    "DeepSeek's template": _Template(
        turn=re.compile(r"<｜(User|Assistant)｜>"), end="<｜end▁of▁sentence｜>"
    ),
}
_LLAMA2_TURN = re.compile(r"(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?=(?:<s>)?\s*\[INST\]|\Z)", re.S)
_LLAMA2_SYSTEM = re.compile(r"\s*<<SYS>>\n?(.*?)\n?<</SYS>>\s*(.*)\Z", re.S)
_ALPACA = re.compile(
    r"(?:Below is an instruction[^\n]*\n+)?### Instruction:\n(.*?)\n+"
    r"(?:### Input:\n(.*?)\n+)?### Response:[ \n]*(.*)\Z",
    re.S,
)
_FIRST_MARKERS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "[INST]",
    "<|system|>",
    "<|user|>",
    "<|prompter|>",
    "<｜User｜>",
    "<|start|>",
    "<|START_OF_TURN_TOKEN|>",
    "[SYSTEM_PROMPT]",
)


def parse_templated(text: str) -> tuple[str, Conversation] | None:
    """Return (the name of the template, the turns) of a text that begins with a template's marker.

    The turn that the template opens for the answer is left out. None if there is no marker at the
    beginning, or the rest does not fit the template.
    """
    begin = _BEGIN.match(text)
    body = text[begin.end() :] if begin else text
    for name, template in _TEMPLATES.items():
        if template.turn.match(body):
            _, *parts = template.turn.split(body)
            turns = [
                Message(
                    role=standard_role(role),
                    content=without_end_marker(content.removesuffix("\n"), template.end),
                )
                for role, content in zip(parts[::2], parts[1::2], strict=True)
            ]
            if not any(template.end in turn.content for turn in turns):
                return name, without_empty_end(tuple(turns))
    if body.startswith("[INST]"):
        return _parse_llama2(body)
    if (alpaca := _ALPACA.match(body)) is not None:
        instruction, given, answer = alpaca.groups()
        asked = f"{instruction}\n\n{given}" if given else instruction
        turns = [Message(role="user", content=asked), Message(role="assistant", content=answer)]
        return "Alpaca's template", without_empty_end(tuple(turns))
    return None


def end_marker(text: str) -> str:
    """Return the marker by which a template ends a turn, at the end of `text`; "" if none is."""
    stripped = text.rstrip()
    return next((marker for marker in _ENDS if stripped.endswith(marker)), "")


def begins_with_marker(text: str) -> bool:
    """Return whether `text` begins with a marker that only chat templates write."""
    begin = _BEGIN.match(text)
    return text[begin.end() if begin else 0 :].startswith(_FIRST_MARKERS)


def without_end_marker(text: str, end: str = "") -> str:
    """Return `text` without the marker by which a template ends a turn, or unchanged.

    end: a marker of which the white space before it belongs to the text.
    """
    stripped = text.rstrip()
    if not stripped.endswith(_ENDS):
        return text
    if end and stripped.endswith(end):
        return stripped.removesuffix(end)
    if stripped.endswith("</s>") and "<s>" in text:  # text that is struck through in HTML
        return text
    marker = next(marker for marker in _ENDS if stripped.endswith(marker))
    return stripped.removesuffix(marker).rstrip()


def _parse_llama2(body: str) -> tuple[str, Conversation] | None:
    turns: list[Message] = []
    position = 0
    while (match := _LLAMA2_TURN.match(body, position)) and match.end() > position:
        asked, answer = match.groups()
        if not turns and (system := _LLAMA2_SYSTEM.match(asked)):
            turns.append(Message(role="system", content=system[1].strip()))
            asked = system[2]
        turns.append(Message(role="user", content=asked.strip()))
        turns.append(Message(role="assistant", content=without_end_marker(answer).strip()))
        position = match.end()
    if position != len(body):
        return None
    return "Llama 2's template", without_empty_end(tuple(turns))
