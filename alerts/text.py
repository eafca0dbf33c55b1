"""The words of an alert: fixed sentences of ours, numbers, and ids from logs made harmless.

Everything that comes from logs is hostile. Alerta's page renders text, value and attributes as HTML, terminals obey
escape sequences, and right-to-left marks reorder a line. So what is quoted from a log passes `shown`, which leaves
letters, digits and a few signs and spells out the rest; then one text is safe in every sink.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from alerts.base import tells_of_many
from alerts.policy import RAISED, RAISES
from monitor.model import SECOND_US, UNREGISTERED, Action, Alert, Event, Family, finite, rfc3339

_SAFE: Final = frozenset(" -_.,:;/@+#()[]*?!%~|")  # beside letters and digits
PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,59}")  # of a model that an address can name as it is
LINE_CHARS: Final = 240  # longest line; six of them stay under the 1,500 characters that sinks cut at

TITLES: Final[Mapping[Event, str]] = {
    Event.FEATURE_DRIFT: "Feature drift",
    Event.PREDICTION_DRIFT: "Prediction drift",
    Event.PERFORMANCE_DECAY: "Performance decay",
    Event.DISTRIBUTION_BREAK: "Break in one window",
    Event.DATA_QUALITY: "Data quality",
    Event.TRAFFIC_ANOMALY: "Unusual traffic",
    Event.ATTACK_SUSPECTED: "Attack suspected",
    Event.POISONING_SUSPECTED: "Poisoning suspected",
    Event.PROMPT_INJECTION_SUSPECTED: "Prompt injection suspected",
    Event.DATA_LEAK_SUSPECTED: "Data leak suspected",
    Event.ABUSE_SUSPECTED: "Abuse suspected",
    Event.ACCESS_ANOMALY: "Unusual access",
    Event.UNREGISTERED_MODEL: "Events of an unknown model",
    Event.DATA_MISSING: "Data missing",
    Event.DETECTOR_FAILED: "Detector failed",
    Event.DETECTOR_SILENT: "Detector silent",
    Event.DELIVERY_DEGRADED: "Alert delivery degraded",
    Event.MONITOR_DEGRADED: "Monitor degraded",
}

FAMILY_TITLES: Final[Mapping[Family, str]] = {
    Family.EXTRACTION: "Model extraction suspected",
    Family.EVASION: "Evasion suspected",
    Family.MEMBERSHIP: "Membership inference suspected",
    Family.INVERSION: "Model inversion suspected",
    Family.ANOMALY: "Attack suspected",
}

LOOKALIKES: Final[Mapping[Event, str]] = {  # benign things that look the same
    Event.FEATURE_DRIFT: "a new version upstream, a campaign or season, a changed unit or default",
    Event.PREDICTION_DRIFT: "a new model version, a changed threshold, a changed customer mix",
    Event.PERFORMANCE_DECAY: "late or relabelled outcomes, a changed definition of the label",
    Event.DISTRIBUTION_BREAK: "one batch job or one large customer",
    Event.DATA_QUALITY: "a schema change upstream, a client on an old version",
    Event.TRAFFIC_ANOMALY: "a holiday, a batch job, a load test, a retry storm",
    Event.ATTACK_SUSPECTED: "a batch re-score, a what-if tool, an explainer, a load test, a penetration test",
    Event.POISONING_SUSPECTED: "a new labelling team or guideline, a retraining that nobody marked",
    Event.PROMPT_INJECTION_SUSPECTED: "text that quotes instructions, a red-team exercise",
    Event.DATA_LEAK_SUSPECTED: "test records, data the caller already sent",
    Event.ABUSE_SUSPECTED: "a new feature of a client, a retry storm",
    Event.ACCESS_ANOMALY: "a new office, a rotated credential, a job that moved",
    Event.UNREGISTERED_MODEL: "a model that was deployed before it was configured here, a spelling",
    Event.DATA_MISSING: "a planned stop, a quiet hour that the reference did not have",
    Event.DETECTOR_FAILED: "an upgrade with an old calibration",
    Event.DETECTOR_SILENT: "a paused schedule, a very large backlog",
    Event.DELIVERY_DEGRADED: "maintenance of the alert console",
    Event.MONITOR_DEGRADED: "maintenance of the store or the broker",
}

STEPS: Final[Mapping[Event, str]] = {  # the first reversible steps; the runbook has the rest
    Event.FEATURE_DRIFT: "1 compare the named features with the reference  2 ask its owner what changed",
    Event.PREDICTION_DRIFT: "1 check for a new model version  2 look whether features drift as well",
    Event.PERFORMANCE_DECAY: "1 check that labels are complete  2 compare by segment",
    Event.DISTRIBUTION_BREAK: "1 look at the largest callers of that window",
    Event.DATA_QUALITY: "1 find the first bad event  2 ask the sender what changed",
    Event.TRAFFIC_ANOMALY: "1 look at the largest callers  2 ask operations for jobs and incidents",
    Event.ATTACK_SUSPECTED: "1 confirm the owner of the client  2 throttle it (reversible)",
    Event.POISONING_SUSPECTED: "1 stop training on what came since  2 sample it by hand",
    Event.PROMPT_INJECTION_SUSPECTED: "1 read the session  2 revoke the tools it can reach",
    Event.DATA_LEAK_SUSPECTED: "1 stop the answer path  2 tell the privacy officer",
    Event.ABUSE_SUSPECTED: "1 confirm the owner of the client  2 lower its quota",
    Event.ACCESS_ANOMALY: "1 confirm with the owner of the credential  2 rotate it",
    Event.UNREGISTERED_MODEL: "1 find who deployed it  2 add it to the configuration or stop the sender",
    Event.DATA_MISSING: "1 check the gateway and the topic  2 look for lag with lanner doctor",
    Event.DETECTOR_FAILED: "1 read the error in the evidence  2 recalibrate",
    Event.DETECTOR_SILENT: "1 look at the log of the scheduler  2 restart it; missed windows are caught up",
    Event.DELIVERY_DEGRADED: "1 lanner outbox list  2 check the sink, its key and the network",
    Event.MONITOR_DEGRADED: "1 lanner doctor  2 check disk, store and broker",
}


def shown(text: object, limit: int = 80) -> str:
    r"""A word from a log as it may be shown anywhere: no markup, no control or direction characters, bounded.

    >>> shown("client-7 <img src=x>")
    'client-7 \\x3cimg src\\x3dx\\x3e'
    >>> shown("a" * 100, limit=8)
    'aaaaaaa…'
    """
    out: list[str] = []
    length = 0
    for char in str(text):
        code = ord(char)
        word = char if char.isalnum() or char in _SAFE else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
        if length + len(word) > limit - 1:
            out.append("…")
            break
        out.append(word)
        length += len(word)
    return "".join(out)


def number(value: float | None) -> str:
    """Two significant digits, so that the text changes only when the number moves by some ten percent.

    >>> number(0.3142), number(12345.0), number(None), number(5e-7)
    ('0.31', '12000', '-', '5e-07')
    """
    if value is None:
        return "-"
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if 10 <= abs(rounded) < 1e9 else f"{rounded:.2g}"


def measure(alert: Alert) -> str:
    """The one number of an alert: its statistic against the threshold, or the evidence that was weighed."""
    if alert.statistic is not None:
        line = f" over {number(alert.threshold)}" if alert.threshold is not None else ""
        return f"statistic {number(alert.statistic)}{line}"
    if alert.log_e is not None:
        return f"evidence e^{number(alert.log_e)}"
    return "no statistic"


def about(alert: Alert) -> str:
    """Who or what the alert is about, in words."""
    if alert.subject.kind == "model":
        return shown(alert.model)
    on = "" if alert.model == UNREGISTERED else f" on {shown(alert.model)}"
    kind = "" if tells_of_many(alert.subject) else f"{alert.subject.kind} "
    return f"{kind}{shown(alert.subject.id)}{on}"


def title(alert: Alert) -> str:
    """The headline: what is suspected, and on what."""
    words = TITLES[alert.event]
    if alert.event is Event.ATTACK_SUSPECTED:
        words = FAMILY_TITLES.get(alert.family, words)
    return f"{words}: {about(alert)}"


def render(alert: Alert, action: Action, *, tier: int) -> str:
    """The text of an alert: headline, WHY, WHAT, NOT, DO, LINK; six lines at most, safe in every sink."""
    head = "CLEARED" if action is Action.CLEAR else alert.severity.value.upper()
    owned = f" (tier {tier}, owner: {shown(alert.owner) if alert.owner else 'not set'})"
    steps = f"DO    {STEPS[alert.event]}  3 runbook {shown(alert.runbook, 120)}  4 record a verdict"
    lines = [
        f"[{head}] {title(alert)}{'' if alert.model == UNREGISTERED else owned}",
        _why(alert),
        _what(alert, action),
    ]
    if action is not Action.CLEAR:
        lines += [_not(alert), steps]
    lines.append(_link(alert))
    return "\n".join(line if len(line) <= LINE_CHARS else line[: LINE_CHARS - 1] + "…" for line in lines)


def _why(alert: Alert) -> str:
    version = alert.evidence.get("detector_version")
    parts = [
        f"{measure(alert)}, detector {shown(alert.detector)}{'' if version is None else f' v{shown(version, 20)}'}"
    ]
    if alert.statistic is not None and alert.log_e is not None:
        parts.append(f"evidence e^{number(alert.log_e)}")
    if alert.p_value is not None:
        parts.append(f"p {number(alert.p_value)}")
    if alert.n is not None:
        parts.append(f"n {alert.n:,}")
    others = [d.get("name") for d in _objects(alert.evidence.get("detectors")) if d.get("name") != alert.detector]
    if others:
        parts.append("also " + ", ".join(shown(name, 30) for name in others[:3]))
    return "WHY   " + ", ".join(parts)


def _what(alert: Alert, action: Action) -> str:
    if action is Action.CLEAR:
        reason = alert.evidence.get("reason")
        after = duration(alert.updated_us - alert.opened_us)
        if isinstance(said := alert.evidence.get("verdict"), Mapping):
            reason = f"verdict {said.get('verdict')} by {shown(said.get('by'), 40)}: {shown(said.get('why'), 120)}"
            return f"WHAT  closed after {after}, {reason}"
        return f"WHAT  over after {after}" + (f", reason: {shown(reason)}" if reason else "")
    parts = [f"first seen {rfc3339(alert.opened_us)}", "quiet for 24 h" if alert.quiet else "still active"]
    sizes = {str(c.get("name")): f" ({change(c)})" for c in _objects(alert.evidence.get("changes"))[:2]}
    features = [
        shown(f.get("name"), 40) + _percent(f.get("share")) + sizes.get(str(f.get("name")), "")
        for f in _objects(alert.evidence.get("features"))
    ]
    if features:
        more = f" and {len(features) - 5} more" if len(features) > 5 else ""
        parts[:0] = [
            "features " + ", ".join(features[:5]) + more,
            *reasons(alert.evidence),
            *effects(alert.evidence)[:1],
        ]
    parts[:0] = _queries(alert.evidence)
    if words := usual(alert.evidence):
        parts.insert(0, words)
    principals = alert.evidence.get("principals")
    if isinstance(principals, list) and len(principals) > 1:
        tie = alert.evidence.get("tied_by")
        shared = f" of one {tie}" if isinstance(tie, str) else ""
        parts.insert(0, f"{len(principals)} principals{shared}")
    if raised := [words for reason, words in RAISES.items() if reason in alert.evidence.get(RAISED, ())]:
        parts.append("more severe because " + " and ".join(raised))
    like = alert.evidence.get("look_alike")
    if isinstance(like, Mapping) and like.get("why"):  # then it is no more than a warning
        parts.append(f"looks like a tool ({shown(like.get('profile'), 20)}): {shown(like['why'])}")
    elif held := alert.evidence.get("bounded"):
        parts.append(f"not more severe yet: {shown(held)}")
    if flapping := alert.evidence.get("flapping"):
        parts.append(f"comes and goes ({number(flapping)} times in a day): closes after 6 h of calm")
    if detail := alert.evidence.get("detail") or alert.evidence.get("reason"):
        parts.insert(0, shown(detail, 100))
    return "WHAT  " + "; ".join(parts)


def _queries(evidence: Mapping[str, Any]) -> list[str]:
    """How much a caller asked, how much of it spoke against it, and what it looks like."""
    told = []
    if isinstance(queries := evidence.get("queries"), int):
        flagged = evidence.get("flagged")
        told.append(f"{queries:,} queries" + (f", {flagged:,} of them flagged" if isinstance(flagged, int) else ""))
    if technique := evidence.get("technique"):
        told.append(f"looks like {shown(technique, 40).replace('_', ' ')}{_percent(evidence.get('confidence'))}")
    return told + exposure(evidence)


def exposure(evidence: Mapping[str, Any]) -> list[str]:
    """What the answers had given away when it was last read; of a cluster, whose members may share rows, as bounds.

    >>> exposure({"exposure": {"distinct_rows": 1024, "kappa": 0.614}})
    ['exposure last read: 1,024 rows, kappa 0.61']
    >>> exposure({"principals": ["a", "b", "c"], "exposure": {"distinct_rows": 1280, "kappa": 0.614, "callers": 2}})
    ['exposure last read: at most 1,280 rows of 2 of them, kappa at least 0.61']
    >>> exposure({"exposure": {"distinct_rows": 1024, "no_kappa": "the answers have no labels"}})
    ['exposure last read: 1,024 rows']
    """
    said = evidence.get("exposure")
    rows, kappa = (said.get(k) if isinstance(said, Mapping) else None for k in ("distinct_rows", "kappa"))
    if not isinstance(said, Mapping) or not isinstance(rows, int):
        return []
    copy = number(kappa) if isinstance(kappa, int | float) else None
    if not isinstance(callers := said.get("callers"), int):
        return [f"exposure last read: {rows:,} rows" + (f", kappa {copy}" if copy else "")]
    some = "" if callers == len(evidence.get("principals", ())) else f" of {callers} of them"
    return [f"exposure last read: at most {rows:,} rows{some}" + (f", kappa at least {copy}" if copy else "")]


def usual(evidence: Mapping[str, Any]) -> str:
    """How often a break of one window comes without any change; empty where the evidence does not tell.

    >>> usual({"expected": {"windows": 720, "at_times": 3.0, "shuffled_rows": 0.0, "shuffled_days": 3.6}})
    'outside the budget: 0 to 3.6 in 720 windows are 3 times stranger without any change'
    """
    told = evidence.get("expected")
    keys = ("shuffled_rows", "shuffled_days", "windows", "at_times")
    known = [finite(told.get(k)) if isinstance(told.get(k), int | float) else None for k in keys] if isinstance(told, Mapping) else []  # fmt: skip
    if not known or None in known:
        return ""
    rows, days, windows, times = map(number, known)
    return f"outside the budget: {rows} to {days} in {windows} windows are {times} times stranger without any change"


def change(found: Mapping[str, Any]) -> str:
    """How far a drifting feature moved, in its own unit.

    >>> change({"measure": "mean", "before": 40.2, "after": 81.0, "unit": "EUR"})
    'mean 40 to 81 EUR'
    """
    before, after = (number(finite(v) if isinstance(v, int | float) else None) for v in (found.get("before"), found.get("after")))  # fmt: skip
    unit = f" {shown(found['unit'], 12)}" if found.get("unit") else ""
    return f"{shown(found.get('measure'), 40)} {before} to {after}{unit}"


def reasons(evidence: Mapping[str, Any]) -> list[str]:
    """Whose rows explain a drift, what looks broken, and which version came with it: one short sentence each."""
    told = []
    if isinstance(by := evidence.get("explained_by"), Mapping):
        told.append(f"{by.get('kind')} {group(by)} explains it{_percent(by.get('explains'))}")
    for cause in _objects(evidence.get("causes"))[:2]:
        what = number(cause["factor"]) if cause.get("factor") else shown(cause["value"], 20) if "value" in cause else ""
        sign = " x" if cause.get("factor") else " " if what else ""
        told.append(f"{shown(cause.get('name'), 40)}: {cause.get('cause')}{sign}{what}{_percent(cause.get('share'))}")
    new = [shown(v.get("version"), 20) for v in _objects(evidence.get("versions")) if v.get("first_seen")]
    return told + ([f"model version {', '.join(new)} came with it"] if new else [])


def effects(evidence: Mapping[str, Any]) -> list[str]:
    """What the drifting features by themselves do to the model's answer, one short sentence each."""
    return [
        f"{shown(e.get('name'), 40)} alone moves mean {shown(e.get('answer'), 40)} by {number(e['effect'])}"
        f" of {number(e['measured'])}"
        for e in _objects(evidence.get("effects"))
        if isinstance(e.get("effect"), int | float) and isinstance(e.get("measured"), int | float)
    ]


