"""What the configuration says about severities; the defaults page somebody only for what is named, large or lasting."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from monitor.config.fields import Duration, Section, SeverityName
from monitor.model import Event, Family

Steps = Annotated[int, Field(ge=-3, le=3)]


class Severities(Section):
    """Where an incident begins, and the steps from there; never under warning or over critical."""

    events: dict[Event, SeverityName] = {}
    """Where incidents of an event begin, instead of the table in docs/alerts.md: {FeatureDrift: warning}."""
    families: dict[Family, SeverityName] = {}
    """The same for a family, before the event: {membership: critical}."""
    tiers: tuple[Steps, Steps, Steps] = (1, 0, -1)
    """Steps for a model of tier 1, 2 and 3."""
    lasting: Duration = 86_400.0
    """An incident that lasts for so long is one step more severe, by an update; 0 switches it off."""
    evidence: float = Field(default=1e6, ge=0)
    """Evidence about a caller or labeler that is so many times above its alarm level is one step more; 0 switches it off."""
