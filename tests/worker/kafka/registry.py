"""A schema registry that speaks the part of Confluent's HTTP that its client uses, on a real socket."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.worker.listening import Listening


class SchemaRegistry(Listening):
    """A registry until the `with` block ends.

    Attributes:
        authorization: what the header of that name must be; None: anything.
        compatible: whether it takes another schema for a subject.
        requests: method and path of each, in order.
    """

    def __init__(self) -> None:
        self.authorization: str | None = None
        self.compatible = True
        self.requests: list[str] = []
        self._schemas: list[tuple[str, str]] = []  # subject and schema; the id is the place, from 1
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(*registry._answer("GET", self.path, "", self.headers.get("Authorization")))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._answer(*registry._answer("POST", self.path, body, self.headers.get("Authorization")))

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Handler)

    def _answer(self, method: str, path: str, body: str, authorization: str | None) -> tuple[int, dict[str, Any]]:
        path = path.partition("?")[0]
        self.requests.append(f"{method} {path}")
        if self.authorization not in (None, authorization):
            return 401, {"error_code": 401, "message": "Unauthorized"}
        match method, path.strip("/").split("/"):
            case "GET", ["schemas", "ids", number] if 0 < int(number) <= len(self._schemas):
                return 200, {"schema": self._schemas[int(number) - 1][1]}
            case "POST", ["subjects", subject, *versions]:
                schema = json.loads(body)["schema"]
                known = (subject, schema) in self._schemas
                if not known and not versions:
                    return 404, {"error_code": 40403, "message": "Schema not found"}
                if not known and not self.compatible:
                    return 409, {"error_code": 409, "message": "Schema being registered is incompatible"}
                if not known:
                    self._schemas.append((subject, schema))
                number = self._schemas.index((subject, schema)) + 1
                return 200, {"id": number, "subject": subject, "version": 1, "schema": schema}
        return 404, {"error_code": 40403, "message": "Schema not found"}
