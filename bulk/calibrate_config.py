"""The options of `kwise calibrate`. Imports the standard library only."""

from dataclasses import dataclass

from kwise.options import check_bounds, option


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateConfig:
    """The reference set, and what to set from it.

    Raises:
        ConfigError: a value is out of bounds.
    """

    input: str = option(
        help="the reference set: prompts with one or several responses, all of which count; a "
        "file, a folder or a pattern in quotes, as kwise rerank reads them"
    )
    mean_only: bool = option(False, "set the mean only, and keep the standard deviation")
    prompt_column: str = option("prompt", "column with a text, messages or token ids")
    responses_column: tuple[str, ...] = option(
        ("responses",), "column with a list of responses, or several columns with one each"
    )
    precision: str = option(
        "", "precision in which the rewards are computed (default: the first of the artifact)"
    )

    def __post_init__(self) -> None:
        check_bounds(self)
