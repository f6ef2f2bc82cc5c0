"""verifiers' half in its own interpreter (`lines_server`): a taskset's tasks, and episodes at an endpoint.

Of verifiers' v1. A seat without a harness plays `dorado_chat`: the loop of verifiers' `null`, in this process
instead of one per episode. A seat without a runtime runs as a subprocess; verifiers' own default is a hosted
sandbox.
"""

import asyncio
import contextlib
import functools
import importlib
import importlib.metadata
import itertools
import json
import os
import runpy
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

Json = dict[str, Any]
Functions = dict[str, Callable[..., Any]]
CHAT = "dorado_chat"
# Failures of what runs an episode, not of the task or its author.
_INFRASTRUCTURE = {"SandboxError", "InterceptionError", "TunnelError"}


def load() -> tuple[Functions, dict[str, str]]:
    """The functions `check`, `tasks`, `begin`, `ended`, `drop`, and the package's version."""
    loaders: Any = importlib.import_module("verifiers.v1.utils.loaders")
    clients: Any = importlib.import_module("verifiers.v1.clients")
    _register_chat()

    @functools.lru_cache(64)
    def served(settings: str) -> "asyncio.Task[Any]":
        return asyncio.ensure_future(_served(loaders, settings))

    async def play(settings: str, data: Json, url: str, variable: str, model: str) -> Json:
        made: Any
        try:
            made = await asyncio.shield(served(settings))
        except Exception:
            served.cache_clear()  # the next episode tries again
            raise
        where = clients.EvalClientConfig(base_url=f"{url}/v1", api_key_var=variable)
        taskset: Any = made.taskset
        kind: Any = taskset.task_type()
        task = kind(kind.data_type().model_validate(data), made.config.taskset.task)
        (slot,) = made.slots(task)
        context = clients.ModelContext(model=model, client=where)
        return _outcome(await made.run_slot(slot, context), policy_seat(made))

    def check(settings: str) -> None:
        """Raise ValueError with one sentence where an environment cannot be made, or has no task."""
        made = loaders.load_environment(_configured(json.loads(settings)))
        policy_seat(made)
        if next(iter(made.taskset), None) is None:
            raise ValueError(f"the taskset {made.config.taskset.id!r} has no task")

    @functools.lru_cache(8)
    def rows(settings: str) -> tuple[Any, list[Json], Iterator[Any]]:
        made = loaders.load_taskset(_configured(json.loads(settings)).taskset)
        return made, [], iter(made)

    def tasks(settings: str, heldout: bool, start: int, count: int) -> Json:
        """So many tasks from this one on, as plain data; fewer where the taskset ends."""
        made, known, coming = rows(settings)
        lacking = max(0, start + count - len(known))
        known += [
            task.data.model_dump(mode="json", exclude_none=True)
            for task in itertools.islice(coming, lacking)
        ]
        return {"tasks": known[start : start + count], "endless": not made.bounded}

    script = Path(__file__).with_name("concurrent_episodes.py")
    episodes = runpy.run_path(str(script))["Episodes"](play)
    acts = {name: getattr(episodes, name) for name in ("begin", "ended", "drop")}
    version = importlib.metadata.version("verifiers")
    return {"check": check, "tasks": tasks, **acts}, {"verifiers": version}


def _outcome(episode: Any, seat: str) -> Json:
    """Tell what came of an episode, as JSON: rewards by name with their weights in, and errors in order."""
    traces = [trace for trace in episode.traces if trace.agent.name == seat]
    errors = [error for one in (*traces, episode) for error in one.errors]
    found: Json = {"ok": bool(episode.ok and traces), "rewards": {}, "metrics": {}, "stop": ""}
    for trace in traces:
        found["stop"] = trace.stop_condition or ""
        for name, reward in trace.rewards.items():
            if reward is not None:
                found["rewards"][name] = found["rewards"].get(name, 0.0) + reward.value
        found["metrics"] |= {name: one for name, one in trace.metrics.items() if one is not None}
    found["errors"] = [f"{error.type}: {error.message}" for error in errors]
    found["infrastructure"] = any(error.type in _INFRASTRUCTURE for error in errors)
    return found


def policy_seat(made: Any) -> str:
    """The name of the seat that the policy plays. Raises ValueError where it is not one."""
    agents: Any = importlib.import_module("verifiers.v1.configs.agent")
    seats = agents.agent_config_fields(made.config)
    open_seats = [name for name, seat in seats.items() if seat.client is None]
    if len(open_seats) != 1:
        raise ValueError(
            f"seats without a client of their own: {', '.join(open_seats) or 'none'}; the policy plays one "
            "(settings.SEAT.client and .model say who plays another)"
        )
    return open_seats[0]


