"""The formats that `kwise data convert` reads. One entry holds all that is known of a format.

To add one, write `read_…` in a module of this folder, and add a member to `FormatName` and an
entry to `FORMATS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kwise.train.data.formats import (
    arena,
    helpsteer,
    hh_rlhf,
    kwise_schema,
    lists,
    nectar,
    stack_exchange,
    summarize,
    trl,
    ultrafeedback,
)
from kwise.train.data.formats.annotation import argilla, label_studio
from kwise.train.data.rows.items import ReadRow

Fits = Callable[[Mapping[str, Any]], bool]


class FormatName(Enum):
    """The name of each format: that of the data set or tool that made it known."""

    KWISE = "kwise"
    HH_RLHF = "hh-rlhf"
    TRL = "trl"
    ULTRAFEEDBACK = "ultrafeedback"
    HELPSTEER2 = "helpsteer2"
    NECTAR = "nectar"
    STACK_EXCHANGE = "stack-exchange"
    STACK_EXCHANGE_PAIRED = "stack-exchange-paired"
    STACK_EXCHANGE_API = "stack-exchange-api"
    SUMMARIZE = "summarize"
    ARENA = "arena"
    HELPSTEER_PREFERENCE = "helpsteer-preference"
    ARGILLA = "argilla"
    LABEL_STUDIO = "label-studio"
    REWARD_BENCH_2 = "reward-bench-2"
    RANKING = "ranking"
    COMPLETIONS = "completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format.

    fits: return whether a row has the format, by its keys and their types.
    read: return what is in a row, or raise `RowProblem`.
    summary: a line for --help.
    options: the options of `kwise data convert` that apply to it.
    has_annotators: whether rows name their annotator, so that the comparisons of one annotator
        are merged by default.
    """

    fits: Fits
    read: ReadRow
    summary: str
    options: tuple[str, ...] = ()
    has_annotators: bool = False

    def key_sets(self) -> Sequence[Mapping[str, str | None]]:
        """Return the keys of a row for each variant; none if more than keys decides.

        A key of a list has the key of its objects as value, other keys have None.
        """
        return self.fits.variants if isinstance(self.fits, _HasKeys) else ()


def detect(row: Mapping[str, Any]) -> FormatName | None:
    """Return the first format of `FORMATS` that fits, or None; special ones come first."""
    return next((name for name, form in FORMATS.items() if form.fits(row)), None)


class _HasKeys:
    """A check that a row has the keys of one of `key_sets`, with what `_has` asks of its lists."""

    def __init__(self, *variants: dict[str, str | None]) -> None:
        self.variants = variants

    def __call__(self, row: Mapping[str, Any]) -> bool:
        return any(
            row.keys() >= keys.keys()
            and all(_objects_have(row[name], inner) for name, inner in keys.items() if inner)
            for keys in self.variants
        )


def _has(*keys: str, **inner: str) -> _HasKeys:
    """Return a check that a row has `keys`, and lists whose objects have a key.

    `answers="rank"` asks for a list `answers` of objects with the key `rank`; an empty list fits.
    """
    return _HasKeys(dict.fromkeys(keys) | inner)


def _either(*checks: _HasKeys) -> _HasKeys:
    return _HasKeys(*(keys for check in checks for keys in check.variants))


