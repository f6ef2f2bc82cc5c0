"""A small policy of ours as a judge: trained by `dorado sft --data`, held to pairs that it has not seen.

    python benchmarks/own_judge.py [--rows N] [--epochs N] [--train SECONDS] [--folder DIR] [--json FILE]

A folder that has a trained judge already keeps it.

Greetings, of which half have one of three flaws (a rude word, no greeting, a word said twice). The judge is
`principles` with a prompt of one line and structured answers, served by vLLM on this machine. Printed:
agreement on held-out pairs, before training (a new policy) and after, calls per second, and what a run learns
from per second without a judge and beside this one (`--train`; 0 leaves that out).
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from envs.chat_model import ChatAnswer, ChatRequest
from reward.judges.principles import PrinciplesSettings, detected
from reward.judges.prompt import find_prompt
from reward.model_judge import find_model_judge
from rl.judge_tools.evaluate import evaluate
from rl.judge_tools.labelled import Pair
from rl.model_table import ModelTable, ServeConfig
from rl.models.service import ModelService

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
GREETINGS = ("hello", "hi", "welcome", "good morning")
RUDE = ("idiot", "fool", "loser", "clown")
REST = ("nice to see you", "how are you today", "we have waited for you", "come in and sit down")
PROMPT = "{{principles}}\n{{question}}\n{{answer}}\nVerdict?\n"
SFT = """
name = "judge"
runs_dir = "{folder}/runs"
model = {{ init = {{ family = "qwen3_moe" }} }}
sft = {{ epochs = {epochs}, batch_size = 32, optim = {{ lr = 2e-3, warmup_steps = 20 }} }}
learner = {{ micro_batch_tokens = 4096, threads = 2 }}
env = [{{ id = "calculator" }}]
"""
RUN = """
name = "{name}"
runs_dir = "{folder}/runs"
steps = 100000
wandb = {{ enabled = false }}
eval = {{ before = false, after = false }}
batch = {{ groups = 8, group_size = 4, filter_zero_variance = false }}
episode = {{ max_turns = 3, max_completion_tokens = 24, max_tokens = 128, max_seconds = 60 }}
engine = {{ count = 1, max_model_len = 128 }}
learner = {{ micro_batch_tokens = 512, threads = 1, optim = {{ lr = 1e-4 }} }}
model = {{ init = {{ family = "qwen3_moe" }} }}
[[env]]
id = "calculator"
"""
JUDGE = """
[[env.judge]]
id = "principles"
model = "judge"
config = {config}
[[models]]
name = "judge"
path = "{path}"
serve = {{ max_model_len = 512 }}
"""


def pair(draw: random.Random) -> Pair:
    """A greeting, and another one with a flaw."""
    name = draw.choice(NAMES)

    def words() -> list[str]:
        return [draw.choice(GREETINGS), name, draw.choice(REST)]

    good, bad = words(), words()
    match draw.randrange(3):
        case 0:
            bad.append(draw.choice(RUDE))
        case 1:
            bad[0] = draw.choice(REST)
        case _:
            bad[1] = f"{name} {name}"
    return Pair(f"Greet {name}", " ".join(good), " ".join(bad), {})


class Recorder:
    """Keeps what the judge asks."""

    name = "recorder"

    def __init__(self) -> None:
        self.asked = ""

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        self.asked = request.messages[0].content
        return ChatAnswer('{"verdict": "good"}')


async def chats(pairs: list[Pair], config: PrinciplesSettings) -> list[dict[str, Any]]:
    """The judge's own questions with the right verdicts."""
    recorder, found = Recorder(), list[dict[str, Any]]()
    prompt = find_prompt("principles", config.prompt)
    for one in pairs:
        for answer, verdict in ((one.chosen, "good"), (one.rejected, "bad")):
            await detected(
                one.question, answer, config.read(), recorder, config, prompt, reasons=False
            )
            # As the server's grammar writes: without blanks.
            content = json.dumps({"verdict": verdict}, separators=(",", ":"))
            said = {"role": "assistant", "content": content}
            found.append({"messages": [{"role": "user", "content": recorder.asked}, said]})
    return found


