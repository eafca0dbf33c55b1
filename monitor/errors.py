"""Every error Lanner raises on purpose. The docstring is the default message and says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LannerError(Exception):
    """Lanner could not finish. Run the command again with --log-level debug for the details."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((self.__class__.__doc__ or "").split()))


class UsageError(LannerError):
    """The command was called with arguments that do not fit; see --help."""

    exit_code = 2


class DependencyUnreachable(LannerError):
    """A server that this command needs does not answer. Check that it runs and that its address is right."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a configuration: where it stands and what to do about it."""

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class ConfigError(LannerError):
    """The configuration has mistakes. Correct every line named here and run `lanner check-config` again."""

    exit_code = 78

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(m) for m in self.mistakes))


class DecodeError(LannerError):
    """A message cannot be decoded. Look at it with `lanner deadletter show`, mend the decoder, then re-drive it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason  # a code of collectors.base.REASONS, used as a metric label
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


class SchemaUnavailable(LannerError):
    """The schema that a message names cannot be had now. The partition pauses and tries again."""

    exit_code = 4


class PoisonLimit(LannerError):
    """Too large a share of a source's messages cannot be decoded, so the source has stopped and nothing was lost.

    Most often a deploy changed the format: compare `lanner decode` on a recent message, correct the decoder,
    and start again. Raise `max_poison` of the source only if the messages really are worthless.
    """


class FencedOut(LannerError):
    """Another process has taken over this partition or model. Nothing was written; this one must start afresh."""


class OffsetsLost(LannerError):
    """Messages were removed from the topic before Lanner read them. The missing range is named in the message."""

    def __init__(
        self, message: str | None = None, topic: str = "", partition: int = 0, first: int = 0, until: int = 0
    ) -> None:
        self.topic, self.partition = topic, partition
        self.first, self.until = first, until  # the missing offsets are [first, until)
        super().__init__(message)


class StoreError(LannerError):
    """The store refused to read or write. Check the disk, its free space and its permissions."""


class MigrationNeeded(LannerError):
    """The state store is older or newer than this program. Run `lanner migrate`."""


class CalibrationRefused(LannerError):
    """The reference cannot calibrate this detector. The message says what it lacks."""
