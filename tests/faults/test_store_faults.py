"""The event log when its database restarts, when the answer to a commit is lost, and when the disk is full."""

from __future__ import annotations

import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from monitor.errors import StoreError
from monitor.store.engine import open_state, read
from monitor.store.eventlog import EventLog
from monitor.store.schema import segments
from tests.eventlogs import MODEL, Store, event, store
from tests.servers.postgres import Postgres


def resume(it: Store) -> int | None:
    """What a collector does after any doubt: claim again; the stored next offset."""
    it.claim = it.log.claim("s", "me", [("t", 0)])["t", 0]
    it.next_offset = it.claim.next_offset
    return it.next_offset


def test_a_database_restart_in_the_middle_of_a_transaction_stores_nothing(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    """The batch is refused, the next claim tells that it was not stored, and the same engine goes on."""
    with store(postgres_server.database(), tmp_path) as it:
        it.append([event(0)])

        def restart(point: str) -> None:
            if point == "in_transaction":
                postgres_server.process.send_signal(signal.SIGKILL)
                postgres_server.process.wait()
                postgres_server.restart()

        broken = EventLog(it.engine, it.root, {"fraud": MODEL}, restart)
        with pytest.raises(StoreError):
            broken.append(it.batch([event(1)]))
        assert resume(it) == 1
        it.append([event(1)])
        assert it.publish() == 2
        assert it.read("request_id")["request_id"].to_pylist() == ["r-0", "r-1"]


class Cable:
    """A TCP connection to a server that can be cut right after something was sent through it."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._upstream = port
        self.port: int = self._server.getsockname()[1]
        self.deaf = threading.Event()  # what the client sends arrives, what the server answers does not
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._upstream))
            threading.Thread(target=self._carry, args=(client, upstream, False), daemon=True).start()
            threading.Thread(target=self._carry, args=(upstream, client, True), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with source, target:
            while True:
                try:
                    data = source.recv(65536)
                    if not data or (answers and self.deaf.is_set()):
                        break
                    target.sendall(data)
                except OSError:
                    break
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


def test_a_commit_whose_answer_is_lost_is_stored_once(postgres_server: Postgres, tmp_path: Path) -> None:
    """Nobody knows at first; the next claim tells that the batch is in, so it is not sent again."""
    url = postgres_server.database()
    cable = Cable(postgres_server.port)
    with store(url, tmp_path) as it:
        engine = open_state(str(sa.make_url(url).set(port=cable.port)))

        def cut(point: str) -> None:
            if point == "in_transaction":
                cable.deaf.set()

        with pytest.raises(StoreError):
            EventLog(engine, it.root, {"fraud": MODEL}, cut).append(it.batch([event(0)]))
        assert resume(it) == 1
        assert it.publish() == 1
        engine.dispose()
    cable.close()


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file may grow beyond the limit: writes fail as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_stores_nothing_and_ends_by_itself(tmp_path: Path) -> None:
    """Neither the event log's file nor the state store's row is half there, and with room again the batch goes in."""
    with store(f"sqlite:///{tmp_path / 'state.db'}", tmp_path) as it:
        it.append([event(0)])
        for limit in (1, 3000, 30_000):  # the Parquet file, then the database, is what does not fit
            with pytest.raises(StoreError), full_disk(limit):
                it.log.append(it.batch([event(i, principal="p" * 5000) for i in range(1, 50)]))
            assert resume(it) == 1
            with read(it.engine) as conn:
                assert conn.scalar(sa.select(sa.func.count()).select_from(segments)) == 1
        it.append([event(i) for i in range(1, 50)])
        assert it.publish() == 50
