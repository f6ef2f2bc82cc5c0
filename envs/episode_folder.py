"""A folder of one episode's own: for the state of servers and commands that its tools run.

It is made when it is first asked for, and removed by `remove`, which `close` has to call.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

MARK = "{episode}"


class EpisodeFolder:
    """`path` is the folder; `fill` puts it, or the episode's name, in the place of `{episode}`."""

    def __init__(self) -> None:
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(prefix="dorado-episode-"))
        return self._path

    @property
    def name(self) -> str:
        """A name that no other episode has, for what takes no path."""
        return self.path.name

    def fill(self, text: str) -> str:
        """The text with the folder's path in the place of `{episode}`."""
        return text.replace(MARK, str(self.path)) if MARK in text else text

    def remove(self) -> None:
        """Remove the folder with all that is in it; a further `path` makes a new one."""
        path, self._path = self._path, None
        if path is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(path)
