"""Conversations that are written as one text, and the common beginning of two conversations."""

import re

from kwise.train.data.rows.fields import refuse
from kwise.types import Conversation, Message

_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_NEMO_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def is_hh(text: str) -> bool:
    """Return whether `text` begins like a Human/Assistant transcript."""
    return _HH_TURN.match(text) is not None


def parse_hh(text: str, at: str) -> Conversation:
    """Parse "\\n\\nHuman: …\\n\\nAssistant: …", the transcripts of Anthropic's HH-RLHF.

    White space around a turn is removed because it belongs to the markers. The last turn may be
    empty (https://huggingface.co/datasets/Anthropic/hh-rlhf).
    """
    first, *parts = _HH_TURN.split(text)
    if first or not parts:
        refuse(at, "does not begin with 'Human:' or 'Assistant:'")
    return tuple(
        Message(role=_HH_ROLES[name], content=content.strip())
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    )


def parse_hh_prompt(text: str, at: str) -> Conversation:
    """Parse a prompt of HH-RLHF and remove the "\\n\\nAssistant:" with which it ends."""
    turns = parse_hh(text, at)
    return turns[:-1] if turns[-1] == Message(role="assistant", content="") else turns


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
