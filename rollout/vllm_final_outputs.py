"""Outputs held back: vLLM's core hands out a request's tokens once, at its end or when they are asked for.

By default the core sends every new token of every request to the process that asked, which keeps them until
the request has ended: for a small policy on a CPU that is a third of what an engine costs. `FinalOutputs` is
the scheduler's half, `HAND_OUT` the call that `rollout.vllm_plugin` gives the core: who changes weights, or
ends requests early, makes it first, so that versions are told apart and nothing written is lost.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.request import Request, RequestStatus

HAND_OUT = "hand_out"
# Outputs of one request that are held at most: each keeps its step's numbers alive.
MOST_HELD = 512


class FinalOutputs(Scheduler):
    """vLLM's scheduler, which keeps a request's outputs until its last, or until there are MOST_HELD of them;
    an engine argument names it (`scheduler_cls`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, list[EngineCoreOutput]] = {}

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """The outputs of requests that have ended in this step, whole."""
        found = super().update_from_output(*args, **kwargs)
        for outputs in found.values():
            outputs.outputs = [one for one in map(self._at_end, outputs.outputs) if one is not None]
        return {client: some for client, some in found.items() if _says_something(some)}

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: "RequestStatus"
    ) -> "list[Request]":
        """End requests early; what is still held of them goes with them."""
        ended = super().finish_requests(request_ids, finished_status)
        for request in ended:
            self._held.pop(request.request_id, None)
        return ended

    def held(self) -> dict[int, EngineCoreOutputs]:
        """Everything that is held, by client; nothing is then."""
        by_client: dict[int, list[EngineCoreOutput]] = defaultdict(list)
        for id, outputs in self._held.items():
            by_client[self.requests[id].client_index].append(merged(outputs))
        self._held.clear()
        return {client: EngineCoreOutputs(outputs=some) for client, some in by_client.items()}

    def _at_end(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        held = self._held.setdefault(output.request_id, [])
        held.append(output)
        if output.finish_reason is None and len(held) < MOST_HELD:
            return None
        return merged(self._held.pop(output.request_id))


def hand_out(core: "EngineCoreProc") -> dict[str, int]:
    """The core's method HAND_OUT: sends what is held. Returns how many tokens each request has by now."""
    scheduler = core.scheduler
    if not isinstance(scheduler, FinalOutputs):  # it holds nothing back
        return {}
    outputs = scheduler.held()
    core._attach_weight_version(outputs)
    for one in outputs.items():
        core.output_queue.put_nowait(one)
    every = [output for some in outputs.values() for output in some.outputs]
    return {o.request_id: scheduler.requests[o.request_id].num_output_tokens for o in every}


def merged(outputs: list[EngineCoreOutput]) -> EngineCoreOutput:
    """One request's outputs, in order, as one: its tokens end to end, the rest of the last."""
    first, last = outputs[0], outputs[-1]
    if first is last:
        return last
    last.new_token_ids = [token for one in outputs for token in one.new_token_ids]
    last.prefill_stats = first.prefill_stats
    logprobs = [one.new_logprobs for one in outputs if one.new_logprobs is not None]
    if logprobs:
        ids, values, ranks, _ = zip(*logprobs, strict=True)
        last.new_logprobs = LogprobsLists(
            np.concatenate(ids), np.concatenate(values), np.concatenate(ranks)
        )
    routed = [one.routed_experts for one in outputs if one.routed_experts is not None]
    if routed:
        last.routed_experts = np.concatenate(routed)
    return last


def _says_something(outputs: EngineCoreOutputs) -> bool:
    return bool(outputs.outputs or outputs.finished_requests or outputs.scheduler_stats)
