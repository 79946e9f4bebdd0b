"""The page of an evaluation: one HTML document with its style and plots in it and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from importlib.metadata import version

from worker.pages.charts import surprise_bar
from worker.pages.html import environment, text_of


def render(
    document: Mapping[str, object],
    plots: Mapping[str, str],
    *,
    parsed: bool,
    labels: str | None,
    settings: Mapping[str, object],
    at: datetime,
) -> str:
    """The page; equal arguments give the same bytes.

    Args:
        document: what `metrics.json` holds.
        plots: from `worker.commands.evaluation.plots.plots`.
        parsed: whether the sessions came from tables of parsed sessions, and so have rows and not lines.
        labels: name of the file of labels; None where the sessions have their own, or none.
        settings: by path, those that formed the sessions.
        at: when it is made.
    """
    template = environment(partial(text_of, package="worker.commands.evaluation")).get_template("page.html")
    return template.render(
        document,
        plots=plots,
        place="row" if parsed else "line",
        first_place=0 if parsed else 1,
        labels=labels,
        settings=settings,
        at=at.strftime("%Y-%m-%d %H:%M UTC"),
        version=version("logmamba"),
        bar=surprise_bar,
    )
