"""HTTP calls that end: a deadline over the whole call and a bound on the answer, for every sink that speaks HTTP."""

from __future__ import annotations

import ipaddress
import socket
import threading
from contextlib import suppress
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError

ANSWER_BYTES: Final = 1 << 20


def never_connected(error: Exception) -> bool:
    """Whether a requests.ConnectionError means that nothing was sent at all."""
    inner = error.args[0] if error.args else None
    reason = inner.reason if isinstance(inner, MaxRetryError) else inner
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)


def loopback(host: str) -> bool:
    """Whether a name or address is of this machine alone.

    >>> loopback("127.0.0.1"), loopback("::1"), loopback("siem.example.org")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_call = threading.local()


class _Http(HTTPConnection):
    def getresponse(self) -> Any:
        _call.sockets.append(self.sock)
        return super().getresponse()


class _Https(HTTPSConnection):
    def getresponse(self) -> Any:
        _call.sockets.append(self.sock)
        return super().getresponse()


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


class Bounded(HTTPAdapter):
    """Ends a call at its deadline, however slowly the answer drips, and bounds its size.

    The time-out of the client is per read: one byte every four seconds would hold a sender for ever.
    """

    limit_s: float = 5.0

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        sockets: list[socket.socket] = []
        _call.sockets = sockets

        def cut() -> None:
            for s in sockets:
                with suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.limit_s, cut)
        timer.daemon = True
        timer.start()
        try:
            response = super().send(request, True, timeout, verify, cert, proxies)
            content = response.raw.read(ANSWER_BYTES + 1, decode_content=True)
        except requests.RequestException:
            raise
        except (OSError, HTTPError) as e:
            raise requests.ConnectionError(f"the answer broke off: {type(e).__name__}") from e
        finally:
            timer.cancel()
        if len(content) > ANSWER_BYTES:
            response.close()
            raise requests.ConnectionError("the answer is too long")
        response.raw.release_conn()
        response._content = content  # noqa: SLF001  what `stream=False` would have done, but bounded
        response._content_consumed = True  # noqa: SLF001
        return response
