"""Secrets come from the environment or from files, and nothing shows them."""

from pathlib import Path

import pytest

from tests.worker.settings.written import errors_of, load, only_error

SECRET = "hunter2-hunter2"


def test_a_secret_comes_from_the_environment_or_a_file_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n", encoding="utf-8")
    settings = load(
        tmp_path,
        f"kafka: {{bootstrap.servers: a, sasl.password: '${{PW}}', ssl.key.password_file: {tmp_path}/key}}",
        PW=SECRET,
    )
    assert settings.kafka["sasl.password"] == settings.kafka["ssl.key.password"] == SECRET
    assert "ssl.key.password_file" not in settings.kafka
    for shown in (repr(settings), str(settings), repr(settings.kafka), str(settings.describe())):
        assert SECRET not in shown
        assert "sasl.password" in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sasl.oauthbearer.config", "principal=me secret=${PW}"),
        ("sasl.oauthbearer.extensions", "token=${PW}"),
        ("sasl.oauthbearer.token.endpoint.url", "https://me:${PW}@host/token"),
        ("ssl.engine.id", "${PW}"),
        ("plugin.library.paths", "first;${PW}"),
    ],
)
def test_what_may_hold_a_secret_among_other_things_is_never_shown(tmp_path: Path, name: str, value: str) -> None:
    settings = load(tmp_path, f"kafka: {{bootstrap.servers: a, {name}: '{value}'}}", PW=SECRET)
    assert SECRET in str(settings.kafka[name])
    for shown in (repr(settings), str(settings), repr(settings.kafka), str(settings.describe())):
        assert SECRET not in shown
        assert name in shown


@pytest.mark.parametrize(
    "name",
    [
        "sasl.password",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
        "sasl.oauthbearer.client.secret",
    ],
)
def test_a_secret_in_the_file_itself_is_refused_without_showing_it(tmp_path: Path, name: str) -> None:
    error = only_error(tmp_path, f"kafka: {{bootstrap.servers: a, {name}: {SECRET}}}")
    assert error.startswith(f"kafka.{name}: is a secret, which does not belong in this file; allowed: ${{NAME}}")
    assert f"{name}_file: PATH" in error
    assert only_error(tmp_path, "kafka: {bootstrap.servers: a}", f"kafka.{name}={SECRET}") == error


@pytest.mark.parametrize(
    "text",
    [
        "kafka: {bootstrap.servers: a, sasl.pasword: '${PW}'}",
        "kafka: {bootstrap.servers: a, sasl: {password: hunter2-hunter2}}",
        "kafka: [hunter2-hunter2]",
        "kafka: {bootstrap.servers: a, sasl.password: hunter2-hunter2, sasl.password: hunter2-hunter2}",
        "kafka: {bootstrap.servers: a, security.protocol: '${PW}'}",
        "worker: {batch_records: '${PW}', instance: '${PW} '}",
        "scoring: {pasword: '${PW}'}",
        "kafka: {bootstrap.servers: a, sasl.password: ['${PW}']}",
        "application_id: [{a: '${PW}'}]",
        "bootstrap.servers=a\nsasl.password=hunter2-hunter2",
        "kafka: {bootstrap.servers: a, sasl.password: *hunter2-hunter2}",
        "kafka: {bootstrap.servers: a, sasl.password: !hunter2-hunter2!a b}",
        "kafka: {bootstrap.servers: a, sasl.password: !!bool hunter2-hunter2}",
        "kafka: {bootstrap.servers: a, Sasl.Password: [hunter2-hunter2]}",
        "kafka: {bootstrap.servers: a, sasl.password_file: hunter2-hunter2}",
        "kafka: {bootstrap.servers: 'me:hunter2-hunter2@a:9092'}",
        "sessions: {key: {password: hunter2-hunter2}}",
        "output: {schema_registry: {url: 'http://me:hunter2-hunter2@a'}}",
        "output: {schema_registry: {url: 'http://a', basic.auth.user.info: hunter2-hunter2}}",
        "output: {schema_registry: {url: 'http://a', basic.auth.user.info: ['${PW}']}}",
        "output: {schema_registry: {url: 'http://a', password: '${PW}'}}",
        "output: {schema_registry: {bearer.auth.token: '${PW}'}}",
        "output: {schema_registry: ['${PW}'], topic: [{basic.auth.user.info: hunter2-hunter2}]}",
    ],
)
def test_no_error_shows_a_secret_that_stands_in_the_wrong_place(tmp_path: Path, text: str) -> None:
    assert SECRET not in "\n".join(errors_of(tmp_path, text, PW=SECRET))


def test_a_secret_file_that_is_no_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    errors = errors_of(
        tmp_path,
        f"kafka: {{bootstrap.servers: a, sasl.password_file: {tmp_path}/empty, "
        "ssl.key.password_file: /no/such, "
        f"ssl.keystore.password: '${{PW}}', ssl.keystore.password_file: {tmp_path}/empty}}",
        PW=SECRET,
    )
    assert errors == [
        "kafka.sasl.password_file: names an empty file",
        "kafka.ssl.key.password_file: names a file that cannot be read: No such file or directory",
        "kafka.ssl.keystore.password_file: is given beside ssl.keystore.password; allowed: one of the two",
    ]


def test_a_schema_registrys_secrets_come_from_the_environment_or_a_file_and_are_never_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n", encoding="utf-8")
    registry = f"url: 'https://a:8081', basic.auth.user.info: 'me:${{PW}}', bearer.auth.token_file: {tmp_path}/token"
    settings = load(tmp_path, f"output: {{format: avro, schema_registry: {{{registry}}}}}", PW=SECRET)
    assert settings.output.schema_registry == {
        "url": "https://a:8081",
        "basic.auth.user.info": f"me:{SECRET}",
        "bearer.auth.token": SECRET,
    }
    for shown in (repr(settings), str(settings), str(settings.describe())):
        assert SECRET not in shown
    assert "https://a:8081" in str(settings.describe())
    error = only_error(tmp_path, f"output: {{schema_registry: {{url: 'http://a', bearer.auth.token: {SECRET}}}}}")
    assert error.startswith(
        "output.schema_registry.bearer.auth.token: is a secret, which does not belong in this file;"
    )
    assert only_error(tmp_path, "output: {format: avro}").endswith("is avro, which needs output.schema_registry")
    errors = errors_of(tmp_path, "output: {schema_registry: {url: 'ftp://a', retries: 1, auto.register.schemas: 5}}")
    assert [each.partition(";")[0] for each in errors] == [
        "output.schema_registry.retries: is not a setting",
        "output.schema_registry.auto.register.schemas: 5 is not true or false",
        "output.schema_registry.url: is not an address",
    ]
