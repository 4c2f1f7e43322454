"""Contenders in processes of their own that work in turns, so that one run compares them fairly."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

WARM_UP = 3


class Contender:
    """A process that trains only when told to."""

    def __init__(self, *command: str) -> None:
        pipe = subprocess.PIPE
        arguments = [sys.executable, *command]
        self.process = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True)

    def ask(self, question: str) -> float:
        """Its answer to a line, once it has it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(question, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


class Turn:
    """The other side: called after every training step, it waits until more steps are wanted.

    A line on standard input is a number of steps, answered by the seconds they take once a few
    more have warmed up, or one of `figures`, answered by what it measures.
    """

    def __init__(self, **figures: Callable[[], float]) -> None:
        self.figures = {"memory": peak_memory, **figures}
        self.left, self.start = 0, 0.0
        self.wanted = 0

    def step(self) -> None:
        """Count a step that was made; raises SystemExit where no more are wanted."""
        self.left -= 1
        if self.left == self.wanted:
            self.start = time.perf_counter()
        elif self.left <= 0:
            if self.wanted:
                print(time.perf_counter() - self.start, flush=True)
            self._listen()

    def _listen(self) -> None:
        for line in sys.stdin:
            question = line.strip()
            if question not in self.figures:
                self.wanted = int(question)
                self.left = self.wanted + WARM_UP
                return
            print(self.figures[question](), flush=True)
        raise SystemExit


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
