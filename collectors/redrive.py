"""Dead letters through the current decoder once more, after whatever was wrong with it has been mended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from collectors.base import DeadLetter, Decoder, EventLog, IngestBatch, Placed, Record
from collectors.pairing import pair
from collectors.parts import admit
from monitor.errors import DecodeError, LannerError

CHUNK = 500  # dead letters that become one transaction


@dataclass(frozen=True, slots=True)
class Letter:
    """A stored dead letter: its id, and the source whose decoder reads it."""

    id: int
    source: str
    letter: DeadLetter


@dataclass
class Redriven:
    """What became of dead letters: ids that are events now, and by id why the others still are not."""

    done: list[int] = field(default_factory=list)
    failed: dict[int, DecodeError] = field(default_factory=dict)


def redrive(
    letters: Iterable[Letter],
    decoder_of: Callable[[str], Decoder],
    log: EventLog,
    pseudonym: Callable[[str], str],
    now_us: int,
) -> Redriven:
    """Decodes and stores what can be decoded now; the rest stays as it is.

    Events and the mark "redriven" are stored in one transaction, so a letter is never taken twice; FencedOut tells
    that somebody else was faster with one of them. No offset moves.
    """
    found = Redriven()
    by_source: dict[str, list[Letter]] = {}
    for letter in letters:
        by_source.setdefault(letter.source, []).append(letter)
    for source, of_source in by_source.items():
        decode = decoder_of(source)
        for start in range(0, len(of_source), CHUNK):
            parts: list[Placed] = []
            ids: list[int] = []
            for letter in of_source[start : start + CHUNK]:
                try:
                    parts += _parts(letter, decode, pseudonym)
                    ids.append(letter.id)
                except DecodeError as error:
                    found.failed[letter.id] = error
            if ids:
                log.append(IngestBatch(source, now_us, pair(parts), redriven=ids))
                found.done += ids
    return found


def _parts(letter: Letter, decode: Decoder, pseudonym: Callable[[str], str]) -> list[Placed]:
    dead = letter.letter
    if dead.truncated:
        raise DecodeError("oversize", "only its beginning was kept; read the original from its source")
    record = Record(
        letter.source, dead.topic, dead.partition, dead.offset, dead.key, dead.value, dead.headers, dead.timestamp_ms
    )
    try:
        parts = decode(record)
        admit(parts, letter.source, float("inf"), pseudonym)
    except DecodeError:
        raise
    except LannerError as error:
        raise DecodeError("decoder_failed", str(error)) from error
    return [Placed(dead.topic, dead.partition, dead.offset, part) for part in parts]
