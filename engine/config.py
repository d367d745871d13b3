"""How an engine runs, apart from what it serves."""

import os
from dataclasses import dataclass

from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.text.limits import ControlTokens, Overlong
from kwise.options import check_bounds, option


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits and resources of one engine. Raises ConfigError, naming the option and its bound."""

    runtime: Runtime = option(
        Runtime.AUTO,
        "what computes: onnxruntime, or openvino on a CPU; auto takes the faster one for the precision",
    )
    precision: str = option(
        "fp32",
        "fp32 is exact; fp16, bf16 and int8 keep to what the artifact's manifest promises. Several, as bf16,fp32: the first that "
        "the artifact holds and this machine computes",
    )
    device: str = option(
        "cpu",
        "cpu, cuda, cuda:N, or several GPUs: cuda:0,cuda:1, each with the model and a prompt cache of its own",
    )
    device_memory_bytes: int = option(
        0,
        "memory of each GPU for weights and activations, 0 for no limit; CUDA itself takes some 500 MB more. A batch that needs "
        "more is run in halves",
        minimum=0,
    )
    threads: int = option(
        0, "threads of the runtime; 0 for one per core this process may use", minimum=0
    )
    max_tokens: int = option(
        0, "longest conversation in tokens; 0 for the model's own limit", minimum=0
    )
    max_batch_tokens: int = option(
        2048,
        "token rows of one batch, shared prefixes counted once; CPUs do best at 1,500 to 2,000, GPUs at more. A longer "
        "conversation runs all the same; responses to a prompt of over half as many make a batch of up to twice their first",
        minimum=16,
    )
    max_queue_tokens: int = option(
        524_288,
        "tokens that may wait, text that is not tokenised yet counted at four characters a token. A client may have as many as "
        "are left free; beyond that its requests get RESOURCE_EXHAUSTED and a time to try again",
        minimum=16,
    )
    cache_bytes: int = option(
        256 << 20, "memory for cached rewards, 400 bytes each; 0 for no cache", minimum=0
    )
    prompt_cache_bytes: int = option(
        64 << 20,
        "memory a device for keys and values of recent prompts, up to twice that while a batch runs; 0 for none. SmolLM2 takes "
        "46 KB a token, and a prompt that does not fit is not kept",
        minimum=0,
    )
    overlong: Overlong = option(
        Overlong.REJECT, "conversations over the limit: refuse, or drop the oldest turns"
    )
    control_tokens: ControlTokens = option(
        ControlTokens.ACCEPT,
        "special tokens spelled out in texts: tokenise as in training and count, or refuse",
    )
    tokenizer_threads: int = option(2, "threads that render and tokenise", minimum=1, maximum=64)

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def runtime_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))
