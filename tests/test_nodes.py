"""What a node lacks for a run, in a sentence, and nodes that do not say."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import NodeDiedError

from rl.env_table import EnvTable
from rl.nodes import nodes
from rl.nodes.nodes import lacks, probe

HERE = "node 10.0.0.7"
# Ids as Ray has them.
OTHERS = [digits * 28 for digits in ("b1", "c2", "d3")]


def test_a_node_with_all_plugins_and_folders_lacks_nothing(tmp_path: Path) -> None:
    table = EnvTable(id="calculator", judges=("well_formed",))
    assert lacks([table], {"runs_dir": str(tmp_path)}, HERE) == ""


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            EnvTable(id="no_such_module:Maze", name="maze"),
            "env 'maze': on node 10.0.0.7: environment 'no_such_module:Maze' cannot be imported: "
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            EnvTable(id="calculator", judges=("no_such_module:judge",)),
            "env 'calculator': on node 10.0.0.7: judge 'no_such_module:judge' cannot be imported: "
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
    ],
)
def test_a_plugin_that_a_node_does_not_have_is_named_with_the_node(
    table: EnvTable, said: str
) -> None:
    assert lacks([EnvTable(id="sensors"), table], {}, HERE) == said


def test_a_folder_that_a_node_does_not_see_is_named_with_its_setting() -> None:
    assert lacks([], {"runs_dir": "/no/such/runs"}, HERE) == (
        "runs_dir: node 10.0.0.7 does not see the folder /no/such/runs, which all nodes have to share"
    )


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the task on each of three nodes besides this one ends with: a value, an error, or never."""
    ends: dict[str, Any] = dict.fromkeys(OTHERS, "")

    async def end(node: str) -> str:
        if ends[node] == "hangs":
            await asyncio.Event().wait()
        if isinstance(ends[node], Exception):
            raise ends[node]
        return ends[node]

    def options(*, scheduling_strategy: Any) -> Any:
        assert scheduling_strategy.soft is False, "on that node or not at all"
        return SimpleNamespace(remote=lambda *_: end(scheduling_strategy.node_id))

    monkeypatch.setattr(nodes.ray, "remote", lambda **_: lambda _: SimpleNamespace(options=options))
    there = {"own": "10.0.0.0"} | {id: f"10.0.0.{n}" for n, id in enumerate(OTHERS, 1)}
    monkeypatch.setattr(nodes, "own_node", lambda: "own")
    monkeypatch.setattr(nodes, "alive_nodes", lambda: there)
    return ends


async def test_every_other_node_is_asked_and_what_each_lacks_is_said(cluster) -> None:
    assert await probe([], {}, 5.0) == []
    said = ("env 'x': is missing", NodeDiedError("the node died"), "hangs")
    cluster.update(zip(OTHERS, said, strict=True))
    assert await probe([], {}, 0.05) == [
        "env 'x': is missing",
        "node 10.0.0.2: it could not be looked at: the node died",
        "node 10.0.0.3: it did not import the run's plugins within 0.05 s",
    ]
