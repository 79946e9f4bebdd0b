"""A worker's status, as pages and the endpoint show it."""

from __future__ import annotations

from worker.observability.status import PartitionStatus, WorkerStatus

STATUS = WorkerStatus(
    application_id="shop",
    instance="blue",
    started_at="2024-03-01T12:00:00Z",
    versions={"logmamba": "0.1.0"},
    checkpoint="sha256:c0",
    vocabulary="sha256:b0",
    joined=True,
    partitions=(PartitionStatus("raw", 3, "live", 1_234_567, 42, 17, 1.5),),
    totals={"score_records": 99},
)
