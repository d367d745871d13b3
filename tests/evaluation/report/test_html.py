"""The HTML page: it has all figures, loads nothing, escapes every name, and is reproducible."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from kwise.evaluation.compare import compare
from kwise.evaluation.figures import figures_of
from kwise.evaluation.report.html import comparison_page_of, page_of, write_html
from kwise.evaluation.result import (
    SCHEMA_VERSION,
    DataRecord,
    EvaluatedRanking,
    Evaluation,
    LeftOut,
    ModelRecord,
    Settings,
)
from kwise.evaluation.suites.benchmark import BenchmarkItem, Rewards
from kwise.evaluation.suites.evaluate import score_benchmark
from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.table import BENCHMARKS

MARKUP = "<script>alert('1')</script> & \"$x_1$\""
VOID = {"meta", "link", "br", "hr", "img", "input"}


def rankings(num: int, *, size: int = 4, seed: int = 0) -> tuple[EvaluatedRanking, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        EvaluatedRanking(
            origin=f"a.jsonl:{index}",
            prompt_sha256=f"{index:064x}",
            responses_sha256="0" * 64,
            ranks=tuple(range(1, size + 1)),
            scores=None,
            lengths=tuple(rng.integers(0, 500, size=size).tolist()),
            rewards=tuple((rng.normal(size=size) - 0.5 * np.arange(size)).tolist()),
        )
        for index in range(num)
    )


def evaluation_of(*evaluated: EvaluatedRanking, name: str = "model") -> Evaluation:
    settings = Settings(num_resamples=100)
    return Evaluation(
        schema_version=SCHEMA_VERSION,
        created_at="2026-01-31T00:00:00+00:00",
        model=ModelRecord(
            argument=name,
            kind="artifact",
            name=name,
            fingerprint="ab" * 32,
            precision="fp32",
            runtime="onnxruntime",
            settings={name: name},
        ),
        data=DataRecord(
            name=name,
            rankings_sha256="cd" * 32,
            num_read=len(evaluated) + 2,
            num_tied=1,
            left_out=(LeftOut(origin=f"{name}:7", reason=f"responses[0]: {name}"),),
        ),
        settings=settings,
        options={"chat_template": name},
        versions={"python": "3.11.0"},
        figures=figures_of(evaluated, settings),
        rankings=evaluated,
    )


def suite_evaluation(name: SuiteName, *, num_missing: int = 0) -> Evaluation:
    """Return an evaluation of random rewards on a benchmark, without the prior sets."""
    rng = np.random.default_rng(1)
    items: list[tuple[BenchmarkItem, Rewards | None]] = []
    for subset, num in BENCHMARKS[name].published.items():
        if subset in ("anthropic_helpful", "anthropic_hhh", "shp", "summarize"):
            continue
        for index in range(num - num_missing):
            is_ties = subset == "Ties"
            num_right = 3 if name is SuiteName.RM_BENCH else 1 + is_ties * (index % 2)
            row = BenchmarkItem(
                prompt=(),
                responses=("",) * (num_right + 3),
                num_right=num_right,
                subset=subset,
                unit=str(index // 2) if is_ties else "",
                role=("ref", "tied")[index % 2] if is_ties else "",
            )
            if name in (SuiteName.REWARD_BENCH, SuiteName.JUDGE_BENCH):
                row = replace(row, responses=("", ""))
            items.append((row, tuple(rng.normal(size=len(row.responses)).tolist())))
    suite = score_benchmark(
        BENCHMARKS[name], items, Settings(num_resamples=100), unread_files=(f"{MARKUP}.parquet",)
    )
    return replace(evaluation_of(*rankings(5)), suite=suite)


class Page(HTMLParser):
    """The elements of a page; every element that is opened must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []  # the cells of each row of each table
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data.strip()

    def row(self, name: str) -> list[str]:
        """Return the cells after the first one of the row that begins with `name`."""
        (cells,) = [row[1:] for row in self.rows if row and row[0] == name]
        return cells


def svgs(text: str) -> list[str]:
    return re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(evaluation_of(*rankings(30), name=MARKUP))