def group(found: Mapping[str, Any]) -> str:
    """A group of rows in words: a caller or version by its name, a category by feature and value."""
    whole = found.get("kind") in ("principal", "version")
    return (
        shown(found.get("value"), 40) if whole else f"{shown(found.get('feature'), 30)} {shown(found.get('value'), 30)}"
    )


def _not(alert: Alert) -> str:
    marks = [_mark(m) for m in _objects(alert.evidence.get("marks"))[:2]]
    known = "known here: " + ", ".join(marks) if marks else "no deploy, batch job or maintenance known here"
    if isinstance(nearest := alert.evidence.get("look_alike"), Mapping):
        why = f": {shown(nearest['why'], 200)}" if "why" in nearest else f", but {shown(nearest.get('why_not'), 200)}"
        known += f"; closest honest use {shown(nearest.get('profile'), 20)}{why}"
    return f"NOT   {known}; benign look-alikes: {LOOKALIKES[alert.event]}"


def _mark(mark: Mapping[str, Any]) -> str:
    """A mark in words; its kind only where its text does not begin with it."""
    kind, text = str(mark.get("kind")), str(mark.get("text"))
    words = text if text.casefold().startswith(kind.casefold()) else f"{kind} {text}"
    return f"{shown(words, 60)} at {shown(mark.get('at'), 30)}"


