"""The sections on labels: annotators, group size and losses, each as tables in Markdown."""

from pathlib import Path

import numpy as np

from kwise.benchmarks.experiments.report.figures import COLOURS, figure, line
from kwise.benchmarks.experiments.report.intervals import estimate
from kwise.benchmarks.experiments.report.results import Results
from kwise.benchmarks.experiments.report.tables import table
from kwise.benchmarks.experiments.studies.annotators import SWEEPS, Method
from kwise.benchmarks.experiments.studies.group_size import NOISES, NUM_PROMPTS, SECONDS
from kwise.benchmarks.experiments.studies.losses import VARIANTS_OF

_PAIRS = {K: K * (K - 1) // 2 for K in SECONDS}
_BITS = {K: sum(np.log2(k) for k in range(2, K + 1)) for K in SECONDS}


def annotators(results: Results, images: Path) -> str:
    """Return accuracy by disagreement and method, and draw a panel for each sweep."""
    parts = []
    sweeps = [("standardised", name, sweep) for name, sweep in SWEEPS.items()]
    sweeps.append(("logit", "bias", SWEEPS["bias"]))
    with figure(images / "evidence-annotators.svg", len(sweeps), sharey=True) as panels:
        for axes, (quality, name, sweep) in zip(panels, sweeps, strict=True):
            values = [getattr(one, name) for one in sweep]
            rows = []
            for method, colour in zip(Method, COLOURS, strict=False):
                cells = [
                    {
                        "quality": quality,
                        "method": method.value,
                        "bias": one.bias,
                        "scale": one.scale,
                        "drift": one.drift,
                        "noise": one.noise,
                    }
                    for one in sweep
                ]
                estimates = [results.accuracy("annotators", **cell) for cell in cells]
                rows.append([method.value, *(one.percent() for one in estimates)])
                line(axes, values, estimates, method.value, colour)
            differences = [
                estimate(
                    results.draws("annotators", **cell | {"method": Method.RANKS.value})
                    - results.draws("annotators", **cell | {"method": Method.PER_ANNOTATOR.value})
                ).points()
                for cell in cells
            ]
            rows.append(["ranks − scores per annotator, points", *differences])
            for method in (Method.RANKS, Method.PER_ANNOTATOR):
                near = [
                    results.near("annotators", **cell | {"method": method.value}).percent()
                    for cell in cells
                ]
                rows.append([f"{method.value}, near in length", *near])
            suffix = "" if quality == "standardised" else ", prompts differ in quality"
            axes.set_xlabel(f"{name} of annotators{suffix}")
            parts.append(
                f"### {name}{suffix}\n\n" + table([name, *(f"{value:g}" for value in values)], rows)
            )
        panels[0].set_ylabel("pairs in the true order, %")
        panels[0].legend(fontsize=6)
    return "\n\n".join(parts)


def group_size(results: Results, images: Path) -> str:
    """Return comparisons at equal seconds, prompts and pairs, and draw them by noise."""
    sizes_4, sizes_9 = NUM_PROMPTS[4], NUM_PROMPTS[9]
    known = {line["cell"]["num_prompts"] for line in results.lines["group-size"]}
    comparisons = {
        "seconds": [(n * SECONDS[9] // SECONDS[4], n) for n in sizes_9],
        "prompts": [(n, n) for n in sizes_9],
        "pairs": [(n * _PAIRS[9] // _PAIRS[4], n) for n in sizes_9],
    }
    parts = [
        table(
            ["K", "pairs", "bits of an order", "seconds", "pairs per minute", "bits per minute"],
            [
                [
                    str(K),
                    str(_PAIRS[K]),
                    f"{_BITS[K]:.1f}",
                    str(seconds),
                    f"{60 * _PAIRS[K] / seconds:.0f}",
                    f"{60 * _BITS[K] / seconds:.1f}",
                ]
                for K, seconds in SECONDS.items()
            ],
        )
    ]
    for name, comparison in comparisons.items():
        rows = []
        for four, nine in comparison:
            if four not in sizes_4 or not {four, nine} <= known:
                continue
            for noise in NOISES:
                draws_4 = results.draws("group-size", K=4, num_prompts=four, noise=noise)
                draws_9 = results.draws("group-size", K=9, num_prompts=nine, noise=noise)
                rows.append(
                    [
                        f"{four} × 4, {nine} × 9",
                        f"{noise:g}",
                        estimate(draws_4).percent(),
                        estimate(draws_9).percent(),
                        estimate(draws_9 - draws_4).points(),
                        results.near("group-size", K=4, num_prompts=four, noise=noise).percent(),
                        results.near("group-size", K=9, num_prompts=nine, noise=noise).percent(),
                    ]
                )
        heading = ["prompts × K", "noise", "K = 4", "K = 9", "difference, points"]
        heading += ["K = 4, near in length", "K = 9, near"]
        parts.append(f"### equal {name}\n\n" + table(heading, rows))
    with figure(images / "evidence-group-size.svg", len(NOISES), sharey=True) as panels:
        for axes, noise in zip(panels, NOISES, strict=True):
            for (K, sizes), colour in zip(NUM_PROMPTS.items(), COLOURS, strict=False):
                shown = [size for size in sizes if size in known]
                estimates = [
                    results.accuracy("group-size", K=K, num_prompts=size, noise=noise)
                    for size in shown
                ]
                minutes = [size * SECONDS[K] / 60 for size in shown]
                line(axes, minutes, estimates, f"K = {K}", colour)
            axes.set(xscale="log", xlabel="minutes of labelling", title=f"noise {noise:g}")
        panels[0].set_ylabel("pairs in the true order, %")
        panels[0].legend()
    return "\n\n".join(parts)


def losses(results: Results, images: Path) -> str:
    """Return accuracy by loss for each kind of labels, and draw the differences from `pairs`."""
    parts = []
    with figure(images / "evidence-losses.svg", len(VARIANTS_OF)) as panels:
        for axes, (given, variants) in zip(panels, VARIANTS_OF.items(), strict=True):
            reference = results.draws("losses", given=given.value, variant="pairs")
            rows = []
            for index, variant in enumerate(variants):
                cell = {"given": given.value, "variant": variant}
                draws = results.draws("losses", **cell)
                difference = estimate(draws - reference)
                shown = "" if variant == "pairs" else difference.points()
                near = results.near("losses", **cell).percent()
                rows.append([variant, estimate(draws).percent(), shown, near])
                low, high = 100 * difference.low, 100 * difference.high
                axes.plot([low, high], [-index, -index], color=COLOURS[0])
                axes.plot(100 * difference.value, -index, marker="o", color=COLOURS[0])
            axes.axvline(0, color="#666666", linestyle=":", linewidth=1)
            axes.set_yticks([-index for index in range(len(variants))], list(variants), fontsize=7)
            axes.set(xlabel="points more than pairs", title=given.value)
            heading = ["loss", "accuracy", "− pairs, points", "near in length"]
            parts.append(f"### {given.value}\n\n" + table(heading, [*rows, _longer_row(results)]))
    return "\n\n".join(parts)


def _longer_row(results: Results) -> list[str]:
    everything, near = results.longer
    return ["longer wins", everything.percent(), "", near.percent()]
