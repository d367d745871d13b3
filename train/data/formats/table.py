"""The formats that `kwise data convert` reads, and how one is told from another: by the keys of the first row."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kwise.train.data.formats import argilla, compared, label_studio, pairs, ranked, scored
from kwise.train.data.formats.items import ReadRow, Row
from kwise.train.data.formats.transcript import is_hh


class FormatName(Enum):
    """By the name of the dataset or tool that made the format known."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """`fits` looks at a row's keys and kinds; `read` says what is in it, or what is wrong with it. `options`: those of `kwise data
    convert` that mean something for it."""

    fits: Callable[[Row], bool]
    read: ReadRow
    summary: str
    options: tuple[str, ...] = ()


def detect(row: Row) -> FormatName | None:
    """The first format that fits, in the order below: the special before the general."""
    return next((name for name, form in FORMATS.items() if form.fits(row)), None)


def _has(*keys: str, **inner: str) -> Callable[[Row], bool]:
    """A row with `keys`, and with lists of objects that have a key: `answers="rank"`. An empty list will do."""

    def fits(row: Row) -> bool:
        return row.keys() >= {*keys, *inner} and all(
            _objects_have(row[name], key) for name, key in inner.items()
        )

    return fits


def _either(*fits: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return lambda row: any(fit(row) for fit in fits)


def _objects_have(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value  # a Sequence of Hugging Face datasets
    return isinstance(value, list) and (
        not value or (isinstance(value[0], dict) and key in value[0])
    )


def _is_hh_pair(row: Row) -> bool:
    return row.get("prompt") is None and all(
        isinstance(row.get(k), str) and is_hh(row[k]) for k in ("chosen", "rejected")
    )


FORMATS: dict[FormatName, Format] = {
    FormatName.KWISE: Format(
        fits=_has("prompt", responses="text"),
        read=ranked.read_kwise,
        summary="rankings of our own schema",
    ),
    FormatName.LABEL_STUDIO: Format(
        fits=label_studio.is_label_studio,
        read=label_studio.read_label_studio,
        summary="Label Studio, List and Ranker as JSON",
        options=("--prompt-column", "--question", "--buckets"),
    ),
    FormatName.HH_RLHF: Format(
        fits=_is_hh_pair,
        read=pairs.read_hh,
        summary="chosen, rejected: Human/Assistant transcripts",
        options=("--merge",),
    ),
    FormatName.TRL: Format(
        fits=_has("chosen", "rejected"),
        read=pairs.read_trl,
        summary="TRL preference: (prompt,) chosen, rejected; text or messages",
        options=("--merge", "--prompt-column"),
    ),
    FormatName.ULTRAFEEDBACK: Format(
        fits=_has("instruction", completions="response"),
        read=scored.read_ultrafeedback,
        summary="instruction, completions scored",
        options=("--score-column",),
    ),
    FormatName.HELPSTEER2: Format(
        fits=_has("prompt", "response", "helpfulness"),
        read=scored.read_helpsteer2,
        summary="a scored response a row, grouped by prompt",
        options=("--score-column",),
    ),
    FormatName.NECTAR: Format(
        fits=_has("prompt", answers="rank"),
        read=ranked.read_nectar,
        summary="prompt, answers with ranks",
    ),
    FormatName.STACK_EXCHANGE: Format(
        fits=_has("question", answers="pm_score"),
        read=scored.read_stack_exchange,
        summary="question, answers with pm_score",
        options=("--score-column",),
    ),
    FormatName.STACK_EXCHANGE_PAIRED: Format(
        fits=_has("question", "response_j", "response_k"),
        read=pairs.read_stack_exchange_paired,
        summary="question, response_j better than response_k",
        options=("--merge",),
    ),
    FormatName.STACK_EXCHANGE_API: Format(
        fits=_has("title", answers="is_accepted"),
        read=scored.read_stack_exchange_api,
        summary="question of the API, answers with votes",
    ),
    FormatName.SUMMARIZE: Format(
        fits=_has("info", "choice", summaries="text"),
        read=compared.read_summarize,
        summary="OpenAI comparisons of summaries",
        options=("--merge",),
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
        read=compared.read_arena,
        summary="LMSYS and LMArena battles, MT-bench",
        options=("--merge",),
    ),
    FormatName.HELPSTEER_PREFERENCE: Format(
        fits=_either(
            _has("prompt", "response_1", "response_2", "preference_strength"),
            _has("context", "response1", "response2", "overall_preference"),
        ),
        read=compared.read_helpsteer_preference,
        summary="HelpSteer2 and 3, preference: two responses and a strength",
        options=("--merge",),
    ),
    FormatName.ARGILLA: Format(
        fits=argilla.is_argilla,
        read=argilla.read_argilla,
        summary="Argilla 1 and 2, a ranking question",
        options=("--prompt-column", "--question"),
    ),
}
