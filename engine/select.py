"""Select the precision and the runtime that serve.

It is the first allowed precision that the artifact has and that this machine can compute.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from kwise.engine.config import EngineConfig
from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import cpu_has_bf16
from kwise.engine.precision import Precision, parse_precisions
from kwise.errors import ConfigError

# The runtimes that compute a precision on a kind of device, the fastest first. ONNX Runtime's CPU
# kernels do not compute in bf16, and convert fp16 to fp32 first.
_RUNTIMES = {
    (Precision.FP32, Kind.CPU): (Runtime.ONNXRUNTIME, Runtime.OPENVINO),
    (Precision.INT8, Kind.CPU): (Runtime.ONNXRUNTIME,),
    (Precision.BF16, Kind.CPU): (Runtime.OPENVINO,),
    (Precision.FP32, Kind.CUDA): (Runtime.ONNXRUNTIME,),
    (Precision.FP16, Kind.CUDA): (Runtime.ONNXRUNTIME,),
    (Precision.BF16, Kind.CUDA): (Runtime.ONNXRUNTIME,),
}


def can_compute(precision: Precision, kind: Kind) -> bool:
    """Return whether some runtime computes the precision on a kind of device."""
    return (precision, kind) in _RUNTIMES


class Backend(NamedTuple):
    """A precision and the runtime that computes it. AUTO is not among its runtimes."""

    precision: Precision
    runtime: Runtime


def backend_for(config: EngineConfig, available_precisions: Collection[Precision]) -> Backend:
    """Return the `select_backend` of the engine's options on this machine.

    Raises:
        ConfigError: see `select_backend`.
    """
    allowed = parse_precisions(config.precision, "--precision")
    kind = parse_devices(config.device)[0].kind
    return select_backend(allowed, config.runtime, kind, available_precisions, cpu_has_bf16)


def select_backend(
    allowed: Sequence[Precision],
    runtime: Runtime,
    kind: Kind,
    available_precisions: Collection[Precision],
    cpu_has_bf16: Callable[[], bool],
) -> Backend:
    """Select the first allowed precision that can be served, and its fastest runtime.

    Args:
        allowed: `--precision`, in order of preference.
        runtime: `--runtime`; with AUTO the precision decides.
        available_precisions: the precisions that the artifact has graphs for.
        cpu_has_bf16: called only if the answer matters, because it loads OpenVINO.

    Raises:
        ConfigError: no allowed precision can be served; the message says why for each.
    """
    refusals: dict[str, str] = {}
    for precision in allowed:
        runtimes = [r for r in _RUNTIMES.get((precision, kind), ()) if runtime in (Runtime.AUTO, r)]
        if precision not in available_precisions:
            names = ", ".join(p.value for p in Precision if p in available_precisions)
            refusals[precision.value] = (
                f"the artifact holds {names} (name one of those, or kwise export --dtype)"
            )
        elif not runtimes:
            option = "" if runtime is Runtime.AUTO else f" with --runtime {runtime.value}"
            refusals[precision.value] = (
                f"not computed on --device {kind.value}{option}"
                f"{_alternatives(runtime, kind, available_precisions)}"
            )
        elif (
            precision is Precision.BF16
            and kind is Kind.CPU
            and (problem := _bf16_problem(cpu_has_bf16))
        ):
            refusals[precision.value] = problem
        else:
            return Backend(precision, runtimes[0])
    reasons = [f"{name}: {reason}" for name, reason in refusals.items()]
    raise ConfigError(
        f"--precision {reasons[0]}" if len(reasons) == 1 else f"--precision: {'; '.join(reasons)}"
    )


def _alternatives(runtime: Runtime, kind: Kind, available_precisions: Collection[Precision]) -> str:
    """Return which precisions of the artifact the runtime computes on the device, in brackets."""
    names = [
        precision.value
        for precision in Precision
        if precision in available_precisions
        and any(runtime in (Runtime.AUTO, r) for r in _RUNTIMES.get((precision, kind), ()))
    ]
    return f" (of the artifact's precisions, these are: {', '.join(names)})" if names else ""


def _bf16_problem(cpu_has_bf16: Callable[[], bool]) -> str:
    """Return why this CPU cannot compute in bf16, or "" if it can."""
    try:
        return "" if cpu_has_bf16() else "this CPU has neither AVX512-BF16 nor AMX"
    except ConfigError as error:
        return str(error)
