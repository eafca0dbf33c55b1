"""`lanner connect` on a real topic."""

from __future__ import annotations

import json
from pathlib import Path

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from typer.testing import CliRunner

from monitor.cli import app


def test_a_topic_is_looked_at_and_the_configuration_reads_it(kafka: str, tmp_path: Path) -> None:
    """A house format on Kafka: the file that is written passes the check and decodes the topic; no group is left behind."""
    topic, file = f"house-{tmp_path.name}", tmp_path / "lanner.yaml"
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics([NewTopic(topic, 2, 1)])
    producer = KafkaProducer(bootstrap_servers=kafka)
    for i in range(30):
        body = {
            "ts": 1_764_000_000 + i,
            "client": f"c{i % 3}",
            "model_name": "fraud",
            "input": {"amount": i, "country": "QA"},
        }
        producer.send(topic, json.dumps(body).encode())
    producer.flush()
    producer.close()
    run = CliRunner()
    asked = ["connect", "--bootstrap", kafka, "--topic", topic]
    answer = run.invoke(app, [*asked, "-o", str(file)])
    assert answer.exit_code == 0, answer.output
    assert "30 of 30 messages decode as field_map; models: fraud" in answer.stderr
    assert run.invoke(app, ["check-config", str(file)]).exit_code == 0
    shown = run.invoke(app, ["decode", "-c", str(file), "--limit", "30", "--json"])
    assert {json.loads(line)["parts"][0]["principal"] for line in shown.stdout.splitlines()} == {"c0", "c1", "c2"}
    again = run.invoke(app, [*asked, "-o", str(file)])
    assert "is there already" in str(again.exception or again.output)
    assert topic not in str(admin.list_groups())
    admin.close()
