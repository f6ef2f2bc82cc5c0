"""Something to ask in a probe's process; light, since that imports it anew."""

import os
import subprocess
import sys
import time


class Counter:
    """`start` leaves a process of its own there."""

    def add(self, one: int, other: int) -> int:
        return one + other

    def fail(self) -> None:
        raise ValueError("no such thing\nand more")

    def end(self) -> None:
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)

    def start(self) -> int:
        return subprocess.Popen(["sleep", "600"]).pid

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)