def _percent(share: object) -> str:
    known = finite(share) if isinstance(share, int | float) else None
    return "" if known is None else f" {100 * known:.0f}%"


def _report(alert: Alert) -> str:
    """Where the newest report for the model's owner is read; of what is about the model, when people can reach the page."""
    at = f"/incidents/{alert.alert_id}"
    about_model = alert.subject.kind in ("model", "segment") and alert.model != UNREGISTERED
    if not about_model or alert.page is None or not alert.page.endswith(at) or not PLAIN_NAME.fullmatch(alert.model):
        return ""
    return f"   report {shown(alert.page.removesuffix(at), 80)}/models/{alert.model}/reports/newest"


def _link(alert: Alert) -> str:
    techniques = f"   {' '.join(alert.techniques[:4])}" if alert.techniques else ""
    past = alert.evidence.get("before")
    earlier = ""
    if isinstance(past, Mapping):
        said = [f"{n} {what}" for what, n in sorted(past.items()) if what != "incidents"]
        n = past.get("incidents", 0)
        earlier = f"   before: {n} incident{'' if n == 1 else 's'}" + (f" ({', '.join(said)})" if said else "")
    where = shown(alert.page, 120) if alert.page else f"lanner alerts show {alert.alert_id}"
    report, rest = _report(alert), f"   seq {alert.seq}{techniques}{earlier}"
    fits = len(where) + len(report) + len(rest) + len("LINK  ") <= LINE_CHARS  # half an address is none
    return f"LINK  {where}{report if fits else ''}{rest}"


def _objects(value: object) -> Sequence[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def duration(length_us: int) -> str:
    """A length of time in its largest fitting unit.

    >>> duration(90 * 60 * SECOND_US), duration(3 * SECOND_US)
    ('90 min', '3 s')
    """
    seconds = max(0, length_us) // SECOND_US
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
