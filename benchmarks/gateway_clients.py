"""Real clients against the gateway of a vLLM engine: is every trained token the engine's own?

    python benchmarks/gateway_clients.py --policy FOLDER [--episodes 1000] [--at-once 64] [--json FILE]
                                         [--agents PYTHON] [--mini PYTHON]

Sessions of the `openai` and `anthropic` libraries, unmodified, in a process of their own: chat completions,
responses and messages, each whole and as a stream, a question and tool calls until an answer. With
`--agents`, an interpreter that has `openai-agents`, a tenth of the episodes is that framework's; with
`--mini`, one that has `mini-swe-agent`, another tenth is that coding agent's, whose commands run in its own
bubblewrap. The policy is one that calls `add`, `subtract` and `multiply` (docs/agents.md makes one); another
one plays, and calls less. The engine's log of prompts and completions is compared with the samples. Exits
with 1 where a token differs.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anthropic
import openai
from gateway import LoggingEngine, differences

from rollout.config import EngineConfig, EpisodeConfig, SamplingConfig
from rollout.engine import Completion, Request
from rollout.gateway.server import Gateway
from rollout.gateway.talk import Talk
from rollout.renderer import Renderer
from rollout.vllm_engine import VllmEngine

NAMES = {"add": "plus", "subtract": "minus", "multiply": "times"}
NUMBERS = {"a": {"type": "integer"}, "b": {"type": "integer"}}
PARAMETERS = {"type": "object", "properties": NUMBERS, "required": ["a", "b"]}
DOES = {name: f"a {word} b" for name, word in NAMES.items()}
FORMS = ("chat", "chat, stream", "responses", "responses, stream", "messages", "messages, stream")
FRAMEWORK = """
import asyncio, json, os, sys
from agents import Agent, Runner, function_tool, set_tracing_disabled

set_tracing_disabled(True)

@function_tool
def add(a: int, b: int) -> str:
    "a plus b"
    return str(a + b)

@function_tool
def subtract(a: int, b: int) -> str:
    "a minus b"
    return str(a - b)

@function_tool
def multiply(a: int, b: int) -> str:
    "a times b"
    return str(a * b)

async def main():
    from openai import AsyncOpenAI
    from agents import OpenAIResponsesModel
    async def play(key, question):
        client = AsyncOpenAI(base_url=sys.argv[1], api_key=key, max_retries=0)
        model = OpenAIResponsesModel("policy", client)
        agent = Agent(name="solver", model=model, tools=[add, subtract, multiply])
        try:
            await Runner.run(agent, question, max_turns=5)
        except Exception as error:
            print(type(error).__name__, file=sys.stderr)
    await asyncio.gather(*(play(*one) for one in json.load(sys.stdin)))

asyncio.run(main())
"""

MINI = """
import json, logging, sys
from concurrent.futures import ThreadPoolExecutor
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.extra.bubblewrap import BubblewrapEnvironment
from minisweagent.models.litellm_model import LitellmModel

logging.disable(logging.CRITICAL)

def play(one):
    key, question = one
    asked = {"api_base": sys.argv[1], "api_key": key}
    model = LitellmModel(model_name="openai/policy", model_kwargs=asked, cost_tracking="ignore_errors")
    agent = DefaultAgent(
        model, BubblewrapEnvironment(), system_template="You work in a shell.", instance_template="{{task}}"
    )
    try:
        agent.run(question)
    except Exception as error:
        print(type(error).__name__, file=sys.stderr)

with ThreadPoolExecutor(16) as threads:
    list(threads.map(play, json.load(sys.stdin)))
