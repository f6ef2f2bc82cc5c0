"""The console command `dorado`, and `python -m rl`: signals are heard while the command line is imported.

That takes a second, and until a command hears signals itself nothing has begun.
"""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Entry point of the console command."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # One that was ignored from the beginning (`nohup`) stays so.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)

    from rl.cli import main as command_line

    command_line()


def _end(number: int, frame: FrameType | None) -> None:
    """Say that the command was interrupted, and end this process, which has no other one yet."""
    sys.stdout.flush()
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
