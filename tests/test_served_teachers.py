"""Teachers that are services: their wire over a stand-in for vLLM, faults, and the same advantages as a
teacher in the learner's process gives."""

import json
from dataclasses import replace
from typing import Any

import pytest
from test_distillation import distilling, fresh, in_envs, run_config, stock
from test_learner import samples

from envs.chat_model import ChatAnswer, ChatRequest, ModelFault
from rl.config import RunConfig
from rl.config_error import ConfigError
from rl.model_table import ModelTable
from rl.models.call import Refused, ServiceFault
from rl.models.logprob_wire import LogprobWire
from rl.models.served_teachers import taught
from rl.models.service import ModelService
from rl.record.teachers import check_teachers, with_teachers
from trainer.sample import TrainSample


def completion(ids: list[int], **changed: Any) -> dict[str, Any]:
    """The answer of vLLM's `/v1/completions` with `prompt_logprobs`: minus a hundredth of each id."""
    rows: list[Any] = [None, *({str(id): {"logprob": -id / 100, "rank": 1}} for id in ids[1:])]
    return {"choices": [{"text": "x", "prompt_logprobs": rows}], **changed}


async def test_ids_are_sent_as_they_are_and_each_but_the_first_has_a_log_prob(serve, tmp_path):
    server = serve(lambda body: (200, completion(body["prompt"])))
    service = ModelService(
        ModelTable(name="big", use="score", url=server.url, model="m"), "", tmp_path / "log", print
    )
    answer = await service.ask(ChatRequest((), token_ids=(5, 7, 200)))
    assert json.loads(answer.text) == {"logprobs": [-0.07, -2.0]}
    assert (answer.prompt_tokens, service.state().tokens) == (3, 3)
    asked = server.asked[0]
    assert (asked["prompt"], asked["max_tokens"], asked["prompt_logprobs"]) == ([5, 7, 200], 1, 0)
    await service.ask(ChatRequest((), token_ids=(5, 7, 201)))
    assert len(server.asked) == 2, "other ids are another question"
    await service.close()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": [{"text": "x"}]},
        {"choices": [{"prompt_logprobs": [None, {"7": {"logprob": -1}}]}]},
        {"choices": [{"prompt_logprobs": [None, {"7": {"logprob": -1}}, {"8": {"logprob": -1}}]}]},
    ],
)
async def test_what_are_no_log_probs_of_these_ids_is_a_fault(serve, answer):
    wire = LogprobWire(serve(lambda _: (200, answer)).url, model="m")
    with pytest.raises(ServiceFault, match="no log-probs of the tokens asked for"):
        await wire.send(ChatRequest((), token_ids=(5, 7, 9)))
    with pytest.raises(Refused, match="asked for none"):
        await wire.send(ChatRequest(()))
    await wire.close()


class Teacher:
    """Scores by a function; fails where that raises."""

    name = "big"

    def __init__(self, score: Any) -> None:
        self.score = score

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        return ChatAnswer(json.dumps({"logprobs": self.score(request.token_ids)}))


@pytest.mark.heavy
async def test_a_served_teacher_gives_the_advantages_of_one_in_the_learners_process(
    checkpoint, checkpoints
):
    folder = checkpoints["qwen3_moe"]
    near = distilling(checkpoint, teacher=str(folder))
    batch = fresh(near)

    def logprobs(ids: tuple[int, ...]) -> list[float]:
        mask = (False, *(True,) * (len(ids) - 1))
        zeros = (0.0,) * len(ids)
        every = TrainSample("", "", ids, mask, zeros, zeros, (0,) * len(ids))
        return stock(folder, [every])[0]

    given, faults = await taught(batch, lambda _: Teacher(logprobs))
    assert not faults and [s.id for s in given] == [s.id for s in batch]
    far = distilling(checkpoint, teacher="model:big")
    wanted, found = near.step(batch), far.step(given)
    for one, other in zip(wanted.token_scores, found.token_scores, strict=True):
        assert other.advantages == pytest.approx(one.advantages, abs=2e-4)
    with pytest.raises(ValueError, match="has not scored it"):
        distilling(checkpoint, teacher="model:big").step(batch)


