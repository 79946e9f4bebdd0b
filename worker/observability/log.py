"""The log of the process: one event a line, for people or for machines."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import orjson
import structlog
from structlog.typing import EventDict, Processor

Level = Literal["debug", "info", "warning", "error"]


def set_log_level(level: Level) -> None:
    """The least severe level that is written from now on."""
    logging.getLogger().setLevel(level.upper())


def configure_logging(level: Level, log_format: Literal["auto", "console", "json"], **of_all: str) -> None:
    """Send the process's log, the libraries' included, to stderr: one event a line, times in UTC.

    Args:
        level: the least severe level that is written.
        log_format: `console` is for people, `json` for machines, `auto` the first on a terminal.
        of_all: what every line says.
    """

    def say(_logger: object, _method: str, event: EventDict) -> EventDict:
        event.update(of_all)
        return event

    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        say,
    ]
    render: list[Processor] = (
        # Its own way of showing an exception shows what local variables hold: raw lines, or a password.
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if for_people
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_log_level(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _json(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str).decode()