def test_the_page_is_one_file_that_loads_nothing(page: str) -> None:
    elements = Page(page).elements
    tags = {tag for tag, _ in elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img", "image", "base"}
    for _, attributes in elements:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", page)


def test_names_of_the_model_and_of_the_data_are_escaped(page: str) -> None:
    assert "<script" not in page
    parsed = Page(page)
    title = next(text for text in parsed.texts if text.endswith("kwise eval"))
    assert title == f"{MARKUP} on {MARKUP} – kwise eval"
    assert f"{MARKUP} on {MARKUP}" in parsed.texts  # the heading
    assert f"{MARKUP}:7" in parsed.texts


def test_the_same_evaluation_gives_the_same_bytes(page: str, tmp_path: Path) -> None:
    write_html(evaluation_of(*rankings(30), name=MARKUP), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page
    assert not re.search(r"<metadata|dc:date|Matplotlib v", page)


def test_the_style_of_the_process_does_not_reach_the_page(page: str) -> None:
    from matplotlib import rc_context

    with rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert page_of(evaluation_of(*rankings(30), name=MARKUP)) == page


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    ids = Counter(attributes["id"] for _, attributes in Page(page).elements if attributes.get("id"))
    assert max(ids.values()) == 1
    references = re.findall(r'(?:url\(|href=")#([^")]+)', page)
    assert references
    assert set(references) <= ids.keys()


def test_plots_have_titles_and_only_colours_of_the_page(page: str) -> None:
    plots = svgs(page)
    assert len(plots) == 6
    for plot in plots:
        root = ElementTree.fromstring(plot)
        labels = (root.get("aria-labelledby") or "").split()
        texts = {element.get("id"): element.text for element in root}
        assert root.get("role") == "img"
        assert all(texts[label] for label in labels)
        assert len(labels) == 2
        assert root.get("width") is root.get("height") is None  # as wide as its place
        for style in re.findall(r'style="([^"]*)"', plot):
            colours = re.findall(r"(?:fill|stroke): ([^;]+)", style)
            assert all(re.fullmatch(r"none|var\(--[a-z]+\)", colour) for colour in colours), style
    variables = set(re.findall(r"var\((--[a-z]+)\)", "".join(plots)))
    for scheme in re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL):
        assert variables <= set(re.findall(r"(--[a-z]+):", scheme))


def test_every_plot_says_how_to_read_it(page: str) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, flags=re.DOTALL)
    assert len(captions) == len(svgs(page))
    assert all(caption.count(".") >= 2 for caption in captions)


def test_all_figures_are_in_tables(page: str) -> None:
    figures = evaluation_of(*rankings(30), name=MARKUP).figures
    parsed = Page(page)
    for part in (figures.accuracy, *figures.by_rank_gap, *figures.by_length, *figures.by_size):
        interval = part.accuracy.interval
        assert interval is not None
        assert parsed.row(part.name) == [
            f"{part.num_pairs:,}",
            f"{part.accuracy.value:.1%}",
            f"{interval.low:.1%} to {interval.high:.1%}",
            f"{part.longer_wins:.1%}",
        ]
    for point in figures.best_of_n.points:
        num, model, _, best, at_random = parsed.row(str(point.n))
        assert num == str(point.num_rankings)
        assert [model, best, at_random] == [
            f"{value:.3f}" for value in (point.model.value, point.best, point.random)
        ]
    calibration, correlation = figures.calibration, figures.length_correlation
    assert correlation is not None
    for name, value in (
        ("Kendall's tau-b (30 rankings)", figures.kendall_tau.mean.value),
        ("NDCG (30 rankings)", figures.ndcg.mean.value),
        ("negative log likelihood (0.693 if all rewards are equal)", calibration.nll.value),
        ("expected calibration error", calibration.ece),
        ("negative log likelihood with it", calibration.scaled_nll),
        ("expected calibration error with it", calibration.scaled_ece),
        ("the rewards", correlation.rewards.value),
        ("the labels", correlation.labels.value),
    ):
        assert parsed.row(name)[0] == f"{value:.3f}"
    rows = [row[1:] for row in parsed.rows]
    for reliability in (*calibration.bins, *calibration.scaled_bins):
        shares = (f"{reliability.probability:.1%}", f"{reliability.accuracy:.1%}")
        assert [f"{reliability.num_pairs:,}", *shares] in rows


