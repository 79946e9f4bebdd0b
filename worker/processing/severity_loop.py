"""The compiled loop that judges scores in the order of the outputs: which are told, and what a final one takes back."""

from __future__ import annotations

from typing import NamedTuple

from detector.compiled import Column, Floats, compiled

#: Severities as numbers, and the bit of `Session.alerted` that an early record of one leaves.
NORMAL, WARNING, CRITICAL = range(3)
WARNED, ALARMED = 1, 2
#: Verdicts of operators as numbers (`worker.processing.feedback`); 0 is none.
MUTED, RAISED = 1, 2


class Scored(NamedTuple):
    """Scores in the order of the outputs."""

    sessions: Column  # their numbers
    scores: Floats  # as records show them
    warnings: Floats  # the thresholds that were in force
    criticals: Floats
    early: Column  # 1 for one of a session that went on, 0 for that of a complete one
    verdicts: Column  # of an early one only MUTED: it may still become one of a muted pattern


class Judged(NamedTuple):
    """What becomes of scores, to be filled in."""

    severities: Column
    scored: Column  # severities by the scores alone
    told: Column  # 0 for an early one of which nobody need hear
    retracts: Column  # bits of the early records that a final one takes back
    before: Column  # bits of the early records of its session before it


@compiled
def judge(scored: Scored, alerted: Column, judged: Judged) -> None:
    """Judge scores; `alerted` has the bits of each session, to which those of its early records are added."""
    for row in range(len(scored.sessions)):
        number, score = scored.sessions[row], scored.scores[row]
        bits, severity, raised = alerted[number], NORMAL, 0
        if score >= scored.criticals[row]:
            severity, raised = CRITICAL, ALARMED
        elif score >= scored.warnings[row]:
            severity, raised = WARNING, WARNED
        judged.severities[row], judged.scored[row] = severity, severity
        judged.before[row], judged.retracts[row] = bits, 0
        if not scored.early[row]:
            if scored.verdicts[row] == MUTED:
                severity = NORMAL
            elif scored.verdicts[row] == RAISED:
                severity = CRITICAL
            judged.severities[row] = severity
            judged.told[row] = 1
            judged.retracts[row] = bits >> severity << severity  # those of severities that are greater
            continue
        if scored.verdicts[row] == MUTED:
            judged.told[row] = 0
            continue
        # An event that crosses both thresholds at once gives one record, of the higher severity.
        judged.told[row] = raised > bits
        if raised > bits:
            alerted[number] = bits | raised