"""
# Without it mini-swe-agent asks a refused request ten times, up to a minute apart.
QUIET = {
    "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "1",
    "MSWEA_SILENT_STARTUP": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


class Logged(LoggingEngine):
    """A real engine, with a log of its own."""

    def __init__(self, renderer: Renderer, engine: VllmEngine) -> None:
        super().__init__(renderer, 0.0)
        self.engine = engine

    async def generate(self, request: Request) -> Completion:
        self.count += 1
        completion = await self.engine.generate(request)
        self.log.setdefault(request.prompt_ids, []).append(completion)
        return completion


def question(number: int) -> str:
    """Return the question of a session."""
    rng = random.Random(number)
    return f"{rng.randint(0, 99)} {rng.choice([*NAMES.values()])} {rng.randint(0, 99)} ?"


def result(name: str, arguments: str | dict[str, Any]) -> str:
    """A call's result, whatever was called."""
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
        a, b = int(given["a"]), int(given["b"])
        return str({"add": a + b, "subtract": a - b, "multiply": a * b}[name])
    except (ValueError, KeyError, TypeError) as error:
        return f"error: {error}"


async def chat(client: openai.AsyncOpenAI, asked: str, *, stream: bool) -> None:
    """A session of chat completions."""
    tools: Any = [
        {"type": "function", "function": {"name": n, "description": d, "parameters": PARAMETERS}}
        for n, d in DOES.items()
    ]
    messages: Any = [{"role": "user", "content": asked}]
    while True:
        if stream:
            async with client.chat.completions.stream(
                model="policy", messages=messages, tools=tools
            ) as events:
                async for _ in events:
                    pass
                said = (await events.get_final_completion()).choices[0].message
        else:
            made = await client.chat.completions.create(
                model="policy", messages=messages, tools=tools
            )
            said = made.choices[0].message
        messages.append(
            said.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})
        )
        if not said.tool_calls:
            return
        for call in said.tool_calls:
            function: Any = call.function  # pyright: ignore[reportAttributeAccessIssue]
            content = result(function.name, function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})


async def responses(client: openai.AsyncOpenAI, asked: str, *, stream: bool) -> None:
    """A session of responses."""
    tools: Any = [
        {"type": "function", "name": n, "description": d, "parameters": PARAMETERS, "strict": False}
        for n, d in DOES.items()
    ]
    items: Any = [{"role": "user", "content": asked}]
    while True:
        if stream:
            async with client.responses.stream(model="policy", input=items, tools=tools) as events:
                async for _ in events:
                    pass
                made = await events.get_final_response()
        else:
            made = await client.responses.create(model="policy", input=items, tools=tools)
        items += [one.model_dump(exclude_none=True) for one in made.output]
        calls = [one for one in made.output if one.type == "function_call"]
        if not calls:
            return
        for call in calls:
            output = result(call.name, call.arguments)
            items.append(
                {"type": "function_call_output", "call_id": call.call_id, "output": output}
            )


async def messages(client: anthropic.AsyncAnthropic, asked: str, *, stream: bool) -> None:
    """A session of Anthropic's messages."""
    tools: Any = [
        {"name": n, "description": d, "input_schema": PARAMETERS} for n, d in DOES.items()
    ]
    said: Any = [{"role": "user", "content": asked}]
    asking: Any = {"model": "policy", "max_tokens": 64, "tools": tools}
    while True:
        if stream:
            async with client.messages.stream(messages=said, **asking) as events:
                async for _ in events:
                    pass
                made = await events.get_final_message()
        else:
            made = await client.messages.create(messages=said, **asking)
        said.append({"role": "assistant", "content": [b.model_dump() for b in made.content]})
        calls = [block for block in made.content if block.type == "tool_use"]
        if not calls:
            return
        results = [
            {
                "type": "tool_result",
                "tool_use_id": c.id,
                "content": result(c.name, dict(c.input)),
            }
            for c in calls
        ]
        said.append({"role": "user", "content": results})


