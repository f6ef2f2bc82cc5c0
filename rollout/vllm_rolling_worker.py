"""vLLM's CPU worker for `rollout.vllm_rolling_scheduler`: each step runs on the model that it is for."""

from typing import TYPE_CHECKING, Any

from vllm.v1.worker.cpu_worker import CPUWorker

from rollout.vllm_rolling_scheduler import OlderStep
from rollout.weight_transfer import FileWeightTransfer

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class RollingWorker(CPUWorker):
    """vLLM's CPU worker; an engine argument names it (`worker_cls`)."""

    def execute_model(self, scheduler_output: "SchedulerOutput") -> Any:
        """Run the step on the older weights where it is an `OlderStep`."""
        transfer = self.weight_transfer_engine
        if isinstance(transfer, FileWeightTransfer):
            transfer.generate_with(older=isinstance(scheduler_output, OlderStep))
        return super().execute_model(scheduler_output)
