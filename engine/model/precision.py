"""Precisions: what a graph's matrix products are computed in. Everything between them is fp32 in each."""

from enum import Enum

from kwise.errors import ConfigError


class Precision(Enum):
    """fp32 is the reference. In the others the weights, and what they are multiplied with, are rounded:

    fp16, bf16: attention too; products are summed up in fp32. int8: to 8 bits, with a scale for each row of activations and for
    each output channel of the weights, so that a token's rounding does not depend on its neighbours; to 16 bits in the rows that
    the head reads, in the trie layout; summed up exactly.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


def parse_precisions(text: str, flag: str) -> tuple[Precision, ...]:
    """The precisions of "int8" or "bf16,fp32", in their order; `flag` is the option that has them.

    Raises:
        ConfigError: a part is none, or one is named twice.
    """
    names = [part.strip() for part in text.split(",")]
    known = [precision.value for precision in Precision]
    if not set(names) <= set(known):
        raise ConfigError(
            f"{flag} is {text!r}; it must be one or several of {', '.join(known)}, separated by commas"
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{flag} is {text!r}; it names {twice} twice")
    return tuple(map(Precision, names))
