"""A resources server of NeMo Gym by HTTP: its rows are the tasks, its paths the tools, `/verify` the reward.

    config = { url = "http://127.0.0.1:8000", tasks = "train.jsonl" }

A row is what NeMo Gym's own data has: `responses_create_params` (messages, tools), and what its server
verifies by. An episode is a session of the server (its cookies): `/seed_session` with the row, a POST to
`/NAME` for each call, and at the end `/verify` with the row and the answer in the form of OpenAI's Responses.

Leaves out: agents and models of NeMo Gym (the policy is ours), tools that are no functions, pictures.
"""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import PositiveFloat, field_validator

from envs.address import http_address
from envs.dynamic_tool import DynamicTool, as_object, object_schema
from envs.env import Env, EnvConfig, Reply, Split, Task
from envs.interop.blocking import run_now, within
from envs.message import JsonObject, Message, ToolCall, ToolSchema
from envs.optional import needed_by
from envs.rows import each, file_rows
from envs.session import HostFault
from envs.text import shown

if TYPE_CHECKING:
    import httpx

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


class NeMoGymConfig(EnvConfig):
    """url: of the resources server. tasks: rows (JSON lines). heldout: those of held-out tasks; without it a
    tenth is held out, by the hash of the content. connect_seconds: for reaching the server.
    """

    url: str
    tasks: str
    heldout: str | None = None
    connect_seconds: PositiveFloat = 10.0

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return http_address(url)

    @field_validator("tasks", "heldout")
    @classmethod
    def _is_there(cls, path: str | None) -> str | None:
        if path is not None and not Path(path).is_file():
            raise ValueError(f"there is no file {path}")
        return path


class NeMoGym(Env):
    """A row of NeMo Gym, played on its resources server."""

    name = "nemo_gym"
    reward_names = ("reward",)
    config_type = NeMoGymConfig
    config: NeMoGymConfig
    client: "httpx.AsyncClient | None" = None

    def probe(self) -> None:
        """The server answers and can verify; there are tasks to train on."""
        run_now(
            within(self._look(), self.config.connect_seconds, f"{self.config.url}/openapi.json")
        )
        next(self.tasks("train", 0))

    async def _look(self) -> None:
        async with self._connection() as client:
            answer = await self._sent(client, "GET", "/openapi.json")
        paths = as_object(as_object(_json(answer)).get("paths"))
        if "/verify" not in paths:
            raise HostFault(
                f"{self.config.url} is no resources server of NeMo Gym: it has no /verify"
            )

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        """Endless: the rows of the split, shuffled anew with every pass. Raises ValueError."""
        config = self.config
        path = config.heldout if split == "heldout" and config.heldout else config.tasks
        found = [Task(self.name, row) for row in _read(path)]
        if not config.heldout:
            found = [task for task in found if task.split == split]
        if not found:
            raise ValueError(f"{path}: no task is in the split {split}; give heldout")
        rng = random.Random(f"{split}/{seed}")
        while True:
            yield from rng.sample(found, len(found))

    async def reset(self, task: Task) -> list[Message]:
        self.task, self.output = task.data, cast(list[JsonObject], [])
        self.client = self._connection()
        await self._posted("/seed_session", task.data)
        return opening(task.data["responses_create_params"])

    async def dynamic_tools(self) -> Sequence[DynamicTool]:
        return [
            DynamicTool(schema, partial(self._call, schema.name))
            for schema in tools(self.task["responses_create_params"])
        ]

    async def _call(self, name: str, arguments: JsonObject) -> str:
        """The server's answer, whatever its status: a call that it refuses is the policy's to read."""
        number = f"call_{len(self.output)}"
        assert self.client is not None, "reset connects"
        answer = await self._sent(self.client, "POST", f"/{name}", arguments)
        call = {"name": name, "arguments": json.dumps(arguments), "call_id": number}
        self.output += [
            {"type": "function_call", "id": f"fc_{number}", "status": "completed", **call},
            {"type": "function_call_output", "call_id": number, "output": answer.text},
        ]
        return answer.text

    async def reply(self, text: str) -> Reply:
        part: JsonObject = {"type": "output_text", "text": text, "annotations": []}
        said: JsonObject = {
            "type": "message",
            "role": "assistant",
            "content": [part],
            "status": "completed",
        }
        self.output.append({"id": f"msg_{len(self.output)}", **said})
        return await super().reply(text)

    async def score(self) -> dict[str, float]:
        """`reward`: the server's."""
        given = self.task["responses_create_params"]
        response = {
            "id": "resp_dorado",
            "object": "response",
            "created_at": time.time(),
            "model": "policy",
            "output": self.output,
            "tools": given.get("tools") or [],
            "tool_choice": given.get("tool_choice") or "auto",
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
        }
        verified = as_object(await self._posted("/verify", {**self.task, "response": response}))
        reward = verified.get("reward")
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise RuntimeError(f"{self.config.url}/verify gave no reward: {str(verified)[:300]}")
        return {"reward": float(reward)}

    async def close(self) -> None:
        if self.client is not None:
            await self.client.aclose()

    def _connection(self) -> "httpx.AsyncClient":
        """A session of the server: it is known by its cookies."""
        with needed_by("environment 'nemo_gym'"):
            import httpx
        # Certificates take a while to load, and plain HTTP needs none. The run's deadlines hold.
        timeout = httpx.Timeout(None, connect=self.config.connect_seconds)
        secure = self.config.url.startswith("https")
        return httpx.AsyncClient(base_url=self.config.url, timeout=timeout, verify=secure)

    async def _posted(self, path: str, body: JsonObject) -> object:
        """The server's answer to a POST, as JSON. Raises RuntimeError where it refuses, HostFault where
        it is not there."""
        assert self.client is not None, "reset connects"
        answer = await self._sent(self.client, "POST", path, body)
        if not answer.is_success:
            told = " ".join(answer.text.split())[:300]
            raise RuntimeError(f"{self.config.url}{path}: {answer.status_code}: {told}")
        return _json(answer)

    async def _sent(
        self, client: "httpx.AsyncClient", method: str, path: str, body: JsonObject | None = None
    ) -> "httpx.Response":
        import httpx

        try:
            return await client.request(method, path, json=body)
        except httpx.HTTPError as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise HostFault(f"NeMo Gym at {self.config.url} does not answer: {reason}") from None


