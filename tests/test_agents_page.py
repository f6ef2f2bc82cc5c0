"""docs/agents.md, followed literally: its files, settings and tasks, its agent, and a policy that can."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import StringIO
from itertools import islice
from pathlib import Path

import pytest
from fakes import END, completion
from rich.console import Console

from envs.chat import read_chat
from envs.env import Env
from envs.session import EnvSession
from rl.config import RunConfig, load_config
from rl.config_error import ConfigError
from rl.env_tools.eval.players import Player
from rl.env_tools.eval.run import EvalFolder, Play, play_all, playing, refuse_agents
from rl.env_tools.eval.view import EvalView
from rollout.engine import Completion, Request
from rollout.gateway.agent_episode import AgentEpisode
from rollout.gateway.server import Gateway

pytestmark = pytest.mark.process
PAGE = Path(__file__).parent.parent / "docs" / "agents.md"
WORK = {"plus": "add", "added to": "add", "minus": "subtract", "less": "subtract"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The page's files in a folder, and what its first command makes of them."""
    made = tmp_path_factory.mktemp("agents")
    text = PAGE.read_text(encoding="utf-8")
    for name, content in re.findall(r"\*\*`([\w.]+)`\*\*\n\n```\w+\n(.*?)```", text, re.S):
        (made / name).write_text(content, encoding="utf-8")
    subprocess.run([sys.executable, "make_tasks.py"], cwd=made, check=True)
    return made


class Knowing:
    """A policy that reads the question and does what it asks; `wrong`: it adds, whatever is asked."""

    def __init__(self, renderer, wrong: bool = False) -> None:
        self.renderer, self.wrong = renderer, wrong
        self.written: list[tuple[int, ...]] = []

    async def generate(self, request: Request) -> Completion:
        text = self.renderer.text(request.prompt_ids)
        [(a, word, b)] = re.findall(r"(\d+) (plus|added to|minus|less|times|by) (\d+) \?", text)
        numbers = re.findall(r"-?\d+", text.rpartition(f"{b} ?")[2].rpartition("value>")[2])
        said = (
            numbers[0]
            if numbers
            else call("add" if self.wrong else WORK.get(word, "multiply"), a, b)
        )
        ids = tuple(self.renderer.tokenizer.encode(said + END, add_special_tokens=False))
        self.written.append(ids)
        return completion(ids)


def call(name: str, a: str, b: str) -> str:
    pairs = "".join(
        f"<longcat_arg_key>{key}</longcat_arg_key><longcat_arg_value>{value}</longcat_arg_value>"
        for key, value in (("a", a), ("b", b))
    )
    return f"<longcat_tool_call>{name}{pairs}</longcat_tool_call>"


async def play(renderer, config: RunConfig, engine: Knowing, count: int) -> list[float]:
    """Rewards of episodes as a controller plays them."""
    table, gateway = config.env[0], Gateway()
    env: Env = table.make()
    tasks = env.tasks("train", 0)
    found = []
    try:
        for number in range(count):
            episode = AgentEpisode(
                id=f"g{number}.0",
                group=f"g{number}",
                env=table.label,
                task=next(tasks),
                session=EnvSession(table.make(), table.deadlines.record),
                generate=engine.generate,
                renderer=renderer,
                config=config.episode.model_copy(update={"max_tokens": 2048}),
                gate=lambda: gateway,
            )
            trajectory = await episode.run()
            assert (trajectory.fault, len(trajectory.turns)) == ("", 2), trajectory.log
            assert [t.completion_ids for t in trajectory.turns] == engine.written[-2:]
            found.append(trajectory.env_rewards["solved"])
    finally:
        await gateway.stop()
    return found


async def test_the_agent_of_the_page_earns_what_its_policy_is_worth(folder, renderer):
    config = load_config(folder / "agent.toml", [])
    assert await play(renderer, config, Knowing(renderer), 4) == [1.0] * 4
    assert sum(await play(renderer, config, Knowing(renderer, wrong=True), 8)) < 8


async def test_an_evaluation_plays_agents_and_refuses_a_model_that_returns_text(
    folder, renderer, tmp_path
):
    config = load_config(folder / "agent.toml", [])
    table, knowing = config.env[0], Knowing(renderer)
    limits = config.episode.model_copy(update={"max_tokens": 2048})

    @asynccontextmanager
    async def players() -> AsyncIterator[Callable[[], Player]]:
        yield lambda: (knowing.generate, renderer)

    tasks = islice(table.make().tasks("heldout", 0), 3)
    plays = [Play(f"eval-{n}", f"eval-{n}", table, task) for n, task in enumerate(tasks)]
    one_by_one = playing(
        players(),
        [table],
        limits,
        at_once=2,
        notes={},
        folder=EvalFolder(tmp_path / "out", [table]),
        view=EvalView("agents", 3, Console(file=StringIO())),
        sampling=lambda _: None,
    )
    played = await play_all(one_by_one, plays)
    assert [(one.rewards, len(one.trajectory.turns)) for one in played] == [
        ({"solved": 1.0}, 2)
    ] * 3
    with pytest.raises(ConfigError, match=r"an agent plays it, .* name a model folder, or a run"):
        refuse_agents([table], "http://127.0.0.1:1/v1")


def test_the_chats_of_the_page_are_chats(folder):
    lines = (folder / "chats.jsonl").read_text(encoding="utf-8").splitlines()
    assert len([read_chat(json.loads(line)) for line in lines]) == 900
