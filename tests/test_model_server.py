"""vLLM's own server as a frozen model: structured answers, killed, stopped, ended."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.chat_model import ChatRequest
from envs.message import Message
from rl.env_tools.soak.leaks import lives
from rl.model_table import ModelTable, ServeConfig
from rl.models.logprob_wire import LogprobWire
from rl.models.server import Server, ServerFailed
from rl.models.service import ModelService

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["good", "bad"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


def table(checkpoint: Path, **serve: object) -> ModelTable:
    settings = ServeConfig.model_validate({"max_model_len": 256, "max_num_seqs": 8, **serve})
    return ModelTable(name="judge", path=str(checkpoint), serve=settings, request_seconds=20)


def asks(number: int, schema: dict[str, object] | None = None) -> ChatRequest:
    return ChatRequest((Message("user", f"Is {number} good?"),), 24, schema=schema)


async def test_a_served_checkpoint_answers_by_schema_and_survives_its_servers_death(
    checkpoints, tmp_path
):
    said: list[str] = []
    folder = checkpoints["qwen3_moe"]
    settings = table(folder, dtype="float32")
    service = ModelService(settings, "", tmp_path / "vllm.log", said.append)
    try:
        await service.start()
        server = service.server
        assert server is not None and server.process is not None
        plain = await service.ask(asks(0))
        assert plain.completion_tokens > 0 and plain.prompt_tokens > 0
        answers = await asyncio.gather(*(service.ask(asks(n, SCHEMA)) for n in range(4)))
        assert {json.loads(one.text)["verdict"] for one in answers} <= {"good", "bad"}
        assert service.state().nonsense == 0, "tokens are drawn from the schema alone"
        await scored_as_by_transformers(folder, server)
        os.killpg(server.process.pid, signal.SIGKILL)
        held = await asyncio.gather(*(service.ask(asks(n)) for n in range(10, 14)))
        assert len(held) == 4
        state = service.state()
        assert state.faults > 0 and state.failed == 0
        assert "started 2 times" in state.server
        assert any("has ended" in one for one in said) and "answers again" in said[-1]
        leader = psutil.Process(server.process.pid)
        tree = [leader, *leader.children(recursive=True)]
    finally:
        await service.close()
    give_up = time.monotonic() + 20
    while (left := [process for process in tree if lives(process)]) and time.monotonic() < give_up:
        await asyncio.sleep(0.1)
    assert not left


async def scored_as_by_transformers(folder: Path, server: Server) -> None:
    """A model of use "score" is the same server, asked for the log-probs of ids."""
    ids = (1, 40, 41, 7, 300, 12, 5)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0, :-1]
    wanted = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None]).flatten()
    wire = LogprobWire(server.url, key=server.key, model=server.model)
    answer = await wire.send(ChatRequest((), token_ids=ids))
    await wire.close()
    assert json.loads(answer.text)["logprobs"] == pytest.approx(wanted.tolist(), abs=2e-5)


async def test_a_server_that_cannot_start_says_why(checkpoints, tmp_path):
    wrong = table(checkpoints["qwen3_moe"], vllm={"quantization": "nonsense"})
    service = ModelService(wrong, "", tmp_path / "vllm.log", print)
    with pytest.raises(ServerFailed, match=r"ended while it started: .*nonsense.*log: "):
        await service.start()
    await service.close()
