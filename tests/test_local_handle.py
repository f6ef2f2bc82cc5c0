"""Stand-ins of actors: their handle calls them as Ray would, and refuses what the actor class has not."""

import asyncio

import pytest
from fakes import FakeEngine, FakeLearner, FakePool

from rl.actors.controller import ControllerActor
from rl.actors.engine import EngineActor
from rl.actors.env_host import EnvHost
from rl.actors.learner import LearnerActor
from rl.actors.learner_ranks import LearnerRanks
from rl.actors.local_handle import StandInError, check_stand_in, local_handle
from rl.actors.node_store import NodeStore
from rollout.engine import Completion, Request


class Gone(EngineActor):
    """Still plays a method that engines have no more."""

    def __init__(self) -> None:
        pass

    async def flip(self, version: int) -> None:
        raise AssertionError("nobody calls it")


class Outdated(EngineActor):
    """Still takes the arguments of an earlier day."""

    def __init__(self) -> None:
        pass

    async def load(self, path: str) -> None:
        raise AssertionError("nobody calls it")


@pytest.mark.parametrize(
    ("stand_in", "sentence"),
    [
        (Gone, r"^Gone\.flip: EngineActor has no such method$"),
        (Outdated, r"^Outdated\.load\(self, path: str\) -> None: EngineActor has load\(self, path"),
        (object, r"^object derives from no class of rl\.actors$"),
    ],
)
def test_a_stand_in_that_has_drifted_from_its_actor_class_is_refused(stand_in, sentence):
    with pytest.raises(StandInError, match=sentence):
        local_handle(stand_in())


@pytest.mark.parametrize("kind", [FakeEngine, FakeLearner])
def test_the_fakes_of_a_run_fit_their_actor_classes(kind):
    check_stand_in(kind)


@pytest.mark.parametrize(
    "kind",
    [ControllerActor, EngineActor, EnvHost, LearnerActor, NodeStore],
    ids=lambda k: k.__name__,
)
def test_a_handle_has_the_methods_of_its_actor_class(kind):
    """A misspelt call fails at once, also in a test with a stand-in."""
    handle = local_handle(kind.__new__(kind))
    with pytest.raises(AttributeError):
        handle.no_such_method  # noqa: B018


async def test_an_error_goes_to_who_awaits_the_call():
    pool = FakePool(fail={"step": MemoryError("no room")})
    call = pool.learner.step.remote([])
    with pytest.raises(MemoryError, match="no room"):
        await call


async def test_two_results_are_two_objects_and_cancelling_the_first_ends_the_call():
    class Playing(ControllerActor):
        def __init__(self) -> None:
            self.began = asyncio.Event()

        async def play(self, spec):
            self.began.set()
            if spec is None:
                await asyncio.Event().wait()
            return "report", ["sample"]

    controller = Playing()
    handle = local_handle(controller)
    report, samples = handle.play.remote("spec")
    assert (await report, await samples) == ("report", ["sample"])
    before = asyncio.all_tasks()
    report, samples = handle.play.remote(None)
    await controller.began.wait()
    report.cancel()
    await asyncio.wait({samples}, timeout=5)
    assert samples.cancelled() and asyncio.all_tasks() == before


async def test_what_a_call_returns_is_what_the_method_returns():
    class Writer(EngineActor):
        def __init__(self) -> None:
            pass

        async def generate(self, request: Request) -> Completion:
            return Completion(request.prompt_ids, (), (), "stop")

    completion = await local_handle(Writer()).generate.remote(Request("r", "s", (7,), 1))
    assert completion.token_ids == (7,)


def test_the_ranks_of_a_learner_have_what_a_run_asks_of_one():
    """A run holds either: a method that it calls on the one is there on the other."""

    class Rank(LearnerActor):
        def __init__(self) -> None:
            pass

    ranks = vars(LearnerRanks([local_handle(Rank())]))
    assert set(ranks) == {
        "lost", "step", "record", "snapshot", "publish", "save", "load", "saved"
    }  # fmt: skip
    assert all(callable(getattr(LearnerActor, name)) for name in ranks)
