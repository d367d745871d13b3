"""The heads that learn from a ranking.

Several heads over one backbone agree more than they should, because all see the same labels. So
each prompt is shown to a random part of the heads only, the same part in every epoch. This is a
bootstrap without repetition: a head is trained on a random subset of the prompts.

The draw depends on the seed and the prompt alone. So it is the same in any order of the rankings,
in any batch and process, and in a resumed run; all rankings of a prompt go to the same heads.
Every prompt has the same number of heads, because then no prompt counts more than another, and
the gradient of a head is that of its own loss times one constant.
"""

from kwise.train.rankings.prompt_key import prompt_key, text_hash
from kwise.types import Conversation

HeadMask = tuple[bool, ...]
"""True for each head that learns from a ranking."""
ONE_HEAD: HeadMask = (True,)


def num_learning(num_heads: int, share: float) -> int:
    """Return how many of the heads learn from a prompt: the share, rounded, and at least one."""
    return max(1, round(share * num_heads))


def head_mask(prompt: Conversation, num_heads: int, share: float, seed: int) -> HeadMask:
    """Return which heads learn from the rankings of a prompt."""
    key = str(prompt_key(prompt))
    # Hashes instead of random numbers, whose sequence may change with the version of a library.
    drawn = sorted(range(num_heads), key=lambda head: text_hash(str(seed), key, str(head)))
    learning = drawn[: num_learning(num_heads, share)]
    return tuple(head in learning for head in range(num_heads))
