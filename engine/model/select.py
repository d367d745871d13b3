"""Which precision and runtime serve: the first precision that the user allows, the artifact holds, and this machine computes."""

from collections.abc import Callable, Collection, Sequence

from kwise.engine.config import EngineConfig
from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.model.precision import Precision, parse_precisions
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import cpu_has_bf16
from kwise.errors import ConfigError

# By what runtimes a precision is computed on what, the fastest first. ONNX Runtime's CPU kernels know no bf16, and widen fp16.
_RUNTIMES = {
    (Precision.FP32, Kind.CPU): (Runtime.ONNXRUNTIME, Runtime.OPENVINO),
    (Precision.INT8, Kind.CPU): (Runtime.ONNXRUNTIME,),
    (Precision.BF16, Kind.CPU): (Runtime.OPENVINO,),
    (Precision.FP32, Kind.CUDA): (Runtime.ONNXRUNTIME,),
    (Precision.FP16, Kind.CUDA): (Runtime.ONNXRUNTIME,),
    (Precision.BF16, Kind.CUDA): (Runtime.ONNXRUNTIME,),
}


def choose_for(config: EngineConfig, held: Collection[Precision]) -> tuple[Precision, Runtime]:
    """`choose` by the engine's options, on this machine. Raises ConfigError."""
    allowed = parse_precisions(config.precision, "--precision")
    return choose(allowed, config.runtime, parse_devices(config.device)[0].kind, held, cpu_has_bf16)


def choose(
    allowed: Sequence[Precision],
    runtime: Runtime,
    kind: Kind,
    held: Collection[Precision],
    cpu_has_bf16: Callable[[], bool],
) -> tuple[Precision, Runtime]:
    """What to serve with.

    Args:
        allowed: `--precision`, the dearest wish first.
        runtime: `--runtime`; AUTO leaves it to the precision.
        held: what the artifact has graphs of.
        cpu_has_bf16: asked only where it matters.

    Raises:
        ConfigError: nothing that is allowed can be served; says why for each.
    """
    refusals: dict[str, str] = {}
    for precision in allowed:
        runtimes = [r for r in _RUNTIMES.get((precision, kind), ()) if runtime in (Runtime.AUTO, r)]
        if precision not in held:
            names = ", ".join(p.value for p in Precision if p in held)
            refusals[precision.value] = (
                f"the artifact holds {names} (name one of those, or kwise export --dtype)"
            )
        elif not runtimes:
            chosen = "" if runtime is Runtime.AUTO else f" with --runtime {runtime.value}"
            refusals[precision.value] = f"not computed on --device {kind.value}{chosen}"
        elif (
            precision is Precision.BF16
            and kind is Kind.CPU
            and (problem := _bf16_problem(cpu_has_bf16))
        ):
            refusals[precision.value] = problem
        else:
            return precision, runtimes[0]
    reasons = [f"{name}: {reason}" for name, reason in refusals.items()]
    raise ConfigError(
        f"--precision {reasons[0]}" if len(reasons) == 1 else f"--precision: {'; '.join(reasons)}"
    )


def _bf16_problem(cpu_has_bf16: Callable[[], bool]) -> str:
    try:
        return "" if cpu_has_bf16() else "this CPU has neither AVX512-BF16 nor AMX"
    except ConfigError as error:
        return str(error)
