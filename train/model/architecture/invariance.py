"""Check that a layout gives each conversation the reward that transformers gives it alone.

This is measured on small copies of the model (see small_copy.py): in a batch of unlike lengths,
with special tokens inside the texts, after other conversations, and in training mode. Rewards are
compared, which also shows whether they are read at the right token.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from kwise.train.model.architecture.probe import Probe, TokenList
from kwise.train.model.batch.layout import Layout, alone, rewards_of

# Rewards that differ by rounding alone differ by less than a tenth of this.
_RELATIVE_TOLERANCE = 1e-4
# Longer conversations are not measured: attention takes time and memory with their square.
_LONGEST, _LONGEST_EAGER = 4224, 1024
_SEVERAL_LONG = 512

NewCopy = Callable[[], PreTrainedModel]


class CannotScore(Exception):
    """The model itself raises for a conversation."""


def longest_measured(model: PreTrainedModel, max_tokens: int | None) -> int:
    """Return the length up to which a model with this limit is measured."""
    eager = model.config._attn_implementation == "eager"
    longest = _LONGEST_EAGER if eager else _LONGEST
    return min(longest, max_tokens or longest)


def probe_sequences(probe: Probe, length: int) -> list[TokenList]:
    """Return sequences of unlike lengths that begin alike, the longest of `length` tokens.

    All have different numbers of special tokens.
    """
    few = probe.min_tokens
    short = probe.sequence(min(length, few + 5), seed=0, num_special=3)
    long = probe.sequence(length, seed=0, num_special=1)
    if length > _SEVERAL_LONG:
        return [short, long]
    middle = probe.sequence((length + few) // 2, seed=0, num_special=2 * len(probe.special))
    return [long, short, probe.sequence(few, seed=1), middle]


@torch.no_grad()
def rewards_alone(model: PreTrainedModel, sequences: list[TokenList]) -> list[float]:
    """Return what transformers computes of each sequence in a call of its own.

    Raises:
        CannotScore: the model raises for one of them, or has no finite reward.
    """
    rewards = []
    for sequence in sequences:
        try:
            inputs = alone(model, torch.tensor([sequence], device=model.device))
            logits = model(**inputs).logits
        except Exception as error:
            raise CannotScore(_line(error)) from error
        rewards.append(float(logits[0].mean()))  # over the heads
    if not torch.tensor(rewards).isfinite().all():
        raise CannotScore("its rewards are not finite")
    return rewards


class Invariance:
    """Measurements of one model's small copies.

    Args:
        new_copy: returns a fresh copy, always with the same weights.
        probe: the token sequences.
    """

    def __init__(self, new_copy: NewCopy, probe: Probe) -> None:
        self._new_copy, self._probe = new_copy, probe
        try:
            rewards_alone(new_copy(), probe_sequences(probe, probe.min_tokens + 24))
        except CannotScore:
            # Special tokens of images or other models that no text may spell out.
            self._probe = replace(probe, special=())
        self._expected: dict[int, list[float]] = {}

    def sequences(self, length: int) -> list[TokenList]:
        """Return the sequences with which this length is measured."""
        return probe_sequences(self._probe, length)

    def expected(self, length: int) -> list[float]:
        """Return the rewards of these sequences, each computed by a fresh copy.

        Raises:
            CannotScore: as `rewards_alone`.
        """
        if length not in self._expected:
            self._expected[length] = [
                reward
                for sequence in self.sequences(length)
                for reward in rewards_alone(self._new_copy(), [sequence])
            ]
        return self._expected[length]

    def is_random(self, length: int) -> bool:
        """Return whether training mode changes the rewards, although nothing drops out.

        Raises:
            CannotScore: as `rewards_alone`.
        """
        expected = self.expected(length)
        training = [
            reward
            for sequence in self.sequences(length)
            for reward in rewards_alone(self._new_copy().train(), [sequence])
        ]
        return not _same(training, expected, expected)

    def history_obstacle(self, length: int) -> str | None:
        """Return why rewards depend on earlier conversations; None if they do not.

        Raises:
            CannotScore: as `rewards_alone`.
        """
        nearly = self._probe.sequence(length - 1, seed=0)
        sequences = [*self.sequences(length), nearly]
        expected = [*self.expected(length), *rewards_alone(self._new_copy(), [nearly])]
        model = self._new_copy()
        backwards = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
        # Longer ones first, and then the longest one after the shortest.
        for i in (*backwards, backwards[0]):
            if not _same(rewards_alone(model, [sequences[i]]), [expected[i]], expected):
                return "its rewards depend on the conversations before them"
        return None

    def obstacle(self, layout: Layout, length: int) -> str | None:
        """Return why a layout does not give these sequences their rewards; None if it does.

        Raises:
            CannotScore: as `rewards_alone`.
        """
        expected = self.expected(length)
        model = self._new_copy()
        layout.prepare(model)
        tensors = layout.lay_out(self.sequences(length))
        try:
            with torch.no_grad():
                measured = rewards_of(model.train(), tensors).tolist()
        except Exception as error:  # noqa: BLE001 - transformers' own code, in this batch
            return f"a {layout.name} batch fails: {_line(error)}"
        if _same(measured, expected, expected):
            return None
        difference = max(abs(a - b) for a, b in zip(measured, expected, strict=True))
        return f"in a {layout.name} batch its rewards differ from those alone, by {difference:.2g}"


def longest_that_holds(obstacle: Callable[[int], str | None], shortest: int, longest: int) -> int:
    """Return the largest length without an obstacle, found by bisection; 0 if there is none.

    It doubles the length first, because long sequences cost most.
    """
    low, high = 0, shortest
    while high <= longest and obstacle(high) is None:
        low, high = high, 2 * high
    high = min(high, longest + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if obstacle(middle) is None else (low, middle)
    return low


def _same(measured: list[float], expected: list[float], scale: list[float]) -> bool:
    tolerance = _RELATIVE_TOLERANCE * max(map(abs, scale))
    # NaN is not the same as anything.
    return all(abs(a - b) <= tolerance for a, b in zip(measured, expected, strict=True))


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]}…"
