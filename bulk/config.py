"""The options of `kwise rerank`. Imports the standard library only."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from kwise.bulk.output.names import FormName, PairChoice
from kwise.engine.config import ENGINE_OPTIONS, EngineConfig, engine_option
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.text.limits import ControlTokens, Overlong
from kwise.errors import ConfigError
from kwise.options import MAX_COUNT, MAX_SECONDS, check_bounds, flag_of, option

# Options that decide neither what is computed nor what is written.
_FREE = frozenset({"input", "output", "server", "artifact", "timeout_s", "bad_rows", "resume"})
_FREE |= {"overwrite", "tokenizer_threads", "device_memory_bytes"}

# With so many batches, the last one of a window, which may be half empty, costs less than 1 %.
_WINDOW_BATCHES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankConfig:
    """The input, the model and the output of a command.

    Raises:
        ConfigError: a value is out of bounds, or two options do not go together.
    """

    input: str = option(
        help="JSON Lines, a JSON array, Parquet or CSV, gzipped or not: a file, a folder, a "
        "pattern in quotes, a folder saved by datasets, or '-' for standard input"
    )
    output: str = option(
        help="file for the rows of the output: .parquet and .jsonl.gz say what they are, any "
        "other name gets JSON Lines; '-' for standard output"
    )
    artifact: str = option("", "directory of the model to run in this process")
    server: str = option("", "HOST:PORT of a running server to ask instead, or several with commas")
    write: FormName = option(
        FormName.REWARDS,
        "rewards: one per response; ranks: with the rank of each; best: index and reward of the "
        "best response; top-k: those of the best ones; pairs: chosen and rejected for DPO; matrix: "
        "the win probability of each response against each other one",
    )
    top_k: int = option(4, "responses that top-k writes of a group", minimum=1, maximum=MAX_COUNT)
    pairs: PairChoice = option(
        PairChoice.BEST_WORST,
        "pairs of a group: best and worst; the best with each other one; or all pairs",
    )
    min_margin: float = option(
        0.0,
        "smallest difference of the raw rewards of a pair; a pair of equal rewards is left out",
        minimum=0.0,
        maximum=1e9,
    )
    texts: bool | None = option(
        None, "write the texts of prompt and responses too (default: for pairs only)"
    )
    keep: tuple[str, ...] = option((), "columns of the input to copy to the output")
    prompt_column: str = option("prompt", "column with a text, messages or token ids")
    responses_column: tuple[str, ...] = option(
        ("responses",), "column with a list of responses, or several columns with one each"
    )
    ignore_columns: tuple[str, ...] = option(
        (), "columns to leave out although their names say that they change the conversation"
    )
    bad_rows: str = option("", "file for the rows that are not scored (default: OUTPUT.bad.jsonl)")
    resume: bool = option(False, "continue an unfinished run; without one, start a new run")
    overwrite: bool = option(False, "replace an output that exists")
    window_tokens: int = option(
        0,
        "tokens, roughly, that are sorted and batched together; 0 for 64 batches of "
        "--max-batch-tokens. A run that is resumed computes the last windows again",
        minimum=0,
        maximum=MAX_COUNT,
    )
    model: str = option("", "with --server: the model that must answer")
    timeout_s: float = option(
        300.0, "with --server: longest wait without any result", minimum=1.0, maximum=MAX_SECONDS
    )
    runtime: Runtime = engine_option("runtime")
    precision: str = engine_option("precision")
    device: str = engine_option("device")
    device_memory_bytes: int = engine_option("device_memory_bytes")
    threads: int = engine_option("threads")
    max_tokens: int = engine_option("max_tokens")
    max_batch_tokens: int = engine_option("max_batch_tokens")
    overlong: Overlong = engine_option("overlong")
    control_tokens: ControlTokens = engine_option("control_tokens")
    tokenizer_threads: int = engine_option("tokenizer_threads")

    def __post_init__(self) -> None:
        check_bounds(self)
        if bool(self.artifact) == bool(self.server):
            raise ConfigError("give either --artifact or --server")
        unused = _OF_ENGINE if self.server else {"model", "timeout_s"}
        self._refuse(unused, "with --artifact" if self.server else "with --server")
        if self.write is not FormName.TOP_K:
            self._refuse({"top_k"}, "with --write top-k")
        if self.write is not FormName.PAIRS:
            self._refuse({"pairs", "min_margin"}, "with --write pairs")
        if repeated := next((name for name in self.keep if self.keep.count(name) > 1), None):
            raise ConfigError(f"--keep names {repeated!r} twice")

    def _refuse(self, names: set[str], where: str) -> None:
        for field in dataclasses.fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise ConfigError(f"{flag_of(field.name)} has an effect only {where}")

    @property
    def effective_window_tokens(self) -> int:
        """The tokens of a window: `window_tokens`, or 64 batches."""
        return self.window_tokens or _WINDOW_BATCHES * self.engine().effective_max_batch_tokens

    def engine(self) -> EngineConfig:
        """Return the options of the engine."""
        return EngineConfig(**{name: getattr(self, name) for name in _OF_ENGINE})

    def deciding(self) -> dict[str, Any]:
        """Return the options that decide what is written, as JSON."""
        return {
            field.name: _as_json(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in _FREE
        }


_OF_ENGINE = {field.name for field in dataclasses.fields(RerankConfig)} & ENGINE_OPTIONS.keys()


def _as_json(value: Any) -> Any:
    value = getattr(value, "value", value)
    return list(value) if isinstance(value, tuple) else value
