"""Training on a document of five windows: what each `episode.context` makes of a policy that slips.

    python benchmarks/context_training.py [--steps 16] [--seeds 1] [--context summary] [--pages 58]
                                          [--folder DIR] [--json FILE]

A small new policy imitates chats that were written by hand, segment by segment, as an episode has them
(`dorado sft --data`): every twelfth summary forgets what it has to carry, every second code is not noted.
Then `dorado train` on the environments of `trail.py`, with a vLLM engine on the CPU; a page takes some 24
tokens of a window of 256. Printed: the held-out pass rate before and after. `append` gets two steps: its
episodes end at the window. A folder keeps what is done, and the same command goes on. About a quarter of an
hour a context on two cores.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands import dorado, metrics
from trail import END, WORDS, NotedTrail, Trail, opening

from envs.message import JsonObject
from envs.tool import tools_of
from rollout.context import SUMMARY_HEADING

ROOT = Path(__file__).parent.parent
WINDOW = 256
REQUEST = "sum up"
FORGETS, UNNOTED = 1 / 12, 1 / 2
CONTEXTS = ("append", "summary", "discard")
SFT = """
name = "{context}"
model = {{ init = {{ family = "qwen3_moe" }} }}
runs_dir = "{folder}"
sft = {{ steps = 300, batch_size = 32, optim = {{ lr = 2e-3, warmup_steps = 20, decay_steps = 320 }} }}
learner = {{ micro_batch_tokens = 8192 }}
"""
RUN = """
name = "{name}"
seed = {seed}
steps = {steps}
runs_dir = "{folder}"
model = {{ path = "{folder}/{context}-sft" }}
wandb = {{ enabled = false }}
batch = {{ groups = 8, group_size = 8, filter_zero_variance = {filtered} }}
engine = {{ count = 1, dtype = "float32", max_model_len = 320, max_num_seqs = 128 }}
rollout = {{ max_in_flight_groups = 12 }}
eval = {{ tasks = 64 }}

[[env]]
id = "{file}:{env}"
config = {{ pages = {pages} }}

[episode]
{limits}
max_tokens = {window}
max_turns = {turns}
max_completion_tokens = 32
max_seconds = 500

[learner]
micro_batch_tokens = 8192
loss = {{ kind = "longcat", max_completion_tokens = 256 }}
optim = {{ lr = 2.5e-4, warmup_steps = 3 }}
"""


def call(name: str, **arguments: str) -> JsonObject:
    """An assistant's message that calls a tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": "c", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def answered(content: str) -> JsonObject:
    """A tool's result."""
    return {"role": "tool", "tool_call_id": "c", "content": content}


def chats(context: str, count: int, rng: random.Random) -> Iterator[list[JsonObject]]:
    """Segments of episodes, as an expert who slips plays them; as long as an episode's, more or less."""
    noted = context == "discard"
    for _ in range(count):
        code, page, end, at = str(rng.randint(10, 99)), rng.randint(1, 12), rng.randint(6, 12), 0
        known = ""
        summary: str | None = None
        ended = False
        while not ended:
            asked = opening() if summary is None else f"{opening()}\n\n{SUMMARY_HEADING}\n{summary}"
            said: list[JsonObject] = [{"role": "user", "content": asked}]
            for _ in range(rng.randint(2, 5)):
                at += 1
                said.append(call("read"))
                if at > end:
                    said.append(answered(END))
                    if noted:
                        said += [call("recall"), answered(known or "nothing")]
                    said.append({"role": "assistant", "content": known or "none"})
                    ended = True
                    break
                filler = " ".join(rng.choices(WORDS, k=12))
                said.append(answered(f"{filler} code {code}" if at == page else filler))
                if at == page and not (noted and rng.random() < UNNOTED):
                    known = code
                    if noted:
                        said += [call("keep", text=code), answered("kept")]
            if not ended and context == "discard":
                said.append(call("read"))
            elif not ended:
                known = "" if rng.random() < FORGETS else known
                summary = f"code {known}" if known else "no code"
                said[-1]["content"] += f"\n\n{REQUEST}"
                said.append({"role": "assistant", "content": summary})
            yield said


def policy(folder: Path, context: str) -> None:
    """Make the policy that the runs of a context begin with, where it is not there."""
    if (folder / f"{context}-sft" / "config.json").exists():
        return
    tools = [
        {
            "type": "function",
            "function": {"name": s.name, "description": s.description, "parameters": s.parameters},
        }
        for s in (
            t.schema for t in tools_of(NotedTrail if context == "discard" else Trail).values()
        )
    ]
    rows = chats("discard" if context == "discard" else "summary", 600, random.Random(0))
    data = folder / f"{context}.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for messages in rows:
            file.write(json.dumps({"messages": messages, "tools": tools}) + "\n")
    config = folder / f"{context}-sft.toml"
    config.write_text(SFT.format(context=context, folder=folder), encoding="utf-8")
    dorado("sft", str(config), "--data", str(data))


def trained(folder: Path, context: str, seed: int, steps: int, pages: int) -> dict[str, Any]:
    """Figures of a run, which is made where it is not finished."""
    name = f"{context}-{seed}"
    if context == "append":  # every reward is 0, and no more is learnt in more steps
        steps = min(steps, 2)
    limits = f'context = "{context}"'
    if context == "summary":
        limits += f'\nsummary_prompt = "{REQUEST}"'
    if context != "append":
        limits += f"\ncontext_tokens = {WINDOW * 3 // 4}"
    config = folder / f"{name}.toml"
    config.write_text(
        RUN.format(
            name=name,
            seed=seed,
            steps=steps,
            folder=folder,
            context=context,
            file=Path(__file__).parent / "trail.py",
            env="NotedTrail" if context == "discard" else "Trail",
            limits=limits,
            filtered=str(context != "append").lower(),
            window=WINDOW,
            pages=pages,
            turns=2 * pages,
        ),
        encoding="utf-8",
    )
    lines = metrics(folder / name)
    if not any(line["step"] == steps and "eval/mean_pass_rate" in line for line in lines):
        dorado("train", str(config))
        lines = metrics(folder / name)
    rates = [line["eval/mean_pass_rate"] for line in lines if "eval/mean_pass_rate" in line]
    learnt = [line for line in lines if "time/total_seconds" in line]
    return {
        "context": context,
        "seed": seed,
        "before": rates[0],
        "after": rates[-1],
        "lines": learnt,
    }


def main() -> None:
    """Make what is not there, and print the table."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--steps", type=int, default=16)
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--context", choices=CONTEXTS, action="append")
    arguments.add_argument("--pages", type=int, default=58)
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--json", type=Path)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="dorado-contexts-") as temporary:
        folder = (asked.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for context in asked.context or CONTEXTS:
            policy(folder, context)
            rows += [
                trained(folder, context, seed, asked.steps, asked.pages)
                for seed in range(asked.seeds)
            ]
    print("| context | seed | held-out before | after |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['context']} | {row['seed']} | {row['before']:.2f} | {row['after']:.2f} |")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
