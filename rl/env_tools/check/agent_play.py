"""Lets an environment's agent play one task of a check, over the real gateway, without a model.

The policy behind the gateway answers every request with one text. So the check sees whether the agent starts
where it is to run, reaches the gateway, asks in a form that is answered, and ends; and whether what it then
left can be scored. It does not see what the agent does with a right answer or with a tool call's result.
"""

import json
from collections.abc import Callable, Sequence

from envs.env import Task
from envs.message import Message, ToolSchema
from envs.session import EnvSession
from rl.env_tools.check.leaks import held, left_since
from rl.env_tools.check.runner import Runner, full, shown
from rollout.config import EpisodeConfig
from rollout.engine import Completion, Request, VersionSpan
from rollout.gateway.agent_episode import AgentEpisode
from rollout.gateway.server import Gateway
from rollout.reading import Written
from rollout.trajectory import Trajectory

ANSWER = "I do not know"
MOST_TURNS = 3
# Of a prompt, in characters: as many tokens as any agent's instructions have.
MOST_TOKENS = 1_000_000


class OneAnswer:
    """A policy that says the same each time; its tokens are the code points of the text
    (`rollout.episode.Rendering`). asked: told of each request."""

    def __init__(self, asked: Callable[[], None]) -> None:
        self.asked = asked

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[int]:
        return [ord(one) for one in json.dumps([m.as_chat() for m in messages])]

    def suffix(self, messages: Sequence[Message], completion: Sequence[int]) -> list[int]:
        return self.prompt(messages, ())

    def forgets(self, messages: Sequence[Message], thought: bool) -> bool:
        return False

    def text(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def read(self, completion: Sequence[int], tools: Sequence[ToolSchema]) -> Written:
        return Written("", self.text(completion))

    async def generate(self, request: Request) -> Completion:
        """Answer, cut where the request's limit is."""
        self.asked()
        ids = tuple(map(ord, ANSWER))[: request.max_tokens]
        spans = (VersionSpan(0, 0, len(ids)),)
        ends = "stop" if len(ids) == len(ANSWER) else "length"
        return Completion(ids, (0.0,) * len(ids), spans, ends, "check")


async def check_agent(runner: Runner, task: Task) -> None:
    """The agent plays one task; then nothing of it is left."""
    before, seconds = held(runner.folder), runner.spec.seconds

    def still_at_it() -> None:
        runner.doing("its agent")

    still_at_it()
    session = EnvSession(runner.make(), runner.deadlines)
    with runner.watch.during("its agent", measured=False, seconds=seconds * (MOST_TURNS + 2)):
        played = await _played(session, task, seconds, OneAnswer(still_at_it))
    rewards = dict(played.env_rewards)
    if played.fault:
        runner.fail("agent", f"{played.fault} (task {shown(task)})", played.log or played.trace)
    elif full(rewards):
        runner.fail("idle", f"its agent, which was told {ANSWER!r}, scores {rewards}: mend score()")
    if left := await left_since(before, runner.folder):
        runner.fail("leaks", f"an episode that its agent played left {left}")
    runner.settle(
        "agent",
        but=f"played once by a policy that says {ANSWER!r} up to {MOST_TURNS} times: {len(played.turns)} "
        f"answers, {played.stop_reason}, {rewards}. Not looked at: what the agent makes of a right answer or "
        "of a call, and if it does the same twice, beside another or on another day. The other checks ran "
        "without it",
    )


async def _played(session: EnvSession, task: Task, seconds: float, policy: OneAnswer) -> Trajectory:
    """The trajectory of one episode, closed. seconds: that the agent may be silent."""
    gateway = Gateway()
    limits = EpisodeConfig(
        max_turns=MOST_TURNS,
        max_completion_tokens=len(ANSWER),
        max_tokens=MOST_TOKENS,
        max_seconds=seconds * (MOST_TURNS + 1),
    )
    episode = AgentEpisode(
        id="check.0",
        group="check",
        env=task.env,
        task=task,
        session=session,
        generate=policy.generate,
        renderer=policy,
        config=limits,
        gate=lambda: gateway,
        agent_seconds=seconds,
    )
    try:
        return await episode.run()
    finally:
        await gateway.stop()
