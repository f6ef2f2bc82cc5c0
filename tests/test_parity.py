"""The engine and the learner give the same tokens the same log-probs: before an update, and after each.

The weights are trained: with small random ones the attention is flat and every expert alike, so that
wrong rotary embeddings or unpacked experts change the log-probs by less than rounding.
"""

import asyncio
import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from kept_policies import kept

from envs.session import demonstrate
from rl.cold_start import make_cold_start
from rl.config import InitConfig, ModelConfig, RunConfig
from rl.env_table import EnvTable
from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import Completion, Request
from rollout.renderer import Renderer
from rollout.vllm_adapter import Adapters
from rollout.vllm_engine import VllmEngine
from trainer.config import LearnerConfig, LoraConfig, OptimConfig, SftConfig
from trainer.families.registry import FAMILIES
from trainer.learner import Learner
from trainer.lora import adapters
from trainer.sample import TrainSample
from trainer.weights import write_weights

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LIMIT = {"float32": 2e-5, "bfloat16": 2e-2}
# One group of parameters per update, from the trained weights each time, so that a loader that drops
# a group, or keeps the last one's change, is seen.
GROUPS: dict[str, Callable[[str], bool]] = {
    "experts": lambda name: ".experts." in name,
    "router": lambda name: ".router." in name or name.endswith(".mlp.gate.weight"),
    "attention": lambda name: "self_attn" in name,
    "norms": lambda name: "norm" in name,
    "dense": lambda name: ".mlps." in name,
    "embeddings": lambda name: "embed_tokens" in name or "lm_head" in name,
    "router bias": lambda name: name.endswith("e_score_correction_bias"),
}


ENVS = tuple(EnvTable(id=id) for id in ("calculator", "orders", "sensors"))


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after a short cold start; LongCat-Flash's is the one that whole runs start from."""
    if request.param == "longcat_flash":
        return request.getfixturevalue("policy")
    config = RunConfig(
        name="parity",
        model=ModelConfig(init=InitConfig(family=request.param)),
        env=ENVS,
        sft=SftConfig(demonstrations=80, steps=60, optim=OptimConfig(lr=2e-3, warmup_steps=10)),
    )
    return kept(
        request.config.cache,
        config.model_dump_json(),
        lambda made: make_cold_start(config, made, lambda *_: None),
        tmp_path_factory.mktemp("policy") / request.param,
    )


# Each family in each dtype once: one with all weights, the other with adapters.
@pytest.mark.parametrize(
    ("trained", "dtype"),
    [
        pytest.param("longcat_flash", "float32", marks=pytest.mark.smoke),
        ("qwen3_moe", "bfloat16"),
    ],
    indirect=["trained"],
)
def test_engine_and_learner_agree(trained: Path, dtype: str, tmp_path: Path) -> None:
    asyncio.run(_compare(trained, dtype, tmp_path))


