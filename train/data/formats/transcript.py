"""Conversations written into one text, and what two conversations share."""

import re

from kwise.train.data.formats.fields import refuse
from kwise.types import Conversation, Message

_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_NEMO_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def is_hh(text: str) -> bool:
    return _HH_TURN.match(text) is not None


def parse_hh(text: str, at: str) -> Conversation:
    """ "\\n\\nHuman: …\\n\\nAssistant: …", as in Anthropic's HH-RLHF (https://huggingface.co/datasets/Anthropic/hh-rlhf).

    White space around a turn belongs to the marks, not to the turn, and goes. A last turn may be empty.
    """
    first, *parts = _HH_TURN.split(text)
    if first or not parts:
        refuse(at, "does not begin with 'Human:' or 'Assistant:'")
    return tuple(
        Message(role=_HH_ROLES[name], content=content.strip())
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    )


def parse_hh_prompt(text: str, at: str) -> Conversation:
    """The same of a prompt, which ends in "\\n\\nAssistant:" to say whose turn it is."""
    turns = parse_hh(text, at)
    return turns[:-1] if turns[-1] == Message(role="assistant", content="") else turns


def parse_nemo(text: str) -> Conversation:
    """The prompts of HelpSteer2: the user's text, and before each further turn "<extra_id_1>Assistant\\n" or
    "<extra_id_1>User\\n" on a line of its own (https://huggingface.co/datasets/nvidia/HelpSteer2)."""
    first, *parts = _NEMO_TURN.split(text)
    turns = (
        [Message(role="user", content=first)] if first else []
    )  # nothing stands before a mark at the beginning
    turns += [
        Message(role=role.lower(), content=content)
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return tuple(turns) or (Message(role="user", content=""),)


def num_common(first: Conversation, second: Conversation) -> int:
    """How many turns from the beginning are the same."""
    same = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        same += 1
    return same
