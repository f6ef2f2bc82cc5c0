"""Outputs held back by vllm's core: whole at a request's end, and when they are asked for."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.engine]


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our scheduler over steps that the test gives: `steps` is a list of lists of outputs."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import EngineCoreOutputs

    from rollout.vllm_final_outputs import FinalOutputs

    ours: Any = FinalOutputs.__new__(FinalOutputs)
    ours._held, ours.requests = {}, {}

    def step(self: Any, outputs: list[Any]) -> dict[int, Any]:
        return {0: EngineCoreOutputs(outputs=outputs)}

    def finish(self: Any, ids: list[str], status: object) -> list[Any]:
        return [self.requests.pop(id) for id in ids]

    monkeypatch.setattr(Scheduler, "update_from_output", step)
    monkeypatch.setattr(Scheduler, "finish_requests", finish)
    return ours


def written(id: str, *tokens: int, end: bool = False, cached: Any = None) -> Any:
    """An output with these tokens; the log-prob of token t is -t."""
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.outputs import LogprobsLists

    ids = np.array([[t] for t in tokens])
    return EngineCoreOutput(
        request_id=id,
        new_token_ids=list(tokens),
        new_logprobs=LogprobsLists(ids, -ids.astype(float), np.ones(len(tokens))),
        prefill_stats=cached,
        finish_reason=FinishReason.STOP if end else None,
    )


def test_a_request_is_told_once_at_its_end_with_all_that_it_wrote(scheduler: Any) -> None:
    cached: Any = object()
    assert scheduler.update_from_output([written("a", 1, cached=cached), written("b", 7)]) == {}
    assert scheduler.update_from_output([written("a", 2), written("b", 8)]) == {}
    found = scheduler.update_from_output([written("a", 3, end=True), written("b", 9)])
    [one] = found[0].outputs
    assert (one.request_id, one.new_token_ids, one.prefill_stats) == ("a", [1, 2, 3], cached)
    assert one.new_logprobs.logprobs.ravel().tolist() == [-1.0, -2.0, -3.0]
    assert one.new_logprobs.logprob_token_ids.ravel().tolist() == [1, 2, 3]
    assert list(scheduler._held) == ["b"]


def test_what_is_held_is_handed_out_when_asked_and_never_twice(scheduler: Any) -> None:
    from rollout.vllm_final_outputs import hand_out

    sent: list[Any] = []
    core: Any = SimpleNamespace(
        scheduler=scheduler,
        output_queue=SimpleNamespace(put_nowait=sent.append),
        _attach_weight_version=lambda outputs: [
            setattr(one, "weight_version", "3") for one in outputs.values()
        ],
    )
    scheduler.requests["a"] = SimpleNamespace(
        request_id="a", client_index=0, num_output_tokens=2, prefill_stats=None
    )
    scheduler.update_from_output([written("a", 1)])
    scheduler.update_from_output([written("a", 2)])
    assert hand_out(core) == {"a": 2}
    [(client, outputs)] = sent
    assert (client, outputs.weight_version, outputs.outputs[0].new_token_ids) == (0, "3", [1, 2])
    assert hand_out(core) == {} and len(sent) == 1
    found = scheduler.update_from_output([written("a", 3, end=True)])
    assert found[0].outputs[0].new_token_ids == [3]


def test_no_more_than_so_many_outputs_are_held(scheduler: Any) -> None:
    from rollout.vllm_final_outputs import MOST_HELD

    told = [scheduler.update_from_output([written("a", n)]) for n in range(MOST_HELD + 1)]
    [whole] = [found[0].outputs[0] for found in told if found]
    assert whole.new_token_ids == list(range(MOST_HELD)) and whole.finish_reason is None
    [last] = scheduler.update_from_output([written("a", 7, end=True)])[0].outputs
    assert last.new_token_ids == [MOST_HELD, 7]


def test_of_a_request_that_is_ended_early_nothing_stays(scheduler: Any) -> None:
    scheduler.requests["a"] = SimpleNamespace(request_id="a", client_index=0)
    scheduler.update_from_output([written("a", 1)])
    scheduler.finish_requests(["a"], "aborted")
    assert scheduler._held == {} and scheduler.held() == {}
