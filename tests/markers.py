"""The markers of the suite: fails, in CI, a test that takes over ten seconds without one that says so.

Counted are the test and the fixtures that are its own, not those that others share with it. The markers of
all tests that were collected are kept, those left out by `-m` included.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LIMIT_SECONDS = float(os.environ.get("DORADO_TEST_SECONDS", "10"))
MAY_TAKE_LONGER = ("engine", "run", "slow", "network", "compiler")
SECONDS = pytest.StashKey[float]()
MARKERS = pytest.StashKey[dict[str, set[str]]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the markers of every test, before any is left out."""
    config.stash[MARKERS] = {
        item.nodeid: {mark.name for mark in item.iter_markers()} for item in items
    }


class _Stopwatch:
    """Seconds that a test takes by itself: on a busy machine none is slow for waiting for a core.

    The time on this thread's core, or the time that passed without that in which the machine had more to do
    than it has cores (pressure stall information), whichever is more. So a test that only waits is not found
    on a machine that is busy, and none is found wrongly.
    """

    def __init__(self) -> None:
        self.began = time.thread_time(), time.monotonic() - _stalled()

    def seconds(self) -> float:
        return max(
            time.thread_time() - self.began[0], time.monotonic() - _stalled() - self.began[1]
        )


def _stalled() -> float:
    """Seconds since the start in which something waited for a core; 0 where the kernel does not say."""
    try:
        pressure = Path("/proc/pressure/cpu").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return float(pressure.split("total=")[1].split()[0]) / 1e6


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Iterator[None]:
    """Count a test's own fixtures, not those that others share with it."""
    watch = _Stopwatch()
    result = yield
    if fixturedef.scope == "function":
        stash = request.node.stash
        stash[SECONDS] = stash.get(SECONDS, 0.0) + watch.seconds()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """In CI, fail a test that takes over ten seconds without a marker that says so."""
    watch = _Stopwatch()
    result = yield
    took = item.stash.get(SECONDS, 0.0) + watch.seconds()
    if os.environ.get("CI") and took > LIMIT_SECONDS and not _may_take_longer(item):
        pytest.fail(
            f"took {took:.1f} s; over {LIMIT_SECONDS:g} s it needs one of the markers "
            f"{', '.join(MAY_TAKE_LONGER)} (docs/testing.md)",
            pytrace=False,
        )
    return result


def _may_take_longer(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in MAY_TAKE_LONGER)
