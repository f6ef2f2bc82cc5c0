"""vLLM's scheduler with a rolling change of weights: requests go on while prefixes are computed again.

vLLM's own way is to preempt all requests at a change, and to compute every prefix before it writes again. A
CPU worker still has the older weights (`rollout.vllm_shadow`). So requests in progress stay on them, with
their caches, and are moved a few at a time (`rollout.rolling`): a move preempts one, which drops its cache,
and its prefix is computed with the newer weights. Steps alternate: those of requests that wait for their move
are `OlderStep`s, which the worker runs on the older model (`rollout.vllm_rolling_worker`). Every token is of
one version, with a cache of that version; its step's outputs name it.

No prefix is found in an older cache: `begin_rolling` forgets all of them, and older steps add none.
Left out: schedulers that begin a step before the last one's tokens are known (vLLM has none on CPU).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.block_pool import BlockHashToBlockMap, BlockPool
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.engine.core import EngineCore
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from rollout.rolling import Pace, next_to_move
from rollout.vllm_final_outputs import FinalOutputs, merged

# The key of `VllmConfig.additional_config` under which `engine.prefill_tokens` comes.
PREFILL_TOKENS = "dorado_prefill_tokens"


class OlderStep(SchedulerOutput):
    """A step that runs on the older weights."""


class RollingScheduler(FinalOutputs):
    """vLLM's scheduler; between `begin_rolling` and the last move it schedules for two models in turn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Ids of the requests that are on the older weights.
        self.older: set[str] = set()
        # Whether the last step was theirs, and whether outputs are that nobody has named the version of yet.
        self.on_older = self._unnamed = False
        additional = self.vllm_config.additional_config
        assert isinstance(additional, dict)
        self.pace = Pace(additional.get(PREFILL_TOKENS))
        self._began = 0.0

    def begin_rolling(self) -> int:
        """The weights have changed: keep running requests on the older ones until they are moved.

        Returns how many there are. Forgets every cached prefix, and every cache that waits to be loaded.
        """
        assert not self.older_requests(), "one change of weights at a time"
        for request in [r for r in reversed(self.running) if not r.num_output_tokens]:
            self._preempt(request)  # It has written nothing yet: nobody waits for its next token.
        self.older = {request.request_id for request in self.running}
        _forget_prefixes(self.kv_cache_manager.block_pool)
        self.reset_connector_cache()
        return len(self.older)

    def older_requests(self) -> int:
        """How many requests are on the older weights."""
        return sum(request.request_id in self.older for request in self.running)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedule a step of either model."""
        self._began = time.monotonic()
        older = [r for r in self.running if r.request_id in self.older]
        self.older = {r.request_id for r in older}
        if not older or self._pause_state == PauseState.PAUSED_ALL:
            self.on_older = False
            return super().schedule(throttle_prefills)
        self.on_older = not self.on_older
        newer = [r for r in self.running if r.request_id not in self.older]
        with self._only_older(older, newer) if self.on_older else self._only_newer(older, newer):
            step = super().schedule(throttle_prefills)
        return OlderStep(**vars(step)) if self.on_older else step

    @contextmanager
    def _only_older(self, older: list[Request], newer: list[Request]) -> Iterator[None]:
        """Run the requests that wait for their move; begin none, and let nobody find their caches."""
        managers = self.kv_cache_manager.coordinator.single_type_managers
        caching, pause = [m.enable_caching for m in managers], self._pause_state
        self.running, self._pause_state = older, PauseState.PAUSED_NEW
        for manager in managers:
            manager.enable_caching = False
        try:
            yield
        finally:
            for manager, cached in zip(managers, caching, strict=True):
                manager.enable_caching = cached
            self.running, self._pause_state = newer + self.running, pause

    @contextmanager
    def _only_newer(self, older: list[Request], newer: list[Request]) -> Iterator[None]:
        """Run the others, and begin requests, within the step's budget and what room `older` leave."""
        most, active = self.max_num_scheduled_tokens, self.max_num_active_reqs
        writing = sum(not request.is_prefill_chunk for request in newer)
        # A prefix that is longer than the budget is computed in one step all the same: in pieces it would
        # keep its request waiting for longer.
        first = self.waiting.peek_request().num_tokens if self.waiting else 0
        self.running = newer
        self.max_num_scheduled_tokens = min(most, max(self.pace.budget(), first) + writing)
        self.max_num_active_reqs = active - len(older)
        try:
            yield
        finally:
            self.running = self.running + older
            self.max_num_scheduled_tokens, self.max_num_active_reqs = most, active

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take the step's tokens; after a step on the older weights, move requests to the newer ones."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if scheduler_output.num_scheduled_tokens and (not self.older or not self.on_older):
            lengths = scheduler_output.num_scheduled_tokens.values()
            prefill = sum(length for length in lengths if length > 1)
            writing = sum(length == 1 for length in lengths)
            # Undisturbed steps are those of no change.
            if prefill or not self.older:
                self.pace.note(time.monotonic() - self._began, writing, prefill)
        self._unnamed = self.on_older
        if self.on_older and self._pause_state == PauseState.UNPAUSED:
            self._move()
        if self.on_older:
            self._hand_out_moved(outputs)
        return outputs

    def _hand_out_moved(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Hand out what requests have written that are on the older weights no longer: these outputs are
        the last ones of that version."""
        for id in self.older & self._held.keys():
            request = self.requests[id]
            if request.status == RequestStatus.PREEMPTED:
                some = outputs.setdefault(request.client_index, EngineCoreOutputs())
                some.outputs.append(merged(self._held.pop(id)))

    def _at_end(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """Hold nothing back of a request whose tokens are wanted one by one."""
        request = self.requests.get(output.request_id)
        parameters = None if request is None else request.sampling_params
        if parameters and parameters.output_kind != RequestOutputKind.FINAL_ONLY:
            return output
        return super()._at_end(output)

    def held(self) -> dict[int, EngineCoreOutputs]:
        """All that is held of the newest weights, by client; the rest stays until it is of use."""
        older = {id: self._held.pop(id) for id in self.older & self._held.keys()}
        found = super().held()
        self._held |= older
        return found

    def take_older_outputs(self) -> bool:
        """True, once, if the outputs just taken are of the older weights."""
        older, self._unnamed = self._unnamed, False
        return older

    def _move(self) -> None:
        """Preempt those that are moved next: they come first in the next step, on the newer weights."""
        older = [request for request in self.running if request.request_id in self.older]
        waiting = sum(request.num_tokens for request in self.waiting)
        chosen = next_to_move([r.num_tokens for r in older], waiting, self.pace.budget())
        # The first one chosen ends up at the front of the queue.
        for index in reversed(chosen):
            self._preempt(older[index])

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._preempt_request(request, time.monotonic())
        self.prev_step_scheduled_req_ids.discard(request.request_id)


def _forget_prefixes(pool: BlockPool) -> None:
    """As `BlockPool.reset_prefix_cache`, which refuses while requests hold blocks."""
    pool.cached_block_hash_to_block = BlockHashToBlockMap()
    pool.cached_block_hashes_by_block.clear()
    for block in pool.blocks:
        block.reset_hash()


def extend_core() -> None:
    """Give vLLM's core what an engine calls, and each step's outputs the version that wrote them.

    vLLM's core takes the newest version for all outputs.
    """
    attach, name = EngineCore._attach_weight_version, EngineCore.set_weight_version
    core: Any = EngineCore

    def set_weight_version(self: Any, weight_version: str) -> None:
        self.older_version = self.get_weight_version()
        name(self, weight_version)

    def attach_weight_version(self: Any, outputs: dict[int, EngineCoreOutputs]) -> None:
        attach(self, outputs)
        if isinstance(self.scheduler, RollingScheduler) and self.scheduler.take_older_outputs():
            for one in outputs.values():
                one.weight_version = self.older_version

    core.set_weight_version = set_weight_version
    core._attach_weight_version = attach_weight_version
    core.begin_rolling = lambda self: self.scheduler.begin_rolling()
    core.older_requests = lambda self: self.scheduler.older_requests()