def _configured(settings: Json) -> Any:
    """verifiers' configuration of an environment: what is given, and this module's defaults of a seat."""
    for path in settings["paths"]:
        if path not in sys.path:
            sys.path.insert(0, path)
            # For its subprocesses, such as servers of tools.
            known = os.environ.get("PYTHONPATH", "")
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (path, known)))
    loaders: Any = importlib.import_module("verifiers.v1.utils.loaders")
    agent: Any = importlib.import_module("verifiers.v1.configs.agent")
    given, limits = dict(settings["env"]), settings["limits"]
    taskset = given["taskset"]["id"]
    default = loaders.default_harness_id(taskset)
    for name, field in loaders.env_config_type(taskset, given.get("id", "")).model_fields.items():
        if not isinstance(field.default, agent.AgentConfig):
            continue
        seat = dict(given.get(name, {}))
        seat.setdefault("runtime", {"type": "subprocess"})
        if field.default.harness is None:
            seat.setdefault("harness", {"id": CHAT if default == "bash" else default})
        for key, most in limits.items():
            seat[key] = min(seat.get(key) or most, most)
        given[name] = seat
    return loaders.resolve_env_config(given)


async def _served(loaders: Any, settings: str) -> Any:
    """An environment whose shared servers run, for as long as this process does."""
    made = loaders.load_environment(_configured(json.loads(settings)))
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        try:
            async with made.serving():
                # A client is kept for each key that a shared server has seen: each episode has a server.
                made._interception = None
                ready.set_result(None)
                await asyncio.Event().wait()
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    made.serving_task = asyncio.ensure_future(serve())
    await ready
    return made


def _register_chat() -> None:
    """Make the harness `dorado_chat` known to verifiers, which finds one by a module's name."""
    null: Any = importlib.import_module("verifiers.v1.harnesses.null.harness")
    runtimes: Any = importlib.import_module("verifiers.v1.runtimes")
    module: Any = types.ModuleType(CHAT)

    class ChatHarness(null.NullHarness):
        async def setup(self, runtime: Any) -> None:
            """Nothing to install."""

        async def launch(
            self,
            ctx: Any,
            trace: Any,
            runtime: Any,
            endpoint: str,
            secret: str,
            mcp_urls: dict[str, str],
            data: Any,
            tool_interception_url: str | None = None,
        ) -> Any:
            said = self.resolve_prompt(data)
            client = _client(endpoint, secret)
            await _chat(client, ctx.model, said, mcp_urls, secret, tool_interception_url)
            return runtimes.ProgramResult(exit_code=0, stdout="", stderr="")

    module.ChatHarness = ChatHarness
    module.__all__ = ["ChatHarness"]
    sys.modules[CHAT] = module


@functools.cache
def _connections() -> Any:
    """One pool of connections for all episodes: making a client's own costs more than an answer."""
    httpx: Any = importlib.import_module("httpx")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(timeout=None, limits=limits)


def _client(endpoint: str, secret: str) -> Any:
    openai: Any = importlib.import_module("openai")
    return openai.AsyncOpenAI(base_url=endpoint, api_key=secret, http_client=_connections())


async def _chat(
    client: Any,
    model: str,
    said: tuple[str | None, Any],
    mcp_urls: dict[str, str],
    secret: str,
    gate: str | None,
) -> None:
    """Ask, call the tools that the answer calls, and ask again, until an answer calls none.

    A conversation that has outgrown its context ends there, as in verifiers' own loops.
    """
    openai: Any = importlib.import_module("openai")
    mcp: Any = importlib.import_module("verifiers.v1.harnesses.utils.mcp")
    compaction: Any = importlib.import_module("verifiers.v1.harnesses.utils.compaction")
    chat: Any = importlib.import_module("verifiers.v1.dialects.chat")
    system, prompt = said
    messages: list[Json] = [{"role": "system", "content": system}] if system else []
    if isinstance(prompt, str):
        messages.append({"role": "user", "content": prompt})
    else:
        messages += [chat.message_to_wire(message) for message in cast(list[Any], prompt or [])]
    served = {"mcpServers": {name: {"url": url} for name, url in mcp_urls.items()}}
    async with contextlib.AsyncExitStack() as held:
        tools, where, servers = await mcp.connect_mcp(served, held)
        while True:
            try:
                answer = await client.chat.completions.create(
                    model=model, messages=messages, tools=tools or openai.omit
                )
            except openai.APIStatusError as error:
                if compaction.is_context_overflow(error):
                    return
                raise
            message = answer.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            if not message.tool_calls:
                return
            for call in message.tool_calls:
                messages.append(await _called(call, gate, secret, where, servers))


async def _called(call: Any, gate: str | None, secret: str, where: Json, servers: Json) -> Json:
    """The message with a call's result, or with why there is none."""
    mcp: Any = importlib.import_module("verifiers.v1.harnesses.utils.mcp")
    core: Any = importlib.import_module("verifiers.v1.harnesses.utils.core")
    name = call.function.name
    if gate is not None:
        decision = await core.gate_tool_call(_connections(), gate, secret, call)
        if decision["action"] == "deny":
            return decision["message"]
    try:
        arguments = json.loads(call.function.arguments or "{}")
        if not isinstance(arguments, dict):
            raise ValueError("they have to be an object")
    except ValueError as error:
        content = f"error: the arguments are no JSON that can be used ({error})"
    else:
        if name in where:
            content = await mcp.call_mcp(servers, where, name, arguments)
        else:
            content = f"error: there is no tool {name!r}"
    return {"role": "tool", "tool_call_id": call.id, "name": name, "content": content}
