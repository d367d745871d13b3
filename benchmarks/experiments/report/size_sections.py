"""The sections on sizes: data, models, and what of it is knowledge of the systems."""

from pathlib import Path

import numpy as np

from kwise.benchmarks.experiments.features import HEAD, MEAN
from kwise.benchmarks.experiments.report.figures import COLOURS, baseline, figure, line
from kwise.benchmarks.experiments.report.intervals import Estimate, by_seed, estimate
from kwise.benchmarks.experiments.report.power_law import PowerLaw, fit
from kwise.benchmarks.experiments.report.results import Results
from kwise.benchmarks.experiments.report.tables import table
from kwise.benchmarks.experiments.studies.systems import Kind

# 50,000 pairs without ties, of nine responses each; the prompts of InstructGPT.
_EXTRAPOLATED = (round(50_000 / 36), 33_000)
_DRAWN_TO = 10_000


def data_size(results: Results, images: Path) -> str:
    """Return accuracy by number of prompts with a fitted power law, for each way of training."""
    curves = {
        ("data-size", line["cell"]["model"]): f"head on frozen {line['cell']['model']}"
        for line in results.lines["data-size"]
    } | {
        ("fine-tuning", line["cell"]["model"]): f"all weights of {line['cell']['model']}"
        for line in results.lines["fine-tuning"]
    }
    parts, fitted = [], []
    with figure(images / "evidence-data-size.svg") as (axes,):
        for (study, model), colour in zip(curves, COLOURS, strict=False):
            lines = results.select(study, model=model)
            sizes = sorted({one["cell"]["num_prompts"] for one in lines})
            draws = [results.draws(study, model=model, num_prompts=size) for size in sizes]
            estimates = [estimate(one) for one in draws]
            rows = [
                [
                    str(size),
                    str(round(results.pairs_per_prompt * size)),
                    str(len(results.select(study, model=model, num_prompts=size))),
                    one.percent(),
                    results.near(study, model=model, num_prompts=size).percent(),
                ]
                for size, one in zip(sizes, estimates, strict=True)
            ]
            everything, near = (one.percent() for one in results.longer)
            rows.append(["longer wins", "", "", everything, near])
            heading = ["prompts", "pairs", "seeds", "accuracy", "near in length"]
            parts.append(f"### {curves[study, model]}\n\n" + table(heading, rows))
            line(axes, sizes, estimates, curves[study, model], colour)
            laws = [fit(sizes, values) for values in np.stack(draws, axis=1)]
            if laws[0] is None:
                continue
            known = [law for law in laws if law is not None]
            xs = np.geomspace(sizes[0], _DRAWN_TO, 60)
            axes.plot(xs, 100 * laws[0].at(xs), color=colour, linestyle="--", linewidth=1)
            low, high = np.percentile([100 * law.at(xs) for law in known[1:]], (2.5, 97.5), axis=0)
            axes.fill_between(xs, low, high, color=colour, alpha=0.07, linewidth=0)
            fitted.append([curves[study, model], *_law_cells(known, len(laws))])
        axes.axvline(_EXTRAPOLATED[0], color="#666666", linestyle="--", linewidth=0.8)
        axes.text(_EXTRAPOLATED[0] * 1.05, axes.get_ylim()[0] + 0.3, "50,000 pairs", fontsize=7)
        baseline(axes, results.longer[0], "longer wins")
        axes.set(xscale="log", xlabel="prompts with nine responses", ylabel="pairwise accuracy, %")
        axes.legend(fontsize=7)
    heading = ["accuracy = a − b · n^−c", "a", "b", "c"]
    heading += [f"at {size:,} prompts" for size in _EXTRAPOLATED] + ["draws without a fit"]
    return "\n\n".join([*parts, "### fitted curves\n\n" + table(heading, fitted)])


def _law_cells(laws: list[PowerLaw], num_draws: int) -> list[str]:
    """Return asymptote, factor, exponent and extrapolations, and how many draws had no fit."""
    exponents = np.array([law.exponent for law in laws])
    factors = np.array([law.factor for law in laws])
    asymptotes = np.array([law.asymptote for law in laws])
    reached = [np.array([float(law.at(size)) for law in laws]) for size in _EXTRAPOLATED]
    plain = [estimate(values) for values in (factors, exponents)]
    texts = [f"{one.value:.2f} ({one.low:.2f}–{one.high:.2f})" for one in plain]
    percent = [estimate(values).percent() for values in reached]
    return [estimate(asymptotes).percent(), *texts, *percent, str(num_draws - len(laws))]


