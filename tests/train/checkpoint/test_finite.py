"""A weight is finite if all its values are, also where their sum overflows."""

import math

import pytest
import torch

from kwise.train.checkpoint.tensors import is_finite


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([], True),
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),
        ([1.0, math.nan], False),
        ([-math.inf, 1.0], False),
        ([math.inf, -math.inf], False),
    ],
)
def test_all_values_count(values: list[float], finite: bool) -> None:
    assert is_finite(torch.tensor(values)) is finite
