"""HTML documents that stand alone: style and script in them, nothing from elsewhere, everything from logs escaped."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from worker.formats.printable import cut, printable
from worker.observability.http_server import Response
from worker.pages.wording import compact, duration, number, share

_HERE = "worker.pages"
_LEADING_VALUES = re.compile(r"^(?:<[^<> ]+> )+")  # of a template: a line's date, or a process
# Of a text from logs; a line may have megabytes.
_MOST_CHARACTERS = 1_000


def text_of(name: str, package: str = _HERE) -> str:
    """A file that lies beside the code."""
    return files(package).joinpath(name).read_text("utf-8")


STYLE: Final = text_of("style.css")
SCRIPT: Final = text_of("renew.js")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


SECURITY_POLICY: Final = f"default-src 'none'; connect-src 'self'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}"
"""Content-Security-Policy under which the pages of a worker work: their own style and script and nothing else."""


def response(page: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """A page as an answer."""
    return Response(page.encode(), "text/html; charset=utf-8", status, SECURITY_POLICY)


def environment(load: Callable[[str], str] = text_of) -> Environment:
    """What renders templates: `base.html` and those that `load` finds by their names."""

    def found(name: str) -> str:
        return text_of(name) if name == "base.html" else load(name)

    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(found)
    )
    made.globals |= {"style": Markup(STYLE), "script": Markup(SCRIPT)}  # noqa: S704  both are ours
    made.filters |= {
        "visible": lambda text: printable(cut(text, _MOST_CHARACTERS)),
        "from_first_word": lambda template: _LEADING_VALUES.sub("", template),
        "number": number,
        "share": share,
        "compact": compact,
        "duration": duration,
        "ago": lambda seconds: f"{duration(seconds)} ago",
    }
    return made
