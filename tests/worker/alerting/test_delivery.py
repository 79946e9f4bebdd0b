"""One POST on a real socket, and what is made of its answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.worker.alerting.receiving import ReceiverServer, Reply
from worker.alerting.delivery import NotTaken, Refused, post
from worker.alerting.receivers import Request

SECRET = "hunter2-hunter2"


@pytest.fixture
def server() -> Iterator[ReceiverServer]:
    with ReceiverServer() as server:
        yield server


def request(url: str, **headers: str) -> Request:
    return Request(url, headers, {"text": "ä", "routing_key": SECRET})


def test_the_body_goes_to_the_very_address_as_json(server: ReceiverServer) -> None:
    assert post(request(f"{server.url}/a/b?c=d", Authorization="Bearer x")).status == 200
    [received] = server.requests
    assert (received.path, received.body["text"]) == ("/a/b?c=d", "ä")
    assert received.headers["Content-Type"] == "application/json"
    assert received.headers["Authorization"] == "Bearer x"


def test_neither_a_proxy_nor_a_redirection_is_followed(server: ReceiverServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with ReceiverServer() as other:
        monkeypatch.setenv("http_proxy", other.url)
        monkeypatch.setenv("HTTP_PROXY", other.url)
        server.replies = [Reply(), Reply(307, {"Location": other.url})]
        post(request(server.url))
        with pytest.raises(Refused, match=r"^307 .*redirection"):
            post(request(server.url))
        assert (len(server.requests), len(other.requests)) == (2, 0)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_some_answers_are_for_now(server: ReceiverServer, status: int) -> None:
    server.always = Reply(status)
    with pytest.raises(NotTaken, match=f"^{status} ") as caught:
        post(request(server.url))
    assert caught.value.wait_s is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 422])
def test_others_are_for_good(server: ReceiverServer, status: int) -> None:
    server.always = Reply(status, text="no_service")
    with pytest.raises(Refused, match=rf"^{status} .*no_service$"):
        post(request(server.url))


def in_seconds(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("30", 30, 30),
        (1000, 900, 1000),
        (-1000, 0, 0),
        ("-5", 0, 0),
        ("999999999", 3600, 3600),
    ],
    ids=["seconds", "date", "past", "negative", "long"],
)
def test_retry_after_is_read_as_seconds_or_a_date(
    server: ReceiverServer, retry_after: str | int, least: float, most: float
) -> None:
    written = retry_after if isinstance(retry_after, str) else in_seconds(retry_after)
    server.always = Reply(429, {"Retry-After": written})
    with pytest.raises(NotTaken) as caught:
        post(request(server.url))
    assert caught.value.wait_s is not None
    assert least <= caught.value.wait_s <= most


def test_a_retry_after_that_is_neither_is_ignored(server: ReceiverServer) -> None:
    server.always = Reply(503, {"Retry-After": "soon"})
    with pytest.raises(NotTaken) as caught:
        post(request(server.url))
    assert caught.value.wait_s is None


def test_a_receiver_that_is_not_there_may_come_back() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening
        with pytest.raises(NotTaken, match="ConnectionRefusedError"):
            post(request(f"http://127.0.0.1:{nobody.getsockname()[1]}/{SECRET}"))


def test_a_receiver_without_the_tls_that_was_asked_for_is_not_talked_to(server: ReceiverServer) -> None:
    with pytest.raises(NotTaken, match="SSL"):
        post(request(f"https://127.0.0.1:{server.port}/"))
    assert server.requests == []


def test_an_answer_that_repeats_a_secret_is_told_without_it(server: ReceiverServer) -> None:
    server.always = Reply(403, text=f"key {SECRET}, path /services/{SECRET[::-1]}, Bearer {SECRET}x\nis wrong")
    with pytest.raises(Refused) as caught:
        post(request(f"{server.url}/services/{SECRET[::-1]}", Authorization=f"Bearer {SECRET}x"))
    assert str(caught.value) == "403 Forbidden: key ********, path ********, ******** is wrong"
