"""A TCP proxy before a broker that can hold back what workers write, as a slow or blocked broker does."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Event, Thread

_PRODUCE = 0
_WORKER = b"logmamba-"  # how the client ids of workers begin


class Proxy:
    """Forwards to `target`, the port of a broker that advertises `port` as its own.

    Attributes:
        port: where clients connect.
    """

    def __init__(self) -> None:
        self.target = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open = Event()
        self._open.set()
        self._sockets: list[socket.socket] = [self._server]
        Thread(target=self._accept, daemon=True).start()

    def block(self) -> None:
        """From now on, forward no record of a worker, and nothing that follows one on its connection."""
        self._open.clear()

    def unblock(self) -> None:
        """Forward what was held back, too."""
        self._open.set()

    def close(self) -> None:
        self._open.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, broker]
                Thread(target=self._requests, args=(client, broker), daemon=True).start()
                Thread(target=self._answers, args=(broker, client), daemon=True).start()

    def _requests(self, client: socket.socket, broker: socket.socket) -> None:
        with suppress(OSError), client.makefile("rb") as stream:
            while len(size := stream.read(4)) == 4:
                request = stream.read(int.from_bytes(size))
                if _is_of_a_worker(request):
                    self._open.wait()
                broker.sendall(size + request)
        with suppress(OSError):
            broker.shutdown(socket.SHUT_WR)

    def _answers(self, broker: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while chunk := broker.recv(65_536):
                client.sendall(chunk)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def _is_of_a_worker(request: bytes) -> bool:
    """Whether it is a Produce request with a worker's client id: key, version, correlation id, client id."""
    return int.from_bytes(request[:2]) == _PRODUCE and request[10:].startswith(_WORKER)
