"""Kafka's record format: our reading against the client's own writing and reading."""

from __future__ import annotations

import random
from typing import Any

import pytest
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from collectors.wire import record_reader, varint

read = record_reader(CorruptRecordError)
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def _batch(records: list[tuple[Any, ...]], codec: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=1 << 24,
    )  # fmt: skip
    for n, (timestamp, key, value, headers) in enumerate(records):
        builder.append(n, timestamp, key, value, headers)
    return bytes(builder.build())


def _some(rng: random.Random, n: int) -> list[tuple[Any, ...]]:
    def chunk(longest: int) -> bytes | None:
        return None if rng.random() < 0.2 else rng.randbytes(rng.choice([0, 1, 62, 63, 64, 65, 8191, 8192, longest]))

    return [
        (
            1_700_000_000_000 + rng.choice([0, 1, -1, 63, 64, -64, 10**9, -(10**9)]),
            chunk(300),
            chunk(20_000),
            [(f"h{i}é", chunk(100)) for i in range(rng.choice([0, 0, 1, 3]))],
        )
        for _ in range(n)
    ]


def _client_reads(raw: bytes) -> list[tuple[Any, ...]]:
    batch = DefaultRecordBatch(raw)
    batch._maybe_uncompress()
    found = []
    for _ in range(batch._num_records):
        r = batch._read_msg()
        found.append((r.offset, r.timestamp, r.timestamp_type, r.key, r.value, r.headers, r.size_in_bytes, r.checksum))
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_records_are_read_as_the_client_reads_them(codec: str) -> None:
    """Keys, values and headers of every length, absent ones and times that go back come out as the client has them."""
    rng = random.Random(1)
    for n in (1, 2, 200):
        raw = _batch(_some(rng, n), CODECS[codec])
        assert [tuple(r) for r in read(DefaultRecordBatch(raw))] == _client_reads(raw)


def test_a_batch_that_ends_early_or_late_is_corrupt() -> None:
    """A cut, a tail or a wrong length raises the client's error and never yields a record that was not written."""
    raw = _batch(_some(random.Random(2), 5))
    whole = [tuple(r) for r in read(DefaultRecordBatch(raw))]
    for cut in range(DefaultRecordBatch.HEADER_STRUCT.size, len(raw)):
        taken: list[tuple[Any, ...]] = []
        with pytest.raises(CorruptRecordError):
            taken.extend(tuple(r) for r in read(DefaultRecordBatch(raw[:cut])))
        assert taken == whole[: len(taken)]
    with pytest.raises(CorruptRecordError):
        list(read(DefaultRecordBatch(raw + b"\0")))


def test_flipped_bytes_never_escape_as_another_error() -> None:
    """Whatever bytes stand in the records, reading ends in records or in the client's error."""
    rng = random.Random(3)
    raw = bytearray(_batch(_some(rng, 20)))
    start = DefaultRecordBatch.HEADER_STRUCT.size
    for _ in range(2000):
        bad = bytearray(raw)
        for _ in range(rng.choice([1, 2, 8])):
            bad[rng.randrange(start, len(bad))] = rng.randrange(256)
        try:
            list(read(DefaultRecordBatch(bytes(bad))))
        except CorruptRecordError:
            pass


def test_varints_are_zigzag_of_up_to_64_bits() -> None:
    """Values of both signs and all lengths come back; an endless one is refused."""
    for value in (0, -1, 1, 63, -64, 64, 2**31, -(2**63), 2**63 - 1):
        raw, zigzag = bytearray(), (value << 1) ^ (value >> 63)
        while zigzag > 0x7F:
            raw.append(zigzag & 0x7F | 0x80)
            zigzag >>= 7
        raw.append(zigzag)
        assert varint(bytes(raw), 0) == (value, len(raw))
    with pytest.raises(ValueError, match="64 bits"):
        varint(b"\xff" * 11, 0)
