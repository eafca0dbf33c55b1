"""Where the rows of a window come from: how much of them one caller, one network, one labeler sent. A reading, no test.

What share is too much depends on the model: one batch client may rightly send nearly all. So nothing here alarms; people
read it beside what does.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from detectors.habits import Ints, encoded
from monitor.model import network

COLUMNS: Final = ("principal", "source_ip")
ADDRESSES: Final = 10_000  # busiest addresses of a window that are told apart: a flood of them must not cost time


def busiest(code: Ints, names: tuple[str, ...]) -> tuple[int, str | None, float]:
    """How many there are, which has most rows (of equals the last name) and its share; code: -1 for rows without one.

    >>> busiest(np.array([0, 1, 1, -1]), ("a", "b"))
    (2, 'b', 0.6667)
    """
    counts = np.bincount(code[code >= 0], minlength=len(names))
    if not counts.sum():
        return 0, None, 0.0
    top = max(np.flatnonzero(counts == counts.max()).tolist(), key=lambda i: names[i])
    return int((counts > 0).sum()), names[top], round(float(counts[top] / counts.sum()), 4)


def concentration(rows: pa.Table) -> dict[str, Any]:
    """Of the window's rows (COLUMNS): callers and networks, the busiest of each with its share, and the network from which
    most callers came with how many. What the log does not name is left out.

    >>> rows = pa.table({"principal": ["a", "a", "b", "c"], "source_ip": ["10.0.0.1", "10.0.0.2", "10.0.0.9", "10.1.0.1"]})
    >>> told = concentration(rows)
    >>> told["callers"], told["busiest_caller"], told["busiest_caller_share"]
    (3, 'a', 0.5)
    >>> told["networks"], told["busiest_network"], told["busiest_network_share"], told["callers_of_one_network"]
    (2, '10.0.0.0/24', 0.75, 2)
    """
    told: dict[str, Any] = {}
    who, names = encoded(rows, "principal")
    n, caller, share = busiest(who, names)
    if n:
        told |= {"callers": n, "busiest_caller": caller, "busiest_caller_share": share}
    address, addresses = encoded(rows, "source_ip")
    where, networks = _networks(address, addresses)
    n, net, share = busiest(where, networks)
    if n:
        told |= {"networks": n, "busiest_network": net, "busiest_network_share": share}
        both = np.unique(np.stack([where, who])[:, (where >= 0) & (who >= 0)], axis=1)
        k, crowded, _ = busiest(both[0], networks)
        if k:
            most = int(np.bincount(both[0]).max())
            told |= {"crowded_network": crowded, "callers_of_one_network": most}
    return told


def _networks(code: Ints, addresses: tuple[str, ...]) -> tuple[Ints, tuple[str, ...]]:
    counts = np.bincount(code[code >= 0], minlength=len(addresses))
    known = np.argsort(-counts, kind="stable")[:ADDRESSES]
    place: dict[str, int] = {}
    table = np.full(len(addresses) + 1, -1, np.int64)
    for i in known.tolist():
        table[i] = place.setdefault(network(addresses[i]), len(place))
    return table[code], tuple(place)
