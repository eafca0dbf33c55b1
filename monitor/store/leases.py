"""Leases with fencing tokens: at most one owner at a time, and a late owner's writes are refused.

A lease is a row. Whoever finds it free or expired takes it and bumps its epoch; a holder renews without a new epoch.
A paused holder that wakes up after its lease was taken still believes in its old epoch, and every write that carries
an old epoch changes no row (see `ledger.commit`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import sqlalchemy as sa

from monitor.errors import FencedOut
from monitor.model import SECOND_US
from monitor.store.engine import write
from monitor.store.schema import leases, models

RENEWALS = 3  # times that a lease is renewed before it would run out, while its holder works


def acquire(
    engine: sa.Engine, name: str, owner: str, now_us: int, ttl_us: int, *, model_id: str | None = None
) -> int | None:
    """Take or renew the lease; its epoch, or None while another owner holds it.

    With `model_id` the model's row carries the epoch too, in the same transaction: that is the fence of ticks.
    """
    with write(engine) as conn:
        row = conn.execute(sa.select(leases).where(leases.c.name == name).with_for_update()).one_or_none()
        if row is None:
            epoch = 1
            conn.execute(leases.insert().values(name=name, owner=owner, epoch=epoch, expires_us=now_us + ttl_us))
        elif row.owner == owner:  # even expired: had anyone else taken it, the row would name them
            conn.execute(leases.update().where(leases.c.name == name).values(expires_us=now_us + ttl_us))
            return int(row.epoch)
        elif row.expires_us > now_us:
            return None
        else:
            epoch = int(row.epoch) + 1
            conn.execute(
                leases.update()
                .where(leases.c.name == name)
                .values(owner=owner, epoch=epoch, expires_us=now_us + ttl_us)
            )
        if model_id is not None:
            conn.execute(models.update().where(models.c.model_id == model_id).values(epoch=epoch))
        return epoch


def renew(engine: sa.Engine, name: str, owner: str, epoch: int, expires_us: int) -> None:
    """Hold the lease for longer; FencedOut when another owner has taken it."""
    with write(engine) as conn:
        confirm(conn, name, owner, epoch)
        conn.execute(leases.update().where(leases.c.name == name).values(expires_us=expires_us))


def release(engine: sa.Engine, name: str, owner: str) -> None:
    """Give the lease back early, so that a successor need not wait for it to expire."""
    with write(engine) as conn:
        conn.execute(leases.update().where(leases.c.name == name, leases.c.owner == owner).values(expires_us=0))


def confirm(conn: sa.Connection, name: str, owner: str, epoch: int) -> None:
    """Inside a write transaction: FencedOut unless this lease is still ours; nobody can take it until we commit."""
    mine = (leases.c.name == name) & (leases.c.owner == owner) & (leases.c.epoch == epoch)
    if conn.execute(sa.select(leases.c.epoch).where(mine).with_for_update()).one_or_none() is None:
        raise FencedOut(f"the lease {name} has passed to another process")


@dataclass
class Hold:
    """A lease while its holder works: renewed on the way, so that nobody takes it over from a busy process.

    Time is the `now` it was taken at and what has passed since, so that holders with a clock of their own renew as well.
    """

    engine: sa.Engine
    name: str
    owner: str
    epoch: int
    now_us: int
    ttl_us: int
    began: float = field(default_factory=time.monotonic)
    renewed: float = field(default_factory=time.monotonic)
    lost: bool = False

    def keep(self) -> None:
        """Renew after a third of the lease. Called from deep inside the work, it never raises: one that was lost by standing still
        for longer than it lasts is not taken back, and the commit is refused.
        """
        now = time.monotonic()
        if self.lost or now - self.renewed < self.ttl_us / SECOND_US / RENEWALS:
            return
        expires_us = self.now_us + round((now - self.began) * SECOND_US) + self.ttl_us
        try:
            renew(self.engine, self.name, self.owner, self.epoch, expires_us)
        except FencedOut:
            self.lost = True
        self.renewed = now
