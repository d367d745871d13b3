"""Conversations that are written as one text with the speaker's name before each turn."""

import re

from kwise.train.data.rows.fields import refuse
from kwise.types import Conversation, Message

_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_NEMO_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "用户": "user",
    "assistant": "assistant",
    "助手": "assistant",
    "system": "system",
}
# Other markers than HH-RLHF's: one line break, other names, and "### Human:" anywhere.
_LINE_TURN = re.compile(
    r"(?:(?:\A\s*|\n)(?:### ?)?|\s*### ?)"
    r"(Human|User|USER|Assistant|ASSISTANT|System|SYSTEM|用户|助手)[:：]"
)
# Vicuna's, in one line.
_UPPER_TURN = re.compile(r"(?:\A\s*|\s|</s>)(USER|ASSISTANT):")


def is_hh(text: str) -> bool:
    """Return whether `text` begins like a Human/Assistant transcript."""
    return _HH_TURN.match(text) is not None


def parse_hh(text: str, at: str) -> Conversation:
    """Parse "\\n\\nHuman: …\\n\\nAssistant: …", the transcripts of Anthropic's HH-RLHF.

    White space around a turn is removed because it belongs to the markers. The last turn may be
    empty (https://huggingface.co/datasets/Anthropic/hh-rlhf). A text with one line break before
    each marker is read so too; only if no marker has two can it be told from a marker inside a
    turn.
    """
    first, *parts = _HH_TURN.split(text)
    if first or not parts:
        refuse(at, "does not begin with 'Human:' or 'Assistant:'")
    if len(parts) == 2 and (turns := parse_transcript(text)):
        return turns
    return tuple(
        Message(role=_HH_ROLES[name], content=content.strip())
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    )


def parse_hh_prompt(text: str, at: str) -> Conversation:
    """Parse a prompt of HH-RLHF and remove the "\\n\\nAssistant:" with which it ends."""
    return without_empty_end(parse_hh(text, at))


def parse_transcript(text: str) -> Conversation | None:
    """Parse a transcript whose markers are at the beginning of lines, or return None.

    It must begin with a marker, not the assistant's, and have a turn of the user and one of the
    assistant.
    """
    if _LINE_TURN.match(text) is None:
        return None
    parts = _HH_TURN.split(text)
    if parts[0] or len(parts) < 5:  # fewer than two turns of HH-RLHF
        turn = _UPPER_TURN if text.lstrip().startswith("USER:") else _LINE_TURN
        parts = turn.split(text)
    roles = [_SPEAKERS[name.lower()] for name in parts[1::2]]
    if roles[0] == "assistant" or not {"user", "assistant"} <= set(roles):
        return None
    return tuple(
        Message(role=role, content=content.strip())
        for role, content in zip(roles, parts[2::2], strict=True)
    )


def has_later_speaker(text: str) -> bool:
    """Return whether a speaker's marker begins a line of `text` other than its first one."""
    return any(match.group().startswith("\n") for match in _LINE_TURN.finditer(text.strip()))


def without_empty_end(turns: Conversation) -> Conversation:
    """Return `turns` without the empty turn of the assistant that asks for an answer."""
    return turns[:-1] if turns[-1:] == (Message(role="assistant", content=""),) else turns


def parse_nemo(text: str) -> Conversation:
    """Parse a prompt of HelpSteer2.

    It is the user's text. Before each further turn is a line "<extra_id_1>Assistant" or
    "<extra_id_1>User" (https://huggingface.co/datasets/nvidia/HelpSteer2).
    """
    first, *parts = _NEMO_TURN.split(text)
    turns = [Message(role="user", content=first)] if first else []  # empty before a first marker
    turns += [
        Message(role=role.lower(), content=content)
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return tuple(turns) or (Message(role="user", content=""),)


def num_common_turns(first: Conversation, second: Conversation) -> int:
    """Return the number of turns at the beginning that are equal."""
    num_equal = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        num_equal += 1
    return num_equal