@pytest.mark.compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("trained", ["longcat_flash"], indirect=True)
def test_a_compiled_engine_agrees_with_code_that_it_made_and_with_code_that_it_found(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What a layer computes with might be part of the code: the old weights, or an address of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    elsewhere = shutil.copytree(trained, tmp_path / "elsewhere")
    for checkpoint, groups, said in (
        (trained, ("attention",), "libraries compiled"),
        (elsewhere, GROUPS, "with what an earlier start compiled"),
    ):
        asyncio.run(_compare(checkpoint, "float32", tmp_path, compiled=True, groups=groups))
        assert said in capfd.readouterr().err


async def _compare(
    checkpoint: Path,
    dtype: str,
    folder: Path,
    *,
    compiled: bool = False,
    groups: Iterable[str] = GROUPS,
) -> None:
    renderer = Renderer(checkpoint, "longcat")
    prompts = [tuple(p) for p in [await _prompt(renderer, i) for i in range(24)]]
    config = EngineConfig(
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        max_model_len=256,
        max_num_seqs=12,
        threads=1,
        compile=compiled,
    )
    sampling = SamplingConfig()
    engine = VllmEngine("engine-0", str(checkpoint), config, sampling, renderer.eos_ids, seed=0)
    learner = Learner(
        checkpoint, LearnerConfig(micro_batch_tokens=256), temperature=1.0, keep_versions=0
    )
    published = folder / "weights.safetensors"
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    try:
        await engine.start()
        gaps = {"before": await _gap(engine, learner, prompts)}
        for version, group in enumerate(groups, start=1):
            learner.model.load_state_dict(before)
            if not _disturb(learner, GROUPS[group]):
                continue
            write_weights(learner.snapshot(getattr(torch, dtype)), published)
            await engine.load(str(published), version)
            played = await _play(engine, prompts)
            gaps[group] = _mean_gap(played, learner, version)
            learner.model.load_state_dict(before)
            if dtype == "float32":
                assert _mean_gap(played, learner, version) > 10 * LIMIT[dtype], (
                    "it changes something"
                )
        learner.model.load_state_dict(before)
        _disturb(learner, lambda name: True)
        gaps["in flight"] = await _gap_across_update(engine, learner, prompts, published, dtype)
        print(checkpoint.name, dtype, {k: f"{v:.1e}" for k, v in gaps.items()})
        assert max(gaps.values()) <= LIMIT[dtype], gaps
    finally:
        engine.shutdown()


@pytest.mark.parametrize(
    ("trained", "dtype"),
    [("longcat_flash", "bfloat16"), ("qwen3_moe", "float32")],
    indirect=["trained"],
)
def test_engine_and_learner_agree_on_one_adapter_after_another(
    trained: Path, dtype: str, tmp_path: Path
) -> None:
    asyncio.run(_compare_adapters(trained, dtype, tmp_path))


async def _compare_adapters(checkpoint: Path, dtype: str, folder: Path) -> None:
    """With equal prompts each time: what is kept of them is of another adapter."""
    renderer = Renderer(checkpoint, "longcat")
    prompts = [tuple(p) for p in [await _prompt(renderer, i) for i in range(24)]]
    config = EngineConfig(dtype=dtype, max_model_len=256, max_num_seqs=12, threads=1)  # pyright: ignore
    family = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["model_type"]
    lora = LoraConfig(rank=6, alpha=9.0, targets=FAMILIES[family].adapter_targets)
    engine = VllmEngine(
        "engine-0",
        str(checkpoint),
        config,
        SamplingConfig(),
        renderer.eos_ids,
        seed=0,
        adapters=Adapters(lora.rank, lora.alpha, lora.targets),
    )
    settings = LearnerConfig(micro_batch_tokens=256, lora=lora)
    learner = Learner(checkpoint, settings, temperature=1.0, keep_versions=0)
    base = Learner(
        checkpoint, LearnerConfig(micro_batch_tokens=256), temperature=1.0, keep_versions=0
    )
    published = folder / "adapter.safetensors"
    gaps: dict[str, float] = {}
    try:
        await engine.start()
        for version in range(4):
            if version:
                _draw_adapters(learner, seed=version)
            write_weights(learner.snapshot(getattr(torch, dtype)), published)
            times = await engine.load(str(published), version)
            assert 0 < times.swap_ms <= times.pause_ms
            gaps[f"version {version}"] = await _gap(engine, learner, prompts)
        change = await _gap(engine, base, prompts)
        assert change > 3 * max(gaps.values()), "the adapters change something"
        _draw_adapters(learner, seed=4)
        learner.save(folder / "saved")
        await engine.llm.reset_prefix_cache()
        await engine.llm.add_lora(_in_place_of_the_present(folder / "saved" / "adapter"))
        gaps["saved"] = await _gap(engine, learner, prompts)
        _draw_adapters(learner, seed=5)
        gaps["in flight"] = await _gap_across_update(engine, learner, prompts, published, dtype)
        print(checkpoint.name, dtype, {k: f"{v:.1e}" for k, v in gaps.items()}, times)
        assert max(gaps.values()) <= LIMIT[dtype], gaps
    finally:
        engine.shutdown()


def _in_place_of_the_present(folder: Path):
    # Not at the top: vLLM reads the environment that an engine prepares as soon as it is imported.
    from vllm.lora.request import LoRARequest

    return LoRARequest("policy", 1, str(folder), load_inplace=True)


@torch.no_grad()
def _draw_adapters(learner: Learner, seed: int) -> None:
    torch.manual_seed(seed)
    for layer in adapters(learner.model).values():
        layer.lora_A.normal_(std=layer.in_features**-0.5)
        layer.lora_B.normal_(std=0.02)


async def _prompt(renderer: Renderer, index: int) -> list[int]:
    table = ENVS[index % len(ENVS)]
    task = next(itertools.islice(table.make().tasks("heldout", 0), index, None))
    opening, _, _ = await demonstrate(table.make(), task)
    return renderer.prompt(opening.messages, opening.tools)


async def _generate(
    engine: VllmEngine, tag: str, prompts: list[tuple[int, ...]], tokens: int
) -> list[tuple[Request, Completion]]:
    requests = [Request(f"{tag}-{i}", f"{tag}-{i}", p, tokens) for i, p in enumerate(prompts)]
    completions = await asyncio.gather(*map(engine.generate, requests))
    return list(zip(requests, completions, strict=True))


async def _gap(engine: VllmEngine, learner: Learner, prompts: list[tuple[int, ...]]) -> float:
    """Mean |engine's log-prob - learner's| over freshly sampled tokens."""
    return _mean_gap(await _play(engine, prompts), learner, engine.version)


async def _play(
    engine: VllmEngine, prompts: list[tuple[int, ...]]
) -> list[tuple[Request, Completion]]:
    """Fresh tokens, all of the engine's version.

    In bfloat16 a router chooses another expert now and then, and a few such tokens are much of a small mean.
    """
    times = 3 if engine.config.dtype == "bfloat16" else 1
    played = await _generate(engine, f"v{engine.version}", prompts * times, 48)
    assert {s.version for _, c in played for s in c.versions} == {engine.version}
    return played


async def _gap_across_update(
    engine: VllmEngine,
    learner: Learner,
    prompts: list[tuple[int, ...]],
    published: Path,
    dtype: str,
) -> float:
    """The same for tokens written after an update, to what the learner holds, that caught their requests
    half-way."""
    write_weights(learner.snapshot(getattr(torch, dtype)), published)
    requests = [
        asyncio.create_task(engine.generate(Request(f"in-flight-{i}", "", prompts[i % 24], 48)))
        for i in range(96 if dtype == "bfloat16" else 48)
    ]
    # Few sequences run at a time, so when the first has ended the others are half-way.
    await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
    await engine.load(str(published), 99)
    completions = await asyncio.gather(*requests)
    played = [
        (Request(f"in-flight-{i}", "", prompts[i % 24], 48), completion)
        for i, completion in enumerate(completions)
    ]
    crossed = [c for _, c in played if len({s.version for s in c.versions}) == 2]
    assert crossed, f"no request crossed the update: {played[0][1].versions}"
    for _, completion in played:
        spans = completion.versions
        assert spans[0].start == 0 and spans[-1].end == len(completion.token_ids)
        assert all(a.end == b.start for a, b in itertools.pairwise(spans))
    return _mean_gap(played, learner, 99)


def _mean_gap(played: list[tuple[Request, Completion]], learner: Learner, version: int) -> float:
    samples = []
    for request, completion in played:
        prompt, written = len(request.prompt_ids), len(completion.token_ids)
        samples.append(
            TrainSample(
                id=request.id,
                env="parity",
                token_ids=request.prompt_ids + completion.token_ids,
                loss_mask=(False,) * prompt + (True,) * written,
                rollout_logprobs=(0.0,) * prompt + completion.logprobs,
                advantages=(0.0,) * (prompt + written),
                versions=(0,) * (prompt + written),
            )
        )
    gaps = [
        abs(own - theirs)
        for (_, completion), values in zip(played, learner.logprobs(samples), strict=True)
        for index, (own, theirs) in enumerate(zip(values, completion.logprobs, strict=True))
        if any(s.version == version and s.start <= index < s.end for s in completion.versions)
    ]
    return sum(gaps) / len(gaps)


@torch.no_grad()
def _disturb(learner: Learner, chosen: Callable[[str], bool]) -> bool:
    """Change a group of parameters by a tenth of their size; False where the family has none."""
    torch.manual_seed(2)
    found = False
    for name, value in learner.model.state_dict().items():
        if chosen(name):
            # A bias of the router begins as zero.
            value.mul_(1 + 0.1 * torch.randn_like(value))
            value.add_(0.02 * torch.randn_like(value) if "bias" in name else 0)
            found = True
    return found
