"""Why there is no access to the brokers: one line that names the setting at fault.

The client library gives the same error for a wrong authority and for a wrong host name, and none at all where its
protocol is not the listener's. So a connection of our own finds out.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import KafkaError

from worker.settings.kafka_properties import KafkaProperties

_PROBE_S = 2.0
_NAME_MISMATCHES = (62, 63, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH, of an e-mail address and of an IP address
_NOT_TAKEN = "Connection refused"  # as the library says it
_ADDRESS, _AUTHORITIES = "kafka.bootstrap.servers", "kafka.ssl.ca.location"
_MECHANISMS = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and OAUTHBEARER"


def not_taken(kafka: KafkaProperties, error: KafkaError) -> str:
    """What is wrong with properties of which the library makes no client."""
    reason = error.str().partition(": ")[2] or error.str()
    if "SASL mechanism" in reason:
        given = kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms"))
        what = "is missing, and GSSAPI, its default," if given is None else str(given)
        return f"kafka.sasl.mechanism: {what} is not in this build of the client; allowed: {_MECHANISMS}"
    for name in re.findall(r"\bssl\.[a-z.]*location\b", reason):
        path = str(kafka.get(name, ""))
        try:
            with Path(path).open("rb"):
                pass
        except OSError as failed:
            return f"kafka.{name}: '{path}' cannot be read: {failed.strerror}"
        return f"kafka.{name}: '{path}' cannot be used: {reason.rpartition('::')[2]}"
    names = re.findall(r"\b(?:sasl|ssl|security)\.[a-z.]*[a-z]\b", reason)
    return f"{', '.join(f'kafka.{name}' for name in names) or 'kafka'}: {reason}"


def no_access(kafka: KafkaProperties, error: KafkaError, *, of_connection: bool) -> tuple[str, bool]:
    """Why none of the brokers lets us in, as far as the library's error and a look of our own tell.

    Args:
        kafka: the properties.
        error: of the library.
        of_connection: a connection came to this error; else no answer came to a call in its time, which says little.

    Returns:
        One line, and whether that may pass by itself: a broker that does not answer may do so yet.
    """
    at = str(kafka["bootstrap.servers"])
    settings, reason = _cause(kafka, error, of_connection=of_connection)
    if settings == _ADDRESS:
        return f"no Kafka broker answers at {at} ({settings}): {reason}", True
    return f"no access to Kafka at {at} ({settings}): {reason}", False


def _cause(kafka: KafkaProperties, error: KafkaError, *, of_connection: bool) -> tuple[str, str]:
    """The settings at fault, and the reason."""
    text, protocol = error.str(), str(kafka.get("security.protocol", "PLAINTEXT")).upper()
    if "certificate verify failed" in text:
        for host, port in _addresses(kafka):
            message, is_name = _verification(host, port, kafka.get("ssl.ca.location"))
            if message:
                setting = f"{_ADDRESS}, kafka.ssl.endpoint.identification.algorithm" if is_name else _AUTHORITIES
                return setting, f"certificate verify failed: {message}"
        return _AUTHORITIES, text
    if "mechanism handshake failed" in text:
        return "kafka.sasl.mechanism", text
    if error.code() == KafkaError._AUTHENTICATION:
        return "kafka.sasl.username, kafka.sasl.password", text
    if error.code() == KafkaError._SSL and "PLAINTEXT" not in text:
        return "kafka.ssl.*", text
    for host, port in _addresses(kafka):
        tls = _speaks_tls(host, port)
        if tls is None:
            continue
        if tls != protocol.endswith("SSL"):
            listener = "TLS; allowed: SSL or SASL_SSL" if tls else "no TLS; allowed: PLAINTEXT or SASL_PLAINTEXT"
            return "kafka.security.protocol", f"is {protocol}, but {host}:{port} speaks {listener}"
        # A broker that is slow, or was not there a moment ago, ends no connection.
        ended = error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT) and _NOT_TAKEN not in text
        if not protocol.startswith("SASL") and of_connection and ended:
            reason = f"is {protocol}, and {host}:{port} ends the connection: does it want SASL_{protocol}?"
            return "kafka.security.protocol", reason
    return _ADDRESS, text


def _addresses(kafka: KafkaProperties) -> Iterator[tuple[str, int]]:
    for address in str(kafka["bootstrap.servers"]).split(","):
        found = re.fullmatch(r"(?:\w+://)?(\[[^]]+\]|[^:]+)(?::(\d+))?", address.strip())
        if found is not None:
            yield found[1].strip("[]"), int(found[2] or 9092)


def _speaks_tls(host: str, port: int) -> bool | None:
    """Whether a listener speaks TLS; None where nothing takes a connection, or nothing is said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent over it
    try:
        connection = socket.create_connection((host, port), _PROBE_S)
    except OSError:
        return None
    try:
        with connection, context.wrap_socket(connection, server_hostname=host):
            return True
    except TimeoutError:
        return None
    except OSError:
        return False


def _verification(host: str, port: int, authorities: object) -> tuple[str, bool]:
    """What is wrong with a listener's certificate, and whether it is the name that it is for."""
    path = None if authorities is None else Path(str(authorities))
    try:
        if path is None or str(path) == "probe":  # the library's word for the system's own
            context = ssl.create_default_context()
        elif path.is_dir():
            context = ssl.create_default_context(capath=path)
        else:
            context = ssl.create_default_context(cafile=path)
        with (
            socket.create_connection((host, port), _PROBE_S) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return "", False
    except ssl.SSLCertVerificationError as error:
        return error.verify_message, error.verify_code in _NAME_MISMATCHES
    except OSError:
        return "", False
