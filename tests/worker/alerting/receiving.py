"""A receiver on a real socket, and score records for it."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

import orjson

from tests.worker.listening import Listening
from worker.processing.score_records import Kind, Severity


class Received(NamedTuple):
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: Any


class Reply(NamedTuple):
    """What the receiver answers."""

    status: int = 200
    headers: Mapping[str, str] = {}
    text: str = "ok"


class ReceiverServer(Listening):
    """A receiver until the `with` block ends.

    Attributes:
        replies: to the next requests, in order; 200 to all others.
        always: the reply to the others.
    """

    def __init__(self, port: int = 0) -> None:
        self.replies: list[Reply] = []
        self.always = Reply()
        self._received: list[tuple[Received, Reply]] = []
        self._changed = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = server._take(Received(self.path, dict(self.headers), body))
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.text)))
                self.end_headers()
                self.wfile.write(reply.text.encode())

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Handler, port)

    def _take(self, request: Received) -> Reply:
        with self._changed:
            reply = self.replies.pop(0) if self.replies else self.always
            self._received.append((request, reply))
            self._changed.notify_all()
        return reply

    @property
    def requests(self) -> list[Received]:
        """Everything that came."""
        with self._changed:
            return [request for request, _ in self._received]

    @property
    def taken(self) -> list[Any]:
        """The bodies that were answered with 2xx."""
        with self._changed:
            return [request.body for request, reply in self._received if 200 <= reply.status < 300]

    def wait_for_requests(self, count: int, timeout_s: float = 60.0) -> None:
        """Until so many have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._received) >= count, timeout_s), self._received


def score_record(
    session: str, severity: Severity = "critical", kind: Kind = "final", first_offset: int | None = None, **other: Any
) -> bytes:
    """A whole score record; sessions of different names begin at different places."""
    record = {
        "schema": "logmamba.score/1",
        "id": sha256(f"{session} {kind} {severity}".encode()).hexdigest()[:32],
        "session": session,
        "kind": kind,
        "score": {"normal": 0.1, "warning": 0.8, "critical": 0.9987}[severity],
        "severity": severity,
        "thresholds": {"warning": 0.7, "critical": 0.95},
        "surprise": 4.21,
        "events": 19,
        "unknown_events": 0,
        "first_event_time": "2008-11-09T20:36:15.000Z",
        "last_event_time": "2008-11-09T20:36:42.000Z",
        "closed_by": "gap" if kind == "final" else None,
        "top_events": [{"offset": 120, "template": "Receiving block <*>", "surprise": 9.3}],
        "lines": None,
        "source": {
            "topic": "raw-logs",
            "partition": 3,
            "first_offset": zlib.crc32(session.encode()) if first_offset is None else first_offset,
            "last_offset": 10**9,
            "cause_offset": 10**9,
        },
        "model": {"checkpoint": f"sha256:{'0' * 64}", "vocabulary": f"sha256:{'1' * 64}"},
    }
    return orjson.dumps(record | other)
