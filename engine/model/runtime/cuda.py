"""ONNX Runtime's execution provider for CUDA: its options, and checks that it can run a graph."""

import ctypes
import os
import re
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution

import onnxruntime as ort

from kwise.engine.model.devices import Device, Kind
from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# The operators that do the work. One of them on the CPU costs more than the GPU saves. Other nodes,
# such as arithmetic on shapes, belong on the CPU.
_HEAVY = {"Attention", "MatMul", "Gemm", "RotaryEmbedding"}
# 1.24 has no CUDA kernel for Attention, 1.25 none for fp32 with grouped heads, and 1.27 aligns a
# causal mask with nonpad_kv_seqlen at the upper left.
_MIN_CUDA_VERSION = (1, 28)
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_ERROR = 3  # of ONNX Runtime's severities
# Read by the CUDA libraries when they start. With the small workspace cuBLAS does not divide a
# matmul's sum among thread blocks (split-K), so the order of summation does not depend on the
# number of rows. Option 2 of ONNX Runtime keeps partial sums of fp16 matmuls in fp32.
CUDA_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "ORT_CUDA_GEMM_OPTIONS": "2"}


def providers(
    device: Device, memory_bytes: int, *, capture: bool = False
) -> list[str | tuple[str, dict[str, str]]]:
    """Return ONNX Runtime's execution providers for the device, in order of preference.

    Args:
        memory_bytes: a GPU's memory for weights and activations; 0 for no limit. CUDA's own context
            and cuBLAS's workspaces take about 500 MB more.
        capture: passes may be captured as CUDA graphs.
    """
    if device.kind is Kind.CPU:
        return [_CPU]
    # TF32 rounds the factors of an fp32 product to 10 bits: rewards would change by a thousandth,
    # and parity requires 1e-4.
    options = {"device_id": str(device.index), "use_tf32": "0"}
    if capture:
        options["enable_cuda_graph"] = "1"
    if memory_bytes:
        # The default strategy doubles the arena at each step, so it would fail at half of the
        # limit.
        options |= {"gpu_mem_limit": str(memory_bytes), "arena_extend_strategy": "kSameAsRequested"}
    # The CPU is second, for arithmetic on shapes. `check_placement` refuses anything more.
    return [(_CUDA, options), _CPU]


