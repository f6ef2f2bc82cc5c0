"""An engine makes new weights ready while it writes, then changes to them; a bad file changes nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import Completion, Request
from rollout.vllm_engine import VllmEngine
from rollout.weight_file import cut, slices_of
from trainer.config import LearnerConfig
from trainer.learner import Learner
from trainer.sample import TrainSample
from trainer.weights import write_weights

LIMIT = 2e-5
MIB = 2**20
PROMPTS = [tuple(20 + (5 * i + 3 * n) % 300 for i in range(24)) for n in range(8)]


Played = tuple[Request, Completion]


class Policies:
    """An engine, the learner, and the files of two policies: A, which the engine starts with, and B."""

    def __init__(self, engine: VllmEngine, learner: Learner, folder: Path) -> None:
        self.engine = engine
        self.learner = learner
        self.files = {name: folder / f"{name}.safetensors" for name in "AB"}
        self.weights: dict[str, dict[str, torch.Tensor]] = {}
        for name, file in self.files.items():
            self.weights[name] = {n: t.clone() for n, t in learner.model.state_dict().items()}
            write_weights(learner.snapshot(torch.float32), file)
            torch.manual_seed(3)
            with torch.no_grad():
                for parameter in learner.model.parameters():
                    parameter *= 1 + 0.2 * torch.randn_like(parameter)

    async def gap(self, policy: str, version: int) -> float:
        """Mean |engine's log-prob - learner's| of the policy, over tokens that the engine writes now."""
        tag = f"{policy}{version}"
        requests = [Request(f"{tag}-{n}", "", p, 24) for n, p in enumerate(PROMPTS)]
        played = await asyncio.gather(*map(self.engine.generate, requests))
        assert {s.version for c in played for s in c.versions} == {version}
        self.learner.model.load_state_dict(self.weights[policy])
        values = self.learner.logprobs(
            [_sample(r, c) for r, c in zip(requests, played, strict=True)]
        )
        gaps = [
            abs(a - b)
            for own, c in zip(values, played, strict=True)
            for a, b in zip(own, c.logprobs, strict=True)
        ]
        return sum(gaps) / len(gaps)

    def gaps_by_version(self, played: list[Played], wrote: dict[int, str]) -> dict[int, float]:
        """Mean |engine's log-prob - learner's| of each version's tokens. wrote: each version's policy."""
        gaps: dict[int, list[float]] = {}
        samples = [_sample(r, c) for r, c in played]
        for policy, weights in self.weights.items():
            self.learner.model.load_state_dict(weights)
            for values, (_, c) in zip(self.learner.logprobs(samples), played, strict=True):
                for span in (span for span in c.versions if wrote[span.version] == policy):
                    pairs = zip(
                        values[span.start : span.end],
                        c.logprobs[span.start : span.end],
                        strict=True,
                    )
                    gaps.setdefault(span.version, []).extend(abs(a - b) for a, b in pairs)
        return {version: sum(some) / len(some) for version, some in gaps.items()}


def _sample(request: Request, completion: Completion) -> TrainSample:
    prompt, written = len(request.prompt_ids), len(completion.token_ids)
    return TrainSample(
        id=request.id,
        env="staging",
        token_ids=request.prompt_ids + completion.token_ids,
        loss_mask=(False,) * prompt + (True,) * written,
        rollout_logprobs=(0.0,) * prompt + completion.logprobs,
        advantages=(0.0,) * (prompt + written),
        versions=(0,) * (prompt + written),
    )


@asynccontextmanager
async def _policies(checkpoint: Path, folder: Path) -> AsyncIterator[Policies]:
    # Of what a rolling change computes in a step, one or two prefixes are enough.
    config = EngineConfig(
        dtype="float32", max_model_len=1024, max_num_seqs=8, threads=1, prefill_tokens=64
    )
    engine = VllmEngine("engine-0", str(checkpoint), config, SamplingConfig(), (0,), seed=0)
    try:
        await engine.start()
        learner = Learner(
            checkpoint,
            LearnerConfig(micro_batch_tokens=512, threads=1),
            temperature=1.0,
            keep_versions=0,
        )
        yield Policies(engine, learner, folder)
    finally:
        engine.shutdown()


async def _written(engine: VllmEngine) -> int:
    """Tokens that running requests have so far."""
    await engine.hand_out()
    states = engine.llm.output_processor.request_states.values()
    return sum(s.detokenizer.num_output_tokens() for s in states if s.detokenizer)


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_weights_are_staged_beside_requests_and_changed_to_again_and_again(checkpoint, tmp_path):
    asyncio.run(_again_and_again(checkpoint, tmp_path))


async def _again_and_again(checkpoint: Path, folder: Path) -> None:
    async with _policies(checkpoint, folder) as policies:
        engine = policies.engine
        assert await policies.gap("A", 0) <= LIMIT
        wrote = {0: "A"}
        whole = 96
        assert await _found(engine, "first") == [0, whole, whole, whole, whole]
        updates = ["rolling", "rolling", "at_once", "rolling", "keep_cache"]
        for (version, policy), update in zip(enumerate("BABBA", start=1), updates, strict=True):
            engine.config = engine.config.model_copy(update={"update": update})
            wrote[version] = policy
            long = await _changed_under_requests(policies, version, policy)
            gaps = policies.gaps_by_version(long, wrote)
            again = whole if update == "keep_cache" else 0
            assert await _found(engine, update) == [again, whole, whole, whole, whole]
            assert gaps[version - 1] <= LIMIT, f"{update}: before the change"
            if update == "keep_cache":
                assert gaps[version] > 10 * LIMIT, "keys and values of the version before"
            else:
                assert gaps[version] <= LIMIT, f"{update}: {policy} as version {version}"
                assert await policies.gap(policy, version) <= LIMIT


async def _found(engine: VllmEngine, tag: str) -> list[int]:
    """Tokens of a common opening that each member of a group, and then a second turn, finds in the cache."""
    opening = tuple(20 + (7 * i) % 300 for i in range(100))
    group = [Request(f"{tag}-{n}", "", opening, 8) for n in range(4)]
    first = await asyncio.gather(*map(engine.generate, group))
    history = opening + first[0].token_ids + tuple(range(30, 60))
    second = await engine.generate(Request(f"{tag}-second", "", history, 8))
    return [completion.cached_tokens for completion in (*first, second)]


async def _changed_under_requests(policies: Policies, version: int, policy: str) -> list[Played]:
    """Requests under which the weights change to those of `policy`; each is of both versions."""
    engine, path = policies.engine, str(policies.files[policy])
    requests = [Request(f"l{version}-{n}", "", p, 400) for n, p in enumerate(PROMPTS[:6])]
    long = [asyncio.create_task(engine.generate(request)) for request in requests]
    while await _written(engine) < 24 and not any(one.done() for one in long):
        await asyncio.sleep(0.002)
    before = await _written(engine)
    assert await engine.stage(path, version) > 0
    assert await _written(engine) >= before + 4, "it wrote on meanwhile"
    assert engine.version == version - 1
    times = await engine.load(path, version)
    assert times.staging_ms == 0 and times.swap_ms <= times.pause_ms
    await engine.settled()
    if version % 2:  # Others write to their end.
        await engine.interrupt([request.id for request in requests[:3]])
    played = list(zip(requests, await asyncio.gather(*long), strict=True))
    for _, completion in played:
        # The policy may come to its end by itself before the change.
        assert [s.version for s in completion.versions] in ([version - 1], [version - 1, version])
    return played


@pytest.mark.engine
@pytest.mark.smoke
@pytest.mark.timeout(600)
def test_what_cannot_be_staged_changes_nothing_and_the_engine_takes_the_next_version(
    checkpoint, tmp_path
):
    asyncio.run(_refused(checkpoint, tmp_path))


async def _refused(checkpoint: Path, folder: Path) -> None:
    async with _policies(checkpoint, folder) as policies:
        engine, good = policies.engine, str(policies.files["B"])
        tensors = load_file(good)
        del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
        holes = folder / "holes.safetensors"
        save_file(tensors, holes)
        await _raises(lambda: engine.stage(str(holes), 1), "weights for the [0-9,]+ of the model")
        await _raises(lambda: engine.stage(str(folder / "none"), 1), "No such file")
        assert engine.version == 0 and await policies.gap("A", 0) <= LIMIT
        # Not the version that was asked for is staged: it is, before the change.
        await engine.stage(str(policies.files["A"]), 1)
        assert (await engine.load(good, 2)).staging_ms > 0
        assert await policies.gap("B", 2) <= LIMIT


async def _raises(act: Callable[[], Awaitable[object]], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        await act()


@pytest.mark.engine  # imports vllm, which sets variables
def test_a_large_policy_takes_few_calls_and_its_file_is_opened_once(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from staging import staging  # pyright: ignore[reportMissingImports]

    counted = staging(18_867)
    assert counted.tensors == 18_867 and counted.opened == 1
    assert counted.calls + counted.conversions <= 200, counted


def test_slices_of_a_large_policy_follow_its_layers():
    sizes = [(f"model.layers.{n}.x.{i}", 50 * MIB) for n in range(94) for i in range(60)]
    slices = cut([("model.embed.weight", 50 * MIB), *sizes])
    assert [name for names in slices for name in names][1:] == [name for name, _ in sizes]
    layers = [{name.split(".x.")[0] for name in names} for names in slices]
    assert all(len(one) == 1 for one in layers[1:]) and len(slices) == 94
    assert layers[0] == {"model.embed.weight", "model.layers.0"}
    # Layers that fit into one slice share it.
    small = [(f"model.layers.{n}.x.{i}", 8) for n in range(12) for i in range(10)]
    assert [len(names) for names in cut(small)] == [60, 60]


@pytest.mark.engine  # imports vllm, which sets variables
def test_a_file_is_opened_again_for_the_next_version(tmp_path, monkeypatch):
    from rollout import weight_transfer as transfer

    class Taken:
        def __init__(self) -> None:
            self.sums: list[float] = []

        def begin(self) -> None: ...

        def load(self, weights) -> None:
            self.sums += [float(tensor.sum()) for _, tensor in weights]

        def convert(self, share: float) -> None: ...

        def swap(self) -> None: ...

    engine = object.__new__(transfer.FileWeightTransfer)
    engine.staged = taken = Taken()
    path = tmp_path / "weights.safetensors"
    for version in (1.0, 2.0):
        path.unlink(missing_ok=True)
        save_file({"a": torch.full((2,), version), "b": torch.full((2,), -version)}, path)
        engine.receive_weights(transfer.FileUpdateInfo(str(path), ["a"], first=True))
        engine.receive_weights(transfer.FileUpdateInfo(str(path), ["b"]))
        assert engine.opened is not None
        engine.receive_weights(transfer.FileUpdateInfo(str(path), [], converted=1.0))
        assert engine.opened is None, "an opened file keeps its memory"
        engine.finish_weight_update()
    assert taken.sums == [2.0, -2.0, 4.0, -4.0]


def test_a_file_is_cut_into_slices_of_few_megabytes_and_few_tensors_in_its_order(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {f"a{n:03}": torch.zeros(8) for n in range(134)}
    tensors |= {f"b{n}": torch.zeros(5 * 2**18) for n in range(3)}
    save_file(tensors, path, metadata={"format": "pt"})
    slices = slices_of(path)
    assert [name for names in slices for name in names] == sorted(tensors)
    assert [len(names) for names in slices] == [64, 64, 7, 1, 1]
