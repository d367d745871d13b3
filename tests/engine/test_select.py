"""The selected backend is allowed by the user, available in the artifact and computable."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.engine.config import EngineConfig
from kwise.engine.model.devices import Kind
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.precision import Precision, parse_precisions
from kwise.engine.select import _RUNTIMES, select_backend
from kwise.errors import ConfigError

FP32, FP16, BF16, INT8 = Precision
ALL = list(Precision)


@pytest.mark.parametrize(
    ("allowed", "runtime", "kind", "has_bf16", "expected"),
    [
        ([FP32], Runtime.AUTO, Kind.CPU, False, (FP32, Runtime.ONNXRUNTIME)),
        ([FP32], Runtime.OPENVINO, Kind.CPU, False, (FP32, Runtime.OPENVINO)),
        ([INT8], Runtime.AUTO, Kind.CPU, False, (INT8, Runtime.ONNXRUNTIME)),
        ([BF16], Runtime.AUTO, Kind.CPU, True, (BF16, Runtime.OPENVINO)),
        ([BF16, INT8, FP32], Runtime.AUTO, Kind.CPU, False, (INT8, Runtime.ONNXRUNTIME)),
        ([BF16, FP32], Runtime.ONNXRUNTIME, Kind.CPU, True, (FP32, Runtime.ONNXRUNTIME)),
        ([FP16], Runtime.AUTO, Kind.CUDA, False, (FP16, Runtime.ONNXRUNTIME)),
        ([BF16], Runtime.AUTO, Kind.CUDA, False, (BF16, Runtime.ONNXRUNTIME)),
    ],
)
def test_the_first_precision_that_can_be_served_is_selected(
    allowed: list[Precision],
    runtime: Runtime,
    kind: Kind,
    has_bf16: bool,
    expected: tuple[Precision, Runtime],
) -> None:
    assert select_backend(allowed, runtime, kind, ALL, lambda: has_bf16) == expected


@pytest.mark.parametrize(
    ("allowed", "runtime", "kind", "available", "reason"),
    [
        (
            [INT8],
            Runtime.AUTO,
            Kind.CPU,
            [FP32],
            r"int8: the artifact holds fp32 \(name one of those, or kwise",
        ),
        ([BF16], Runtime.AUTO, Kind.CPU, ALL, "this CPU has neither AVX512-BF16 nor AMX"),
        (
            [FP16],
            Runtime.AUTO,
            Kind.CPU,
            [FP32, FP16, BF16],
            r"fp16: not computed on --device cpu \(of the artifact's .*: fp32, bf16\)$",
        ),
        ([FP16], Runtime.AUTO, Kind.CPU, [FP16], "fp16: not computed on --device cpu$"),
        ([INT8], Runtime.AUTO, Kind.CUDA, ALL, "int8: not computed on --device cuda"),
        (
            [INT8],
            Runtime.OPENVINO,
            Kind.CPU,
            ALL,
            r"int8: not computed on --device cpu with --runtime openvino \(.*: fp32, bf16\)$",
        ),
        (
            [FP16, BF16],
            Runtime.AUTO,
            Kind.CPU,
            [FP32],
            "fp16: the artifact holds fp32 .*; bf16: the artifact holds fp32",
        ),
    ],
)
def test_each_refusal_has_its_reason(
    allowed: list[Precision], runtime: Runtime, kind: Kind, available: list[Precision], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"--precision.*{reason}"):
        select_backend(allowed, runtime, kind, available, lambda: False)


def test_a_package_that_is_not_installed_is_one_more_reason() -> None:
    def cpu_has_bf16() -> bool:
        raise ConfigError("it needs the package openvino")

    assert select_backend([BF16, FP32], Runtime.AUTO, Kind.CPU, ALL, cpu_has_bf16) == (
        FP32,
        Runtime.ONNXRUNTIME,
    )
    with pytest.raises(ConfigError, match="--precision bf16: it needs the package openvino"):
        select_backend([BF16], Runtime.AUTO, Kind.CPU, ALL, cpu_has_bf16)


@given(
    st.lists(st.sampled_from(ALL), min_size=1, unique=True),
    st.sets(st.sampled_from(ALL)),
    st.booleans(),
)
def test_only_allowed_and_available_precisions_are_selected(
    allowed: list[Precision], available: set[Precision], has_bf16: bool
) -> None:
    for runtime, kind in product(Runtime, Kind):
        try:
            precision, chosen = select_backend(allowed, runtime, kind, available, lambda: has_bf16)
        except ConfigError:
            continue
        assert precision in allowed and precision in available
        assert chosen in _RUNTIMES[precision, kind] and runtime in (chosen, Runtime.AUTO)


def test_precisions_are_read_in_their_order() -> None:
    assert parse_precisions("bf16, fp32", "--precision") == (BF16, FP32)
    for text in ("", "fp8", "fp32,", "FP32", "int8,int8"):
        with pytest.raises(ConfigError, match=f"--precision is {text!r}"):
            parse_precisions(text, "--precision")


def test_the_memory_of_a_gpu_is_refused_without_one() -> None:
    with pytest.raises(ConfigError, match=r"^--device-memory-bytes is 1024, but limits GPUs only"):
        EngineConfig(device_memory_bytes=1024)
    EngineConfig(device_memory_bytes=1024, device="cuda:1")
