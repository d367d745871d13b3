"""The precisions: the number format in which a graph computes its matrix products.

The residual stream, the insides of norms, softmax, rotary embedding and the head are fp32 in every
precision. docs/precisions.md says what FP16 and BF16 round of the rest.
"""

from enum import Enum

from kwise.errors import ConfigError


class Precision(Enum):
    """The number format of the matrix products. The weights and the activations are rounded to it.

    FP32: the reference.
    FP16, BF16: attention too is computed in it. Products are added up in fp32, in an order that
        depends on the runtime, and on CUDA perhaps on the number of rows (docs/gpu.md).
    INT8: 8 bits, with one scale per row of activations and one per output channel of the weights,
        so a token's rounding does not depend on other tokens. The rows that the head reads have 16
        bits in the trie layout. Products are added up exactly.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


def parse_precisions(text: str, flag: str) -> tuple[Precision, ...]:
    """Parse "int8" or "bf16,fp32"; the order is kept.

    Args:
        flag: the command-line option that has this value, for the message.

    Raises:
        ConfigError: a part is not a precision, or one is named twice.
    """
    names = [part.strip() for part in text.split(",")]
    known = [precision.value for precision in Precision]
    if not set(names) <= set(known):
        raise ConfigError(
            f"{flag} is {text!r}; it must be one or several of {', '.join(known)}, separated by "
            "commas"
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{flag} is {text!r}; it names {twice} twice")
    return tuple(map(Precision, names))
