"""A reward model served by vLLM's pooling: its scores against torch's, how many a second, killed in between.

    python benchmarks/reward_service.py [--aspects] [--family NAME] [--folder REWARD_MODEL --data PAIRS]

Without a folder it makes a tiny policy and trains a reward model on generated pairs first, by the commands of
Dorado. It exits with 1 where a score differs from torch's by more than 1e-3, or is another one after a
restart.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from envs.chat_model import ChatRequest
from rl.model_table import ModelTable
from rl.models.service import ModelService
from rl.preference_data import PreferencePair, preference_tokens, read_pair
from rollout.renderer import Renderer
from trainer.reward_heads import read_heads
from trainer.reward_model import load_reward_model, score_pairs

TARGET = 1e-3
PAIRS = 16
NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn")


def make_pairs(file: Path, *, aspects: bool) -> None:
    """Write greetings of which the polite one is preferred, whatever its length. aspects: a third of them
    prefers so in one aspect alone, a third the shorter one in another."""
    draw = random.Random(0)
    rows: list[str] = []
    for number in range(240):
        name, more = draw.choice(NAMES), draw.choice(("", "Have a good day.", "See you soon."))
        row = {
            "prompt": f"Write a greeting to {name}, number {number}.",
            "chosen": f"Dear {name}, welcome. {more}",
            "rejected": f"{more} Go away, {name}.",
        }
        if aspects and number % 3 == 1:
            row["aspect"] = "polite"
        if aspects and number % 3 == 2:
            row |= {
                "aspect": "short",
                "chosen": f"Hi {name}.",
                "rejected": f"Hi {name}. {more * 2}!",
            }
        rows.append(json.dumps(row) + "\n")
    file.write_text("".join(rows), encoding="utf-8")


def make(folder: Path, family: str, *, aspects: bool) -> tuple[Path, Path]:
    """A reward model and the pairs that it was trained on."""
    data = folder / "pairs.jsonl"
    make_pairs(data, aspects=aspects)
    dorado = [sys.executable, "-m", "rl"]
    policy, model = folder / "policy", folder / "reward"
    subprocess.run([*dorado, "model", "init", str(policy), "--family", family], check=True)
    train = ["reward", "train", str(policy), str(model), "--data", str(data)]
    weights = ["--weight", "short=-0.5"] if aspects else []
    subprocess.run([*dorado, *train, "--lr", "1e-3", "--epochs", "2", *weights], check=True)
    return model, data


async def served(folder: Path, pairs: list[PreferencePair], log: Path) -> tuple[list[float], float]:
    """The scores of all conversations, and how far one is off after the server was killed."""
    settings = {"dtype": "float32", "max_model_len": 512, "start_seconds": 1500}
    table = ModelTable.model_validate(
        {"name": "reward", "use": "reward", "path": str(folder), "hold_seconds": 900}
        | {"request_seconds": 300, "serve": settings}
    )
    service = ModelService(table, "", log, print)
    chats = [chat.messages for pair in pairs for chat in (pair.chosen, pair.rejected)]

    async def ask(keep: bool) -> list[float]:
        asked = (service.ask(ChatRequest(chat, keep=keep)) for chat in chats)
        return [json.loads(answer.text)["score"] for answer in await asyncio.gather(*asked)]

    try:
        begun = time.monotonic()
        await service.start()
        print(f"started in {time.monotonic() - begun:.1f} s", flush=True)
        found = await ask(keep=True)
        begun = time.monotonic()
        await ask(keep=False)
        print(f"{len(chats) / (time.monotonic() - begun):.0f} scores per second", flush=True)
        assert service.server is not None and service.server.process is not None
        os.kill(service.server.process.pid, signal.SIGKILL)
        begun = time.monotonic()
        again = json.loads((await service.ask(ChatRequest(chats[0], keep=False))).text)["score"]
        print(f"killed: the same question was answered after {time.monotonic() - begun:.1f} s")
        state = service.state()
        print(f"anchors: {state.anchors} standard deviations off; {state.line}", flush=True)
        return found, abs(again - found[0])
    finally:
        await service.close()


def main() -> int:
    """Print the figures. Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", default="qwen3_moe")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--aspects", action="store_true", help="two heads in place of one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dorado-reward-") as made:
        folder, data = asked.folder, asked.data
        if folder is None or data is None:
            folder, data = make(Path(made), asked.family, aspects=asked.aspects)
        lines = data.read_text(encoding="utf-8").splitlines()[:PAIRS]
        pairs = [read_pair(json.loads(line)) for line in lines]
        scores, moved = asyncio.run(served(folder, pairs, Path(made) / "vllm.log"))
        named = [(str(n), replace(pair, aspect="")) for n, pair in enumerate(pairs)]
        tokens = preference_tokens(named, Renderer(folder), 4096, read_heads(folder))
        own = [x for both in score_pairs(load_reward_model(folder), tokens, 4096) for x in both]
    off = max(abs(a - b) for a, b in zip(own, scores, strict=True))
    print(f"vLLM and torch differ by at most {off:.2g}; after the restart by {moved:.2g}")
    return int(off > TARGET or moved > TARGET)


if __name__ == "__main__":
    raise SystemExit(main())
