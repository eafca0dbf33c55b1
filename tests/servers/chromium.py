"""Chromium: the browser that playwright drives, from PATH or, as root on Debian, installed with apt."""

from __future__ import annotations

import re
import subprocess

from tests import servers

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str:
    """The path of the browser, for playwright's `executable_path`; start it with `ARGS`."""
    path = servers.tool(NAMES, "chromium", "Looking at the page in a real browser")
    said = subprocess.run([path, "--version", "--no-sandbox"], capture_output=True, text=True, check=False).stdout
    number = re.search(r"\d+(\.\d+)+", said)
    servers.USED["Chromium"] = f"{number[0] if number else 'unknown version'}, {path}"
    return path
