"""The recorded run behind `dorado dashboard --demo`: a real quickstart, with a part of its trajectories.

`scripts/record_demo.py` makes the archive; here it is unpacked into a folder that goes away with
the dashboard.
"""

import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = "a recorded quickstart; it holds a part of its trajectories, and its last checkpoint without weights"
ARCHIVE = Path(__file__).parent / "demo.tar.xz"


@contextmanager
def demo_runs() -> Iterator[Path]:
    """A folder of runs that holds the recorded one."""
    # The server, once it has ended on this signal, raises it again.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with tempfile.TemporaryDirectory(prefix="dorado-demo-") as folder:
            unpack(Path(folder))
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def unpack(folder: Path) -> None:
    """Unpack the recorded run into `folder`, as its run `quickstart`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
