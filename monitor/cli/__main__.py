"""`python -m monitor.cli`: how `lanner run` starts its parts under the same interpreter."""

from monitor.cli import main

main()