def clients(url: str, keys: list[str], at_once: int, out: Any) -> None:
    """Play all sessions of both libraries, in this process; tells what ended otherwise than by an answer."""

    async def one(room: asyncio.Semaphore, number: int, key: str, ends: Counter[str]) -> None:
        form = FORMS[number % len(FORMS)]
        stream = form.endswith("stream")
        async with room:
            try:
                if form.startswith("messages"):
                    async with anthropic.AsyncAnthropic(
                        base_url=url, api_key=key, max_retries=0
                    ) as client:
                        await messages(client, question(number), stream=stream)
                    return
                async with openai.AsyncOpenAI(
                    base_url=f"{url}/v1", api_key=key, max_retries=0
                ) as client:
                    play = chat if form.startswith("chat") else responses
                    await play(client, question(number), stream=stream)
            except (openai.APIError, anthropic.APIError) as error:
                code = getattr(error, "code", None) or getattr(error, "status_code", "")
                ends[f"{type(error).__name__} {code}"] += 1
            else:
                return

    async def play() -> Counter[str]:
        room, ends = asyncio.Semaphore(at_once), Counter[str]()
        await asyncio.gather(*(one(room, i, key, ends) for i, key in enumerate(keys)))
        return ends

    out.put(dict(asyncio.run(play())))


def framework(python: str, script: str, url: str, keys: list[str], at_once: int) -> Counter[str]:
    """Play sessions of an agent from the package index; how often which error ended one."""
    ends = Counter[str]()
    for at in range(0, len(keys), at_once):
        asked = json.dumps(
            [[key, question(at + i)] for i, key in enumerate(keys[at : at + at_once])]
        )
        done = subprocess.run(
            [python, "-c", script, f"{url}/v1"],
            input=asked,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, **QUIET, "OPENAI_API_KEY": "none"},
            check=False,
        )
        ends.update(line for line in done.stderr.splitlines() if line.isidentifier())
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
    return ends


async def measure(c: argparse.Namespace) -> dict[str, Any]:
    """Play and compare. Returns the figures by name."""
    renderer = Renderer(str(c.policy))
    settings = EngineConfig(max_model_len=512, max_num_seqs=128)
    vllm = VllmEngine("e", str(c.policy), settings, SamplingConfig(), renderer.eos_ids, seed=0)
    await vllm.start()
    engine, gateway = Logged(renderer, vllm), Gateway()
    config = EpisodeConfig(max_turns=6, max_completion_tokens=40, max_tokens=448)
    talks = [
        Talk(f"g{i}", "policy", renderer, config, engine.generate, None) for i in range(c.episodes)
    ]
    accesses = [await gateway.open(talk) for talk in talks]
    url, keys = accesses[0].url, [one.key for one in accesses]
    tenth = len(keys) // 10
    scripts = [(c.agents, FRAMEWORK), (c.mini, MINI)]
    chosen = [(python, script) for python, script in scripts if python]
    own = tenth * len(chosen)
    context = multiprocessing.get_context("spawn")
    out = context.SimpleQueue()
    start = time.perf_counter()
    child = context.Process(target=clients, args=(url, keys[own:], c.at_once, out))
    child.start()
    ends = Counter[str]()
    for at, (python, script) in enumerate(chosen):
        part = keys[at * tenth : (at + 1) * tenth]
        ends += await asyncio.to_thread(framework, python, script, url, part, 16)
    ends.update(await asyncio.to_thread(out.get))
    seconds = time.perf_counter() - start
    child.join()
    for talk in talks:
        await gateway.shut(talk)
    await gateway.stop()
    played = [talk for talk in talks if talk.segments()[0]]
    turns = sum(len(talk.segments()[0]) for talk in played)
    wrong, trained, branches = differences(played, engine)
    vllm.shutdown()
    return {
        "episodes": len(played),
        "of agents from the index": own,
        "turns": turns,
        "trained tokens": trained,
        "branches": branches,
        "differences": wrong,
        "seconds": round(seconds),
        "ended by an error": dict(ends),
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--agents", default="", help="an interpreter that has openai-agents")
    parser.add_argument("--mini", default="", help="an interpreter that has mini-swe-agent")
    parser.add_argument("--json", type=Path)
    c = parser.parse_args()
    found = asyncio.run(measure(c))
    for name, value in found.items():
        print(f"{name:>24}  {value}")
    if c.json:
        c.json.write_text(json.dumps(found), encoding="utf-8")
    sys.exit(found["differences"] > 0)


if __name__ == "__main__":
    main()
