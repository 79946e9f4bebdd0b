"""Row 6: errors of the transactional requests: fatal ones end the worker, abortable ones send it back to what is
committed, retriable ones it does not even notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.faults.mock import (
    ADD_OFFSETS,
    ADD_PARTITIONS,
    COMMIT_OFFSETS,
    END_TRANSACTION,
    INIT_PRODUCER_ID,
    OFFSET_COMMIT,
    PRODUCE,
    MockCluster,
    in_process,
    mock_cluster,
    mock_settings,
    run_script,
    totals,
)
from tests.faults.report import FaultReport
from worker.delivery.loop import Worker
from worker.errors import RunError

NAMES = {
    PRODUCE: "Produce",
    INIT_PRODUCER_ID: "InitProducerId",
    ADD_PARTITIONS: "AddPartitionsToTxn",
    ADD_OFFSETS: "AddOffsetsToTxn",
    COMMIT_OFFSETS: "TxnOffsetCommit",
    END_TRANSACTION: "EndTxn",
}
COORDINATOR_LOADING, NOT_COORDINATOR, ILLEGAL_GENERATION, UNKNOWN_MEMBER = 14, 16, 22, 25
TOPIC_DENIED, GROUP_DENIED, OLD_EPOCH, INVALID_STATE, UNKNOWN_ID, CONCURRENT, ID_DENIED, UNKNOWN_PRODUCER, FENCED = (
    *(29, 30, 47, 48, 49, 51, 53, 59, 90),
)

FATAL = [
    *[(request, OLD_EPOCH) for request in (ADD_PARTITIONS, ADD_OFFSETS, COMMIT_OFFSETS, END_TRANSACTION)],
    *[(request, ID_DENIED) for request in (ADD_PARTITIONS, ADD_OFFSETS, COMMIT_OFFSETS, END_TRANSACTION)],
    (END_TRANSACTION, FENCED),
    (ADD_PARTITIONS, TOPIC_DENIED),
    (ADD_OFFSETS, GROUP_DENIED),
    (COMMIT_OFFSETS, GROUP_DENIED),
]
ABORTABLE = [
    (ADD_PARTITIONS, UNKNOWN_ID),
    (COMMIT_OFFSETS, ILLEGAL_GENERATION),
    (COMMIT_OFFSETS, UNKNOWN_MEMBER),
    (END_TRANSACTION, UNKNOWN_PRODUCER),
    *[(request, INVALID_STATE) for request in (ADD_PARTITIONS, ADD_OFFSETS, COMMIT_OFFSETS, END_TRANSACTION)],
]
RETRIABLE = [
    *[
        (request, error)
        for request in (ADD_PARTITIONS, ADD_OFFSETS, COMMIT_OFFSETS, END_TRANSACTION)
        for error in (NOT_COORDINATOR, CONCURRENT)
    ],
]


def ids(cases: list[tuple[int, int]]) -> list[str]:
    return [f"{NAMES[request]}-{error}" for request, error in cases]


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with mock_cluster() as cluster:
        yield cluster


def one_transaction_with(
    cluster: MockCluster, request: int, *errors: int, scores: int
) -> tuple[Worker, Callable[[], None]]:
    """A worker, and what runs it: it commits, gets the errors in its next transaction, and stops when it has made so
    many scores and committed again."""
    cluster.produce([b"z open", b"a open", b"a close"])  # time is set once three records agree on it
    worker = in_process(mock_settings(cluster))

    def script() -> Iterator[Callable[[], bool]]:
        yield lambda: totals(worker)["scores"] == 1 and totals(worker)["commits"] > 0
        cluster.fail(request, *errors)
        cluster.produce([b"b open", b"b close"])
        yield lambda: totals(worker)["scores"] == scores
        committed = totals(worker)["commits"]
        cluster.produce([b"c open"])
        yield lambda: totals(worker)["commits"] > committed

    return worker, lambda: run_script(worker, script)


@pytest.mark.fault(row=6, core=True)
@pytest.mark.parametrize(("request_", "error"), FATAL, ids=ids(FATAL))
def test_a_fatal_error_ends_the_worker_which_commits_nothing_more(
    request_: int, error: int, cluster: MockCluster, fault_report: FaultReport
) -> None:
    fault_report(f"{NAMES[request_]} answers with error {error}, fatal: the worker ends")
    worker, run = one_transaction_with(cluster, request_, error, scores=2)
    with pytest.raises(RunError, match="taken over" if error in (OLD_EPOCH, FENCED) else "uthorization"):
        run()
    assert totals(worker)["scores"] == 2
    assert totals(worker)["aborts"] == 0
    assert worker._progress == {}, "the group was not left"


@pytest.mark.fault(row=6, core=True)
@pytest.mark.parametrize(("request_", "error"), ABORTABLE, ids=ids(ABORTABLE))
def test_an_abortable_error_sends_the_worker_back_to_what_is_committed(
    request_: int, error: int, cluster: MockCluster, fault_report: FaultReport
) -> None:
    fault_report(f"{NAMES[request_]} answers with error {error}, abortable: back to what is committed")
    # The mock broker stores no offset that was sent in a transaction: it sends the worker back to the beginning, where
    # both sessions are scored anew.
    worker, run = one_transaction_with(cluster, request_, error, scores=4)
    run()
    assert totals(worker)["aborts"] == 1


@pytest.mark.fault(row=6, core=True)
@pytest.mark.parametrize(("request_", "error"), RETRIABLE, ids=ids(RETRIABLE))
def test_a_retriable_error_is_waited_out(
    request_: int, error: int, cluster: MockCluster, fault_report: FaultReport
) -> None:
    fault_report(f"{NAMES[request_]} answers twice with error {error}, retriable: asked again")
    worker, run = one_transaction_with(cluster, request_, error, error, scores=2)
    run()
    assert totals(worker)["aborts"] == 0


@pytest.mark.fault(row=6, core=True)
def test_a_producer_id_is_asked_for_until_the_coordinator_answers(
    cluster: MockCluster, fault_report: FaultReport
) -> None:
    fault_report("InitProducerId answers with retriable errors: asked again")
    cluster.fail(INIT_PRODUCER_ID, COORDINATOR_LOADING, NOT_COORDINATOR, CONCURRENT)
    cluster.produce([b"z open", b"a open", b"a close"])  # time is set once three records agree on it
    worker = in_process(mock_settings(cluster))
    run_script(worker, lambda: iter([lambda: totals(worker)["scores"] == 1]))
    assert totals(worker)["aborts"] == 0


@pytest.mark.fault(row=6, core=True)
@pytest.mark.parametrize("error", [ID_DENIED, FENCED])
def test_a_producer_id_that_is_refused_ends_the_worker(
    error: int, cluster: MockCluster, fault_report: FaultReport
) -> None:
    fault_report(f"InitProducerId answers with error {error}: the worker does not start")
    cluster.fail(INIT_PRODUCER_ID, error)
    with pytest.raises(RunError):
        in_process(mock_settings(cluster))


@pytest.mark.fault(row=6, core=True)
def test_a_lost_permission_to_commit_ends_a_worker_that_delivers_at_least_once(
    cluster: MockCluster, fault_report: FaultReport
) -> None:
    fault_report("OffsetCommit answers with error 30 (at least once): the worker ends")
    cluster.produce([b"z open", b"a open", b"a close"])  # time is set once three records agree on it
    worker = in_process(mock_settings(cluster, "worker.delivery=at_least_once"))

    def script() -> Iterator[Callable[[], bool]]:
        yield lambda: totals(worker)["commits"] > 0
        cluster.fail(OFFSET_COMMIT, *[GROUP_DENIED] * 10)
        cluster.produce([b"b open", b"b close"])
        yield lambda: totals(worker)["commits"] > 10

    with pytest.raises(RunError, match=r"not committed.*GROUP_AUTHORIZATION_FAILED"):
        run_script(worker, script)
    assert totals(worker)["aborts"] == 0
