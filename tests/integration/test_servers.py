"""The servers that other tests stand on are what they claim to be."""

from __future__ import annotations

import subprocess
import urllib.request

from kafka import KafkaAdminClient

from tests.servers.alerta import Alerta
from tests.servers.kafka import Kafka
from tests.servers.postgres import Postgres


def test_kafka_comes_back_on_its_address(kafka_server: Kafka) -> None:
    """A broker that was killed serves the same address again after a restart."""
    kafka_server.kill()
    kafka_server.restart()
    admin = KafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    assert admin.describe_cluster()["brokers"]
    admin.close()


def test_postgres_databases_are_apart(postgres_server: Postgres) -> None:
    """Each database that is asked for is a new, empty one of a real PostgreSQL."""
    first, second = postgres_server.database(), postgres_server.database()
    assert first != second
    tables = "select count(*) from pg_tables where schemaname = 'public'"
    assert postgres_server.sql(tables, database=second.rsplit("/", 1)[1]) == "0"


def test_alerta_wants_its_key(alerta: Alerta) -> None:
    """The Alerta server answers its administrator's key, and nobody else."""
    request = urllib.request.Request(f"{alerta.url}/alerts", headers={"Authorization": f"Key {alerta.key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    try:
        urllib.request.urlopen(f"{alerta.url}/alerts", timeout=10).close()
    except urllib.error.HTTPError as error:
        assert error.code == 401
        error.close()
    else:
        raise AssertionError("the server let an anonymous caller in")


def test_chromium_starts(chromium: str) -> None:
    """The browser that was found runs."""
    assert subprocess.run([chromium, "--version", "--no-sandbox"], check=False, capture_output=True).returncode == 0
