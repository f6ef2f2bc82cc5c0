"""A user whom a frozen model plays: what it may say, and what becomes of an episode whose user fails.

The model is a small server of the OpenAI API behind a run's pool; the policy is the environment's expert.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_server import Server
from fakes import Remote
from typer.testing import CliRunner

from envs.builtin.orders import STATUS
from envs.chat_model import ChatAnswer, ChatRequest
from envs.env import Deadlines, Env, EnvConfig, Reply, Task
from envs.message import Message
from envs.model_user import TRIES, ModelUser, UserSettings, user_prompt
from envs.session import EnvSession, HostFault
from envs.tool import tool
from envs.user import Fact, Said, UserFault
from reward.score import score
from rl.actors.controller import ControllerActor
from rl.actors.env_host import EnvHost
from rl.actors.host_pool import HostPool, HostSession
from rl.actors.rpc import RpcServer
from rl.cli import app
from rl.config import RunConfig, load_config
from rl.config_error import ConfigError
from rl.env_table import BreakerConfig, EnvTable
from rl.env_tools.soak.expert_policy import ExpertPolicy
from rl.model_table import ModelTable
from rl.models.service import ModelService
from rl.preflight.models import check_models
from rl.preflight.settings import check_settings
from rl.record.waiting import PhaseTimes, WaitingTable
from rl.samples.group import GroupSpec
from rollout.config import EpisodeConfig
from rollout.episode import Episode
from rollout.trajectory import Trajectory
from rollout.trajectory_file import read_trajectory

FACTS = (
    Fact("customer", "Mira Berg", ("who",)),
    Fact("day", "mon", when="freely"),
    Fact("pin", "4711", when="never"),
)
SETTINGS = UserSettings("customer")
LIMITS = EpisodeConfig(max_turns=20, max_completion_tokens=1, max_tokens=1000, max_seconds=1.5)


def says(text: str, *asked: str, ends: bool = False) -> dict[str, Any]:
    return {"asked": list(asked), "say": text, "ends": ends}


@dataclass
class Model:
    """A model that gives these answers, one after the other."""

    answers: list[dict[str, Any]]
    asked: list[ChatRequest] = field(default_factory=list)

    async def __call__(self, request: ChatRequest) -> ChatAnswer:
        self.asked.append(request)
        return ChatAnswer(json.dumps(self.answers.pop(0)), "tiny")


async def test_a_model_is_shown_its_part_and_what_was_said_and_its_texts_are_signed():
    model = Model(
        [says("cancel my order"), says("for Mira Berg", "customer"), says("bye", ends=True)]
    )
    user = ModelUser(model, SETTINGS)
    opened = await user.open("cancel the order", FACTS, "in a hurry")
    assert opened == Said("cancel my order", "customer (tiny), user.v1")
    assert await user.answer("For {{pin}} whom?") == Said("for Mira Berg", opened.by)
    assert (await user.answer("done")).ended
    first, second, _ = (request.messages[0].content for request in model.asked)
    for shown in ("cancel the order", "in a hurry", "Mira Berg", "4711", "you speak first"):
        assert shown in first
    assert "user: cancel my order\nassistant: For {{pin}} whom?" in second, (
        "what is said fills in nothing"
    )
    assert model.asked[0].schema["properties"]["asked"]["items"]["enum"] == ["customer"]


@pytest.mark.parametrize(
    ("text", "claims", "wrong"),
    [
        ("I am mira  berg", [], "tells 'customer'"),
        ("my pin is 4711", ["pin", "customer"], "tells 'pin'"),
        ("  ", [], "is blank"),
        ('<tool_call>{"name": "find"}', [], "holds '<tool_call'"),
    ],
)
async def test_what_is_none_of_a_users_texts_is_asked_for_again_and_then_a_fault(
    text, claims, wrong
):
    model = Model(
        [says("hello"), says(text, *claims), says("mon, please"), *[says(text, *claims)] * TRIES]
    )
    user = ModelUser(model, SETTINGS)
    await user.open("cancel the order", FACTS)
    assert (await user.answer("hello")).text == "mon, please"
    assert re.search(
        f"Your last try cannot be taken: it {wrong}", model.asked[2].messages[0].content
    )
    with pytest.raises(UserFault, match=f"model 'customer': 3 texts in a row .*: it {wrong}"):
        await user.answer("hello again")
    assert len(model.asked) == 3 + TRIES


async def test_nothing_hidden_is_told_before_the_policy_has_spoken_and_what_it_says_itself_is_no_secret():
    model = Model([says("I am Mira Berg", "customer"), says("cancel it")])
    user = ModelUser(model, SETTINGS)
    assert (await user.open("cancel the order", FACTS)).text == "cancel it"
    model.answers = [says("yes, Mira Berg and not 47111", ends=True)]
    assert (await user.answer("is it for mira berg?")).ended


class Host(EnvHost):
    """A host in this process."""

    def __init__(self, table: EnvTable) -> None:
        self.tables, self.patterns = {table.label: table}, {table.label: table.make()}
        self.sessions, self.suspended = {}, {}
        self.server = RpcServer(self._play, self._close_all, self.load)
        self.node, self.idle_cpus, self.measured = "127.0.0.1", 1.0, float("inf")
        handle: Any = self
        handle.address = Remote(self._address)

    async def _address(self):
        return await EnvHost.address(self)

    async def end(self) -> None:
        if self.server.server is not None:
            self.server.server.close()
        for held in self.server.clients.values():
            held.transport.abort()
        async with asyncio.timeout(5):
            while self.server.clients or self.sessions:
                await asyncio.sleep(0.01)


def prompt_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"]


Answer = Callable[[str], dict[str, Any] | str | None]


@dataclass
class Stage:
    """Plays episodes of `orders` whose user is the model behind a server."""

    serve: Callable[..., Server]

    async def play(
        self, answer: Answer, *, host: bool = False, **limits: Any
    ) -> tuple[Trajectory, Server]:
        """answer: to a prompt; text as it is, None: HTTP 500. limits: `seconds` of the user, `hold` of the
        pool, `tool` of the environment."""

        def reply(body: dict[str, Any]) -> tuple[int, Any]:
            found = answer(prompt_of(body))
            if found is None:
                return 500, {"error": "away"}
            text = found if isinstance(found, str) else json.dumps(found)
            return 200, {"model": "tiny", "choices": [{"message": {"content": text}}]}

        server = self.serve(reply)
        model = ModelTable(
            name="customer",
            url=server.url,
            hold_seconds=limits.get("hold", 5),
            request_seconds=limits.get("request", 5),
            breaker=BreakerConfig(faults=2, cooldown_seconds=0.05, max_cooldown_seconds=0.1),
        )
        table = EnvTable.model_validate(
            {
                "id": "orders",
                "config": {"user": True},
                "user": {"model": "customer", "seconds": limits.get("seconds", 5)},
                "deadlines": {
                    "tool_seconds": limits.get("tool", 2),
                    "reset_seconds": limits.get("tool", 2),
                },
            }
        )
        service = ModelService(model, "", None, print)  # type: ignore[arg-type]
        env = table.make()
        task = next(env.tasks("train", 1))
        policy = ExpertPolicy(env.expert(task), random.Random(0), 0.0)
        held = Host(table)

        def ask(request: ChatRequest) -> Any:
            return episode.ask_user(request)

        session = (
            HostSession(HostPool([held]), "e0", table, ask)  # type: ignore[list-item]
            if host
            else EnvSession(env, table.deadlines.record, ModelUser(ask, table.user.record))
        )
        episode = Episode(
            id="e0",
            group="g0",
            env="orders",
            task=task,
            session=session,
            generate=policy.generate,
            renderer=policy,
            config=LIMITS,
            user=service,
            user_seconds=table.user.seconds,
        )
        try:
            return await episode.run(), server
        finally:
            await held.end()
            await service.close()


@pytest.fixture
def stage(serve: Any) -> Stage:
    return Stage(serve)


def well(prompt: str) -> dict[str, Any]:
    """A user who plays their part."""
    wish = re.search(r"<wish \w+>\n(.*)\n", prompt)
    customer = re.search(r"customer: (\w+)", prompt)
    assert wish and customer
    if "you speak first" in prompt:
        return says(f"please {wish[1]}")
    if "assistant: done" in prompt:
        return says("thank you", ends=True)
    return says(customer[1], "customer")


def names(trajectory: Trajectory) -> list[str]:
    return [phase.name for phase in trajectory.phases]


@pytest.mark.parametrize("host", [False, True])
async def test_a_user_opens_answers_and_ends_the_episode_wherever_its_environment_lives(
    stage, host
):
    t, server = await stage.play(well, host=host)
    assert (t.stop_reason, t.fault, t.env_rewards) == ("completed", "", {"solved": 1.0})
    assert (
        t.opening[0].content.startswith("please ") and t.opening[0].by == "customer (tiny), user.v1"
    )
    users = [m for turn in t.turns for m in turn.observations if m.role == "user"]
    assert [m.by for m in users] == ["customer (tiny), user.v1"] * 2 and len(server.asked) == 3
    assert names(t)[:3] == ["reset", "user", "reset"] and names(t).count("user") == 3
    starts = [phase.start for phase in t.phases]
    assert starts == sorted(starts), "phases follow one another, none is inside of another one"
    written = (await score(t, [], {}, seconds=1)).as_json()
    assert read_trajectory(written).trajectory == t
    assert '"by":"customer (tiny), user.v1"' in written and '"by":""' not in written


@pytest.mark.heavy
@pytest.mark.parametrize("host", [False, True])
async def test_a_user_who_takes_longer_than_every_deadline_of_environment_and_episode_is_waited_for(
    stage, host
):
    def slow(prompt: str) -> dict[str, Any]:
        time.sleep(0.55)
        return well(prompt)

    t, _ = await stage.play(slow, host=host, tool=0.3)
    assert (t.stop_reason, t.fault, t.env_rewards) == ("completed", "", {"solved": 1.0})
    waited = sum(phase.seconds for phase in t.phases if phase.name == "user")
    assert waited > LIMITS.max_seconds, "the episode's own clock stood still too"


def leaking(prompt: str) -> dict[str, Any]:
    good = well(prompt)
    customer = re.search(r"customer: (\w+)", prompt)
    assert customer
    return good if "assistant" in good["say"] else says(f"I am {customer[1]}, {good['say']}")


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize(
    ("answer", "limits", "fault"),
    [
        (lambda prompt: None, {"hold": 0.3}, "no answer to anybody for 0.3 s"),
        (lambda prompt: "I am no JSON", {}, "3 answers did not fit the schema"),
        (lambda prompt: "", {}, "3 answers did not fit the schema"),
        (leaking, {}, "3 texts in a row were none of a user's: it tells 'customer'"),
        (
            lambda prompt: time.sleep(0.5) or well(prompt),
            {"seconds": 0.2},
            "it has taken 0.2 s of the",
        ),
    ],
)
async def test_a_user_who_fails_is_a_fault_of_its_own_and_never_a_reward(
    stage, host, answer, limits, fault
):
    t, _ = await stage.play(answer, host=host, **limits)
    assert t.stop_reason == "user_fault" and "model 'customer'" in t.fault and fault in t.fault
    assert not t.judged and t.env_rewards == {} and "score" not in names(t)
    assert names(t)[-1] == "close", "the environment is closed as ever"


@pytest.mark.heavy
async def test_a_user_who_is_back_in_time_has_cost_nothing_but_time(stage):
    numbers = count()
    t, server = await stage.play(lambda p: None if next(numbers) in (1, 2) else well(p))
    assert (t.stop_reason, t.env_rewards) == ("completed", {"solved": 1.0})
    assert len(server.asked) == 5


class Swallows(Env):
    """Takes any error of its user for an answer."""

    name = "swallows"
    has_user = True

    async def reset(self, task: Task) -> list[Message]:
        return [Message("user", "hello")]

    async def reply(self, text: str) -> Reply:
        try:
            return await super().reply(text)
        except Exception as error:
            return Reply((Message("user", str(error)),))

    @tool(seconds=0.1)
    async def ask(self) -> str:
        """ask them"""
        return (await self.user.answer("?")).text

    async def score(self) -> dict[str, float]:
        return {"solved": 0.0}


async def test_a_fault_of_the_user_stays_one_whatever_the_environment_makes_of_it():
    session = EnvSession(
        Swallows(EnvConfig()), Deadlines(), ModelUser(Model([says("")] * TRIES), SETTINGS)
    )
    await session.open(Task("swallows", {}))
    with pytest.raises(UserFault, match="it is blank"):
        await session.step("hello", ())
    await session.close()


async def test_a_lost_host_and_a_closed_one_leave_nothing_that_waits_for_a_user(stage):
    table = EnvTable.model_validate(
        {"id": "orders", "config": {"user": True}, "user": {"model": "customer"}, "retries": 0}
    )
    held, asked = Host(table), asyncio.Event()

    async def never(request: ChatRequest) -> ChatAnswer:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    pool, task = HostPool([held]), next(table.make().tasks("train", 1))  # type: ignore[list-item]
    session = HostSession(pool, "e0", table, never)
    opening = asyncio.create_task(session.open(task))
    await asked.wait()
    assert len(held.suspended) == 1
    opening.cancel()
    await session.close()
    async with asyncio.timeout(5):
        while held.sessions or held.suspended:
            await asyncio.sleep(0.01)

    async def dies(request: ChatRequest) -> ChatAnswer:
        held.sessions.clear()
        held.suspended.clear()
        return ChatAnswer(json.dumps(says("hello")))

    with pytest.raises(HostFault, match="has lost the episode"):
        await HostSession(pool, "e1", table, dies).open(task)
    await held.end()


RUN = """
name = "t"
[model.init]
[[models]]
name = "customer"
url = "URL"
[[env]]
id = "orders"
config = { user = true }
user = { model = "customer", prompt = "own.md" }
"""


def written_run(folder: Path, url: str, *changes: tuple[str, str]) -> Path:
    """A run's settings, with a prompt beside them that is the one that ships."""
    (folder / "own.md").write_text(user_prompt().text, encoding="utf-8")
    text = RUN.replace("URL", url)
    for then, now in changes:
        assert then in text
        text = text.replace(then, now)
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return folder / "run.toml"