def models(results: Results, images: Path) -> str:
    """Return accuracy by model, depth, pooling and number of prompts."""
    cells = [line["cell"] for line in results.lines["models"]]
    names = list(dict.fromkeys(cell["model"] for cell in cells))
    sizes = sorted({cell["num_prompts"] for cell in cells})
    rows = []
    with figure(images / "evidence-models.svg", len(sizes), sharey=True) as panels:
        for name, colour in zip(names, COLOURS, strict=False):
            lines = results.select("models", model=name)
            about = lines[0]
            layers = sorted({one["cell"]["layer"] for one in lines})
            for layer in layers:
                for pooling in (MEAN, HEAD):
                    cell = {"model": name, "layer": layer, "pooling": pooling}
                    accuracies = [
                        results.accuracy("models", **cell, num_prompts=size).percent()
                        for size in sizes
                    ]
                    near = results.near("models", **cell, num_prompts=sizes[-1]).percent()
                    rows.append(
                        [
                            f"{name}, {about['num_parameters'] / 1e6:.0f}M",
                            f"{layer} of {about['num_layers']}",
                            {MEAN: "mean and length", HEAD: "token of the head"}[pooling],
                            *accuracies,
                            near,
                        ]
                    )
            for axes, size in zip(panels, sizes, strict=True):
                for pooling, style in ((MEAN, "-"), (HEAD, "--")):
                    estimates = [
                        results.accuracy(
                            "models", model=name, layer=layer, pooling=pooling, num_prompts=size
                        )
                        for layer in layers
                    ]
                    what = "mean and length" if pooling == MEAN else "head's token"
                    line(axes, layers, estimates, f"{name}, {what}", colour)
                    axes.lines[-1].set_linestyle(style)
        for axes, size in zip(panels, sizes, strict=True):
            baseline(axes, results.longer[0], "longer wins")
            axes.set(xlabel="layers that are used", title=f"{size} prompts")
        panels[0].set_ylabel("pairwise accuracy, %")
        panels[0].legend(fontsize=6)
    everything, near = (one.percent() for one in results.longer)
    rows.append(["longer wins", "", "", *[everything] * len(sizes), near])
    heading = ["backbone", "layers", "pooling", *(f"{size} prompts" for size in sizes)]
    return table([*heading, f"near in length, {sizes[-1]}"], rows)


def systems(results: Results, _: Path) -> str:
    """Return the accuracy of the rule of systems, and of heads with and without a system."""
    rule = results.accuracy("systems", kind=Kind.RULE.value)
    named = [line["named"] for line in results.select("systems", kind=Kind.NAMED.value)]
    parts = [
        f"The mean rank of a response's system orders {rule.percent()} of the pairs rightly, "
        f"{results.near('systems', kind=Kind.RULE.value).percent()} of those of nearly equal "
        f"length. A linear classifier names the system of {np.mean(named):.1%} of the responses."
    ]
    cells = {line["cell"]["system"] for line in results.select("systems", kind=Kind.SEEN.value)}
    rows = []
    for system in sorted(cells):
        seen, unseen = (_with_system(results, kind, system) for kind in (Kind.SEEN, Kind.UNSEEN))
        rows.append(_system_row(system, seen, unseen))
    if rows:
        seen = np.mean([_with_system(results, Kind.SEEN, system) for system in cells], axis=0)
        unseen = np.mean([_with_system(results, Kind.UNSEEN, system) for system in cells], axis=0)
        rows.append(_system_row("mean", seen, unseen))
    heading = ["pairs with system", "seen in training", "not seen", "difference, points"]
    return "\n\n".join([*parts, table(heading, rows)])


def _with_system(results: Results, kind: Kind, system: str) -> np.ndarray:
    lines = results.select("systems", kind=kind.value, system=system)
    return results.all_pairs.accuracies(by_seed(lines, "right"), by_seed(lines, "pairs"))


def _system_row(name: str, seen: np.ndarray, unseen: np.ndarray) -> list[str]:
    estimates: list[Estimate] = [estimate(seen), estimate(unseen)]
    texts = [one.percent() for one in estimates]
    return [name, *texts, estimate(unseen - seen).points()]
