"""One POST, and what its answer means; or only whether anyone would take it.

Python's own HTTP client connects to the configured address alone: it follows no redirection and asks no proxy.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import NamedTuple
from urllib.parse import urlsplit

from worker.alerting.receivers import Request
from worker.errors import WorkerError
from worker.formats.printable import cut

_TIMEOUT_S = 10.0
_MOST_ANSWER_BYTES = 4_096
_MOST_VERDICTS_BYTES = 262_144  # of an answer that may hold some
_MOST_ANSWER = 300  # characters of it, in a line of the log
_LONGEST_WAIT_S = 3_600.0

# The same request may be taken later: time-outs, too early, too many, and every error of the server's own.
_FOR_NOW = frozenset({408, 425, 429})


class NotTaken(WorkerError):
    """The receiver did not take a request; it may take it later.

    Args:
        reason: why, without addresses.
        wait_s: how long the receiver asks to wait; None where it says nothing.
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Refused(WorkerError):
    """The receiver will never take this request."""


class Answer(NamedTuple):
    """What came back.

    Attributes:
        status, reason: of HTTP.
        text: the beginning of its body, for a log.
        body: all of it, where the request says that it may be verdicts.
    """

    status: int
    reason: str
    text: str
    body: bytes = b""

    def __str__(self) -> str:
        return f"{self.status} {self.reason}" + (f": {self.text}" if self.text else "")


def post(request: Request) -> Answer:
    """Send a request; returns the answer of a receiver that has taken it.

    Raises:
        NotTaken: it can be sent again later.
        Refused: that would come to the same.
    """
    parts, connection = urlsplit(request.url), _connection(request.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Content-Type": "application/json", "User-Agent": "logmamba", "Connection": "close", **request.headers}
    try:
        connection.request("POST", target, request.content(), headers)
        response = connection.getresponse()
        if request.answered and 200 <= response.status < 300:
            body = response.read(_MOST_VERDICTS_BYTES)
        else:
            body = response.read1(_MOST_ANSWER_BYTES)
    except (OSError, HTTPException) as error:
        raise NotTaken(_reason(error)) from error
    finally:
        connection.close()
    text = " ".join(request.hidden(body[:_MOST_ANSWER_BYTES].decode(errors="replace")).split())
    answer = Answer(response.status, response.reason, cut(text, _MOST_ANSWER), body if request.answered else b"")
    if 200 <= answer.status < 300:
        return answer
    if answer.status in _FOR_NOW or answer.status >= 500:
        raise NotTaken(str(answer), _wait_s(response.headers.get("Retry-After")))
    if 300 <= answer.status < 400:
        raise Refused(f"{answer} (a redirection, which is not followed)")
    raise Refused(str(answer))


def reach(url: str) -> None:
    """Connect to an address, TLS included, and send nothing.

    Raises:
        NotTaken: nothing listens there, or its certificate is not trusted.
    """
    connection = _connection(url)
    try:
        connection.connect()
    except OSError as error:
        raise NotTaken(_reason(error)) from error
    finally:
        connection.close()


def _connection(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None, "the settings have seen to that"
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return HTTPSConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S, context=context)
    return HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _wait_s(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header: a number of them or a date (RFC 9110, 10.2.3), an hour at most."""
    if retry_after is None:
        return None
    try:
        seconds = float(int(retry_after))
    except ValueError:
        try:
            moment = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_WAIT_S)
