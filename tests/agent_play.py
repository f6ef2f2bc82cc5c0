"""One episode that an agent plays: a scripted engine behind the real gateway."""

from typing import Any

from fakes import ScriptedEngine

from envs.env import Env, Task
from envs.session import EnvSession
from rollout.config import EpisodeConfig
from rollout.gateway.agent_episode import AgentEpisode
from rollout.gateway.server import Gateway
from rollout.trajectory import Trajectory


async def play_agent(
    renderer: Any, env: Env, script: Any, task: Task, *, agent_seconds: float = 100.0, **config: Any
) -> tuple[Trajectory, ScriptedEngine]:
    """The trajectory of one episode, and its engine. config: what differs of the usual limits."""
    engine = ScriptedEngine(renderer.tokenizer, script)
    gateway = Gateway()
    limits = {"max_turns": 8, "max_completion_tokens": 64, "max_tokens": 512, "max_seconds": 110}
    episode = AgentEpisode(
        id="g0.0",
        group="g0",
        env=task.env,
        task=task,
        session=EnvSession(env, env.deadlines),
        generate=engine.generate,
        renderer=renderer,
        config=EpisodeConfig(**{**limits, **config}),
        gate=lambda: gateway,
        agent_seconds=agent_seconds,
    )
    try:
        return await episode.run(), engine
    finally:
        await gateway.stop()