def _json(answer: "httpx.Response") -> object:
    try:
        return answer.json()
    except (ValueError, RecursionError):
        raise HostFault(f"{answer.url} wrote what is no JSON: {answer.text[:80]!r}") from None


def opening(given: JsonObject) -> list[Message]:
    """The messages of a row's `responses_create_params`. Raises ValueError for what is no text or call."""
    said: list[Message] = []
    if rules := given.get("instructions"):
        said.append(Message("system", _text(rules)))
    items = given.get("input")
    if isinstance(items, str):
        return [*said, Message("user", items)]
    if not isinstance(items, list):
        raise ValueError("'responses_create_params.input' has to be a text or a list of messages")
    names: dict[str, str] = {}
    for one in map(as_object, cast(list[object], items)):
        kind = one.get("type") or "message"
        if kind == "message" and one.get("role") in _ROLES:
            role, text = _ROLES[str(one["role"])], _text(one.get("content"))
            if role == "assistant":
                _wrote(said, text)
            else:
                said.append(Message(cast(Any, role), text))
        elif kind == "function_call":
            call = _call_of(one)
            names[str(one.get("call_id"))] = call.name
            _wrote(said, calls=(call,))
        elif kind == "function_call_output":
            name = names.get(str(one.get("call_id")))
            said.append(Message("tool", _text(one.get("output")), name=name))
        elif kind != "reasoning":  # earlier thoughts are another model's
            raise ValueError(f"an item of the type {kind!r} in 'input' is not played here")
    return said


def _wrote(said: list[Message], text: str = "", calls: tuple[ToolCall, ...] = ()) -> None:
    """Add what an assistant wrote: between two others' messages it is one message, as a policy writes it."""
    before = said.pop() if said and said[-1].role == "assistant" else Message("assistant")
    made = (*before.tool_calls, *calls)
    said.append(replace(before, content=before.content + text, tool_calls=made))


def _call_of(item: JsonObject) -> ToolCall:
    name, given = item.get("name"), item.get("arguments") or "{}"
    arguments: object = json.loads(given) if isinstance(given, str) else given
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError(f"a call needs a name and an object of arguments, and is {shown(item)}")
    return ToolCall(name, cast(JsonObject, arguments))


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | None):
        raise ValueError(f"a content has to be a text or a list of parts, not {shown(content)}")
    parts = [as_object(part) for part in cast(list[object], content or [])]
    if unseen := [part.get("type") for part in parts if not isinstance(part.get("text"), str)]:
        raise ValueError(f"a content of the type {unseen[0]!r}: a policy of text would not see it")
    return "".join(part["text"] for part in parts)


def tools(given: JsonObject) -> list[ToolSchema]:
    """The functions that a row offers. Raises ValueError for another kind of tool."""
    found: list[ToolSchema] = []
    for one in map(as_object, given.get("tools") or []):
        if one.get("type", "function") != "function" or not isinstance(one.get("name"), str):
            raise ValueError(f"a tool of the type {one.get('type')!r} is not played here")
        schema = object_schema(as_object(one.get("parameters")))
        found.append(ToolSchema(one["name"], str(one.get("description") or ""), schema))
    return found


@lru_cache(maxsize=8)
def _read(path: str) -> tuple[JsonObject, ...]:
    """The rows of a file. Raises ValueError with the row's number."""
    return tuple(row for _, row in each(file_rows(path), f"tasks {path}", _row))


def _row(row: JsonObject) -> JsonObject:
    given = row.get("responses_create_params")
    if not isinstance(given, dict):
        raise ValueError("'responses_create_params' has to be an object, what the policy is asked")
    if not opening(cast(JsonObject, given)):
        raise ValueError("'responses_create_params.input' has no message")
    tools(cast(JsonObject, given))
    return dict(row)
