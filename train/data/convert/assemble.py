"""Rankings from the items of all rows.

A row that is a ranking is passed on before the next row is read. Comparisons to merge and scores
of single responses are collected until the end, because the rows of a prompt may be anywhere in
the input. That takes the memory of their texts.
"""

from collections.abc import Iterable, Iterator, Sequence

from kwise.train.data.convert.merge_comparisons import Comparison, merge_comparisons
from kwise.train.data.convert.merge_counts import MergeCounts
from kwise.train.data.convert.options import ConvertConfig, Merge
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.rows.annotation_tools import join_names
from kwise.train.data.rows.items import (
    ComparedPair,
    RankedResponses,
    RowItem,
    ScoredResponse,
    Skipped,
)
from kwise.train.rankings.errors import RankingsError
from kwise.types import Conversation

CONTRADICTION = "comparison contradicts others: written as a ranking of two, not merged"
SCORES_NOT_WRITTEN = "comparison merged with others: its scores are not written"


def assemble_rankings(
    items: Iterable[tuple[str, RowItem]], config: ConvertConfig, report: ConversionReport
) -> Iterator[tuple[str, RankedResponses]]:
    """Yield ("FILE:ROW", ranking); the origin of a merged ranking is the first of its rows."""
    pairs: dict[tuple[Conversation, str | None], list[tuple[str, ComparedPair]]] = {}
    scored: dict[Conversation, list[tuple[str, ScoredResponse]]] = {}
    answered: dict[str, str] = {}  # question → first row that answers it, but not --question
    has_ranking = False
    counts = MergeCounts()
    for origin, item in items:
        match item:
            case RankedResponses():
                has_ranking = True
                yield origin, item
            case Skipped():
                report.skipped[item.what, item.reason] += item.num
                for question in item.answered:
                    answered.setdefault(question, origin)
            case ScoredResponse():
                scored.setdefault(item.prompt, []).append((origin, item))
            case ComparedPair():
                # AUTO merges as ANNOTATOR does: only some formats name the annotator.
                is_unnamed = config.merge is not Merge.PROMPT and item.annotator is None
                if config.merge is Merge.NONE or is_unnamed:
                    counts.num_without_annotator += config.merge is Merge.ANNOTATOR
                    yield origin, item.as_ranking()
                    continue
                annotator = None if config.merge is Merge.PROMPT else item.annotator
                pairs.setdefault((item.prompt, annotator), []).append((origin, item))
    if config.question and answered and not has_ranking and config.question not in answered:
        origin = next(iter(answered.values()))
        problem = (
            f"{origin}: --question: no row answers {config.question[:40]!a}; answered questions: "
            f"{join_names(answered)}"
        )
        report.problems.add_end(RankingsError([problem]))
    for (prompt, _), pairs_of_prompt in pairs.items():
        origin = pairs_of_prompt[0][0]
        pairs_alone = [pair for _, pair in pairs_of_prompt]
        for ranked in _merge_pairs(prompt, pairs_alone, report, counts):
            yield origin, ranked
    if config.merge in (Merge.PROMPT, Merge.ANNOTATOR):
        prompts = [prompt for prompt, _ in pairs]
        report.merging = counts.line(f"--merge {config.merge.value}", prompts)
    for prompt, scored_of_prompt in scored.items():
        yield (
            scored_of_prompt[0][0],
            RankedResponses(
                prompt=prompt,
                responses=tuple(item.response for _, item in scored_of_prompt),
                scores=tuple(item.score for _, item in scored_of_prompt),
            ),
        )


def _merge_pairs(
    prompt: Conversation,
    pairs: Sequence[ComparedPair],
    report: ConversionReport,
    counts: MergeCounts,
) -> Iterator[RankedResponses]:
    merged = merge_comparisons(
        [Comparison(better=pair.better, worse=pair.worse, tied=pair.tied) for pair in pairs]
    )
    counts.add(pairs, merged)
    if len(pairs) == 1:
        yield pairs[0].as_ranking()
        return
    if num_scored := sum(pair.scores is not None for pair in pairs):
        report.notes[SCORES_NOT_WRITTEN] += num_scored
    report.notes.update(pair.note for pair in pairs if pair.note)
    if merged.num_contradictions:
        report.notes[CONTRADICTION] += merged.num_contradictions
    for order in merged.orders:
        responses = tuple(response for group in order for response in group)
        ranks = tuple(rank for rank, group in enumerate(order, start=1) for _ in group)
        yield RankedResponses(prompt=prompt, responses=responses, ranks=ranks)
