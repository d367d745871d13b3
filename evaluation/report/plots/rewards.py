"""Plots of the rewards themselves: their margins, the order in each ranking, and the length.

Dimensions: R rankings; P pairs of all rankings; N responses of all rankings.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from kwise.evaluation.metrics.labelled import pairs_of_all
from kwise.evaluation.metrics.rank_correlation import kendall_tau, values_of
from kwise.evaluation.report.plots.canvas import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    Canvas,
    Plot,
    in_page_style,
)
from kwise.evaluation.result import EvaluatedRanking

_NUM_BINS = 31  # odd, so that 0 is not the edge of a bin where margins are symmetric
_NUM_LENGTH_BINS = 10
_MAX_POINTS = 1500


@in_page_style
def margins_plot(rankings: Sequence[EvaluatedRanking]) -> Plot:
    """Return the histogram of the rewards of better responses minus those of worse ones."""
    margin_P = pairs_of_all(rankings).margin_P
    edges = _edges_with_zero(margin_P)
    canvas = Canvas(
        "margins",
        "Margins",
        f"Half of the {len(margin_P):,} pairs have a margin below {np.median(margin_P):.3g}; "
        f"{np.mean(margin_P < 0):.1%} are below 0.",
    )
    axes = canvas.axes()
    for part_P, colour, label in (
        (margin_P[margin_P < 0], ORANGE, "wrong"),
        (margin_P[margin_P >= 0], BLUE, "right, or equal rewards"),
    ):
        axes.hist(part_P, bins=edges, color=colour, label=label, linewidth=0.5)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_xlabel("reward of the better response minus that of the worse one")
    axes.set_ylabel("pairs")
    axes.legend(loc="best")
    return Plot(
        svg=canvas.svg(),
        caption="Pairs to the left of 0 are wrong. If most wrong pairs are close to 0, the model "
        "errs where it is unsure. A tail far to the left has pairs in which the model is sure and "
        "wrong: look at these first, for errors of the labels too.",
    )


def _edges_with_zero(values: NDArray[np.float64]) -> list[float]:
    """Return edges of bins of equal width, one of them at 0, so that no bin has both colours."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    width = (high - low) / _NUM_BINS or 1.0
    below, above = int(np.ceil(-low / width)), int(np.ceil(high / width))
    return [width * number for number in range(-below, max(above, 1) + 1)]


@in_page_style
def tau_plot(rankings: Sequence[EvaluatedRanking]) -> Plot:
    """Return the histogram of Kendall's tau-b over rankings."""
    tau_R = values_of(kendall_tau, rankings)
    canvas = Canvas(
        "tau",
        "Kendall's tau-b by ranking",
        f"The mean is {tau_R.mean():.3f}; {np.mean(tau_R < 0):.1%} of the rankings are below 0.",
    )
    axes = canvas.axes()
    axes.hist(tau_R, bins=np.linspace(-1, 1, 22).tolist(), color=BLUE, linewidth=0.5)
    axes.axvline(tau_R.mean(), color=INK, linewidth=1, linestyle="--", label="mean")
    axes.set_xlim(-1.05, 1.05)
    axes.set_xlabel("Kendall's tau-b of rewards and labels")
    axes.set_ylabel("rankings")
    axes.legend(loc="upper left")
    return Plot(
        svg=canvas.svg(),
        caption="Each ranking has one value: 1 if the rewards order its responses as the labels "
        "do, 0 if the two orders are unrelated, −1 if they are opposite. A second hill on the "
        "left means that the model reverses the order for some kind of prompt. Rankings of two "
        "responses are at −1, 0 or 1.",
    )


@in_page_style
def length_plot(rankings: Sequence[EvaluatedRanking]) -> Plot:
    """Return the rewards by the length of the response, relative to the ranking's mean reward."""
    # An empty response has no place on a logarithmic axis, and is drawn as one character.
    length_N = np.concatenate([np.maximum(r.lengths, 1) for r in rankings]).astype(np.float64)
    reward_N = np.concatenate([np.asarray(r.rewards) - np.mean(r.rewards) for r in rankings])
    canvas = Canvas(
        "length",
        "Rewards by length",
        "Medians and quartiles of the reward for ten groups of responses by length.",
    )
    axes = canvas.axes()
    shown = len(length_N) <= _MAX_POINTS
    if shown:
        axes.plot(length_N, reward_N, ".", color=MUTED, markersize=3, alpha=0.5, linestyle="none")
    middles, quartiles = _by_length(length_N, reward_N)
    axes.fill_between(middles, quartiles[:, 0], quartiles[:, 2], color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(
        middles,
        quartiles[:, 1],
        "o-",
        color=BLUE,
        markersize=4.5,
        markeredgecolor=PAPER,
        label="median of a tenth of the responses",
    )
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("characters of the response")
    axes.set_ylabel("reward minus the ranking's mean")
    axes.legend(loc="best")
    points = "The dots are the single responses. " if shown else ""
    return Plot(
        svg=canvas.svg(),
        caption="Rewards are taken relative to the mean of their ranking, because some prompts get "
        f"higher rewards than others. {points}Each point of the line is a tenth of the responses, "
        "from the shortest to the longest; the band has the middle half of them. A flat line means "
        "that length does not decide. If the line rises, compare the two correlations with length "
        "below: the labels may prefer long responses too.",
    )


def _by_length(
    length_N: NDArray[np.float64], reward_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the median length and the quartiles of the reward, for groups of equal size."""
    order = np.argsort(length_N, kind="stable")
    groups = [group for group in np.array_split(order, _NUM_LENGTH_BINS) if len(group)]
    middles = np.asarray([np.median(length_N[group]) for group in groups])
    quartiles = np.asarray([np.quantile(reward_N[group], [0.25, 0.5, 0.75]) for group in groups])
    return middles, quartiles
