"""Held-out evaluation: every environment's tasks once each, faults apart."""

import pytest
from fakes import ENVS, FakeDispatcher

from rl.config import EnvTable
from rl.loop.evaluation import evaluate, heldout_tasks
from rl.samples.metrics import pass_rates


@pytest.mark.parametrize("id", ENVS)
def test_heldout_tasks_are_different_ones_and_the_same_in_every_run(id):
    tasks = heldout_tasks(EnvTable(id=id), 30)
    assert tasks == heldout_tasks(EnvTable(id=id), 30)
    assert len({t.id for t in tasks}) == 30
    assert {t.split for t in tasks} == {"heldout"}


def test_a_small_world_has_fewer_heldout_tasks_than_asked_for():
    tiny = EnvTable(id="calculator", config={"largest": 1})
    tasks = heldout_tasks(tiny, 100)
    assert 0 < len(tasks) == len({t.id for t in tasks}) < 24


async def test_every_task_is_played_once_and_not_too_many_at_a_time():
    outcomes = {"calculator": "samples", "orders": "fault", "sensors": "lost"}
    dispatcher = FakeDispatcher(outcome=lambda spec: outcomes[spec.env])
    seen: list[tuple[int, int]] = []
    reports, wanted = await evaluate(
        [EnvTable(id=id) for id in ENVS],
        dispatcher.play,
        "before",
        lambda *n: seen.append(n),
        tasks=9,
        most=4,
    )
    specs = [spec for _, spec in dispatcher.played]
    assert len({s.task.id for s in specs}) == len({s.ids for s in specs}) == wanted == 27
    assert not any(spec.train for spec in specs)
    assert dispatcher.most_at_once <= 4
    assert seen == [(n, 27) for n in range(1, 28)]
    assert len(reports) == 18, "lost groups have no report"
    assert pass_rates(reports) == {"calculator": 1.0}
