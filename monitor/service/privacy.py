"""Pseudonyms of callers: one keyed hash per deployment, so that one caller can be followed and none be named."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from monitor.config import Config
from monitor.errors import StoreError

KEY_BYTES: Final = 32


def pseudonym(config: Config) -> Callable[[str], str]:
    """What is stored of a caller's name: itself, or 128 bits of HMAC-SHA-256 under the deployment's one key.

    The key file is made on first use with mode 0600. Whoever loses it can no longer link new events to old callers.
    Raises StoreError when the file holds no key.
    """
    if config.privacy.principals == "plain":
        return lambda name: name
    return keyed(secret_key(config.path(config.privacy.key_file or config.store.path / "pseudonym.key")))


def secret_key(file: Path) -> bytes:
    """The key that a file holds; made on first use with mode 0600. Raises StoreError when the file holds no key."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and linked: two processes that begin at once see one whole key or none, never half of one.
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    if not file.exists():
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(secrets.token_hex(KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(partial, file)
        partial.unlink()
    try:
        key = bytes.fromhex(file.read_text(encoding="utf-8").strip())
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise StoreError(
            f"{file} must hold at least {KEY_BYTES} bytes as hexadecimal digits; restore it from your backup"
        )
    return key


def keyed(key: bytes) -> Callable[[str], str]:
    """The pseudonym under a key; the same name always gets the same one.

    >>> keyed(bytes(32))("client-17")
    'h1-afc62b397a6c56321410529d7b8688ba'
    """

    @lru_cache(maxsize=65_536)  # a flood of new names must not grow the process
    def name_of(name: str) -> str:
        return "h1-" + hmac.new(key, name.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:32]

    return name_of
