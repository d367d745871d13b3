"""Numbers of the output have the digits of float32."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from kwise.bulk.output.digits import float32_digits


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
@example(0.1)
@example(-0.0)
@example(2.0**24)
@example(np.finfo(np.float32).max.item())
def test_the_digits_are_those_of_numpys_float32(value: float) -> None:
    number = np.float32(value)
    assert np.float32(float32_digits(float(number))) == number
    assert float32_digits(float(number)) == float(str(number))


def test_what_float32_cannot_hold_is_left_as_it_is() -> None:
    assert float32_digits(1e300) == 1e300