def asks_and_acts(body: dict[str, Any]) -> tuple[int, Any]:
    """A policy behind a server that solves `orders` by asking."""
    first, last = body["messages"][0]["content"].split(), body["messages"][-1]
    call = None
    text = "which customer?"
    if last["role"] == "tool":
        status = {"order": last["content"], "status": STATUS[first[1]]}
        text, call = ("done", None) if last["content"] == "ok" else ("", ("set_status", status))
    elif len(body["messages"]) > 1:
        text, call = "", ("find", {"customer": last["content"]})
    function = call and {"name": call[0], "arguments": json.dumps(call[1])}
    calls = [{"id": "c", "type": "function", "function": function}] if function else None
    return 200, {"choices": [{"message": {"content": text, "tool_calls": calls}}]}


@pytest.mark.heavy
def test_env_eval_asks_the_model_of_a_run_and_replay_the_record(serve, tmp_path):
    def user(body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"choices": [{"message": {"content": json.dumps(well(prompt_of(body)))}}]}

    run, model = written_run(tmp_path, serve(user).url), serve(asks_and_acts).url
    out = str(tmp_path / "out")
    asked = ["env", "eval", "orders", "--model", model, "--run", str(run), "--tasks", "2"]
    done = CliRunner().invoke(app, [*asked, "--out", out])
    assert done.exit_code == 0 and "pass rate: 1.0" in done.output, done.output
    lines = (tmp_path / "out/trajectories/eval.jsonl").read_text(encoding="utf-8").splitlines()
    opening = read_trajectory(lines[0]).trajectory.opening[0]
    assert opening.by.startswith("customer (tiny), own.md@")
    again = CliRunner().invoke(app, ["env", "replay", f"{out}/eval-0"])
    assert again.exit_code == 0 and "the same in all 4 turns" in again.output, again.output


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ("config = { user = true }", ""),
            "env.0.user: env 'orders' has no user with these settings",
        ),
        (
            ('"customer", prompt', '"judge", prompt'),
            "env.0.user.model: 'judge' is none of the [[models]]",
        ),
        (("own.md", "none.md"), "env.0.user.prompt: prompt 'none.md' is none of user.v1"),
        (
            ('url = "http://x"', 'url = "http://x"\nuse = "reward"'),
            "none of the [[models]] of use 'chat'",
        ),
        (
            ('url = "http://x"', 'url = "http://x"\nhold_seconds = 600'),
            "hold_seconds (600) has to be below",
        ),
    ],
)
def test_a_user_who_cannot_be_played_is_a_sentence_before_anything_starts(
    tmp_path, change, sentence
):
    file = written_run(tmp_path, "http://x", change)
    with pytest.raises(ConfigError) as caught:
        check_models(load_config(file))
    assert sentence in str(caught.value)


