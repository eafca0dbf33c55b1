"""Static files, read once at start and served under names that change with their content.

Everything the browser loads ships in the package: third-party files stand in `static/vendor` with version, licence and
SHA-256 in `vendor.json`, and a test compares them. Nothing is fetched from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "woff2": "font/woff2",
    "svg": "image/svg+xml",
}
_FONT: Final = "inter-5.3.0-latin.woff2"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file: its address, type and bytes."""

    url: str
    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Assets:
    """Every static file by its plain name and by its address."""

    by_name: Mapping[str, Asset]
    by_url: Mapping[str, Asset]

    def url(self, name: str) -> str:
        return self.by_name[name].url


def load() -> Assets:
    """Read the package's static files; the style sheet is one file that also holds the charts' part."""
    static = resources.files("monitor.web") / "static"
    files = {
        "htmx.js": (static / "vendor" / "htmx-4.0.1.min.js").read_bytes(),
        "inter.woff2": (static / "vendor" / _FONT).read_bytes(),
        "icon.svg": (static / "icon.svg").read_bytes(),
    }
    made = {name: _asset(name, body) for name, body in files.items()}
    css = chart_style() + (static / "lanner.css").read_text().replace("{{font}}", made["inter.woff2"].url)
    made["lanner.css"] = _asset("lanner.css", css.encode())
    return Assets(made, {a.url: a for a in made.values()})


def chart_style() -> str:
    """The style of the charts, which the report carries inside itself."""
    return (resources.files("monitor.reports") / "charts.css").read_text()


def vendored() -> list[dict[str, str]]:
    """What `static/vendor` must hold: file, package, version, licence, sha256."""
    listed: list[dict[str, str]] = json.loads(
        (resources.files("monitor.web") / "static" / "vendor" / "vendor.json").read_text()
    )
    return listed


def _asset(name: str, body: bytes) -> Asset:
    digest = hashlib.sha256(body).hexdigest()[:12]
    return Asset(f"/static/{digest}/{name}", _TYPES[name.rsplit(".", 1)[1]], body)
