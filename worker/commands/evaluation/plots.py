"""The plots of an evaluation, as SVG to stand in an HTML page: the same bytes for the same figures.

A page styles them: text and axes have its `currentColor`, series its variables `--normal`, `--anomalous`,
`--unlabelled`, `--warning` and `--critical`, so that they are readable on a light and on a dark ground.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from detector.quality.evaluation import Evaluation, Labelled
from detector.quality.operating_points import BEST

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Matplotlib wants colours of its own; these stand for what the page puts in their place.
_COLOURS = {
    "#000001": "currentColor",
    "#000002": "var(--normal)",
    "#000003": "var(--anomalous)",
    "#000004": "var(--unlabelled)",
    "#000005": "var(--warning)",
    "#000006": "var(--critical)",
}
_INK, _NORMAL, _ANOMALOUS, _UNLABELLED, _WARNING, _CRITICAL = _COLOURS
_KIND_COLOURS = {"normal": _NORMAL, "anomalous": _ANOMALOUS, "unlabelled": _UNLABELLED}
# Lines are told apart without colour too.
_KIND_STYLES = {"normal": "--", "anomalous": "-", "unlabelled": "-."}
_SEVERITY_COLOURS = {"warning": _WARNING, "critical": _CRITICAL}
_SEVERITY_STYLES = {"warning": "--", "critical": "-"}
_MARKS = {"warning": "o", "critical": "s", BEST: "x"}

_STYLE: dict[RcKeyType, Any] = {
    "svg.hashsalt": "logmamba",
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}
_SIZE_INCHES = (5.2, 3.3)
_LEAST_SHARE = 1e-6


def plots(evaluation: Evaluation, thresholds: Mapping[str, float]) -> dict[str, str]:
    """The plots that the evaluation has figures for, by name, each an ``<svg>`` element.

    Args:
        evaluation: its figures.
        thresholds: by severity.
    """
    drawn = {
        "histogram": _svg(lambda axes: _histogram(axes, evaluation, thresholds)),
        "at_or_above": _svg(lambda axes: _at_or_above(axes, evaluation, thresholds)),
    }
    labelled = evaluation.labelled
    if labelled is not None:
        drawn |= {
            "precision_recall": _svg(lambda axes: _precision_recall(axes, labelled)),
            "roc": _svg(lambda axes: _roc(axes, labelled)),
            "reliability": _svg(lambda axes: _reliability(axes, labelled)),
            "delay": _svg(lambda axes: _delay(axes, labelled)),
        }
    return drawn


def _svg(draw: Callable[[Axes], None]) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_INCHES)
        figure.subplots_adjust(left=0.13, right=0.96, bottom=0.15, top=0.91)
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Names of groups: nothing refers to them, and the plots of a page would share them.
    text = re.sub(r' id="[a-zA-Z.\d]+_\d+"', "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", text)
    return re.sub("|".join(_COLOURS), lambda match: _COLOURS[match[0]], text)


def _histogram(axes: Axes, evaluation: Evaluation, thresholds: Mapping[str, float]) -> None:
    histogram = evaluation.histogram
    for name, sessions in histogram.sessions.items():
        axes.stairs(
            sessions,
            histogram.edges,
            color=_KIND_COLOURS[name],
            linestyle=_KIND_STYLES[name],
            label=name,
            linewidth=1.6,
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    _mark_thresholds(axes, thresholds)
    axes.set(title="Sessions by score", xlabel="score", ylabel="sessions")
    axes.legend()


def _at_or_above(axes: Axes, evaluation: Evaluation, thresholds: Mapping[str, float]) -> None:
    found = evaluation.share_at_or_above
    for name, shares in found.shares.items():
        seen = np.array(shares)
        axes.plot(
            found.scores,
            np.where(seen > 0, seen, np.nan),
            color=_KIND_COLOURS[name],
            linestyle=_KIND_STYLES[name],
            label=name,
        )
    axes.set_xscale("logit")
    axes.set_yscale("log")
    bottom = axes.get_ylim()[0]  # not above 0 where no share is
    axes.set_ylim(bottom=min(0.5, bottom) if bottom > 0 else 0.5, top=1.5)
    axes.set_xlim(found.scores[0], found.scores[-1])
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = (1e-5, 1e-3, 0.5, 0.999, 0.99999)
    axes.set_xticks(ticks, [f"{tick:.5f}".rstrip("0") for tick in ticks])
    _mark_thresholds(axes, thresholds)
    axes.set(title="Share of sessions at or above a score", xlabel="score", ylabel="share of its kind")
    axes.legend(loc="lower left")


def _precision_recall(axes: Axes, labelled: Labelled) -> None:
    curves, quality = labelled.curves, labelled.by_session
    axes.step([0.0, *curves.recall], [curves.precision[0], *curves.precision], where="pre", color=_ANOMALOUS)
    for name, point in quality.operating.items():
        colour = _SEVERITY_COLOURS.get(name, _INK)
        axes.plot(
            point.recall.value,
            point.precision.value,
            _MARKS[name],
            color=colour,
            label=name,
            markersize=6,
            clip_on=False,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"Precision and recall (area {quality.auprc.value:.4f})")
    axes.legend(loc="lower left")


def _roc(axes: Axes, labelled: Labelled) -> None:
    curves, quality = labelled.curves, labelled.by_session
    rates = np.maximum([0.0, *curves.false_positive_rate], _LEAST_SHARE)
    axes.step(rates, [0.0, *curves.recall], where="post", color=_ANOMALOUS)
    axes.set_xscale("log")
    axes.set(xlim=(_LEAST_SHARE, 1), ylim=(0, 1.02))
    axes.set(xlabel="share of normal sessions that are alerts", ylabel="recall")
    axes.set_title(f"ROC (area {quality.auroc.value:.4f})")


def _reliability(axes: Axes, labelled: Labelled) -> None:
    bins = labelled.reliability
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, alpha=0.5)
    # Only a mark's place says something: a line between bins of two sessions would look like a finding.
    axes.plot(
        [each.mean_score for each in bins], [each.anomalous for each in bins], "o", color=_ANOMALOUS, clip_on=False
    )
    for each in bins:
        axes.annotate(
            f"{each.sessions:,}",
            (each.mean_score, each.anomalous),
            xytext=(0, 7 if each.anomalous < 0.5 else -14),
            textcoords="offset points",
            ha="left" if each.mean_score < 0.05 else "right" if each.mean_score > 0.95 else "center",
            fontsize=8,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), title="Calibration", xlabel="mean score", ylabel="share anomalous")


def _delay(axes: Axes, labelled: Labelled) -> None:
    for severity, delay in labelled.delay.items():
        share = np.linspace(0, 1, len(delay.flagged_by))
        axes.plot(
            share,
            delay.flagged_by,
            color=_SEVERITY_COLOURS[severity],
            linestyle=_SEVERITY_STYLES[severity],
            label=severity,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title="Anomalous sessions flagged while they go on")
    axes.set(xlabel="share of the session's events seen", ylabel="share flagged")
    axes.legend(loc="lower right")


def _mark_thresholds(axes: Axes, thresholds: Mapping[str, float]) -> None:
    for severity, threshold in thresholds.items():
        axes.axvline(
            threshold,
            color=_SEVERITY_COLOURS[severity],
            linestyle=":",
            linewidth=1.2,
            label=f"{severity} ({threshold:g})",
        )
