"""Decoders: from one message to the parts it holds. One file a format, one line in DECODERS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from collectors.base import Decoder
from collectors.decode.field_map import field_map
from collectors.decode.kserve import kserve
from collectors.decode.marks import marks
from collectors.decode.native import native
from collectors.framing import framed
from monitor.config import Config, FieldMap, Source
from monitor.errors import UsageError

Make = Callable[[str, Source, Config], Decoder]


def _native(name: str, source: Source, config: Config) -> Decoder:
    del name, config
    return native(timezone=source.timezone, model=source.model)


def _field_map(name: str, source: Source, config: Config) -> Decoder:
    mapping: FieldMap | None = config.decoders.field_map.get(name)
    if mapping is None:
        raise UsageError(f"source {name} uses field_map, but decoders.field_map.{name} is not configured")
    return field_map(mapping, timezone=source.timezone)


def _kserve(name: str, source: Source, config: Config) -> Decoder:
    return kserve(config.decoders.kserve.get(name, {}), model=source.model, principal_header=source.principal_header)


def _marks(name: str, source: Source, config: Config) -> Decoder:
    del name, config
    return marks(timezone=source.timezone, model=source.model)


DECODERS: Final[dict[str, Make]] = {"native": _native, "field_map": _field_map, "kserve": _kserve, "marks": _marks}


def decoder_for(name: str, config: Config) -> Decoder:
    """The decoder of the source called `name`, or of no source when `name` is that of a decoder.

    A source's own name wins. With framing `auto` content encodings and schema prefixes are taken off first.
    """
    source = config.sources.get(name) or Source(type="files", decoder=name)
    make = DECODERS.get(source.decoder)
    if make is None:
        raise UsageError(f"{source.decoder!r} is neither a source nor a decoder; decoders are {', '.join(DECODERS)}")
    decode = make(name, source, config)
    return framed(decode, source.max_message) if source.framing == "auto" else decode
