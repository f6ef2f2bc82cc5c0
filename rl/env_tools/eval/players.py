"""Players of an evaluation: a checkpoint folder on an engine of its own, or a model behind a server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from envs.dynamic_tool import as_object
from envs.message import JsonObject
from envs.text import told
from rl.env_tools.eval.chat_model import ChatPolicy, ChatServer, request
from rl.models.http_wire import base_of
from rollout.config import EngineConfig, EpisodeConfig, SamplingConfig
from rollout.engine import EngineFault, Generate
from rollout.episode import Rendering
from rollout.format import FormatName

# Who plays one episode: where its turns come from, and how they are written.
Player = tuple[Generate, Rendering]


@dataclass(frozen=True)
class Limits:
    """Limits that an evaluation takes from a run's config."""

    episode: EpisodeConfig
    engine: EngineConfig
    sampling: SamplingConfig
    format: FormatName | None = None


def is_url(model: str) -> bool:
    """True if a server is meant."""
    return model.startswith(("http://", "https://"))


@asynccontextmanager
async def players_of(
    model: str, limits: Limits, *, served: str, at_once: int, temperature: float | None, seed: int
) -> AsyncIterator[Callable[[], Player]]:
    """Players of a checkpoint folder, or of a model behind a server."""
    players = (
        server_players(model, served, limits, at_once, temperature)
        if is_url(model)
        else local_players(model, limits, seed)
    )
    async with players as player:
        yield player


@asynccontextmanager
async def local_players(
    folder: str, limits: Limits, seed: int
) -> AsyncIterator[Callable[[], Player]]:
    """Players of a checkpoint folder, on an engine that lives as long as this."""
    from rollout.renderer import Renderer
    from rollout.vllm_engine import VllmEngine

    try:
        renderer = Renderer(folder, limits.format)
    except Exception as error:  # a tokenizer of others can be broken in any way
        raise EngineFault(f"{folder}: its tokenizer cannot be used: {told(error)}") from None
    engine = VllmEngine("engine-0", folder, limits.engine, limits.sampling, renderer.eos_ids, seed)
    try:
        async with asyncio.timeout(limits.engine.start_seconds):
            await engine.start()

        async def generate(asked: Any) -> Any:
            try:
                async with asyncio.timeout(limits.engine.request_seconds):
                    return await engine.generate(asked)
            except TimeoutError:
                raise EngineFault(
                    f"the engine did not answer within {limits.engine.request_seconds:g} s"
                ) from None

        yield lambda: (generate, renderer)
    finally:
        engine.shutdown()


@asynccontextmanager
async def server_players(
    url: str, served: str, limits: Limits, at_once: int, temperature: float | None
) -> AsyncIterator[Callable[[], Player]]:
    """Players of a model behind a server. served: its name there, "" for the first one it names.

    Raises EngineFault where the server cannot say which models it has.
    """
    base, seconds = base_of(url), limits.engine.request_seconds
    with ThreadPoolExecutor(at_once, thread_name_prefix="dorado-chat") as threads:
        if not served:
            there = await asyncio.get_running_loop().run_in_executor(
                threads, request, f"{base}/models", None, seconds
            )
            served = _first_name(there)
            if not served:
                raise EngineFault(f"{base}/models names no model: give one with --served")
        wanted = limits.sampling.temperature if temperature is None else temperature
        server = ChatServer(base, served, wanted, seconds, threads)

        def player() -> Player:
            policy = ChatPolicy(server)
            return policy.generate, policy

        yield player


def _first_name(models: JsonObject) -> str:
    """The first model that a server's list names, as far as it is one; "" for none."""
    listed = models.get("data")
    for one in cast("list[object]", listed) if isinstance(listed, list) else ():
        if isinstance(name := as_object(one).get("id"), str):
            return name
    return ""
