"""The command line from outside: in a process of its own, perhaps on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import NamedTuple

COMMAND = [sys.executable, "-c", "from tapeout.cli import main; main()"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def shell(*arguments: object) -> Ran:
    """Runs the command in a process of its own."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    return Ran(done.returncode, done.stdout, done.stderr)


def words(text: str) -> str:
    """The text without frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


class Terminal:
    """The command in a process whose standard error is a terminal."""

    def __init__(self, *arguments: object) -> None:
        self.screen, side = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=side, env=environment
        )
        os.close(side)
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 120.0) -> None:
        """Reads until the text was shown."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.screen], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} was not shown: {self.shown!r}"
            self._read()

    def finish(self) -> Ran:
        """Reads to the end."""
        while self._read():
            pass
        out = self.process.communicate(timeout=120)[0].decode()
        os.close(self.screen)
        return Ran(self.process.returncode, out, self.shown)

    def _read(self) -> bool:
        try:
            data = os.read(self.screen, 4096).decode(errors="replace")
        except OSError:  # how Linux says that the other side is closed
            return False
        self.shown += data
        return bool(data)
