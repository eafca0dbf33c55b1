"""The dead-man's switch: a request whose absence pages somebody, at a service that is not ours."""

from __future__ import annotations

from typing import Final

import requests

from alerts.wire import Bounded
from monitor.errors import DependencyUnreachable

TIMEOUT_S: Final = 5.0


def ping(url: str, timeout_s: float = TIMEOUT_S) -> None:
    """GET `url`; any answer below 400 counts. Raises DependencyUnreachable without the address, which is a secret."""
    adapter = Bounded()
    adapter.limit_s = timeout_s
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        try:
            answer = session.get(url, timeout=timeout_s, allow_redirects=False)
        except requests.RequestException as error:
            raise DependencyUnreachable(f"the dead-man's switch does not answer ({type(error).__name__})") from None
    if answer.status_code >= 400:
        raise DependencyUnreachable(f"the dead-man's switch answered {answer.status_code}")