def test_an_episodes_time_and_its_users_are_below_the_stall_limit(tmp_path):
    config = load_config(written_run(tmp_path, "http://x"))
    assert config.episode_seconds == config.episode.max_seconds + 240
    file = written_run(tmp_path, "http://x", ('"own.md" }', '"own.md", seconds = 400 }'))
    with pytest.raises(ConfigError, match=r"user\.seconds of an environment"):
        check_settings(load_config(file))


class Controller(ControllerActor):
    """A controller with one host, no judges, and an expert in the policy's place."""

    def __init__(self, config: RunConfig, host: Host, policy: ExpertPolicy, model: Any) -> None:
        nothing: Any = lambda *_: None  # noqa: E731
        self.config, self.tables = config, {table.label: table for table in config.all_envs}
        self.hosts, self.models, self.renderer = HostPool([host]), {"customer": model}, policy  # type: ignore[list-item]
        self.judges, self.held = {"orders": []}, {"orders": 0.0}
        self.episodes, self.times, self.retries, self.gateway = {}, PhaseTimes(), Counter(), None
        self.client: Any = SimpleNamespace(
            generate=policy.generate, branch=nothing, begin=nothing, end=nothing
        )
        self.client.running, self.client.asked, self.client.sessions = {}, {}, {}


async def test_a_controller_asks_the_runs_model_and_tells_who_waits_for_it(tmp_path):
    config = load_config(written_run(tmp_path, "http://x"))
    [table] = config.env
    env, seen = table.make(), list[WaitingTable]()
    task = next(env.tasks("train", 1))

    class Customer:
        name = "customer"

        async def ask(self, request: ChatRequest) -> ChatAnswer:
            seen.append(await controller.waiting(5))
            return ChatAnswer(json.dumps(well(request.messages[0].content)))

    held, policy = Host(table), ExpertPolicy(env.expert(task), random.Random(0), 0.0)
    controller = Controller(config, held, policy, Customer())
    spec = GroupSpec("g0", "orders", task, ("g0.0",), train=True)
    scored = await controller._member(spec, "g0.0")
    assert (scored.trajectory.stop_reason, scored.rewards) == ("completed", {"solved": 1.0})
    rows = [row for table in seen for row in table.rows]
    assert {(row.phase, row.at, row.then) for row in rows} == {
        ("user", "model-customer", "failed: user_fault")
    }
    assert len(rows) == 3 and all(0 < row.left <= 240 for row in rows)
    await held.end()
