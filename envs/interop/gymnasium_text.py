"""Gymnasium's environments that can be read as text, played in an interpreter that has them.

    config = { python = "gym/bin/python", id = "FrozenLake-v1", actions = ["left", "down", "right", "up"] }

The policy acts by one tool, `act(action)`, whose schema is the action space; the tool's result is the next
observation. The episode ends where the world says so (terminated or truncated).
"""

import random
import uuid
from collections.abc import Sequence

from pydantic import PositiveFloat

from envs.dynamic_tool import DynamicTool, object_schema
from envs.env import Env, EnvConfig, Task
from envs.interop.interpreter import ChildInterpreter, child_interpreter
from envs.message import JsonObject, Message, ToolSchema
from envs.session import HostFault
from envs.tool import ToolError


class GymnasiumTextConfig(EnvConfig):
    """python: an interpreter that has gymnasium. id, kwargs: what `gymnasium.make` takes.
    actions: names for the actions of a Discrete space, in order; without them they are numbers.
    instructions: the rules, before the first observation. request_seconds: for one step of the world.
    turn_rewards: each step's reward is its turn's, and not the end's.
    """

    python: str
    id: str
    kwargs: JsonObject = {}
    actions: tuple[str, ...] = ()
    instructions: str = ""
    request_seconds: PositiveFloat = 20.0
    turn_rewards: bool = False


class GymnasiumText(Env):
    """A world of Gymnasium, seen and acted on as text."""

    name = "gymnasium_text"
    reward_names = ("return",)
    config_type = GymnasiumTextConfig
    config: GymnasiumTextConfig
    session = ""

    @property
    def child(self) -> ChildInterpreter:
        """The interpreter that has the package."""
        seconds = self.config.request_seconds
        return child_interpreter(self.config.python, "gymnasium_server.py", seconds)

    def probe(self) -> None:
        """The world can be made, and there are as many names as actions."""
        action = self.child.ask_now("describe", id=self.config.id, kwargs=self.config.kwargs)
        self._named(action)

    def sample(self, rng: random.Random) -> JsonObject:
        seed = rng.randrange(2**31)
        return {"id": self.config.id, "kwargs": self.config.kwargs, "seed": seed}

    async def reset(self, task: Task) -> list[Message]:
        self.session, self.total = uuid.uuid4().hex, 0.0
        world = await self.child.ask("open", session=self.session, **task.data)
        self.action = world["action"]
        self.notes |= await self.child.ask("versions")
        return [
            Message("user", "\n\n".join(filter(None, (self.config.instructions, world["text"]))))
        ]

    async def dynamic_tools(self) -> Sequence[DynamicTool]:
        properties = {"action": self._named(self.action)}
        schema = object_schema({"properties": properties, "required": ["action"]})
        return [DynamicTool(ToolSchema("act", "act on the world", schema), self._act)]

    def _named(self, action: JsonObject) -> JsonObject:
        """The schema of an action, by the names of the settings where they give any."""
        names = self.config.actions
        if not names:
            return action
        count = action["maximum"] - action["minimum"] + 1 if "maximum" in action else 0
        if count != len(names):
            raise ValueError(
                f"actions: {len(names)} names for {count or 'no'} numbered actions of {self.config.id}"
            )
        return {"type": "string", "enum": list(names)}

    async def _act(self, arguments: JsonObject) -> str:
        action = arguments["action"]
        if self.config.actions:
            action = self.config.actions.index(action) + self.action["minimum"]
        result = await self.child.ask("step", session=self.session, action=action)
        if "refused" in result:
            raise ToolError(result["refused"])
        if "lost" in result:
            raise HostFault(f"{self.child.where}, was started anew and has lost the episode")
        if self.config.turn_rewards:
            self.reward(result["reward"], "return")
        else:
            self.total += result["reward"]
        self.done = result["done"]
        return result["text"]

    async def score(self) -> dict[str, float]:
        """`return`: the sum of the world's rewards, without those that turns were given."""
        return {"return": self.total}

    async def close(self) -> None:
        # A world whose child has died is closed; a new child is not started for it.
        if self.session and self.child.alive:
            await self.child.ask("close", session=self.session)
