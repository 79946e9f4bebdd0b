"""What a person on call sees of a worker in a browser."""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from html.parser import HTMLParser
from threading import Event, Thread
from typing import Any, Literal, NamedTuple

import pytest

from tests.worker.alerting.receiving import score_record
from tests.worker.statuses import STATUS
from worker.errors import RunError
from worker.observability.http_server import serve
from worker.observability.metrics import Metrics
from worker.observability.recent_alerts import RecentAlerts
from worker.observability.slow_look import SlowLook
from worker.observability.status import DriftStatus, GroupMember, MovedPause, MovedTemplate, ProcessStatus, ReloadStatus
from worker.pages.explanations import Explanation, Explanations
from worker.pages.worker_pages import worker_pages
from worker.processing.score_records import Severity

EVIL = "<script>alert(1)</script>"


class Told(NamedTuple):
    """A record that alerts or takes an alert back."""

    session: Hashable
    record: bytes


class Out(NamedTuple):
    """A record that a worker writes."""

    alert: Told | None


def scored(session: str, severity: Severity, *, offset: int = 1, **fields: Any) -> Out:
    told: dict[str, Any] = {
        "score": {"normal": 0.1, "warning": 0.8, "critical": 0.99}[severity],
        "events": 2,
        "id": f"id-{offset}",
        "top_events": [{"offset": offset, "template": "disk <*> failed", "surprise": 9.3}],
        "source": {
            "topic": "raw",
            "partition": 3,
            "first_offset": offset,
            "last_offset": offset + 1,
            "cause_offset": 9,
        },
    }
    return Out(Told((session, offset), score_record(session, severity, **told | fields)))


def explanation(text: str) -> Explanation:
    event = {"offset": 1, "time": "2024-03-01T12:00:00.000Z", "text": text, "template": "disk <*> failed", "score": 0.5}
    rest = {"unknown": False, "surprise": 9.3, "expected": [{"template": "<eos>", "probability": 0.75}]}
    end = {"surprise": 0.1, "score": 0.99, "expected": []}
    counts = [{"template": "disk <*> failed", "count": 2, "nats": 3.0}]
    return Explanation({"events": [event | rest], "end": end, "unusual_counts": counts, "adaptive": False}, [])


class Page(HTMLParser):
    """What a page would load, and the text that it shows."""

    def __init__(self, code: int, html: str) -> None:
        super().__init__()
        self.code, self.html, self.loaded = code, html, list[str]()
        self._texts, self._within = list[str](), ""
        self.feed(html)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        if tag in {"script", "img", "link", "iframe"}:
            self.loaded += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        if self._within not in {"script", "style"}:
            self._texts.append(data)