async def test_a_fault_takes_every_segment_of_its_trajectory_and_no_other_ones():
    first, second, third, *_ = samples()
    batch = [
        replace(first, id="t", trajectory="t"),
        replace(second, id="t~1", trajectory="t"),
        third,
    ]

    def score(ids: tuple[int, ...]) -> list[float]:
        if ids == second.token_ids:
            raise ModelFault("model 'big': gone")
        return [-1.0] * (len(ids) - 1)

    kept, faults = await taught(batch, lambda _: Teacher(score))
    assert faults == {"t": "model 'big': gone"}
    assert [s.id for s in kept] == [third.id]
    assert kept[0].teacher_logprobs == (-1.0,) * third.num_policy_tokens
    unasked, faults = await taught(in_envs(batch, "x"), lambda _: None)
    assert not faults and [s.teacher_logprobs for s in unasked] == [()] * 3


def test_a_sample_has_a_log_prob_of_each_of_its_policys_tokens_or_none():
    sample = samples()[0]
    with pytest.raises(ValueError, match="log-probs of a teacher for its"):
        replace(sample, teacher_logprobs=(-1.0,) * (sample.num_policy_tokens + 1))


@pytest.mark.parametrize(
    ("model", "changed", "said"),
    [
        ({}, {}, "there is no 'big' among"),
        ({"name": "big", "url": "http://x"}, {}, 'a teacher is one of use "score"'),
        (
            {"name": "big", "url": "http://x", "use": "score"},
            {"temperature": 0.7},
            "scores at the temperature 1",
        ),
        (
            {"name": "big", "path": "{c}", "use": "score", "serve": {"max_model_len": 192}},
            {},
            "has to be above episode.max_tokens",
        ),
        ({"name": "big", "path": "nowhere", "use": "score"}, {}, "nowhere"),
    ],
)
def test_a_service_that_cannot_be_a_teacher_is_one_sentence(
    checkpoint, tmp_path, model, changed, said
):
    filled = {k: v.format(c=checkpoint) if isinstance(v, str) else v for k, v in model.items()}
    config = run_config(tmp_path, teacher="model:big")
    models = [ModelTable.model_validate(filled)] if filled else []
    sampling = config.sampling.model_copy(update=changed)
    config = config.model_copy(update={"models": models, "sampling": sampling})
    with pytest.raises(ConfigError, match=said):
        check_teachers(config, checkpoint)


def test_a_group_may_take_as_long_as_its_judges_and_teachers_are_held(tmp_path):
    table = {"id": "calculator", "judge": [{"id": "rubric", "name": "r", "model": "critic"}]}
    table["judge"][0]["config"] = {"criteria": [{"name": "c", "text": "is it right?"}]}
    models = [
        {"name": name, "url": "http://x", "use": use, "hold_seconds": seconds}
        for name, use, seconds in (
            ("big", "score", 200),
            ("critic", "chat", 100),
            ("idle", "chat", 50),
        )
    ]
    values = {"name": "t", "model": {"init": {}}, "models": models, "env": [table]}
    distil = {"advantage": "distill", "distill": {"teacher": "model:big"}}
    plain = RunConfig.model_validate({**values, "env": [{"id": "calculator"}]})
    assert plain.group_seconds == plain.episode.max_seconds
    held = RunConfig.model_validate({**values, "learner": distil})
    assert held.group_seconds == held.episode.max_seconds + 300


def test_a_served_teacher_stays_a_name_and_is_read_by_nobody(checkpoint, tmp_path):
    config = run_config(tmp_path, teacher=str(checkpoint), teachers={"orders": "model:big"})
    models = [ModelTable(name="big", url="http://x", use="score")]
    config = with_teachers(config.model_copy(update={"models": models}), str(checkpoint))
    distil = config.learner.distill
    assert distil is not None and distil.teachers == {"orders": "model:big"}
    assert list(distil.folders()) == [str(checkpoint.resolve())] and list(distil.services()) == [
        "big"
    ]