async def held(
    path: Path, pairs: list[Pair], settings: dict[str, Any], folder: Path
) -> dict[str, float]:
    """Agreement of a checkpoint as a judge, and its calls per second."""
    table = ModelTable(
        name="judge", path=str(path), concurrency=32, serve=ServeConfig(max_model_len=512)
    )
    service = ModelService(table, "", folder / f"{path.name}-vllm.log", print)
    try:
        begun = time.perf_counter()
        await service.start()
        started = time.perf_counter()
        judge = find_model_judge("principles")
        await evaluate(pairs[:4], judge, settings, service)
        warm = time.perf_counter()
        found = await evaluate(pairs[4:], judge, settings, service, at_once=64)
        seconds = time.perf_counter() - warm
        keep = {k: found.figures[k] for k in ("agreement", "low", "high", "undecided", "faults")}
        rate = 2 * len(pairs[4:]) / seconds
        return keep | {"calls_per_second": rate, "start_seconds": started - begun}
    finally:
        await service.close()


def throughput(name: str, text: str, folder: Path, seconds: float) -> float:
    """Trajectories per second of a run, from its third step on."""
    file = folder / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    run = folder / "runs" / name
    log = (folder / f"{name}.log").open("w", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "rl", "train", str(file)], stdout=log, stderr=log
    )

    def lines() -> list[dict[str, float]]:
        metrics = run / "metrics.jsonl"
        there = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        return [json.loads(line) for line in there]

    try:
        while len(lines()) < 3:
            if process.poll() is not None:
                raise SystemExit((folder / f"{name}.log").read_text(encoding="utf-8")[-2000:])
            time.sleep(0.5)
        time.sleep(seconds)
        times = [line["time"] for line in lines()[2:]]
        return 32 * (len(times) - 1) / (times[-1] - times[0])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def measure(rows: int, epochs: int, train: float, folder: Path) -> dict[str, Any]:
    """Train the judge, hold it to labels, and put it beside a run."""
    prompt = folder / "verdict.md"
    prompt.write_text(PROMPT, encoding="utf-8")
    settings = {"principles": ["polite"], "reasons": False, "prompt": str(prompt), "max_tokens": 24}
    draw = random.Random(0)
    pairs = [pair(draw) for _ in range(rows)]
    known = {(p.question, p.chosen, p.rejected) for p in pairs}
    held_out = [
        p
        for p in (pair(draw) for _ in range(1000))
        if (p.question, p.chosen, p.rejected) not in known
    ]
    data = asyncio.run(chats(pairs, PrinciplesSettings.model_validate(settings)))
    file = folder / "verdicts.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in data), encoding="utf-8")
    config = folder / "sft.toml"
    config.write_text(SFT.format(folder=folder, epochs=epochs), encoding="utf-8")
    figures: dict[str, Any] = {"pairs": rows, "held_out": len(held_out[:300])}
    begun = time.perf_counter()
    command = [sys.executable, "-m", "rl", "sft", str(config), "--data", str(file)]
    if not (folder / "judge").exists():
        subprocess.run([*command, "--out", str(folder / "judge")], check=True)
        figures["sft_seconds"] = time.perf_counter() - begun
    if not (folder / "new").exists():
        subprocess.run(
            [*command, "--out", str(folder / "new"), "--sft", "{ steps = 1 }"], check=True
        )
    for name in ("new", "judge"):
        figures[name] = asyncio.run(held(folder / name, held_out[:300], settings, folder))
        print(name, figures[name], flush=True)
    if train:
        figures["trajectories_per_second"] = {
            "without": throughput(
                "without", RUN.format(folder=folder, name="without"), folder, train
            )
        }
        written = ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
        judge = JUDGE.format(path=folder / "judge", config=f"{{ {written} }}")
        text = RUN.format(folder=folder, name="beside") + judge
        figures["trajectories_per_second"]["beside"] = throughput("beside", text, folder, train)
    return figures


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--rows", type=int, default=1500)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--train", type=float, default=60.0)
    options.add_argument("--folder", type=Path)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = (asked.folder or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(asked.rows, asked.epochs, asked.train, folder)
    print(json.dumps(figures, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