class Site:
    """The pages of a worker whose state a test can change, and a browser."""

    def __init__(self, show_lines: Literal["local", "always", "never"] = "local") -> None:
        self.status = STATUS
        self.age_s = 0.0
        self.metrics = Metrics(clock=lambda: self.age_s)
        self.alerts = RecentAlerts()
        self.explained = explanation("disk sda failed")
        self.members: Sequence[GroupMember] = [GroupMember("logmamba-red", "red", "10.0.0.7", 4)]
        self.ask: Callable[[], Sequence[GroupMember]] = lambda: self.members
        self.free = Event()
        self.free.set()
        self.closing = ExitStack()
        pages = worker_pages(
            metrics=self.metrics,
            status=lambda: self.status,
            alerts=self.alerts,
            members=lambda: self.ask(),
            explain=self.explain,
            show_lines=show_lines,
        )
        paths = self.closing.enter_context(pages)
        server = self.closing.enter_context(serve("127.0.0.1", 0, self.metrics, lambda: self.status, pages=paths))
        assert server is not None
        self.url = server.url

    def explain(self, _record: bytes, _limit_s: float) -> Explanation:
        self.free.wait(60)
        if not self.explained.session:
            raise RunError("no Kafka broker has answered")
        return self.explained

    def publish(self, *outputs: Out) -> None:
        self.alerts.sent(outputs)
        self.alerts.committed()

    def get(self, path: str = "/", host: str = "localhost") -> Page:
        request = urllib.request.Request(self.url.rstrip("/") + path, headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return Page(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Page(error.code, error.read().decode())


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    with made.closing:
        yield made


def test_it_says_how_the_worker_is_and_loads_nothing_from_elsewhere(site: Site) -> None:
    page = site.get()
    assert (page.code, page.loaded) == (200, [])
    assert "://" not in page.html
    for shown in ("shop", "ready", "blue", "raw", "1,234,567", "42", "17", "sha256:c0", "score records", "99"):
        assert shown in page.text, shown
    assert "No warning and no critical session" in page.text


def test_alerts_stand_by_their_reason_with_what_was_surprising_and_a_link(site: Site) -> None:
    reason = {"text": "Reading twice: 1 time.", "family": "F2"}
    site.publish(
        scored("a", "warning", offset=1),
        scored("b", "critical", offset=5),
        scored("c", "warning", offset=9, reason=reason),
    )
    page = site.get()
    assert page.text.count("disk <*> failed") == 2
    assert re.search(r"critical 2 sessions highest score 0\.9900", page.text)
    assert "Reading twice: 1 time." in page.text
    assert page.text.index("disk <*> failed") < page.text.index("Reading twice")
    assert 'href="/session?record=id-5"' in page.html
    assert "<title>(3) shop" in page.html


def test_of_a_worker_of_several_processes_it_says_how_each_is_and_why_one_is_not(site: Site) -> None:
    gone = ProcessStatus("blue-1", None, "given_up", 4, "killed by SIGKILL")
    site.status = replace(STATUS, processes=(ProcessStatus("blue-0", 77, "running", partitions=3), gone))
    site.members = [GroupMember("logmamba-blue-0", "blue-0", "10.0.0.7", 3)]
    site.get()
    page = site.get()
    assert "restoring" in page.text
    assert "Process blue-1 ended: killed by SIGKILL. It is not started again." in page.text
    assert re.search(r"blue-0 77 running 3 0 blue-1 given up 0 4 killed by SIGKILL", page.text), page.text
    ready = site.get("/readyz")
    assert (ready.code, "process blue-1 is given up" in ready.text) == (503, True)


def test_an_alert_that_its_final_score_takes_back_counts_no_more(site: Site) -> None:
    site.publish(scored("a", "critical", kind="early", closed_by=None))
    assert "(1) shop" in site.get().html
    site.publish(scored("a", "normal"), Out(None))
    page = site.get()
    assert "taken back 1 session" in page.text
    assert "(1) shop" not in page.html
    assert "took the earlier alert (critical) back" in site.get("/session?record=id-1").text


def test_only_what_was_committed_is_an_alert_and_the_oldest_goes_first() -> None:
    alerts = RecentAlerts(most=2)
    alerts.sent([scored("a", "critical")])
    assert alerts.latest() == []
    alerts.aborted()
    alerts.committed()
    assert alerts.latest() == []
    for offset, session in enumerate("abc"):
        alerts.sent([Out(None), scored(session, "warning", offset=offset)])
        alerts.committed()
    assert [alert.record["session"] for alert in alerts.latest()] == ["c", "b"]
    alerts.sent([scored("c", "warning", offset=77)])  # another session of that key
    alerts.committed()
    assert [alert.ids for alert in alerts.latest()] == [("id-77",), ("id-2",)]


def test_nothing_that_comes_from_logs_or_names_can_break_out_of_a_page(site: Site) -> None:
    site.status = replace(STATUS, application_id=EVIL, partitions=(), totals={EVIL: 1}, missing_topics=(EVIL,))
    site.members = [GroupMember(EVIL, None, EVIL, 1)]
    top = [{"offset": 1, "template": EVIL, "surprise": 9.3}]
    told = {"text": EVIL, "family": "F1"}
    site.publish(
        scored(EVIL, "critical", top_events=top), scored(f"\x1b]{EVIL}\u202e", "warning", offset=2, reason=told)
    )
    site.explained = explanation(EVIL)
    site.get()
    for page in (site.get(), site.get("/session?record=id-1"), site.get(f"/session?record={urllib.parse.quote(EVIL)}")):
        assert EVIL not in page.html
        assert EVIL in page.text
        assert not re.search("[\x1b\u202e]", page.html)


def test_a_line_of_megabytes_makes_no_page_of_megabytes(site: Site) -> None:
    site.publish(scored("a", "critical", top_events=[{"offset": 1, "template": "x" * 10**6, "surprise": 9.3}]))
    site.explained = explanation("y" * 10**6)
    assert len(site.get().html) + len(site.get("/session?record=id-1").html) < 10**5


def test_scores_are_compared_with_the_trainings_where_the_checkpoint_has_them(site: Site) -> None:
    assert "the checkpoint does not say how its training" in site.get().text
    site.status = replace(STATUS, trained_score_shares=[0.97, *[0.0] * 13, 0.02, *[0.0] * 4, 0.01])
    assert "of those that the training was tested on 3 %" in site.get().text


def test_drift_is_told_topic_by_topic_and_that_a_checkpoint_cannot_tell(site: Site) -> None:
    assert "The checkpoint has no fingerprint: train again with this version" in site.get().text
    moved, slow = (MovedTemplate(f"disk {EVIL}", 1.0, 0.25),), (MovedPause(f"sync {EVIL}", 900, 1_800),)
    site.status = replace(
        STATUS,
        drift=(
            DriftStatus(
                "raw",
                "retrain",
                "2024-03-01T12:00:00.000Z",
                ("tokens", "unknown"),
                1_600,
                0.5,
                0.5,
                0.1,
                {},
                moved,
                slow,
            ),
            DriftStatus("shop", None),
        ),
    )
    page = site.get()
    for text in (
        "The sessions of raw are no longer like those of the training, and stay so: train again.",
        "retrain tokens, unknown, since 2024-03-01T12:00:00.000Z",
        "1,600",
        "100 % → 25 %",
        "before sync",
        "900 → 1,800 ms",
        EVIL,
        "too few sessions yet",
    ):
        assert text in page.text
    assert EVIL not in page.html
    assert "no fingerprint" not in page.text


def test_trouble_is_told_and_a_worker_that_hangs_is_grey(site: Site) -> None:
    before = site.get()
    assert 'class="stale"' not in before.html
    site.status = replace(STATUS, unknown_share=0.97, broker_away=True, missing_topics=("shop-raw",))
    site.age_s = 70.0
    page = site.get()
    for text in (
        "97% of the latest events are unknown to the checkpoint",
        "No broker answers",
        "topic: shop-raw",
        "hung",
    ):
        assert text not in before.text
        assert text in page.text
    assert "The loop has not come round for 70 s" in page.text
    assert 'class="stale"' in page.html


def test_what_came_of_a_reload_is_told(site: Site) -> None:
    assert "latest reload none since the start" in site.get().text
    site.status = replace(STATUS, reload=ReloadStatus("taken", "2024-03-01T12:05:00Z", "sha256:c0"))
    assert "latest reload taken 2024-03-01T12:05:00Z Renewed" in site.get().text
    site.status = replace(STATUS, reload=ReloadStatus("refused", "2024-03-01T12:06:00Z", "sha256:c1", f"it {EVIL}"))
    page = site.get()
    assert f"The reload of 2024-03-01T12:06:00Z was refused: it {EVIL}. The worker goes on" in page.text
    assert "latest reload refused 2024-03-01T12:06:00Z: sha256:c1" in page.text
    assert EVIL not in page.html
    site.status = replace(STATUS, reload=ReloadStatus("waiting", "2024-03-01T12:07:00Z", "sha256:c2"))
    page = site.get()
    assert "waits since 2024-03-01T12:07:00Z until every partition is live" in page.text
    assert "latest reload waiting 2024-03-01T12:07:00Z: sha256:c2" in page.text


def test_a_group_that_cannot_be_asked_is_told(site: Site) -> None:
    def fail() -> Sequence[GroupMember]:
        raise RunError("no answer within 5 s")

    site.ask = fail
    page = site.get()
    while "group" not in page.text:  # it is asked beside the page
        page = site.get()
    assert "Kafka does not say who is in the group: no answer within 5 s" in page.text
    assert "connection in doubt" in page.text


def test_a_session_is_shown_event_by_event_and_its_lines_only_on_the_host_itself(site: Site) -> None:
    site.publish(scored("a", "critical"))
    page = site.get("/session?record=id-1")
    for text in ("disk sda failed", "disk <*> failed", "9.30", "75 % end of session", "closed by gap", "2 times"):
        assert text in page.text, text
    page = site.get("/session?record=id-1", host="logs.example")
    assert "disk <*> failed" in page.text
    assert "sda" not in page.html
    assert "observability.show_lines" in page.text
    with (other := Site("always")).closing:
        other.publish(scored("a", "critical"))
        assert "disk sda failed" in other.get("/session?record=id-1", host="logs.example").text


def test_texts_of_lines_that_records_have_are_seen_by_those_who_see_lines(site: Site) -> None:
    top = [{"offset": 1, "template": "disk <*> failed", "surprise": 9.3, "text": f"disk sda {EVIL}"}]
    site.publish(scored("a", "critical", top_events=top))
    site.explained = Explanation({}, [])
    for path in ("/", "/session?record=id-1"):
        assert f"9.3 nats disk <*> failed disk sda {EVIL}" in site.get(path).text
        assert EVIL not in site.get(path).html
        page = site.get(path, host="logs.example")
        assert "disk <*> failed" in page.text
        assert "sda" not in page.html


def test_a_session_that_is_not_to_be_had_says_why(site: Site) -> None:
    page = site.get("/session?record=id-1")
    assert (page.code, "No longer here" in page.text) == (404, True)
    site.publish(scored("a", "critical"))
    site.explained = Explanation({}, [])
    page = site.get("/session?record=id-1")
    assert (page.code, "cannot be shown: no Kafka broker has answered" in page.text) == (503, True)
    assert "9.3 nats disk <*> failed" in page.text


def test_a_session_that_takes_long_holds_up_no_other_page(site: Site) -> None:
    site.publish(scored("a", "critical"))
    site.free.clear()
    slow = list[Page]()
    reader = Thread(target=lambda: slow.append(site.get("/session?record=id-1")))
    reader.start()
    assert "ready" in site.get().text
    assert slow == []
    site.free.set()
    reader.join(30)
    assert "disk sda failed" in slow[0].text


def test_an_explanation_has_a_time_limit_and_the_next_one_waits_its_turn() -> None:
    free = Event()

    def explain(record: bytes, _limit_s: float) -> Explanation:
        free.wait(60)
        return Explanation({"of": record}, [])

    explanations = Explanations(explain, limit_s=0.05)
    with pytest.raises(RunError, match=r"were not there within 0\.05 s"):
        explanations.of(b"one")
    with pytest.raises(RunError, match="another session is being read"):
        explanations.of(b"two")
    free.set()
    assert Explanations(explain).of(b"three").session == {"of": b"three"}


def test_other_workers_are_asked_for_beside_the_page_and_no_answer_is_told() -> None:
    answers: list[object] = ["two workers", RunError("not allowed")]
    now, asked = [0.0], Event()

    def get() -> object:
        asked.set()
        if isinstance(answer := answers.pop(0), RunError):
            raise answer
        return answer

    look = SlowLook(get, 10, lambda: now[0])

    def after_a_look() -> object:
        look.latest()
        assert asked.wait(30)
        asked.clear()
        assert look._thread is not None
        look._thread.join(30)
        return look.latest()

    assert after_a_look() == ("two workers", "")
    now[0] = 11.0
    assert after_a_look() == ("two workers", "not allowed")
    assert answers == []
