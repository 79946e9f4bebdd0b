"""TLS and SASL on a real broker: a worker with the right credentials works, and no secret shows anywhere."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka.admin import AclBinding, AclBindingFilter, AdminClient, ResourcePatternType

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import Application, Record, WorkerProcess, create_topic, wait_until
from tests.broker.kafka import KafkaBroker, Secured, require_kafka
from tests.faults.report import FaultReport
from tests.faults.stream import Stream
from tests.worker.command_line import logmamba as in_this_process

LIMITED = "bob"
USERNAME, PASSWORD = "alice", "correct-horse-battery"  # two words, neither of which a log would say by chance
LINES = 5_000


class Certificate:
    """A certificate of 127.0.0.1 that vouches for itself.

    Attributes:
        public: PEM file of the certificate.
        keystore: PEM file of its private key and the certificate.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.public, key = folder / f"{name}.crt", folder / f"{name}.key"
        elliptic = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
        names = ["-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"]
        command = ["openssl", "req", "-x509", "-days", "2", *elliptic, *names, "-out", str(self.public)]
        subprocess.run(command, check=True, capture_output=True)
        self.keystore = folder / f"{name}.pem"
        self.keystore.write_text(key.read_text() + self.public.read_text())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificates"), "broker")


@pytest.fixture(scope="module")
def secured(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A broker whose secured listener knows one user."""
    require_kafka()
    folder = tmp_path_factory.mktemp("secured")
    broker = KafkaBroker(folder, secured=Secured(certificate.keystore, USERNAME, PASSWORD, LIMITED)).start()
    yield broker
    broker.kill()  # nothing of it is looked at any more, and a clean stop may take a minute


@pytest.fixture
def kafka(
    secured: KafkaBroker, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The section `kafka` as an operator writes it: the name from the environment, the password from a file."""
    monkeypatch.setenv("KAFKA_USERNAME", USERNAME)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return {
        "bootstrap.servers": secured.secured_bootstrap,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "${KAFKA_USERNAME}",
        "sasl.password_file": str(tmp_path / "password"),
        "ssl.ca.location": str(certificate.public),
        "debug": "security,conf",  # what the client library logs of its own properties and of the handshake
    }


@pytest.fixture
def config(secured: KafkaBroker, kafka: dict[str, str], tmp_path: Path) -> Path:
    """Settings that are right."""
    return Application(secured.bootstrap, tmp_path, demo_checkpoint(), kafka=kafka).config


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    shown: str  # on standard output and standard error


def check_and_run(config: Path, capfd: pytest.CaptureFixture[str], *overrides: str) -> list[Done]:
    """Both commands; the client library writes to the standard error of its process."""
    sets = [each for override in overrides for each in ("--set", override)]
    capfd.readouterr()
    checked = in_this_process("check", "--config", config, *sets, columns=1_000)
    shown = "".join((checked.stdout, checked.stderr, *capfd.readouterr()))
    with WorkerProcess(config, config.with_suffix(".log"), overrides) as worker:
        code = worker.ended()
    return [Done(checked.returncode, shown), Done(code, worker.log.read_text())]


def test_a_worker_scores_exactly_over_tls_and_scram_and_shows_its_password_nowhere(
    secured: KafkaBroker, kafka: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = Stream.make(LINES, tmp_path, demo_checkpoint(), secured.bootstrap)
    with stream.sent(tmp_path, kafka=kafka, observability={"port": 0, "log_level": "debug"}) as run:
        checked = in_this_process("check", "--config", run.application.config, columns=1_000)
        assert checked.returncode == 0, checked
        with run.application.start("sessions.idle_flush=1s") as worker:
            worker.wait_until(lambda: run.share() >= 1)
            paths = ("/", "/status", "/metrics", "/healthz", "/readyz")
            pages = [worker.get(path)[1] for path in paths]
            assert worker.stop() == 0, worker.tail()
        run.assert_exact(FaultReport(lambda _: None), "none")

    log = worker.log.read_text()
    assert "sasl.password" in log, "the log does not name the setting, so it cannot show that it hides it"
    for shown in (checked.stdout, checked.stderr, log, *capfd.readouterr(), *pages):
        assert PASSWORD not in shown


MISTAKES = {
    "no such file of authorities": (
        "ssl.ca.location=/nowhere.pem",
        "kafka.ssl.ca.location: '/nowhere.pem' cannot be read",
    ),
    "file that holds none": (
        "ssl.ca.location={junk}",
        "kafka.ssl.ca.location: '{junk}' cannot be used: no certificate",
    ),
    "no such key": ("ssl.key.location=/nowhere.key", "kafka.ssl.key.location: '/nowhere.key' cannot be read: No such"),
    "mechanism of other brokers": ("sasl.mechanism=PLAIN", "(kafka.sasl.mechanism): "),
    "mechanism of nobody": ("sasl.mechanism=PLANE", "kafka.sasl.mechanism: PLANE is not in this build of the client"),
    "user whom nobody knows": ("sasl.username=eve", "(kafka.sasl.username, kafka.sasl.password): "),
    "no TLS": ("security.protocol=PLAINTEXT", "(kafka.security.protocol): is PLAINTEXT, but {secured} speaks TLS"),
    "TLS without SASL": (
        "security.protocol=SSL",
        "(kafka.security.protocol): is SSL, and {secured} ends the connection",
    ),
    "TLS where there is none": (
        "bootstrap.servers={plain}",
        "(kafka.security.protocol): is SASL_SSL, but {plain} speaks no",
    ),
    "another name": (
        "bootstrap.servers={named}",
        "certificate verify failed: Hostname mismatch, certificate is not valid",
    ),
}


@pytest.mark.parametrize(("override", "reason"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_tls_or_sasl_is_one_line_with_the_setting_at_fault(
    secured: KafkaBroker, config: Path, tmp_path: Path, override: str, reason: str
) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    named = secured.secured_bootstrap.replace("127.0.0.1", "localhost")
    names = {"junk": junk, "plain": secured.bootstrap, "secured": secured.secured_bootstrap, "named": named}
    done = in_this_process("tail", "--config", config, "--set", f"kafka.{override.format(**names)}")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert reason.format(**names) in line
    assert PASSWORD not in line


def acls_of_the_manual(application: Application, naming: str) -> list[AclBinding]:
    """What the manual's commands allow that stand together with one that has this name, with the names of this test."""
    names = {"User:logmamba": f"User:{LIMITED}", "raw-logs": application.input_topic}
    names |= {"log-anomaly-scores": application.score_topic, "log-anomaly-dead-letters": application.dead_topic}
    names |= {f"logmamba{end}": f"{application.config.stem}{end}" for end in ("", "-", "-state", "-replay")}
    commands = argparse.ArgumentParser()
    for option in ("operation", "topic", "group", "transactional-id"):
        commands.add_argument(f"--{option}", action="append", default=[])
    for option in ("bootstrap-server", "allow-principal", "resource-pattern-type"):
        commands.add_argument(f"--{option}", default="literal")
    commands.add_argument("--add", action="store_true", required=True)
    found = []
    blocks = (Path(__file__).parents[2] / "docs" / "operations.md").read_text().split("```")
    [block] = [each for each in blocks if f" {naming}\n" in each]
    for line in block.splitlines():
        if line.startswith("kafka-acls.sh "):
            said = commands.parse_args(shlex.split(line)[1:])
            pattern = ResourcePatternType[said.resource_pattern_type.upper()].name
            kinds = {"TOPIC": said.topic, "GROUP": said.group, "TRANSACTIONAL_ID": said.transactional_id}
            found += [
                AclBinding(kind, names[name], pattern, names[said.allow_principal], "*", operation.upper(), "ALLOW")
                for kind, given in kinds.items()
                for name in given
                for operation in said.operation
            ]
    return found


def test_the_acls_of_the_manual_are_all_that_a_worker_needs_and_check_misses_each_of_them(
    secured: KafkaBroker, kafka: dict[str, str], tmp_path: Path
) -> None:
    as_limited = kafka | {"sasl.username": LIMITED}
    application = Application(
        secured.bootstrap, tmp_path, demo_checkpoint(), kafka=as_limited | {"session.timeout.ms": 3000}
    )
    admin = AdminClient({"bootstrap.servers": secured.bootstrap})
    for topic in (application.score_topic, application.dead_topic, f"{application.config.stem}-state"):
        create_topic(secured.bootstrap, topic, 1)
    acls = acls_of_the_manual(application, "--topic logmamba-state")
    assert len(acls) == 7
    allow(admin, acls)
    assert not failures(application), in_this_process("check", "--config", application.config)
    expected = {
        ("TOPIC", application.input_topic, "READ"): f"may read {application.input_topic}",
        ("TOPIC", f"{application.config.stem}-state", "READ"): f"may read {application.config.stem}-state",
        ("TOPIC", f"{application.config.stem}-state", "WRITE"): f"may write {application.config.stem}-state",
        ("TOPIC", application.score_topic, "WRITE"): f"may write {application.score_topic}",
        ("TOPIC", application.dead_topic, "WRITE"): f"may write {application.dead_topic}",
        ("GROUP", application.config.stem, "READ"): f"may join group {application.config.stem}",
        (
            "TRANSACTIONAL_ID",
            f"{application.config.stem}-",
            "WRITE",
        ): "may write with transactional ids that begin with",
    }
    for acl in acls:
        missed = expected.pop((acl.restype.name, acl.name, acl.operation.name))
        forbid(admin, acl)
        assert any(what.startswith(missed) for what in failures(application)), missed
        allow(admin, [acl])
    assert not expected

    send(application, range(20))
    with application.start("sessions.idle_flush=null") as first:
        first.wait_until(lambda: application.committed()[0].offset == 20)
        first.kill()
    send(application, range(20, 30))
    application.produce([Record(b"a line of no block")])
    with application.start("worker.instance=w1") as heir:  # reads the state topic, ends what the first one left open
        heir.wait_until(lambda: len(application.scores()) == 30)
        assert heir.logged("partition_restored")
        assert not heir.logged("dead_worker_not_fenced", "dead_workers_unknown")
        assert heir.logged("dead_worker_fenced")
        assert heir.stop() == 0, heir.tail()

    replay = "replay-dead-letters", "--config", application.config
    for acl in acls_of_the_manual(application, "--group logmamba-replay"):
        refused = in_this_process(*replay)
        assert refused.returncode == 1
        [line] = refused.stderr.splitlines()
        assert "authorization failed" in line, line
        allow(admin, [acl])
    assert in_this_process(*replay).stdout.startswith("1 dead letter sent back\n")


def allow(admin: AdminClient, acls: Sequence[AclBinding]) -> None:
    """They hold when this returns."""
    for future in admin.create_acls(acls).values():
        future.result(30)
    wait_until(lambda: all(holds(admin, each) for each in acls))


def forbid(admin: AdminClient, acl: AclBinding) -> None:
    """Take back what was allowed; it no longer holds when this returns."""
    [deleted] = admin.delete_acls([AclBindingFilter(*astuple_of(acl))]).values()
    assert len(deleted.result(30)) == 1
    wait_until(lambda: not holds(admin, acl))


def holds(admin: AdminClient, acl: AclBinding) -> bool:
    """Whether the broker itself has heard of it from its controller, which takes a moment."""
    return bool(admin.describe_acls(AclBindingFilter(*astuple_of(acl))).result(30))


def failures(application: Application) -> list[str]:
    """What `check` says that does not work."""
    done = in_this_process("check", "--config", application.config, columns=1_000)
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in done.stdout.splitlines() if "│" in line]
    return [what for what, state in rows if state == "failed"]


def astuple_of(acl: AclBinding) -> tuple[object, ...]:
    pattern, allows = acl.resource_pattern_type, acl.permission_type
    return acl.restype, acl.name, pattern, acl.principal, acl.host, acl.operation, allows


def send(application: Application, blocks: range) -> None:
    line = "081109 203530 147 INFO dfs.DataNode$DataXceiver: Receiving block blk_{} src: /10.0.0.1:1 dest: /10.0.0.2:2"
    application.produce(Record(line.format(block).encode(), b"blk_%d" % block) for block in blocks)


def test_a_wrong_password_is_refused_and_told_without_showing_it(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "password").write_text("not-the-password")
    for done in check_and_run(config, capfd):
        assert done.code == 1, done.shown
        assert "no access to Kafka" in done.shown
        assert "invalid credentials" in done.shown
        assert "not-the-password" not in done.shown
        assert "Traceback" not in done.shown


def test_a_broker_whose_certificate_is_not_trusted_is_refused(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Certificate(tmp_path, "other")
    for done in check_and_run(config, capfd, f"kafka.ssl.ca.location={other.public}"):
        assert done.code == 1, done.shown
        assert "no access to Kafka" in done.shown
        assert "certificate verify failed" in done.shown
        assert PASSWORD not in done.shown
        assert "Traceback" not in done.shown
