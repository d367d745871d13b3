"""Weights are rounded by what their products give on real text; int8 rotates both factors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.export.graph_file import read_graph
from kwise.export.precision import calibration
from kwise.export.precision.agreement import split
from kwise.export.precision.calibration import second_moments
from kwise.export.precision.matmuls import columns_of, is_matmul, weight_key
from kwise.export.precision.rotation import Rotation, cosine_transform
from kwise.export.precision.rounding import compensated, round_weights
from kwise.export.precision.text_groups import encode_groups, read_text_groups
from tests.real_data import EXAMPLES

Float32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path) -> Artifact:
    return read_artifact(tiny_artifact)


@pytest.fixture(scope="module")
def groups(artifact: Artifact) -> Sequence[Sequence[EncodedSequence]]:
    return encode_groups(new_encoder(artifact, EngineConfig()), read_text_groups(str(EXAMPLES)))[:4]


def to_bf16(column: Float32) -> Float32:
    return column.astype(ml_dtypes.bfloat16).astype(np.float32)


def correlated(rng: np.random.Generator, rows: int, width: int) -> Float32:
    """Draw rows with most of their variance along a few directions, the same for each seed."""
    directions = (
        np.random.default_rng(7).standard_normal((width, width))
        * np.geomspace(30, 0.1, width)[:, None]
    )
    return (rng.standard_normal((rows, width)) @ directions).astype(np.float32)


@given(seed=st.integers(0, 1000), width=st.sampled_from([1, 5, 64, 200]))
def test_products_of_other_rows_err_less_than_with_the_nearest_weights(
    seed: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    seen, unseen = correlated(rng, 8 * width, width), correlated(rng, 50, width)
    weights = rng.standard_normal((16, width)).astype(np.float32)
    chosen = compensated(weights, seen.T @ seen, to_bf16)
    np.testing.assert_array_equal(chosen, to_bf16(chosen))
    error, nearest_error = (
        np.linalg.norm(unseen @ (w - weights).T) for w in (chosen, to_bf16(weights))
    )
    assert error < 0.7 * nearest_error if width >= 64 else error <= 1.5 * nearest_error


@given(seed=st.integers(0, 1000))
def test_where_channels_have_nothing_in_common_the_nearest_is_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((6, 40)).astype(np.float32)
    np.testing.assert_array_equal(
        compensated(weights, np.diag(rng.uniform(1, 9, 40)), to_bf16), to_bf16(weights)
    )


@given(seed=st.integers(0, 1000))
def test_weights_that_the_precision_has_stay_as_they_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, weights = (
        correlated(rng, 100, 150),
        to_bf16(rng.standard_normal((6, 150)).astype(np.float32)),
    )
    np.testing.assert_array_equal(compensated(weights, rows.T @ rows, to_bf16), weights)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_few_rows_and_channels_that_are_always_zero_do_no_harm(rows: int) -> None:
    rng = np.random.default_rng(rows)
    seen = (rng.standard_normal((rows, 130)) * 1e4).astype(np.float32)
    seen[:, 7] = 0
    weights = rng.standard_normal((5, 130)).astype(np.float32)
    chosen = compensated(weights, seen.T @ seen, to_bf16)
    assert np.abs(chosen - weights).max() < 0.2
    np.testing.assert_array_equal(chosen[:, 7], to_bf16(weights[:, 7]))


def test_moments_are_those_of_the_rows_that_the_checkpoint_multiplies(
    artifact: Artifact,
    groups: Sequence[Sequence[EncodedSequence]],
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Conversations are run alone, because a batch has a prompt's rows only once."""
    alone = [[group[0]] for group in groups]
    model = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint).eval()
    expected: dict[str, Any] = {}

    def add(name: str, rows: torch.Tensor) -> None:
        expected[name] = expected.get(name, 0) + (rows[0].T @ rows[0]).numpy()

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
    with torch.inference_mode():
        for (sequence,) in alone:
            model(input_ids=torch.tensor(np.array(sequence.token_ids))[None])
    for max_bytes in (calibration._MAX_BYTES, 4 * 64**2 * 3):
        monkeypatch.setattr(calibration, "_MAX_BYTES", max_bytes)
        measured = {}
        for matmuls, moments in second_moments(
            artifact.graph_path(), GraphSession(artifact), alone
        ):
            for node in matmuls:
                measured[weight_key(node)[0].split(".weight")[0]] = moments
        assert measured.keys() == expected.keys()
        for name, moments in measured.items():
            np.testing.assert_allclose(
                moments, expected[name], rtol=1e-3, atol=1e-3 * np.abs(expected[name]).max()
            )
    assert not list(artifact.path.glob("moments*"))


