"""The options of an engine. Imports the standard library only."""

import dataclasses
from dataclasses import dataclass, fields
from typing import Any

from kwise.engine.cache.redis_address import parse_redis_url
from kwise.engine.model.cpu import available_cpus
from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.text.limits import ControlTokens, Overlong
from kwise.errors import ConfigError
from kwise.options import (
    MAX_BYTES,
    MAX_COUNT,
    MAX_SECONDS,
    MAX_THREADS,
    MAX_UINT32,
    check_bounds,
    flag_of,
    option,
)

# A CPU does as well with fewer rows. A GPU needs more of them for its fixed cost per pass: by
# arithmetic, an 8B model on an H200 gives 13 % more rewards per second with 8,192 rows than with
# 2,048, and 1 % more with 16,384.
_BATCH_TOKENS = {Kind.CPU: 2048, Kind.CUDA: 8192}
CPU_PROMPT_CACHE_BYTES = 256 << 20
"""The memory for cached prompts on a CPU unless the user names another."""


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
        "fp32 is the reference; the artifact's manifest has error bounds for fp16, bf16 and int8, "
        "which are checked on a few conversations at start-up. On GPUs take fp16: another order of "
        "summation, which a GPU may choose for another batch, moves SmolLM2's rewards by up to "
        "1.5 % of their standard deviation in fp16, and by up to 7.1 % in bf16. With several, such "
        "as bf16,fp32, the first that the artifact has and this machine can compute is used",
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
        0,
        "token rows of one batch, shared prefixes counted once; 0 for 2,048 on a CPU and 8,192 on "
        "GPUs. A longer conversation gets a batch of its own. Responses to a very long prompt may "
        "exceed the limit up to twofold, so that the prompt is computed once",
        minimum=0,
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
    shared_cache: str = option(
        "",
        "URL of a Redis server through which several servers share rewards: redis://HOST:PORT/DB, "
        "rediss:// for TLS, or unix:///PATH. User and password are in the URL or, better, in the "
        "environment variables KWISE_REDIS_USERNAME and KWISE_REDIS_PASSWORD",
        secret=True,
    )
    shared_cache_ms: float = option(
        50.0,
        "milliseconds by which a look-up in the shared cache may delay a request. If Redis takes "
        "longer, rewards are computed without it until it answers in time again",
        minimum=1,
        maximum=60_000,
    )
    shared_cache_ttl_s: int = option(
        7 * 86_400,
        "seconds that a reward stays in the shared cache; 0 for as long as Redis has room",
        minimum=0,
        maximum=MAX_SECONDS,
    )
    shared_cache_claim_ms: int = option(
        5000,
        "milliseconds for which a server waits for a reward that another one computes, before it "
        "computes the reward itself; 0 for not at all",
        minimum=0,
        maximum=600_000,
    )
    prompt_cache_bytes: int | None = option(
        None,
        "memory per device for keys and values of recent prompts; 0 for no cache (default: 256 MiB "
        "on a CPU, a quarter of the free memory of a GPU). A CPU takes up to twice as much while a "
        "batch runs. SmolLM2 takes 46 KB per token, and half of it in fp16 and bf16 on GPUs. A "
        "prompt that does not fit is not cached",
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
        if self.device_memory_bytes and parse_devices(self.device)[0].kind is Kind.CPU:
            raise ConfigError(
                f"--device-memory-bytes is {self.device_memory_bytes}, but limits GPUs only; give "
                "--device cuda too, or leave it out"
            )
        if self.shared_cache:
            parse_redis_url(self.shared_cache, "--shared-cache")
            return
        for field in fields(self):
            if (
                field.name.startswith("shared_cache_")
                and getattr(self, field.name) != field.default
            ):
                raise ConfigError(
                    f"{flag_of(field.name)} is for the shared cache; give --shared-cache too, or "
                    "leave it out"
                )

    @property
    def runtime_threads(self) -> int:
        """The threads of the runtime: `threads`, or one per available CPU."""
        return self.threads or available_cpus()

    @property
    def effective_prompt_cache_bytes(self) -> int | None:
        """The memory for cached prompts; None for a share of the GPU's free memory.

        Raises:
            ConfigError: `device` is not a list of devices.
        """
        if self.prompt_cache_bytes is None and parse_devices(self.device)[0].kind is Kind.CPU:
            return CPU_PROMPT_CACHE_BYTES
        return self.prompt_cache_bytes

    @property
    def effective_max_batch_tokens(self) -> int:
        """The token rows of one batch: `max_batch_tokens`, or what suits the device.

        Raises:
            ConfigError: `device` is not a list of devices.
        """
        return self.max_batch_tokens or _BATCH_TOKENS[parse_devices(self.device)[0].kind]


ENGINE_OPTIONS = {field.name: field for field in fields(EngineConfig)}
"""The options of an engine, by name."""


def engine_option(name: str) -> Any:
    """Return a field with the default, description and bounds of an engine's option.

    Commands that run an engine declare their options with it.
    """
    field = ENGINE_OPTIONS[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


def check_max_tokens(asked: int | None, limit: int | None) -> None:
    """Raise ConfigError if `--max-tokens` exceeds the limit of the model; None for no limit."""
    if asked is not None and limit is not None and asked > limit:
        raise ConfigError(
            f"--max-tokens is {asked}; it must be at most {limit}, the model's own limit"
        )
