"""The lines of the generated logs: a storage cluster that keeps three replicas of each block, in words of its own.

The shape of a line is that of HDFS logs, so the same settings read both:
`240301 120000 147 INFO store.Intake: blk_38 complete on 10.2.7.21, 67108864 bytes on disk`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, auto


class Step(IntEnum):
    """What a line is about; the ids of unseen lines follow, and those of the next release."""

    GRANTED = 0
    OPENED = auto()
    STORED = auto()
    RELAYED = auto()
    INDEXED = auto()
    RENEWED = auto()
    SLOW = auto()
    ASKED_AGAIN = auto()
    SEALED = auto()
    SERVED = auto()
    HUNG_UP = auto()
    VERIFIED = auto()
    CLONE_ORDERED = auto()
    CLONE_STARTED = auto()
    CLONE_DONE = auto()
    SURPLUS = auto()
    REMOVAL_ORDERED = auto()
    REMOVED = auto()
    REOPENED = auto()
    WAITING = auto()
    NO_SPACE = auto()
    LINK_BROKE = auto()
    GAVE_UP = auto()
    CORRUPT = auto()
    STRAY = auto()
    UNREADABLE = auto()


_LINES = {
    Step.GRANTED: "INFO meta.Allocator: granted {block} to /warehouse/day_{number}/part_{number}, replicas wanted 3",
    Step.OPENED: "INFO store.Intake: inbound stream for {block} opened by {peer}:{number} towards {node}:7010",
    Step.STORED: "INFO store.Intake: {block} complete on {node}, {number} bytes on disk",
    Step.RELAYED: "INFO store.Relay: relay of {block} ended cleanly after {number} packets",
    Step.INDEXED: "INFO meta.Index: replica of {block} registered at {node}:7010 holding {number} bytes",
    Step.RENEWED: "INFO meta.Leases: writer {number} extended its lease on {block}",
    Step.SLOW: "WARN store.Intake: flushing {block} took {number} ms on {node}",
    Step.ASKED_AGAIN: "WARN store.Relay: no receipt for {block} from {peer} yet, asking once more",
    Step.SEALED: "INFO meta.Allocator: {block} sealed with length {number}",
    Step.SERVED: "INFO store.Outlet: handed {block} to {peer} in {number} ms",
    Step.HUNG_UP: "WARN store.Outlet: {peer} hung up while {block} was on its way",
    Step.VERIFIED: "INFO store.Verifier: {block} matches its checksum on {node}",
    Step.CLONE_ORDERED: "INFO meta.Balance: {node} told to clone {block} onto {peer}",
    Step.CLONE_STARTED: "INFO store.Cloner: begins to clone {block} towards {peer}",
    Step.CLONE_DONE: "INFO store.Cloner: clone of {block} arrived at {peer} with {number} bytes",
    Step.SURPLUS: "INFO meta.Balance: {block} has a surplus replica at {node}",
    Step.REMOVAL_ORDERED: "INFO meta.Index: {block} to be dropped from {node}:7010",
    Step.REMOVED: "INFO store.Reaper: unlinked {block} below /data/{number}",
    Step.REOPENED: "INFO meta.Allocator: {block} reopened by writer {number}",
    Step.WAITING: "WARN store.Relay: still waiting for {peer} to confirm {block}, {number} s so far",
    Step.NO_SPACE: "ERROR store.Intake: cannot write {block}, volume /data/{number} is out of space",
    Step.LINK_BROKE: "ERROR store.Relay: link to {peer} broke after {number} packets of {block}",
    Step.GAVE_UP: "ERROR store.Relay: gave up on {block} after {number} attempts",
    Step.CORRUPT: "ERROR store.Verifier: {block} differs from its checksum {number} on {node}",
    Step.STRAY: "ERROR meta.Index: {node} reports {block}, which belongs to no file",
    Step.UNREADABLE: "ERROR store.Outlet: cannot read {block}, the device behind /data/{number} failed",
}

# Lines that a healthy cluster never writes. No pool shares one with another, so what is learnt from one pool is
# tried on lines that really are new.
UNSEEN_POOLS: tuple[tuple[str, ...], ...] = (
    (
        "WARN kernel.Memory: page cache dropped pages of {block} under pressure",
        "INFO meta.Election: {node} took over as leader while {block} was pending",
        "ERROR store.Sandbox: plugin crashed with signal {number} on {block}",
        "WARN net.Firewall: rule {number} rejected a stream carrying {block}",
        "INFO ops.Console: operator marked {block} for inspection",
        "WARN store.Clock: drift of {number} ms noticed while stamping {block}",
        "ERROR auth.Tickets: token {number} for {block} has expired",
        "INFO store.Snapshot: {block} frozen in image {number}",
        "WARN meta.Quota: tenant {number} exceeded its share with {block}",
        "ERROR store.Codec: unknown compression tag {number} inside {block}",
        "INFO net.Proxy: detour through {peer} chosen for {block}",
        "WARN store.Raid: parity rebuild touches stripe {number} of {block}",
    ),
    (
        "ERROR jvm.Heap: allocation of {number} pages failed next to {block}",
        "WARN disk.Smart: sector {number} under {block} was remapped",
        "INFO meta.Upgrade: layout of {block} converted to revision {number}",
        "ERROR net.Tls: certificate of {peer} was revoked during transfer of {block}",
        "WARN ops.Throttle: bandwidth ceiling lowered to {number} for {block}",
        "INFO store.Quarantine: {block} moved aside by policy {number}",
        "ERROR meta.Journal: entry {number} about {block} could not be replayed",
        "WARN net.Dns: name of {node} resolved to nothing, {block} is held back",
        "INFO ops.Drill: simulated outage includes {block}",
        "ERROR disk.Mount: file system of {block} turned read-only",
        "WARN power.Ups: battery at {number} percent while {block} was in flight",
        "INFO store.Dedup: {block} shares extents with object {number}",
    ),
)

# What the next release makes of a line: other words, or another component. Frequent and rare lines take turns, so the
# first so many of them are about that share of the lines.
_REWORDED = {
    Step.STORED: "INFO store.Intake: wrote {number} bytes of {block} to the disk of {node}, all received",
    Step.SLOW: "WARN store.Disk: flushing {block} took {number} ms on {node}",
    Step.RENEWED: "INFO meta.Leases: lease on {block} now held longer by writer {number}",
    Step.REMOVED: "INFO store.Cleaner: unlinked {block} below /data/{number}",
    Step.CORRUPT: "ERROR store.Verifier: checksum mismatch, {node} has {block} with {number}",
    Step.VERIFIED: "INFO store.Scrubber: {block} matches its checksum on {node}",
    Step.CLONE_ORDERED: "INFO meta.Balance: placing another copy of {block} from {node} at {peer}",
    Step.SERVED: "INFO store.Outlet: read of {block} by {peer} finished after {number} ms",
    Step.OPENED: "INFO store.Pipeline: inbound stream for {block} opened by {peer}:{number} towards {node}:7010",
    Step.HUNG_UP: "WARN store.Outlet: connection reset by {peer} during a read of {block}",
    Step.NO_SPACE: "ERROR store.Disk: cannot write {block}, volume /data/{number} is out of space",
    Step.SEALED: "INFO meta.Allocator: length of {block} is final, {number}",
    Step.STRAY: "ERROR meta.Registry: {node} reports {block}, which belongs to no file",
    Step.INDEXED: "INFO meta.Index: {node}:7010 added to the locations of {block}, size {number}",
    Step.ASKED_AGAIN: "WARN store.Stream: no receipt for {block} from {peer} yet, asking once more",
    Step.GAVE_UP: "ERROR store.Relay: {block} failed for good, retries used {number}",
    Step.REMOVAL_ORDERED: "INFO meta.Registry: {block} to be dropped from {node}:7010",
    Step.CLONE_STARTED: "INFO store.Cloner: copying of {block} has started, target {peer}",
    Step.RELAYED: "INFO store.Stream: relay of {block} ended cleanly after {number} packets",
    Step.SURPLUS: "INFO meta.Balance: too many copies of {block}, one at {node} can go",
    Step.REOPENED: "INFO meta.Namespace: {block} reopened by writer {number}",
    Step.GRANTED: "INFO meta.Allocator: new {block} in /warehouse/day_{number}/part_{number} with replication 3",
    Step.WAITING: "WARN store.Stream: still waiting for {peer} to confirm {block}, {number} s so far",
    Step.LINK_BROKE: "ERROR store.Relay: pipeline of {block} lost {peer} at packet {number}",
    Step.UNREADABLE: "ERROR store.Disk: cannot read {block}, the device behind /data/{number} failed",
    Step.CLONE_DONE: "INFO store.Cloner: copying of {block} has ended, {peer} now has {number} bytes",
}

# Of a service that only the next release has.
_SERVICE = (
    "INFO cache.Front: {block} admitted to tier {number} on {node}",
    "INFO cache.Front: {peer} found {block} in memory, {number} us",
    "INFO cache.Keeper: {block} left the cache of {node} after {number} hits",
)

FIRST_UNSEEN = len(Step)
FIRST_NEW = FIRST_UNSEEN + len(UNSEEN_POOLS[0])
"""A step that is worded anew has this more than before; the new service's lines follow all of them."""
SERVICE_LINES = range(len(Step), len(Step) + len(_SERVICE))
"""From `FIRST_NEW` on: admitted, found, left."""


def reworded_steps(share: float) -> list[Step]:
    """The steps that the next release words anew, as a share of all."""
    return [*_REWORDED][: round(share * len(_REWORDED))]


def line_formats(unseen_pool: int) -> list[Callable[..., str]]:
    """By id: what makes a line, from its thread on, of (block, node, peer, number).

    Raises:
        ValueError: there is no such pool of unseen lines.
    """
    if not 0 <= unseen_pool < len(UNSEEN_POOLS):
        raise ValueError(f"unseen_pool is {unseen_pool}; there are 0 to {len(UNSEEN_POOLS) - 1}")
    lines = [
        *(_LINES[step] for step in Step),
        *UNSEEN_POOLS[unseen_pool],
        *(_REWORDED[step] for step in Step),
        *_SERVICE,
    ]
    places = ("{block}", "{0}"), ("{node}", "{1}"), ("{peer}", "{2}"), ("{number}", "{3}")
    formats = []
    for line in lines:
        for name, place in places:
            line = line.replace(name, place)  # noqa: PLW2901
        formats.append(line.format)
    return formats
