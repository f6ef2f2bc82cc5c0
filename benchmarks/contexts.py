"""A document of several windows, page by page: which `episode.context` plays it, is every segment exact?

    python benchmarks/contexts.py              # scripted expert, every context, windows of 1/1 to 1/8
    python benchmarks/contexts.py --engine     # a vLLM engine writes; the learner scores its segments

Printed: who solved it, how the episode ended, segments, turns, tokens; with --engine the mean and the
largest difference between the engine's log-probs and the learner's, and how many differ by more than 1e-5.
Two experts may be so nearly equal that rounding decides between them; *replayed*: the learner takes the
experts that the engine took.
"""

import argparse
import asyncio
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

from pydantic import Field

from envs.env import Deadlines, Env, EnvConfig, Reply, Task
from envs.message import JsonObject, Message
from envs.session import EnvSession
from envs.tool import tool
from rl.samples.samples import by_segment, train_sample
from rollout.config import EpisodeConfig
from rollout.engine import Completion, Generate, Request, VersionSpan
from rollout.episode import Episode, Rendering
from rollout.renderer import Renderer
from rollout.trajectory import Trajectory
from trainer.sample import TrainSample
from trainer.small.init_model import init_checkpoint

FILLER = ("the mill", "a lake", "the road", "a hill", "the wood")
REQUEST = "sum up"
CONTEXTS = ("append", "summary", "discard", "hybrid")


class PagesConfig(EnvConfig):
    """pages: of the document. words: of filler on each."""

    pages: int = Field(default=30, ge=1)
    words: int = Field(default=12, ge=0)


class Pages(Env):
    """Add up the numbers of a document's pages; what was noted can be read again."""

    name = "pages"
    reward_names = ("solved",)
    config_type = PagesConfig
    config: PagesConfig

    def sample(self, rng: random.Random) -> JsonObject:
        return {
            "numbers": [rng.randint(1, 9) for _ in range(self.config.pages)],
            "seed": rng.random(),
        }

    async def reset(self, task: Task) -> list[Message]:
        self.numbers, self.memo = task.data["numbers"], "nothing"
        self.words = random.Random(task.data["seed"])
        self.answer = ""
        return [Message("user", f"add up the numbers of {len(self.numbers)} pages")]

    @tool(read_only=True)
    async def read(self, page: int) -> str:
        """a page"""
        filler = " ".join(self.words.choice(FILLER) for _ in range(self.config.words))
        number = self.numbers[page - 1] if 1 <= page <= len(self.numbers) else 0
        return f"page {page} {filler} adds {number}"

    @tool
    async def keep(self, text: str) -> str:
        """keep this text"""
        self.memo = text
        return "kept"

    @tool(read_only=True)
    async def recall(self) -> str:
        """the kept text"""
        return self.memo

    async def score(self) -> dict[str, float]:
        return {"solved": float((self.answer or "").strip() == str(sum(self.numbers)))}


STATE = re.compile(r"next (\d+) sum (\d+)|page (\d+) [a-z ]*adds (\d+)")


def act(seen: str, pages: int, *, noting: bool) -> str:
    """The next text of an expert who knows only the text before it. noting: it keeps notes at every page."""
    page, total, noted = 1, 0, False
    for found in STATE.finditer(seen):
        if found[1]:
            page, total, noted = int(found[1]), int(found[2]), True
        elif int(found[3]) == page:
            page, total, noted = page + 1, total + int(found[4]), False
    state = f"next {page} sum {total}"
    if REQUEST in seen[-80:]:
        return state
    if noting and "nothing" not in seen and page == 1:
        return _call("recall")
    if noting and page > 1 and not noted:
        return _call("keep", text=state)
    if page > pages:
        return str(total)
    return _call("read", page=str(page))


def _call(name: str, **arguments: str) -> str:
    pairs = "".join(
        f"<longcat_arg_key>{key}</longcat_arg_key><longcat_arg_value>{value}</longcat_arg_value>"
        for key, value in arguments.items()
    )
    return f"<longcat_tool_call>{name}{pairs}</longcat_tool_call>"


def expert(renderer: Any, pages: int, *, noting: bool) -> Generate:
    """An engine's place, taken by `act`: it reads the prompt's ids and nothing else."""

    async def generate(request: Request) -> Completion:
        written = act(renderer.text(request.prompt_ids), pages, noting=noting)
        ids = (*renderer.tokenizer.encode(written, add_special_tokens=False), renderer.eos_ids[0])
        spans = (VersionSpan(0, 0, len(ids)),)
        return Completion(ids, (-1.0,) * len(ids), spans, "stop", engine="expert")

    return generate


async def play(
    renderer: Rendering, generate: Generate, config: PagesConfig, limits: EpisodeConfig
) -> Trajectory:
    """One episode of the first task."""
    env = Pages(config)
    task = next(iter(env.tasks("train", 0)))
    session = EnvSession(env, Deadlines())
    return await Episode("t0", "g0", env.name, task, session, generate, renderer, limits).run()


