"""The options of an engine. Imports the standard library only."""

from dataclasses import dataclass

from kwise.engine.model.cpu import available_cpus
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.text.limits import ControlTokens, Overlong
from kwise.options import MAX_BYTES, MAX_COUNT, MAX_THREADS, MAX_UINT32, check_bounds, option


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits and resources of one engine.

    Raises:
        ConfigError: a value is out of bounds; names the option and the bound.
    """

    runtime: Runtime = option(
        Runtime.AUTO,
        "library that runs the model: onnxruntime, or openvino on a CPU; auto takes the faster one "
        "for the precision",
    )
    precision: str = option(
        "fp32",
        "fp32 is exact; fp16, bf16 and int8 stay within the error bounds in the artifact's "
        "manifest. With several, such as bf16,fp32, the first that the artifact has and this "
        "machine can compute is used",
    )
    device: str = option(
        "cpu",
        "cpu, cuda, cuda:N, or several GPUs: cuda:0,cuda:1, each with its own copy of the model "
        "and its own prompt cache",
    )
    device_memory_bytes: int = option(
        0,
        "memory of each GPU for weights and activations; 0 for no limit. CUDA itself takes about "
        "500 MB more. A batch that needs more memory is run in halves",
        minimum=0,
        maximum=MAX_BYTES,
    )
    threads: int = option(
        0,
        "threads of the runtime; 0 for one per CPU that this process may use, container quotas "
        "included",
        minimum=0,
        maximum=MAX_THREADS,
    )
    max_tokens: int = option(
        0,
        "longest conversation in tokens; 0 for the model's own limit",
        minimum=0,
        maximum=MAX_COUNT,
    )
    max_batch_tokens: int = option(
        2048,
        "token rows of one batch, shared prefixes counted once. CPUs do best at 1,500 to 2,000, "
        "GPUs at more. A longer conversation gets a batch of its own. Responses to a very long "
        "prompt may exceed the limit up to twofold, so that the prompt is computed once",
        minimum=16,
        maximum=MAX_UINT32,
    )
    max_queue_tokens: int = option(
        524_288,
        "tokens that may wait; text that is not tokenised yet counts as four characters per token. "
        "A client may use as many tokens as are left free; beyond that its requests get "
        "RESOURCE_EXHAUSTED and a time after which to try again",
        minimum=16,
        maximum=MAX_COUNT,
    )
    cache_bytes: int = option(
        256 << 20,
        "memory for cached rewards, 400 bytes each; 0 for no cache",
        minimum=0,
        maximum=MAX_BYTES,
    )
    prompt_cache_bytes: int = option(
        256 << 20,
        "memory per device for keys and values of recent prompts, up to twice as much while a "
        "batch runs; 0 for no cache. SmolLM2 takes 46 KB per token. A prompt that does not fit is "
        "not cached",
        minimum=0,
        maximum=MAX_BYTES,
    )
    overlong: Overlong = option(
        Overlong.REJECT, "conversations over the limit: reject them, or drop their oldest turns"
    )
    control_tokens: ControlTokens = option(
        ControlTokens.ACCEPT,
        "special tokens spelled out in texts: accept them, tokenised as in training and counted in "
        "the reply, or reject the text",
    )
    tokenizer_threads: int = option(2, "threads that render and tokenise", minimum=1, maximum=64)

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def runtime_threads(self) -> int:
        """The threads of the runtime: `threads`, or one per available CPU."""
        return self.threads or available_cpus()
