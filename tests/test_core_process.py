"""The engine core's process is begun before vLLM is known: which core becomes it, and which does not."""

import os
from pathlib import Path
from typing import Any

import pytest

from rollout.vllm_core_process import EarlyCore, _Context, _with_openmp


class Own:
    """vLLM's own context of multiprocessing."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    def Process(self, **of: Any) -> str:
        self.made.append(of)
        return "vLLM's own"

    def Queue(self) -> str:
        return "a queue"


class Early(EarlyCore):
    """One that is there without a process."""

    def __init__(self, *, alive: bool = True) -> None:
        self.preload = os.environ.get("LD_PRELOAD", "")
        self.taken = False
        self.started: list[dict[str, Any]] = []
        self.process: Any = _Process(alive=alive)

    def start(self, arguments: dict[str, Any]) -> None:
        self.taken = True
        self.started.append(arguments)


class _Process:
    def __init__(self, *, alive: bool) -> None:
        self.alive = alive

    def is_alive(self) -> bool:
        return self.alive


def test_the_first_core_is_the_one_begun_and_the_second_vllms_own():
    own, early = Own(), Early()
    context = _Context(early, own)
    first: Any = context.Process(target=None, name="EngineCore", kwargs={"dp_rank": 0})
    first.start()
    assert early.started == [{"dp_rank": 0}]
    assert context.Process(target=None, name="EngineCore", kwargs={}) == "vLLM's own"
    assert context.Queue() == "a queue"


@pytest.mark.parametrize("why", ["its libraries", "it has died", "a queue"])
def test_vllm_begins_its_own_core_where_the_one_begun_does_not_fit(why, monkeypatch):
    own, early = Own(), Early(alive=why != "it has died")
    if why == "its libraries":
        monkeypatch.setenv("LD_PRELOAD", "libother.so")
    queue = object() if why == "a queue" else None
    made: Any = _Context(early, own).Process(target=None, kwargs={"tensor_queue": queue})
    assert (made, early.started) == ("vLLM's own", [])


def test_openmp_is_loaded_first_as_vllm_loads_it():
    found = _with_openmp("")
    assert Path(found).name.startswith("libgomp") and Path(found).is_file()
    assert _with_openmp("libmine.so") == f"libmine.so:{found}"
    assert _with_openmp("/usr/lib/libiomp5.so") == "/usr/lib/libiomp5.so"