def test_every_product_has_its_weights_in_the_precision(
    artifact: Artifact, groups: Sequence[Sequence[EncodedSequence]], tmp_path: Path
) -> None:
    precisions = (Precision.FP16, Precision.BF16, Precision.INT8)
    rounded = round_weights(
        artifact.graph_path(), precisions, GraphSession(artifact), groups, tmp_path
    )
    graph = read_graph(artifact.graph_path()).graph
    weights = {weight_key(node): columns_of(node) for node in graph if is_matmul(node)}
    for precision, dtype in zip(precisions, (np.float16, ml_dtypes.bfloat16, np.int8), strict=True):
        assert rounded[precision].keys() == weights.keys()
        for key, matrix in rounded[precision].items():
            assert matrix.dtype == dtype and matrix.shape == weights[key].shape
            if precision is not Precision.INT8:
                error = np.abs(matrix.astype(np.float32) - weights[key]).max()
                assert (
                    0 < error < 8 * float(ml_dtypes.finfo(dtype).eps) * np.abs(weights[key]).max()
                )


def test_no_shipped_text_both_chooses_and_measures() -> None:
    measured, calibrating = (
        {response for group in half for response in group.responses}
        for half in split(read_text_groups(""))
    )
    assert len(measured) > 20 and len(calibrating) > 20
    assert not measured & calibrating


@given(count=st.integers(1, 80))
def test_what_is_measured_on_has_chosen_nothing(count: int) -> None:
    texts: Any = list(range(count))
    measured, calibrating = split(texts)
    assert 1 <= len(measured) <= 16 and 1 <= len(calibrating) <= 16
    assert count == 1 or not set(measured) & set(calibrating)
    assert len(measured) + len(calibrating) == max(min(count, 32), 2)


@given(
    width=st.sampled_from([576, 1536, 4096, 11008, 48, 33, 67, 2 * 67, 1]),
    position=st.integers(0, 10**6),
)
def test_a_rotation_keeps_products_and_spreads_outliers(width: int, position: int) -> None:
    rng = np.random.default_rng(position)
    rotation = Rotation(width)
    a, b = rotation.sides
    assert width % (a * b) == 0 and max(a, b) <= 64
    for matrix in rotation.matrices:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-6)
    x, weight = (
        rng.standard_normal((5, width)).astype(np.float32),
        rng.standard_normal((width, 9)).astype(np.float32),
    )
    x[:, position % width] = 100
    np.testing.assert_allclose(
        rotation.rotated(x) @ rotation.rotated(weight.T).T, x @ weight, rtol=1e-3, atol=2e-2
    )
    one = np.zeros((1, width), np.float32)
    one[0, position % width] = 1
    assert np.abs(rotation.rotated(one)).max() <= 2 / np.sqrt(a * b) + 1e-6


def test_a_rotation_is_over_as_many_channels_as_can_be() -> None:
    sides = {576: (24, 24), 1536: (32, 48), 4096: (64, 64), 33: (3, 11), 67: (1, 1), 134: (1, 2)}
    assert {width: Rotation(width).sides for width in sides} == sides
    np.testing.assert_allclose(
        cosine_transform(2), np.array([[1, 1], [1, -1]]) / np.sqrt(2), atol=1e-7
    )
