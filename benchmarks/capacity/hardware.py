"""The models and devices of the arithmetic: published figures, and one measured CPU.

Peaks are of dense matmuls in fp16 or bf16, from NVIDIA's data sheets (those that name a figure
"with sparsity" are halved). A share of the peak is an estimate until `kwise bench gpu` has run on
the device: see docs/capacity.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """A model's size.

    Attributes:
        parameters: all weights of the reward model, which has no language-model head.
        matmul_parameters: those that multiply each row: without the token embedding.
        layers: number of layers.
        attention_width: number of query heads times head size.
        state_width: number of key-value heads times head size.
    """

    parameters: float
    matmul_parameters: float
    layers: int
    attention_width: int
    state_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device.

    Attributes:
        peak_flops: operations per second of dense matmuls in half precision; None for a device
            whose rows per second are measured.
        rates: the lowest, expected and highest share of the peak, or rows per second.
        memory_bytes: its memory.
        bytes_per_parameter: of the precision.
    """

    peak_flops: float | None
    rates: tuple[float, float, float]
    memory_bytes: float
    bytes_per_parameter: int = 2


# From the models' config.json on the Hugging Face Hub. Embeddings: vocabulary times hidden size.
MODELS: dict[str, ModelSize] = {
    # HuggingFaceTB/SmolLM2-135M: 49,152 × 576 embeddings, shared with the head
    "135m": ModelSize(
        parameters=134.5e6,
        matmul_parameters=106.2e6,
        layers=30,
        attention_width=576,
        state_width=192,
    ),
    # Qwen/Qwen2.5-7B: 152,064 × 3,584 embeddings
    "7b": ModelSize(
        parameters=7.07e9,
        matmul_parameters=6.53e9,
        layers=28,
        attention_width=3584,
        state_width=512,
    ),
    # meta-llama/Llama-3.1-8B: 128,256 × 4,096 embeddings
    "8b": ModelSize(
        parameters=7.50e9,
        matmul_parameters=6.98e9,
        layers=32,
        attention_width=4096,
        state_width=1024,
    ),
    # meta-llama/Llama-3.1-70B: 128,256 × 8,192 embeddings
    "70b": ModelSize(
        parameters=69.5e9,
        matmul_parameters=68.45e9,
        layers=80,
        attention_width=8192,
        state_width=1024,
    ),
}

# Of kwise's graph, the estimate for 8B on an H200 is 0.45 to 0.57 of the peak as it is.
SHARE_OF_PEAK = (0.35, 0.5, 0.6)

DEVICES: dict[str, Device] = {
    "h200": Device(peak_flops=989e12, rates=SHARE_OF_PEAK, memory_bytes=141e9),
    "h100": Device(peak_flops=989e12, rates=SHARE_OF_PEAK, memory_bytes=80e9),
    "a100": Device(peak_flops=312e12, rates=SHARE_OF_PEAK, memory_bytes=80e9),
    "l4": Device(peak_flops=121e12, rates=SHARE_OF_PEAK, memory_bytes=24e9),
}


def measured_range(rate: float) -> tuple[float, float, float]:
    """Return the range of a measured rate, which moves by a tenth on a shared machine."""
    return 0.9 * rate, rate, 1.1 * rate


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultPass:
    """The pass time of SmolLM2-135M in fp32 on two cores with AVX2.

    Fitted to the 28 sizes of up to 2,400 rows in benchmarks/results/smollm2-fp32-48-cells.md, with
    an error of 3 % (median) and 11 % (maximum).
    """

    fixed_ms: float
    row_ms: float
    pair_ns: float


DEFAULT_PASS = DefaultPass(fixed_ms=61.0, row_ms=1.272, pair_ns=729.0)
