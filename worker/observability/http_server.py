"""The HTTP endpoint of a worker: /metrics /healthz /readyz /status, and pages for people (`worker.pages`).

It runs in daemon threads beside the loop and only reads.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

import orjson
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from worker.errors import RunError
from worker.observability.metrics import Observed
from worker.observability.status import WorkerStatus

_REQUEST_TIMEOUT_S = 10

_log = structlog.get_logger(__name__)


class Request(NamedTuple):
    """What is asked for.

    Attributes:
        query: by name.
        from_here: whether it comes from this very host, and by a name that is always this host's: a page of another
            site in a browser here would have its own name, whatever address that has.
    """

    query: Mapping[str, str]
    from_here: bool


class Response(NamedTuple):
    """An answer."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    security_policy: str = "default-src 'none'"


Page = Callable[[Request], Response]

# Past max.poll.interval.ms the group has given the worker's partitions to others: by then it is certainly hung.
DEFAULT_HEARTBEAT_LIMIT_S = 300.0


@contextmanager
def serve(
    address: str,
    port: int | None,
    metrics: Observed,
    status: Callable[[], WorkerStatus],
    heartbeat_limit_s: float = DEFAULT_HEARTBEAT_LIMIT_S,
    pages: Mapping[str, Page] = MappingProxyType({}),
) -> Iterator[HttpServer | None]:
    """Serve a worker's endpoint within a `with` block; None where the port is null.

    Args:
        address: where to listen.
        port: likewise; 0 is any free one, None serves nothing.
        metrics: what /metrics shows, and the heartbeat that /healthz judges.
        status: the worker's state; called in other threads than the loop's.
        heartbeat_limit_s: a loop that has not come round for so long counts as hung.
        pages: others that are served, by path.

    Raises:
        RunError: the address or the port cannot be used.
    """
    if port is None:
        yield None
        return
    server = HttpServer(
        address,
        port,
        registry=metrics.registry,
        status=status,
        heartbeat_age_s=metrics.heartbeat_age_s,
        heartbeat_limit_s=heartbeat_limit_s,
        pages=pages,
    )
    _log.info("http_endpoint", url=server.url)
    with server:
        yield server


class HttpServer:
    """Serves from the moment it is made until `close`; also a context manager.

    Args:
        address, port: where to listen; port 0 is any free one, `port` tells which.
        registry: the metrics.
        status: the worker's state; called in other threads than the loop's.
        heartbeat_age_s: seconds since the loop last came round.
        heartbeat_limit_s: older than this, the worker counts as hung.
        pages: others that are served, by path; each request calls them in a thread of its own.

    Raises:
        RunError: the address or the port cannot be used.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        registry: CollectorRegistry,
        status: Callable[[], WorkerStatus],
        heartbeat_age_s: Callable[[], float],
        heartbeat_limit_s: float,
        pages: Mapping[str, Page] = MappingProxyType({}),
    ) -> None:
        def metrics(_: Request) -> Response:
            return Response(generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4)

        def health(_: Request) -> Response:
            age = heartbeat_age_s()
            if age < heartbeat_limit_s:
                return Response(b"ok\n")
            text = f"the loop has not come round for {age:.0f} s\n"
            return Response(text.encode(), status=HTTPStatus.SERVICE_UNAVAILABLE)

        def readiness(_: Request) -> Response:
            now = status()
            if now.ready:
                return Response(b"ok\n")
            replaying = sum(each.state == "replaying" for each in now.partitions)
            text = f"{replaying} partitions are being restored\n" if now.joined else "joining the group\n"
            if now.missing_topics:
                text += f"no such input topic: {', '.join(now.missing_topics)}\n"
            for each in now.processes:
                if each.state != "running":
                    text += f"process {each.name} is {each.state.replace('_', ' ')}\n"
            if now.broker_away:
                text = "no broker answers\n"
            return Response(text.encode(), status=HTTPStatus.SERVICE_UNAVAILABLE)

        def as_json(_: Request) -> Response:
            body = orjson.dumps(status(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            return Response(body, "application/json")

        routes: dict[str, Page] = {
            **pages,
            "/metrics": metrics,
            "/healthz": health,
            "/readyz": readiness,
            "/status": as_json,
        }
        self._server = _listen(address, port, routes)
        self.address = address
        self.port: int = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, name="logmamba-http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the status page is."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}/"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _listen(address: str, port: int, routes: dict[str, Page]) -> ThreadingHTTPServer:
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        handler = type("Handler", (_Handler,), {"routes": routes})
        server_class = type("Server", (_Server,), {"address_family": family})
        server: ThreadingHTTPServer = server_class((address, port), handler)
    except OSError as error:
        raise RunError(
            f"observability: cannot listen on {address} port {port}: {error.strerror}; "
            "choose another observability.port, 0 for any free one, null for none"
        ) from error
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client that holds its connection open must not delay the worker's end


class _Handler(BaseHTTPRequestHandler):
    routes: dict[str, Page]
    timeout = _REQUEST_TIMEOUT_S
    server_version = "logmamba"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        asked = urlsplit(self.path)
        route = self.routes.get(asked.path)
        if route is None:
            known = f"there are {' '.join(sorted(self.routes))}\n"
            response = Response(known.encode(), status=HTTPStatus.NOT_FOUND)
        else:
            try:
                response = route(Request(dict(parse_qsl(asked.query)), self._from_here()))
            except Exception:
                # The endpoint must answer something, and what failed here must not reach the loop.
                _log.exception("http_request_failed", path=self.path)
                response = Response(b"see the worker's log\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", response.security_policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(response.body)

    def _from_here(self) -> bool:
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        return _is_loopback(self.client_address[0]) and (host == "localhost" or _is_loopback(host))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        _log.debug("http_request", client=self.client_address[0], request=format % args)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