def check_cuda_version(version: str) -> None:
    """Check that this onnxruntime-gpu has the CUDA kernels that kwise needs.

    Raises:
        ConfigError: it is too old, or its version cannot be read.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _MIN_CUDA_VERSION:
        minimum = ".".join(map(str, _MIN_CUDA_VERSION))
        raise ConfigError(
            f"--device cuda: onnxruntime-gpu is {version}; it must be at least {minimum}, because "
            "older ones lack CUDA kernels of kwise's graphs: "
            f"pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]>={minimum}'"
        )


def check_visible(
    device: Device, num_devices: int, reason: str, environment: Mapping[str, str]
) -> None:
    """Check that CUDA sees the GPU.

    Args:
        num_devices: the number of GPUs that it sees.
        reason: why it could not count them, if so.

    Raises:
        ConfigError: it does not.
    """
    if device.index < num_devices and not reason:
        return
    seen = "no GPU"
    if num_devices and not reason:
        seen = ", ".join(f"cuda:{index}" for index in range(num_devices)) + " only"
    # If it names GPUs, they are counted anew, in its order.
    variable = environment.get("CUDA_VISIBLE_DEVICES")
    limit = "" if variable is None else f", because CUDA_VISIBLE_DEVICES is {variable!r}"
    raise ConfigError(
        f"--device {device.name}: CUDA sees {seen}{limit}"
        + (f" ({reason})" if reason else "")
        + "; nvidia-smi lists the GPUs and the driver, which must be of version 580 or newer"
    )


def set_cuda_environment(environment: MutableMapping[str, str]) -> None:
    """Set the variables of `CUDA_ENVIRONMENT` that the user has not set."""
    for name, value in CUDA_ENVIRONMENT.items():
        environment.setdefault(name, value)


def check_placement(
    device: Device, session_providers: Iterable[str], assigned: Mapping[str, Iterable[str]]
) -> None:
    """Check that the session runs on the GPU.

    Args:
        assigned: the operators that each provider runs.

    Raises:
        ConfigError: the session does not have CUDA (ONNX Runtime drops a provider whose libraries
            do not load and only logs it), or heavy operators were left to the CPU.
    """
    if _CUDA not in session_providers:
        raise ConfigError(
            f"--device {device.name}: ONNX Runtime could not load its CUDA provider and would run "
            "on the CPU; it needs a driver, CUDA and cuDNN of matching versions; "
            f"{how_to_install('engine-gpu')} installs the last two"
        )
    if left := sorted(_HEAVY.intersection(assigned.get(_CPU, ()))):
        raise ConfigError(
            f"--device {device.name}: onnxruntime {ort.__version__} has no CUDA kernel for this "
            f"model's {', '.join(left)} and would run it on the CPU; try a newer onnxruntime-gpu "
            "or another --precision"
        )


def assigned_operators(session: ort.InferenceSession) -> dict[str, set[str]]:
    """Return the types of the operators that each execution provider runs."""
    assigned: dict[str, set[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        assigned.setdefault(part.ep_name, set()).update(node.op_type for node in part.get_nodes())
    return assigned


def find_cuda(device: Device) -> None:
    """Load the CUDA libraries, and check that CUDA sees the GPU.

    Raises:
        ConfigError: onnxruntime-gpu is not installed or is too old, or the GPU is not there.
    """
    if _CUDA not in ort.get_available_providers():
        raise ConfigError(_without_cuda(list(filter(_is_installed, _PACKAGES))))
    check_cuda_version(ort.__version__)
    set_cuda_environment(os.environ)
    # The extra installs the libraries inside Python packages, where the loader does not search.
    ort.preload_dlls()
    try:
        runtime = _runtime()
    except OSError:  # `check_placement` says what is missing
        return
    num_devices = ctypes.c_int()
    error = runtime.cudaGetDeviceCount(ctypes.byref(num_devices))
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    reason = runtime.cudaGetErrorString(error).decode() if error else ""
    check_visible(device, num_devices.value, reason, os.environ)
    # Otherwise each ScatterND prints that its indices must differ. Slot 0, for padding, may repeat.
    ort.set_default_logger_severity(_ERROR)


def select_device(device: Device) -> None:
    """Make a GPU the calling thread's device. Do nothing for a CPU.

    With CUDA graphs, ONNX Runtime does it only in the first pass of a thread and session. Kernels
    of a thread that has used another GPU since would be launched on that one.

    Raises:
        OSError: CUDA does not answer.
    """
    if device.kind is Kind.CUDA:
        _check(_runtime().cudaSetDevice(device.index), f"selecting {device.name}")


def free_bytes(device: Device) -> int:
    """Return the free memory of a GPU, in bytes; 0 for a CPU.

    Raises:
        OSError: CUDA does not answer.
    """
    if device.kind is not Kind.CUDA:
        return 0
    select_device(device)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    error = _runtime().cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    _check(error, f"the free memory of {device.name}")
    return free.value


@lru_cache(maxsize=1)
def _runtime() -> ctypes.CDLL:
    """Return the CUDA runtime that ONNX Runtime has loaded.

    Raises:
        OSError: it has not.
    """
    major = (ort.cuda_version or "13").partition(".")[0]
    return ctypes.CDLL(f"libcudart.so.{major}")


def _without_cuda(installed: Collection[str]) -> str:
    """Return the message for an ONNX Runtime without CUDA.

    Args:
        installed: those of `_PACKAGES` that pip has installed.
    """
    install = how_to_install("engine-gpu")
    if len(installed) < len(_PACKAGES):
        return f"--device cuda needs onnxruntime-gpu: in an environment of its own, {install}"
    names = " and ".join(_PACKAGES)
    return (
        f"--device cuda: {names} are both installed; they share a folder, and its files are now "
        f"those of {_PACKAGES[0]}: pip uninstall {' '.join(_PACKAGES)}, then {install}"
    )


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _check(error: int, what: str) -> None:
    if error:
        raise OSError(f"CUDA error {error} for {what}")
