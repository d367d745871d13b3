"""The options of `kwise eval`. Imports the standard library only."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from kwise.engine.config import ENGINE_OPTIONS, EngineConfig, engine_option
from kwise.engine.model.runtime.kind import Runtime
from kwise.errors import ConfigError
from kwise.evaluation.kind import ModelKind
from kwise.evaluation.result import Settings
from kwise.evaluation.suites.name import SuiteName
from kwise.options import MAX_COUNT, MAX_SECONDS, check_bounds, check_date, flag_of, option
from kwise.train.options.config import Overlong


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """The options of an evaluation: its files, and the way the rewards are computed.

    Raises:
        ConfigError: a value is out of bounds.
    """

    json: str = option("", "file for the result: figures, rewards and origin, without texts")
    html: str = option("", "file for a page with tables and plots")
    overwrite: bool = option(False, "replace the files of --json and --html if they exist")
    suite: SuiteName | None = option(
        None,
        "the public benchmark in DATA, whose scores are reported by its own rules (default: "
        "recognised by its columns)",
    )
    limit: int | None = option(
        None, "evaluate the first rankings only (default: all)", minimum=1, maximum=MAX_COUNT
    )
    overlong: Overlong = option(
        Overlong.ERROR,
        "a ranking with a conversation over the token limit is named and left out; error: exit "
        "code 1, as for every other ranking that cannot be scored; skip: exit code 0",
    )
    resamples: int = option(
        2000, "resamples of prompts for each interval", minimum=100, maximum=100_000
    )
    seed: int = option(0, "seed of the resamples", minimum=0, maximum=2**32 - 1)
    chat_template: str = option(
        "",
        "of a checkpoint: file with the chat template to use, or the name of one of its templates",
    )
    template_date: str = option(
        "", "of a checkpoint: the date that its chat template prints, YYYY-MM-DD"
    )
    served_model: str = option("", "of a server: the model that must answer (default: the first)")
    timeout_s: float = option(
        300.0, "of a server: longest wait without any result", minimum=1.0, maximum=MAX_SECONDS
    )
    runtime: Runtime = engine_option("runtime")
    precision: str = engine_option("precision")
    max_batch_tokens: int = engine_option("max_batch_tokens")
    device: str = engine_option("device")
    threads: int = engine_option("threads")
    max_tokens: int = engine_option("max_tokens")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_date("--template-date", self.template_date)

    def check_suits(self, kind: ModelKind) -> None:
        """Raise ConfigError if an option has no effect on this kind of model."""
        for name, kinds in _KINDS.items():
            if name in self.given() and kind not in kinds:
                suitable = " or ".join(str(other) for other in ModelKind if other in kinds)
                raise ConfigError(
                    f"{flag_of(name)} has an effect only on {suitable}, and MODEL is {kind}"
                )

    def given(self) -> dict[str, Any]:
        """Return the options that do not have their default, in JSON's types."""
        return {
            field.name: getattr(value, "value", value)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def deciding(self) -> dict[str, Any]:
        """Return the options that decide the result and do not have their default, as JSON."""
        return {name: v for name, v in self.given().items() if name not in _OUTPUTS}

    def settings(self) -> Settings:
        """Return what the figures depend on besides rewards and labels."""
        return Settings(seed=self.seed, num_resamples=self.resamples)

    def engine(self) -> EngineConfig:
        """Return the options of the engine."""
        shared = {field.name for field in dataclasses.fields(self)} & ENGINE_OPTIONS.keys()
        names = shared - {"overlong"}  # here it is about rankings; the engine keeps its default
        return EngineConfig(**{name: getattr(self, name) for name in names})


_OUTPUTS = {"json", "html", "overwrite"}
_LOCAL = {ModelKind.CHECKPOINT, ModelKind.ARTIFACT}
_KINDS = {
    "chat_template": {ModelKind.CHECKPOINT},
    "template_date": {ModelKind.CHECKPOINT},
    "served_model": {ModelKind.SERVER},
    "timeout_s": {ModelKind.SERVER},
    "runtime": {ModelKind.ARTIFACT},
    "precision": {ModelKind.ARTIFACT},
    "max_batch_tokens": {ModelKind.ARTIFACT},
    "device": _LOCAL,
    "threads": _LOCAL,
    "max_tokens": _LOCAL,
}
"""The options that have an effect only on some kinds of models."""
