"""The options of `kwise export`. No torch is imported here, so that `--help` is quick."""

from dataclasses import dataclass
from enum import Enum

from kwise.engine.precision import parse_precisions
from kwise.options import check_bounds, check_date, option
from kwise.types import MIN_STD


class Layout(Enum):
    """The layout of a batch; AUTO takes the first one that gives the model's rewards."""

    AUTO = "auto"
    TRIE = "trie"
    PADDED = "padded"
    SEPARATE = "separate"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """The options of `kwise export`.

    Raises:
        ConfigError: An option is out of its bounds.
    """

    checkpoint: str = option(
        help="directory or hub name of a sequence-classification checkpoint with one label"
    )
    artifact: str = option(help="directory to write")
    name: str = option(
        "", "the model's name in requests and replies; by default that of the artifact's directory"
    )
    layout: Layout = option(
        Layout.AUTO,
        "trie shares prompts and needs a causal model; padded takes most models; separate runs one "
        "conversation at a time; auto takes the first of these that gives the model's rewards",
    )
    chat_template: str = option(
        "",
        "file with a Jinja chat template to use instead of the checkpoint's, or the name of one of "
        "the checkpoint's templates",
    )
    template_date: str = option(
        "", "date, as YYYY-MM-DD, to print where the chat template prints today's"
    )
    max_tokens: int = option(
        0,
        "longest conversation in tokens; 0 for the model's own limit",
        minimum=0,
        maximum=2**31 - 1,
    )
    dtype: str = option(
        "fp32",
        "precisions to write, separated by commas: fp32 for any runtime, int8 for CPUs, fp16 for "
        "GPUs, bf16 for CPUs that compute in it. GPUs compute in bf16 too, but a reward may change "
        "with its batch eight times as much there as in fp16. Each precision is compared with "
        "fp32, and must rank as fp32 does (--min-agreement)",
    )
    rankings: str = option(
        "",
        "rankings to compare precisions on, a file of any format that kwise data convert reads, "
        "best of text like what you serve; by default conversations shipped with kwise",
    )
    min_agreement: float = option(
        0.0,
        "share of the pairs with clear margins that a precision must order as fp32 does; 0 for "
        "the default, 0.98 for int8 and 0.995 for fp16 and bf16",
        minimum=0,
        maximum=1,
    )
    tolerance: float = option(
        1e-4,
        "largest difference of a reward from the checkpoint's, in units of the raw reward, or of "
        "the rewards' standard deviation if that is above 1",
        exclusive_minimum=0,
        maximum=1e-3,
    )
    reward_mean: float | None = option(
        None,
        "served value = (raw - mean) / std; by default the mean in the checkpoint's config.json, "
        "else 0",
        minimum=-1e9,
        maximum=1e9,
    )
    reward_std: float | None = option(
        None,
        "served value = (raw - mean) / std; by default the std in the checkpoint's config.json, "
        "else 1",
        minimum=MIN_STD,
        maximum=1e9,
    )
    overwrite: bool = option(False, "replace an artifact that is already there")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_date("--template-date", self.template_date)
        parse_precisions(self.dtype, "--dtype")
