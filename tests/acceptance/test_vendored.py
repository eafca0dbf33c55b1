"""The files that the page vendors are byte for byte those of the packages they are said to come from."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from monitor.web.assets import vendored


@pytest.mark.parametrize("entry", vendored(), ids=lambda e: e["file"])
def test_a_vendored_file_is_its_packages(entry: dict[str, str], tmp_path: Path) -> None:
    """Fetching the package anew with npm gives the same bytes as the list and the folder hold."""
    name = entry["package"].removeprefix("npm:")
    packed = subprocess.run(
        ["npm", "pack", "--json", "--silent", f"{name}@{entry['version']}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = json.loads(packed.stdout)
    file = (
        (listed if isinstance(listed, list) else list(listed.values()))[0]["filename"]
        .replace("@", "")
        .replace("/", "-")
    )
    with tarfile.open(fileobj=io.BytesIO((tmp_path / file).read_bytes())) as archive:
        member = archive.extractfile(f"package/{entry['path']}")
        assert member is not None
        assert hashlib.sha256(member.read()).hexdigest() == entry["sha256"]
