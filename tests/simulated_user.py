"""The dashboard's pages over a folder of runs, by NiceGUI's own simulation of a browser."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nicegui.testing import User
from nicegui.testing.user_simulation import user_simulation

from rl.dashboard.run_data import RunsFolder
from rl.dashboard.server import add_pages


@asynccontextmanager
async def simulated_user(runs: Path, note: str = "") -> AsyncIterator[User]:
    """A user who can open every page."""
    modules = dict(sys.modules)
    async with user_simulation() as user:
        add_pages(RunsFolder(runs, note, cache=runs / ".cache"))
        yield user
    # It forgets the modules that have pages and the packages above them; other tests still use those.
    sys.modules.update(modules)
