"""`LearnerActor`: the learner, or one rank of it, in a Ray actor. Samples reach it as references."""

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError

from rl.actors.actor_method import actor_method, beside
from rl.actors.heartbeat import Heartbeat, own_heartbeat
from rl.config import RunConfig
from rl.nodes.nodes import own_address
from rl.nodes.process import log_to
from rl.record.position import POSITION
from rl.record.run_folder import LearnedWriter
from trainer.checkpoint_folder import prune
from trainer.sample import TokenScores, TrainSample
from trainer.step_result import StepResult


class LearnerActor:
    """The learner in an actor, or one rank of it; samples come as references.

    Its calls come one at a time, but for `heartbeat`, and `publish` and `record`, which write beside them.
    Ranks are called together, with the same arguments (`rl.actors.learner_ranks`).
    """

    def __init__(
        self, checkpoint: str, config: RunConfig, log: str, folder: str, rank: int = 0
    ) -> None:
        """folder: the run's."""
        log_to(log)
        self.checkpoint = checkpoint
        self.config = config
        self.rank = rank
        if not rank:
            self.learned = LearnedWriter(Path(folder))

    @actor_method
    def meeting(self) -> str:
        """host:port at which rank 0 waits for the others."""
        from trainer.parallel import open_store

        alone = self.config.cluster.address == "local"
        self.store = open_store("127.0.0.1" if alone else own_address())
        return f"{self.store.host}:{self.store.port}"

    @actor_method
    def ready(self, meeting: str = "") -> int:
        """Parameter count, once the policy is loaded. meeting: where the ranks meet, if there are several."""
        import torch
        from transformers import AutoTokenizer, PreTrainedTokenizerBase

        from trainer.learner import Learner
        from trainer.parallel import ALONE, join, reach_store

        config = self.config
        seed = config.seed_of(config.seed)
        random.seed(seed)
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        self.tokenizer = cast(
            PreTrainedTokenizerBase,
            AutoTokenizer.from_pretrained(self.checkpoint),  # pyright: ignore[reportUnknownMemberType]
        )
        self.dtype = getattr(torch, config.engine.dtype)
        ranks = ALONE
        if meeting:
            ranks = join(
                reach_store(meeting) if self.rank else self.store,
                rank=self.rank,
                count=config.learner.ranks,
                expert_parallel=config.learner.expert_parallel,
                device=config.learner.device,
                seconds=config.timeouts.step_seconds,
            )
        keep = config.rules.max_staleness if config.learner.loss.behaviour != "engine" else 0
        self.learner = Learner(
            self.checkpoint,
            config.learner,
            temperature=config.sampling.temperature,
            keep_versions=keep,
            ranks=ranks,
        )
        self.snapshots: dict[int, dict[str, torch.Tensor]] = {}
        self.unwritten: deque[tuple[int, list[TokenScores]]] = deque()
        return sum(p.numel() for p in self.learner.model.parameters())

    @actor_method
    def lost(self, groups: Sequence[ObjectRef[list[TrainSample]]]) -> list[int]:
        """Which of these groups of samples (as for `step`) are gone with the node that they lay on."""
        gone: list[int] = []
        for index, group in enumerate(groups):
            try:
                ray.get(group)
            except ObjectLostError:
                gone.append(index)
        return gone

    @actor_method
    def step(self, groups: Sequence[ObjectRef[list[TrainSample]]]) -> StepResult:
        """Update the policy on groups of samples (references to lists of `TrainSample`).

        The token scores stay in this process until `record` writes them: token data never passes through the
        run.
        """
        samples = [s for group in ray.get(list(groups)) for s in group]
        result = self.learner.step(samples)
        self.unwritten.append((self.learner.version, result.token_scores))
        return replace(result, token_scores=[])

    @beside("publish")
    def record(self) -> list[tuple[str, int]]:
        """Write the token scores of the oldest unwritten step. Returns ids and byte offsets, on rank 0."""
        step, scores = self.unwritten.popleft()
        return [] if self.rank else self.learned.write(step, scores)

    @actor_method
    def snapshot(self, version: int) -> float:
        """Copy the present weights, called `version`, for `publish`. Returns milliseconds."""
        start = time.perf_counter()
        self.snapshots[version] = self.learner.snapshot(self.dtype)
        return 1e3 * (time.perf_counter() - start)

    @beside("publish")
    def publish(self, version: int, path: str) -> int:
        """Write the copy of `version` to a file. Returns bytes, on rank 0, which alone has it."""
        from trainer.weights import write_weights

        weights = self.snapshots.pop(version)
        return 0 if self.rank else write_weights(weights, Path(path))

    @beside("heartbeat")
    def heartbeat(self) -> Heartbeat:
        """Answer beside whatever the learner computes."""
        return own_heartbeat()

    @actor_method
    def save(self, folder: str, position: str) -> None:
        """Begin to write a checkpoint, with tokenizer and the run's position; `saved` tells of its end."""

        def beside(model: Path) -> None:
            self.tokenizer.save_pretrained(model)  # pyright: ignore[reportUnknownMemberType]
            (model.parent / POSITION).write_text(position + "\n", encoding="utf-8")

        self.saving = Path(folder)
        self.learner.save_state(self.saving, beside=beside)

    @actor_method
    def load(self, folder: str) -> int:
        """Go on from a checkpoint. Returns its version. Raises CheckpointError."""
        self.learner.load_state(Path(folder))
        return self.learner.version

    @actor_method
    def saved(self) -> None:
        """Until the checkpoint in progress is whole; then those that are too many are removed."""
        self.learner.wait_saved()
        if self.config.checkpoint_keep and not self.rank:
            prune(self.saving.parent, self.config.checkpoint_keep)
