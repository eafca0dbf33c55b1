"""Forks workers from a process that has imported everything and opened nothing, so that a crash costs little time.

Reads one JSON command a line: {"fork": Job} answers {"pid"}; {"wait": pid} answers {"signal"} or {"said"}.
"""

from __future__ import annotations

import os
import sys
import traceback

import msgspec

from tests.crash.worker import Job, run


def main() -> None:
    """Serve commands until the input ends."""
    said: dict[int, int] = {}
    for line in sys.stdin:
        command = msgspec.json.decode(line)
        if "fork" in command:
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                _child(msgspec.convert(command["fork"], Job, strict=False), writer)
            os.close(writer)
            said[pid] = reader
            answer: dict[str, object] = {"pid": pid}
        else:
            pid = command["wait"]
            _, status = os.waitpid(pid, 0)
            with os.fdopen(said.pop(pid)) as pipe:
                words = pipe.read()
            answer = {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"said": words}
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()


def _child(job: Job, writer: int) -> None:
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 0)  # the command line belongs to the parent
    os.dup2(2, 1)
    try:
        word = run(job)
    except BaseException:
        word = traceback.format_exc()
    os.write(writer, word.encode()[-60_000:])
    os._exit(0)


if __name__ == "__main__":
    main()
