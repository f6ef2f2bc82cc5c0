"""What an engine draws from, against the distribution of transformers' own model cut by the same rule."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.session import demonstrate
from rl.env_table import EnvTable
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import Completion, Request, Sampling
from rollout.renderer import Renderer
from rollout.vllm_engine import VllmEngine
from trainer.config import LearnerConfig
from trainer.learner import Learner
from trainer.sample import TrainSample

pytestmark = pytest.mark.engine

CUTS = {
    "whole": Sampling(1.0),
    "top_k": Sampling(1.0, top_k=5),
    "top_p": Sampling(1.0, top_p=0.9),
    "min_p": Sampling(1.0, min_p=0.05),
}
# Of each, at most: the policy ends most turns before (some 1,800 tokens of the whole distribution).
REQUESTS, TOKENS = 100, 48


def kept(logprobs_TV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Where a distribution is not cut off, by the rule's own words."""
    probs_TV = logprobs_TV.exp()
    if sampling.top_k:
        least_T1 = probs_TV.topk(sampling.top_k).values[:, -1:]
        return probs_TV >= least_T1
    if sampling.min_p:
        return probs_TV >= sampling.min_p * probs_TV.amax(-1, keepdim=True)
    falling_TV, order_TV = probs_TV.sort(-1, descending=True)
    before_TV = falling_TV.cumsum(-1) - falling_TV
    return torch.zeros_like(probs_TV, dtype=torch.bool).scatter(
        1, order_TV, before_TV < sampling.top_p
    )


def test_an_engine_draws_from_the_cut_distribution_and_reports_its_log_probs(policy: Path) -> None:
    asyncio.run(_compare(policy))


async def _compare(policy: Path) -> None:
    renderer = Renderer(policy, "longcat")
    prompt = await _prompt(renderer)
    config = EngineConfig(max_model_len=256, max_num_seqs=64, threads=2)
    engine = VllmEngine("engine-0", str(policy), config, SamplingConfig(), renderer.eos_ids, seed=0)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    try:
        await engine.start()
        for name, sampling in CUTS.items():
            requests = [
                Request(f"{name}-{i}", "", prompt, TOKENS, sampling=sampling)
                for i in range(REQUESTS if name == "whole" else REQUESTS // 3)
            ]
            played = await asyncio.gather(*map(engine.generate, requests))
            gaps = torch.tensor(list(_gaps(model, prompt, played, sampling)))
            own, whole = gaps[:, 0], gaps[:, 1]
            print(
                f"{name}: {len(gaps)} tokens, ratio to the cut distribution {own.exp().mean():.6f} "
                f"(mean |log| {own.abs().mean():.1e}, largest {own.abs().max():.1e}), to the whole one "
                f"{whole.exp().mean():.4f} (mean |log| {whole.abs().mean():.1e})"
            )
            assert own.isfinite().all(), "no token is drawn that is cut off"
            assert own.abs().mean() <= 1e-5 and (own.abs() > 1e-3).float().mean() <= 1e-3
            if name == "whole":
                _check_learner(policy, prompt, played)
            else:
                assert whole.abs().mean() > 1e-3, "what a run refuses in training"
        await _check_ends(engine, prompt)
    finally:
        engine.shutdown()


def _check_learner(policy: Path, prompt: tuple[int, ...], played: list[Completion]) -> None:
    """The learner's ratios to the engine are 1 within rounding where nothing is cut off."""
    samples = [
        TrainSample(
            id=str(i),
            env="calculator",
            token_ids=(*prompt, *one.token_ids),
            loss_mask=(False,) * len(prompt) + (True,) * len(one.token_ids),
            rollout_logprobs=(0.0,) * len(prompt) + one.logprobs,
            advantages=(0.0,) * (len(prompt) + len(one.token_ids)),
            versions=(-1,) * len(prompt) + (0,) * len(one.token_ids),
        )
        for i, one in enumerate(played)
    ]
    learner = Learner(policy, LearnerConfig(), temperature=1.0, keep_versions=0)
    theirs = torch.tensor([p for one in played for p in one.logprobs])
    own = torch.tensor([p for row in learner.logprobs(samples) for p in row])
    ratio = (own - theirs).exp()
    print(
        f"learner: {len(ratio)} tokens, ratio {ratio.mean():.6f}, off by {(ratio - 1).abs().max():.1e}"
    )
    assert len(ratio) > 1_000
    assert (own - theirs).abs().mean() <= 1e-5 and ((ratio - 1).abs() > 1e-3).float().mean() <= 1e-3


async def _check_ends(engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    """Temperature 0 always writes the same; one of its tokens as a stop token ends the turn, and is in it."""
    greedy = Sampling(0.0, top_k=5, repetition_penalty=1.1)
    first, second = [
        await engine.generate(Request(f"greedy-{i}", "", prompt, 16, sampling=greedy))
        for i in range(2)
    ]
    assert first.token_ids == second.token_ids
    stop = first.token_ids[2]
    ends = Sampling(0.0, top_k=5, repetition_penalty=1.1, stop_token_ids=(stop,))
    found = await engine.generate(Request("ends", "", prompt, 16, sampling=ends))
    assert found.token_ids == first.token_ids[: first.token_ids.index(stop) + 1]
    assert found.finish_reason == "stop"


@torch.no_grad()
def _gaps(
    model, prompt: tuple[int, ...], played: list[Completion], sampling: Sampling
) -> Iterator[tuple[float, float]]:
    """For each token the model's log-prob minus the engine's: of the cut distribution, and of the whole."""
    # Padded at the end, which no token before it sees.
    rows = [torch.tensor([*prompt, *completion.token_ids]) for completion in played]
    ids_ST = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    logits_STV = model(input_ids=ids_ST, use_cache=False).logits[:, len(prompt) - 1 :].float()
    for completion, padded_TV in zip(played, logits_STV, strict=True):
        logits_TV = padded_TV[: len(completion.token_ids)]
        logprobs_TV = logits_TV.log_softmax(-1)
        cut_TV = logprobs_TV.masked_fill(~kept(logprobs_TV, sampling), -math.inf).log_softmax(-1)
        written_T1 = torch.tensor(completion.token_ids)[:, None]
        theirs_T = torch.tensor(completion.logprobs)
        own_T = cut_TV.gather(1, written_T1)[:, 0] - theirs_T
        whole_T = logprobs_TV.gather(1, written_T1)[:, 0] - theirs_T
        yield from zip(own_T.tolist(), whole_T.tolist(), strict=True)


async def _prompt(renderer: Renderer) -> tuple[int, ...]:
    env = EnvTable(id="calculator").make()
    opening, _, _ = await demonstrate(env, next(env.tasks("heldout", 0)))
    return tuple(renderer.prompt(opening.messages, opening.tools))
