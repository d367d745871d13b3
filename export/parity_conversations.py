"""The conversations that parity is checked with: short and long, of one turn and of several.

Some spell out special tokens. Each is a prompt and a response; no model is involved.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from kwise.types import Conversation, Message

# The longest conversation, in tokens. It reaches attention's largest tile groups, and a CPU scores
# it in seconds.
_LONGEST = 3072


def shipped_conversations() -> list[tuple[str, str]]:
    """Return the prompts and responses that are shipped with kwise, all of a single turn."""
    lines = Path(__file__).with_name("conversations.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["prompt"], entry["response"]) for entry in map(json.loads, lines)]


def conversations(
    max_tokens: int = _LONGEST, *, multi_turn: bool
) -> list[tuple[Conversation, str]]:
    """Return the shipped conversations, and longer ones that are made of them.

    Args:
        max_tokens: the limit of the model. No conversation is much longer.
        multi_turn: make the longer ones of several turns; otherwise of one turn with a long text.
    """
    pairs = shipped_conversations()
    cases: list[tuple[Conversation, str]] = [
        ((Message(role="user", content=p),), r) for p, r in pairs
    ]
    if not multi_turn:
        # The first texts of each half, up to a quarter of the limit and up to nearly all of it.
        for share in (4, 1):
            characters = 3 * min(_LONGEST, max_tokens) // share // 2
            prompt = " ".join(p for p, _ in pairs * 20)[:characters]
            response = " ".join(r for _, r in pairs * 20)[:characters]
            cases.append(((Message(role="user", content=prompt),), response))
        return cases
    turns: list[Message] = []
    for repeat in range(40):
        prompt, response = pairs[(repeat * 5) % len(pairs)]
        asked = (*turns, Message(role="user", content=prompt))
        words = sum(len(message.content) for message in asked)
        if words > 3 * min(_LONGEST, max_tokens) // 2:
            break
        if repeat in (3, 7, 15, 31):
            cases.append((asked, response))
        turns = [*asked, Message(role="assistant", content=response)]
    cases.append(((*turns, Message(role="user", content=pairs[0][0])), pairs[0][1]))
    return cases


def conversations_with_special_tokens(special: Sequence[str]) -> list[tuple[Conversation, str]]:
    """Return conversations whose texts spell out special tokens, different numbers of each.

    Some models read the reward at such a token, or count it. In a batch the token of one text must
    not change the reward of another.
    """
    prompt: Conversation = (Message(role="user", content="What ends a text?"),)
    cases = [(prompt, f"This does: {token} Or does it?") for token in special]
    if special:
        all_of_them = " ".join(special)
        asked = (Message(role="user", content=f"What are {all_of_them}?"),)
        cases += [(asked, "Special tokens."), (prompt, f"{all_of_them} and {all_of_them}")]
    return cases