def limits(window: int, context: str, turns: int = 200) -> EpisodeConfig:
    """Limits of an episode with this window, in tokens."""
    return EpisodeConfig.model_validate(
        {
            "max_turns": turns,
            "max_tokens": window,
            "max_completion_tokens": 64,
            "context": context,
            "summary_prompt": REQUEST,
            "discard_turns": 25 if context == "hybrid" else None,
        }
    )


async def by_window(renderer: Any, pages: int) -> None:
    """Print what the expert makes of every window and context."""
    config = PagesConfig(pages=pages)
    whole = await play(
        renderer, expert(renderer, pages, noting=True), config, limits(10**6, "append")
    )
    longest = whole.num_tokens
    print(f"the whole episode: {longest:,} tokens\n")
    print(
        "| window | context | solved | stop | segments | turns | tokens |\n|---|---|---|---|---|---|---|"
    )
    for part in (1, 2, 5, 8):
        for context in CONTEXTS:
            noting = context != "summary"
            generate = expert(renderer, pages, noting=noting)
            window = longest + 1 if part == 1 else longest // part
            t = await play(renderer, generate, config, limits(window, context))
            solved = t.env_rewards.get("solved", 0.0)
            print(
                f"| {window:,} (1/{part}) | {context} | {solved:.0f} | {t.stop_reason} | {len(t.segments)} "
                f"| {len(t.turns)} | {t.num_tokens:,} |"
            )


class Talk(Pages):
    """A user who answers whatever is said with another page."""

    name = "talk"

    async def reply(self, text: str) -> Reply:
        said = self.pages_said = getattr(self, "pages_said", 0) + 1
        return Reply((Message("user", await self.read(said)),), done=False)


async def rescored(folder: Path, renderer: Any, episodes: int) -> None:
    """Print how far the learner's log-probs of segments are from those of the engine that wrote them."""
    from rollout.config import EngineConfig, SamplingConfig
    from rollout.vllm_engine import VllmEngine
    from trainer.config import LearnerConfig, RouterConfig
    from trainer.learner import Learner

    config = EngineConfig(max_model_len=512, max_num_seqs=16, capture_routing=True)
    engine = VllmEngine("e", str(folder), config, SamplingConfig(), renderer.eos_ids, seed=0)
    own, replayed = (
        Learner(
            folder,
            LearnerConfig(micro_batch_tokens=2048, router=RouterConfig(replay=replay)),
            temperature=1.0,
            keep_versions=0,
        )
        for replay in (False, True)
    )
    await engine.start()
    try:
        print(
            "| context | episodes | segments | policy tokens | mean | largest | over 1e-5 "
            "| replayed: mean | largest | over 1e-5 |"
        )
        print(10 * "|---" + "|")
        for context in CONTEXTS:
            numbers = range(episodes)
            played = await asyncio.gather(
                *(written(renderer, engine.generate, context, n) for n in numbers)
            )
            samples = [s for one in played for s in by_segment(train_sample(one, 0.0), one)]
            row = [context, f"{len(played)}", f"{len(samples)}"]
            row.append(f"{sum(s.num_policy_tokens for s in samples):,}")
            for learner in (own, replayed):
                gaps = gaps_of(samples, learner.logprobs(samples))
                over = sum(gap > 1e-5 for gap in gaps)
                row += [f"{sum(gaps) / len(gaps):.1e}", f"{max(gaps):.1e}", f"{over}"]
            print(f"| {' | '.join(row)} |", flush=True)
    finally:
        engine.shutdown()


def gaps_of(samples: Sequence[TrainSample], logprobs: Sequence[Sequence[float]]) -> list[float]:
    """How far the learner's log-prob of each policy token is from the engine's."""
    return [
        abs(own - theirs)
        for sample, values in zip(samples, logprobs, strict=True)
        for own, theirs in zip(
            values, compress(sample.rollout_logprobs, sample.loss_mask), strict=True
        )
    ]


async def written(renderer: Any, generate: Generate, context: str, number: int) -> Trajectory:
    """An episode all of whose turns an engine writes; a turn that a length limit cuts is an answer too."""

    async def turn(request: Request) -> Completion:
        done = await generate(replace(request, id=f"{context}/{number}/{request.id}"))
        return replace(done, finish_reason="stop")

    env = Talk(PagesConfig())
    session = EnvSession(env, Deadlines())
    task = next(islice(env.tasks("train", 0), number, None))
    config = limits(448, context, turns=16)
    return await Episode("t0", "g0", env.name, task, session, turn, renderer, config).run()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pages", type=int, default=30)
    arguments.add_argument("--engine", action="store_true", help="score what a real engine writes")
    arguments.add_argument("--episodes", type=int, default=8)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="dorado-contexts-") as folder:
        task = next(iter(Pages(PagesConfig()).tasks("train", 0)))
        words = [f"{task.data} page {n} {' '.join(FILLER)} adds {n} next sum" for n in range(99)]
        init_checkpoint(Path(folder), family="qwen3_moe", preset="tiny", corpus=words, seed=1)
        renderer = Renderer(folder)
        if given.engine:
            asyncio.run(rescored(Path(folder), renderer, given.episodes))
        else:
            asyncio.run(by_window(renderer, given.pages))


if __name__ == "__main__":
    main()
