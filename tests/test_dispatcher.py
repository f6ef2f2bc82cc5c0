"""Groups on controllers: what becomes of one whose controller dies or is silent."""

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, TaskCancelledError

from envs.env import Task
from rl import dispatcher
from rl.dispatcher import Dispatcher
from rl.engine_pool import NotTold
from rl.group import GroupSpec

SPEC = GroupSpec("g1", "probe", Task("probe", {}), ("g1.0",), train=True)


def playing(
    outcome: Any, monkeypatch: pytest.MonkeyPatch, announce: Any = None
) -> tuple[Dispatcher, list[str]]:
    """A dispatcher over one controller that answers with `outcome` (raised, if it is an error), or does not
    know who serves what until `announce` returns."""
    told = announce is None

    async def announced() -> None:
        nonlocal told
        await announce()
        told = True

    async def answer() -> Any:
        if not told:
            raise NotTold
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    play = SimpleNamespace(
        options=lambda num_returns: SimpleNamespace(remote=lambda spec: (answer(), "samples"))
    )
    lost: list[str] = []
    monkeypatch.setattr(dispatcher.ray, "cancel", lambda report: None)
    actors: Any = SimpleNamespace(controllers={"controller-0": SimpleNamespace(play=play)})
    return Dispatcher(actors, 1.0, lambda spec, why: lost.append(why), announced), lost


@pytest.mark.parametrize(
    "error", [ActorDiedError(), OutOfMemoryError("killed for its memory"), TimeoutError("silent")]
)
async def test_a_group_whose_controller_is_gone_is_lost_by_name_and_no_more(error, monkeypatch):
    played, lost = playing(error, monkeypatch)
    assert await asyncio.wait_for(played.play(SPEC), 5) is None
    assert len(lost) == 1 and lost[0].startswith("controller-0: ")
    assert played.busy["controller-0"] == 0 and not played.playing


async def test_a_group_that_was_given_up_is_not_lost(monkeypatch):
    played, lost = playing(TaskCancelledError(), monkeypatch)
    assert await played.play(SPEC) is None
    assert not lost


async def test_a_controller_that_was_started_anew_hears_who_serves_what_and_plays(monkeypatch):
    announce = AsyncMock()
    played, lost = playing("report", monkeypatch, announce)
    assert await played.play(SPEC) == ("report", "samples")
    assert announce.await_count == 1 and not lost and not played.playing


async def test_a_group_whose_controller_cannot_be_told_is_lost_at_its_deadline(monkeypatch):
    played, lost = playing("report", monkeypatch, asyncio.Event().wait)
    played.limit = 0.05
    assert await asyncio.wait_for(played.play(SPEC), 5) is None
    assert len(lost) == 1 and played.busy["controller-0"] == 0 and not played.playing


async def test_an_error_of_our_own_is_raised(monkeypatch):
    played, _ = playing(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        await played.play(SPEC)