def _objects_have(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value  # a Sequence of Hugging Face data sets
    return isinstance(value, list) and (
        not value or any(isinstance(item, dict) and key in item for item in value)
    )


FORMATS: dict[FormatName, Format] = {
    FormatName.KWISE: Format(
        fits=_has("prompt", responses="text"),
        read=kwise_schema.read_kwise,
        summary="rankings in kwise's own schema",
    ),
    FormatName.LABEL_STUDIO: Format(
        fits=label_studio.is_label_studio,
        read=label_studio.read_label_studio,
        summary="Label Studio: List and Ranker, or Pairwise, exported as JSON",
        options=("--prompt-column", "--question", "--buckets"),
    ),
    FormatName.HH_RLHF: Format(
        fits=hh_rlhf.is_hh_pair,
        read=hh_rlhf.read_hh,
        summary="chosen, rejected: Human/Assistant transcripts",
        options=("--merge",),
    ),
    FormatName.REWARD_BENCH_2: Format(
        fits=lists.is_reward_bench_2,
        read=lists.read_reward_bench_2,
        summary="prompt, chosen and rejected as lists of texts",
    ),
    FormatName.TRL: Format(
        fits=_either(
            _has("chosen", "rejected"),
            _has("chosen_response", "rejected_response"),
            _has("preferred_output", "non_preferred_output"),
            _has("messages", "rejected_response"),
            _has("messages", "rejected_messages"),
        ),
        read=trl.read_trl,
        summary="TRL's preference type: (prompt,) chosen, rejected; strings or messages; also "
        "Alpaca's, ShareGPT's and OpenAI's",
        options=("--merge", "--prompt-column"),
    ),
    FormatName.ULTRAFEEDBACK: Format(
        fits=_has("instruction", completions="response"),
        read=ultrafeedback.read_ultrafeedback,
        summary="instruction, completions with scores",
        options=("--score-column",),
    ),
    FormatName.HELPSTEER2: Format(
        fits=_has("prompt", "response", "helpfulness"),
        read=helpsteer.read_helpsteer2,
        summary="one scored response per row, grouped by prompt",
        options=("--score-column",),
    ),
    FormatName.NECTAR: Format(
        fits=_has("prompt", answers="rank"),
        read=nectar.read_nectar,
        summary="prompt, answers with ranks",
    ),
    FormatName.STACK_EXCHANGE: Format(
        fits=_has("question", answers="pm_score"),
        read=stack_exchange.read_stack_exchange,
        summary="question, answers with pm_score",
        options=("--score-column",),
    ),
    FormatName.STACK_EXCHANGE_PAIRED: Format(
        fits=_has("question", "response_j", "response_k"),
        read=stack_exchange.read_stack_exchange_paired,
        summary="question, response_j better than response_k",
        options=("--merge",),
    ),
    FormatName.STACK_EXCHANGE_API: Format(
        fits=_has("title", answers="is_accepted"),
        read=stack_exchange.read_stack_exchange_api,
        summary="question of the Stack Exchange API, answers with votes",
    ),
    FormatName.SUMMARIZE: Format(
        fits=_has("info", "choice", summaries="text"),
        read=summarize.read_summarize,
        summary="OpenAI's comparisons of summaries",
        options=("--merge",),
        has_annotators=True,
    ),
    FormatName.ARENA: Format(
        fits=_either(
            _has("conversation_a", "conversation_b", "winner"),
            _has(
                "prompt",
                "response_a",
                "response_b",
                "winner_model_a",
                "winner_model_b",
                "winner_tie",
            ),
        ),
        read=arena.read_arena,
        summary="LMSYS and LMArena battles, MT-bench",
        options=("--merge",),
        has_annotators=True,
    ),
    FormatName.HELPSTEER_PREFERENCE: Format(
        fits=_either(
            _has("prompt", "response_1", "response_2", "preference_strength"),
            _has("context", "response1", "response2", "overall_preference"),
        ),
        read=helpsteer.read_helpsteer_preference,
        summary="preferences of HelpSteer2 and 3: two responses and a strength",
        options=("--merge",),
    ),
    FormatName.ARGILLA: Format(
        fits=argilla.is_argilla,
        read=argilla.read_argilla,
        summary="Argilla 1 and 2: a ranking question",
        options=("--prompt-column", "--question"),
    ),
    FormatName.RANKING: Format(
        fits=lists.is_ranking,
        read=lists.read_ranking,
        summary="prompt, ranking: texts, best first",
    ),
    FormatName.COMPLETIONS: Format(
        fits=lists.is_completions,
        read=lists.read_completions,
        summary="prompt, completions with text and score or rank, or texts beside scores",
        options=("--score-column",),
    ),
}