@pytest.mark.parametrize(
    "evaluated",
    [
        rankings(1),
        rankings(1, size=2),
        tuple(replace(ranking, rewards=(0.0,) * 4) for ranking in rankings(3)),
        tuple(replace(ranking, rewards=(4.0, 3.0, 2.0, 1.0)) for ranking in rankings(3)),
        tuple(replace(ranking, rewards=(1.0, 2.0, 3.0, 4.0)) for ranking in rankings(3)),
        tuple(replace(ranking, lengths=(0,) * 4) for ranking in rankings(3)),
        tuple(replace(ranking, rewards=(1e30, -1e30, 1e-30, 0.0)) for ranking in rankings(3)),
        tuple(replace(ranking, scores=(4.5, 3.0, 2.0, -1.0)) for ranking in rankings(3)),
        rankings(400, size=6),
    ],
    ids=[
        "one ranking",
        "one pair",
        "equal rewards",
        "all right",
        "all wrong",
        "empty responses",
        "extreme rewards",
        "scores",
        "many responses",
    ],
)
def test_every_evaluation_has_a_page(evaluated: tuple[EvaluatedRanking, ...]) -> None:
    page = page_of(evaluation_of(*evaluated))
    Page(page)
    assert len(svgs(page)) == 6
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower().split()


@pytest.mark.parametrize("name", SuiteName)
def test_scores_of_a_benchmark_are_on_the_page(name: SuiteName) -> None:
    evaluation = suite_evaluation(name)
    parsed = Page(page_of(evaluation))
    suite = evaluation.suite
    assert suite is not None
    assert suite.title in parsed.texts
    for score in suite.scores:
        assert score.estimate is not None
        cells = parsed.row(score.name)
        assert (cells[0], cells[-1]) == (f"{score.estimate.value:.1%}", f"{score.num_rows:,}")
    assert f"{MARKUP}.parquet" in " ".join(parsed.texts)
    assert (suite.matrix is not None) == ("Share of right pairs by style" in parsed.texts)
    assert not any("other rows than the published" in text for text in parsed.texts)


def test_a_benchmark_with_missing_rows_has_no_overall_score_and_names_them() -> None:
    parsed = Page(page_of(suite_evaluation(SuiteName.RM_BENCH, num_missing=2)))
    assert parsed.row("Overall") == ["–", "–", "1,317"]
    assert parsed.row("chat") == ["127", "127", "129"]
    assert any(text.startswith("5 of 5 subsets have other rows") for text in parsed.texts)


def test_the_differences_of_two_models_are_on_a_page_of_their_own() -> None:
    a, b = (evaluation_of(*rankings(20, seed=seed), name=MARKUP + str(seed)) for seed in (0, 1))
    b = replace(
        b,
        rankings=tuple(
            replace(ranking, lengths=other.lengths)
            for ranking, other in zip(b.rankings, a.rankings, strict=True)
        ),
    )
    comparison = compare(a, b, Settings(num_resamples=100))
    page = comparison_page_of(comparison)
    parsed = Page(page)
    assert "<script" not in page
    assert comparison.conclusion in parsed.texts
    for name, part in zip(
        ("pairwise accuracy", "negative log likelihood", "Kendall's tau-b", "NDCG"),
        comparison.differences,
        strict=True,
    ):
        shown = [f"{part.a:.3f}", f"{part.b:.3f}", f"{part.difference.value:+.3f}"]
        assert parsed.row(name)[:3] == shown
    (plot,) = svgs(page)
    ElementTree.fromstring(plot)
    assert comparison_page_of(comparison) == page


def test_without_matplotlib_the_message_names_the_extra(monkeypatch: Any) -> None:
    import sys

    for module in [
        name for name in sys.modules if name.startswith("kwise.evaluation.report.plots")
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    from kwise.errors import ConfigError

    with pytest.raises(ConfigError, match=r"--html needs matplotlib: .*eval"):
        page_of(evaluation_of(*rankings(1)))


def test_the_backend_of_a_notebook_does_not_matter() -> None:
    """matplotlib cannot be imported with the name of a backend that is not installed."""
    code = (
        "from kwise.evaluation.report.html import _matplotlib_needed\n"
        "with _matplotlib_needed():\n    import matplotlib"
    )
    environment = {**os.environ, "MPLBACKEND": "module://no_such_module.backend"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
