"""The page of an evaluation: one HTML document with its style and plots in it and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from worker.commands.terminal.text import printable


def render(document: Mapping[str, object], plots: Mapping[str, str], *, parsed: bool) -> str:
    """The page; equal arguments give the same bytes.

    Args:
        document: what `metrics.json` holds.
        plots: from `worker.commands.evaluation.plots.plots`.
        parsed: whether the sessions came from tables of parsed sessions, and so have rows and not lines.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["visible"] = printable
    template = environment.from_string(files("worker.commands.evaluation").joinpath("page.html").read_text("utf-8"))
    return template.render(document, plots=plots, place="row" if parsed else "line", first_place=0 if parsed else 1)
