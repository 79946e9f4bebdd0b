"""References to the environment in a settings file."""

from pathlib import Path

from tests.worker.settings.written import errors_of, load


def test_a_reference_is_replaced_by_the_environment(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "kafka: {bootstrap.servers: '${HOST}:${PORT}'}\n"
        "worker: {batch_records: '${BATCH}'}\n"
        "scoring: {early: '${EARLY}', warning: '${WARNING}'}\n"
        "sessions: {key: {regex: 'a$${b}'}}",
        HOST="kafka",
        PORT="9092",
        BATCH="0500",
        EARLY="false",
        WARNING="0.25",
    )
    assert settings.kafka["bootstrap.servers"] == "kafka:9092"
    assert (settings.worker.batch_records, settings.scoring.early, settings.scoring.warning) == (
        500,
        False,
        0.25,
    )
    assert settings.sessions.key.value == "a${b}"


def test_references_that_lead_nowhere_are_all_named(tmp_path: Path) -> None:
    assert errors_of(
        tmp_path,
        "kafka: {bootstrap.servers: a, sasl.username: '${USER_NAME}'}\n"
        "sessions: {key: {regex: '${PATTERN}'}, end_events: [a, '${END}'], gap: '${}'}\n"
        "application_id: ${APP",
    ) == [
        "kafka.sasl.username: '${USER_NAME}' refers to the environment variable USER_NAME, which is not set",
        "sessions.key.regex: '${PATTERN}' refers to the environment variable PATTERN, which is not set",
        "sessions.end_events[1]: '${END}' refers to the environment variable END, which is not set",
        "sessions.gap: '${}' holds ${ without a name; allowed: ${NAME}, or $${ for these characters",
        "application_id: '${APP' holds ${ without a name; allowed: ${NAME}, or $${ for these characters",
    ]
