"""The compiled loop that finds the stream times of events of which none waits and none makes time fall."""

from __future__ import annotations

from typing import Final

from detector.compiled import Column, compiled

NO_TIME: Final = -(2**63)  # the time of an event without a timestamp
BEHIND_IN_A_ROW: Final = 1_000  # events, after which stream time falls

# Times beyond it (in ms, 70 million years) are compared in Python, where adding to them cannot overflow.
PLAIN_TIMES: Final = 2**61

# What is known of a clock.
NOW, BEHIND, BEHIND_TIME, LATE = range(4)
KNOWN: Final = 4


@compiled
def follow(known: Column, skew: int, times: Column, stream_times: Column) -> bool:
    """Go on with events, and fill in at which stream time each is processed.

    Args:
        known: stream time, which has to be set; how many events in a row were more than `skew` behind it, and the
            greatest of their times; how many events were late.
        skew: in ms.
        times: of the events in ms, or NO_TIME.
        stream_times: is filled in.

    Returns:
        False, and `known` as it was, where an event has to wait or time falls, or where times are beyond PLAIN_TIMES.
    """
    now, behind, behind_time, late = known[NOW], known[BEHIND], known[BEHIND_TIME], known[LATE]
    for at in range(len(times)):
        time = times[at]
        if time != NO_TIME:
            if max(abs(now), abs(time)) > PLAIN_TIMES or time > now + skew:
                return False
            now = max(now, time)
            if time < now - skew:
                behind, behind_time = behind + 1, max(behind_time, time)
            else:
                behind, behind_time = 0, NO_TIME
            if behind >= BEHIND_IN_A_ROW:
                return False
            if time < now:
                late += 1
        stream_times[at] = now
    known[NOW], known[BEHIND], known[BEHIND_TIME], known[LATE] = now, behind, behind_time, late
    return True
