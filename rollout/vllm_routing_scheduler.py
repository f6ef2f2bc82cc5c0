"""The scheduler's half of routing capture on CPU: which choices a request still wants, and handing them out.

vLLM's scheduler fills `CompletionOutput.routed_experts` through an auxiliary-output connector, whose other
half is part of the model runner for GPUs; this is that connector for `rollout.vllm_routing_worker`. In: the
step about to run. Out: `Wanted` to the worker, and from its `StepRouting` each request's rows with the step's
tokens, so that what is aborted has the choices of all that it has written.
"""

from typing import Any

from vllm.distributed.aux_output_connector.connector import AuxOutputSchedulerConnector
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from rollout.routing import Routing
from rollout.routing_capture import StepRouting, Wanted
from rollout.vllm_rolling_scheduler import RollingScheduler


class RoutingDelivery(AuxOutputSchedulerConnector):
    """Hands out each token's choices once, with the token whose log-prob they led to.

    That is the pass to repeat: a token computed again (preempted, moved without its cache, or under new
    weights) only serves tokens after it through its keys and values, while the log-prob of the token
    right after it was taken in the first pass. So what was handed out is never asked for again.
    """

    def build_connector_meta(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, scheduler_output: SchedulerOutput, requests: dict[str, Request]
    ) -> Wanted:
        """Collect what the step's requests want. Exact, as no step begins before the last one's tokens
        are known."""
        starts: dict[str, int] = {}
        for id in scheduler_output.num_scheduled_tokens:
            request = requests[id]
            assert request.sampling_params is not None
            first = request.sampling_params.routed_experts_prompt_start
            starts[id] = request.num_tokens - 1 if request.num_output_tokens else first
        loaded: dict[str, tuple[int, int]] = {}
        for new in scheduler_output.scheduled_new_reqs:
            stats = requests[new.req_id].prefill_stats
            if stats is not None and stats.num_external_cached_tokens:
                loaded[new.req_id] = (stats.num_local_cached_tokens, stats.num_cached_tokens)
        return Wanted(starts, loaded)

    def take_output(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, request: Request, output: StepRouting
    ) -> Routing:
        """The rows of a request that has a new token."""
        start, end = output.spans[request.request_id]
        return output.rows[start:end]

    def request_finished(self, request: Request) -> None:
        """Nothing is kept of a request."""

    def reset(self) -> None:
        """Nothing is kept."""


class RoutingScheduler(RollingScheduler):
    """The scheduler of engines on CPU with our connector; an engine argument names it (`scheduler_cls`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aux_output_connector = RoutingDelivery()
