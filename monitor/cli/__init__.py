"""The `lanner` command."""

def main() -> None:
    raise SystemExit("lanner: no commands yet")
