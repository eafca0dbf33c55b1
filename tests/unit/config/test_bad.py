"""One bad file per mistake, each with the exact message it must get."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.config import load
from monitor.errors import ConfigError

BAD = Path(__file__).with_name("bad")


@pytest.mark.parametrize("file", sorted(BAD.glob("*.yaml")), ids=lambda f: f.stem)
def test_mistake_is_named_with_its_line(file: Path) -> None:
    """A bad file gets exactly the messages that its last lines expect, and never shows a secret."""
    lines = file.read_text().splitlines()
    given = dict(line.removeprefix("# env: ").split("=", 1) for line in lines if line.startswith("# env: "))
    env = {name: value.replace("\\n", "\n") for name, value in given.items()}
    wanted = [line.removeprefix("# expect: ") for line in lines if line.startswith("# expect: ")]
    with pytest.raises(ConfigError) as raised:
        load(file, env=env)
    assert [str(m).removeprefix(f"{file}:").strip() for m in raised.value.mistakes] == wanted
    assert "hidden" not in str(raised.value)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is a configuration mistake with a plain sentence."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load(tmp_path / "nowhere.yaml")
