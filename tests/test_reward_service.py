"""Reward models as judges: their wire, anchors that move, distances of scores; over stand-ins for vLLM."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import group_report, member
from test_judges import Script, judged, said

from envs.chat_model import ChatRequest, ModelFault
from envs.message import Message, ToolCall
from reward.score import JudgeFault, score
from rl.config import RunConfig
from rl.config_error import ConfigError
from rl.env_table import EnvTable
from rl.model_table import ModelTable
from rl.models.anchors import Anchors
from rl.models.judges import check_first_task
from rl.models.score_wire import ScoreWire
from rl.models.service import ModelService
from rl.plugin_check import Answer
from rl.preference_data import preference_tokens, read_pair
from rl.preflight.models import check_models
from rl.samples.score_drift import ScoreDrift
from rollout.renderer import Renderer
from rollout.vllm_server import server_command
from trainer.reward_scores import (
    Anchor,
    TrainingScores,
    kolmogorov_smirnov,
    read_scores,
    wasserstein,
    write_scores,
)


def classified(*scores: float) -> dict[str, Any]:
    """The answer of vLLM's `/classify`."""
    data = [
        {"index": i, "label": "reward", "probs": [s], "num_classes": 1}
        for i, s in enumerate(scores)
    ]
    return {"data": data, "usage": {"prompt_tokens": 7}}


async def test_a_score_is_the_reward_as_it_is_and_equal_conversations_are_paid_once(
    serve, tmp_path
):
    server = serve(lambda body: (200, classified(-len(body["messages"][-1]["content"]) / 2)))
    table = ModelTable(name="style", use="reward", url=server.url)
    service = ModelService(table, "", tmp_path / "log", print)
    judge = judged("reward_model", service, {}, "liked")
    one = said("Greet.", "Hello!")
    first, again = [await score(one, [judge], {"liked": 0.5}, seconds=9) for _ in range(2)]
    assert (first.rewards, first.reward) == ({"liked": -3.0}, -1.5)
    assert [found.judgements[0].cached for found in (first, again)] == [0, 1]
    assert len(server.asked) == 1 and server.asked[0]["use_activation"] is False
    assert server.asked[0]["messages"][0] == {"role": "user", "content": "Greet."}
    assert service.state().tokens == 7
    await service.close()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((200, {"data": []}), "no score"),
        ((200, {"data": [{"probs": [0.2, 0.8]}]}), "no score"),
        ((200, {"data": [{"probs": ["x"]}]}), "no score"),
        ((400, {"error": "this model's maximum context length is 512"}), "maximum context length"),
        ((500, {"error": "out of memory"}), "out of memory"),
    ],
)
async def test_what_is_no_score_is_a_fault_and_no_reward(serve, tmp_path, answer, sentence):
    table = ModelTable(
        name="style", use="reward", url=serve(lambda body: answer).url, hold_seconds=0.3, retries=0
    )
    service = ModelService(table, "", tmp_path / "log", print)
    one = said("Greet.", "Hello!")
    with pytest.raises(JudgeFault, match=sentence):
        await score(one, [judged("reward_model", service, {})], {}, seconds=9)
    await service.close()


async def test_a_score_that_is_no_number_is_a_fault():
    one = said("Greet.", "Hello!")
    for text in ('{"score": NaN}', "{}", "3", '{"score": "high"}'):
        with pytest.raises(JudgeFault):
            await score(
                one, [judged("reward_model", Script(lambda _, t=text: t), {})], {}, seconds=9
            )


async def test_the_judge_shows_calls_and_results_and_ends_with_the_last_answer():
    model = Script(lambda _: {"score": 1.5})
    one = said("Add 1 and 2.", "")
    call, result = ToolCall("add", {"a": 1}), Message("tool", "3", name="add")
    turn = replace(one.turns[0], thought="hm", calls=(call,), observations=(result,))
    last = replace(one.turns[0], text=" 3 ", observations=(Message("user", "thanks"),))
    await judged("reward_model", model, {})(one.task, replace(one, turns=(turn, last)))
    [request] = model.asked
    assert request.messages[-3:] == (
        Message("assistant", "", (call,)),
        result,
        Message("assistant", "3"),
    )
    assert "hm" not in repr(request.messages)


async def test_a_folder_is_asked_by_the_tokens_that_it_was_trained_on(serve, checkpoint):
    server = serve(lambda body: (200, classified(2.0)))
    wire = ScoreWire(server.url, folder=str(checkpoint))
    chat = {"prompt": "Greet Ana.", "chosen": "Dear Ana!", "rejected": "no"}
    pair = read_pair(chat)
    answer = await wire.send(ChatRequest(pair.chosen.messages))
    [trained] = preference_tokens([("row", pair)], Renderer(checkpoint), 1000)
    assert server.asked[-1]["input"] == list(trained.chosen)
    assert json.loads(answer.text) == {"score": 2.0}
    await wire.close()


async def test_several_heads_are_one_reward_by_their_weights_and_a_metric_each(serve, tmp_path):
    server = serve(lambda body: (200, {"data": [{"probs": [2.0, -1.0]}]}))
    table = ModelTable(name="style", use="reward", url=server.url, heads=("polite", "short"))
    service = ModelService(table, "", tmp_path / "log", print)
    one = said("Greet.", "Hello!")
    plain = await score(one, [judged("reward_model", service, {}, "liked")], {}, seconds=9)
    assert plain.rewards == {"liked": 1.0}
    assert plain.judgements[0].metrics == {"liked/polite": 2.0, "liked/short": -1.0}
    weighed = {"weights": {"short": -3.0}}
    again = await score(one, [judged("reward_model", service, weighed, "liked")], {}, seconds=9)
    assert again.rewards == {"liked": 3.0} and len(server.asked) == 1
    await service.close()


def test_weights_of_a_head_that_there_is_not_and_names_where_none_are_read_are_refused(checkpoint):
    with pytest.raises(ValueError, match="a folder names its own"):
        ModelTable(name="m", use="reward", path="x", heads=("a",))
    with pytest.raises(ValueError, match="a name twice"):
        ModelTable(name="m", use="reward", url="http://x", heads=("a", "a"))
    given = {"id": "reward_model", "model": "m", "config": {"weights": {"kind": 1}}}
    env = {"id": "calculator", "judge": [given]}
    model = {"name": "m", "url": "http://x", "use": "reward", "heads": ["polite"]}
    base = {"name": "x", "model": {"init": {}}, "env": [env], "models": [model]}
    with pytest.raises(ConfigError, match="has no head 'kind'; it has polite"):
        check_models(RunConfig.model_validate(base))
    for config, sentence in (({"votes": 2}, "has no votes"), ({"weights": {"a": 0}}, "weight 0")):
        env["judge"] = [given | {"config": config}]
        with pytest.raises(ConfigError, match=sentence):
            check_models(RunConfig.model_validate(base))


@pytest.mark.parametrize(
    ("env", "judge", "sentence"),
    [
        (
            "calculator",
            {"id": "rubric", "config": {"column": "rubric"}},
            "env.0.judge.0: .*no such column",
        ),
        ("judgeless", {"id": "equivalence"}, "env.0.judge.0: .*'answer' to judge by"),
    ],
)
def test_a_first_task_without_what_a_judge_reads_is_told_of_before_a_run(
    env, judge, sentence, tmp_path
):
    table: dict[str, Any] = {"id": "calculator", "judge": [judge | {"model": "m"}]}
    if env != "calculator":
        # Their hashes put some of them on each side.
        asked = "".join(f'{{"question": "Greet {n}."}}\n' for n in range(40))
        (tmp_path / "rows.jsonl").write_text(asked, encoding="utf-8")
        rows = {"path": str(tmp_path / "rows.jsonl"), "answer": ""}
        table |= {"id": "dataset", "config": rows}
    model = {"name": "m", "url": "http://x"}
    base = {"name": "x", "model": {"init": {}}, "env": [table], "models": [model]}
    with pytest.raises(ConfigError, match=sentence):
        check_models(RunConfig.model_validate(base))


def test_a_first_task_of_others_is_drawn_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Their code may hang, or end its process."""
    code = "from envs.env import Env\nclass W(Env):\n    name = 'w'\n    def sample(self, rng): 1 / 0\n"
    (tmp_path / "w.py").write_text(code, encoding="utf-8")
    asked: list[Any] = []

    def elsewhere(looks):
        asked.extend(looks)
        yield Answer(bad="env 'w': drawing its first task took over 30 s")

    monkeypatch.setattr("rl.plugin_check._elsewhere", elsewhere)
    judge = {"id": "rubric", "model": "m", "config": {"column": "rubric"}}
    table = EnvTable.model_validate({"id": f"{tmp_path}/w.py:W", "judge": [judge]})
    with pytest.raises(ConfigError, match="drawing its first task took"):
        check_first_task(table, "env.0", "train")
    [look] = asked
    assert not look.ours and look.look(lambda _: None) == ""  # the run says what it raises


def test_vllm_is_told_to_pool(checkpoint):
    sizes = {"max_model_len": 512, "max_num_seqs": 4}
    asked = {"device": "cpu", "dtype": "float32", "given": {}, **sizes}
    command = server_command(str(checkpoint), 1, scores=True, **asked)
    assert command[command.index("--runner") + 1] == "pooling"
    assert "--structured-outputs-config" not in command
    assert "--runner" not in server_command(str(checkpoint), 1, **asked)


def settings(path: str, use: str, judge: str) -> RunConfig:
    env = {"id": "calculator", "judge": [{"id": judge, "model": "m"}]}
    model = {"name": "m", "path": path, "use": use}
    return RunConfig.model_validate(
        {"name": "x", "model": {"init": {}}, "env": [env], "models": [model]}
    )


@pytest.mark.parametrize(
    ("use", "judge", "sentence"),
    [
        ("reward", "reward_model", "models.0.path: .* needs a reward model: `dorado reward train`"),
        ("chat", "reward_model", "judge 'reward_model' needs a model of use 'reward'"),
    ],
)
def test_a_model_of_another_use_is_a_sentence(checkpoint, use, judge, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_models(settings(str(checkpoint), use, judge))


def test_distances_are_those_of_their_definitions():
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, 40), random.normal(1, 2, 40)
    assert wasserstein(a, b) == pytest.approx(np.abs(np.sort(a) - np.sort(b)).mean())
    grid = np.concatenate([a, b])
    brute = max(abs(np.mean(a <= x) - np.mean(b <= x)) for x in grid)
    assert kolmogorov_smirnov(a, b) == pytest.approx(brute)
    assert wasserstein(a, a) == kolmogorov_smirnov(a, a) == 0
    assert wasserstein([0.0], [3.0, 3.0]) == pytest.approx(3) and kolmogorov_smirnov([0], [3]) == 1


def test_a_runs_scores_are_held_against_those_of_training():
    drift = ScoreDrift("letters", "style", TrainingScores((-1.0, 0.0, 1.0)), window=2)
    assert drift.metrics() == {}
    for shift in (9.0, 1.0, 2.0):  # the first has left the window at the end
        members = [member(f"g{shift}", rewards={"style": shift}), member("f", judged=False)]
        drift.add(group_report("letters", members))
    drift.add(group_report("others", [member("o", rewards={"style": 99.0})]))
    found = drift.metrics()
    spread = (2 / 3) ** 0.5
    assert found["drift/letters/style/shift"] == pytest.approx(1.5 / spread)
    assert found["drift/letters/style/wasserstein"] == pytest.approx(1.5 / spread)
    assert found["drift/letters/style/ks"] == pytest.approx(2 / 3)


def test_scores_of_training_are_kept_and_wrong_ones_are_a_sentence(tmp_path):
    assert read_scores(tmp_path) is None
    kept = TrainingScores((0.0, 2.0), (Anchor(({"role": "user", "content": "a"},), 2.0),))
    write_scores(tmp_path, kept)
    assert read_scores(tmp_path) == kept and kept.spread == 1
    for text in ("{", '{"scores": []}', '{"scores": [NaN]}', '{"scores": "many"}'):
        (tmp_path / "scores.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"scores\.json"):
            read_scores(tmp_path)


async def test_anchors_that_move_are_told_of_once_and_faults_say_nothing():
    def anchor(text: str, found: float) -> Anchor:
        chat = ({"role": "user", "content": "q"}, {"role": "assistant", "content": text})
        return Anchor(chat, found)

    known = {"a": 1.0, "b": -1.0}
    shift: list[Any] = [0.1]

    def answer(request: ChatRequest) -> Any:
        if isinstance(shift[0], Exception):
            return shift[0]
        return {"score": known[request.messages[-1].content] + shift[0]}

    heard: list[str] = []
    training = TrainingScores((-1.0, 1.0), tuple(anchor(t, v) for t, v in known.items()))
    anchors = Anchors(Script(answer, "style"), training, heard.append)
    for moved in (0.1, 0.1, ModelFault("away"), 0.12, 0.2, 0.2, ModelFault("away"), 0.1):
        shift[0] = moved
        await anchors.look()
    assert len(heard) == 2, "0.1 is within the bound of training, 0.2 too far from the first look"
    assert "'style'" in heard[0] and "when it was started" in heard[0] and "0.2 st" in heard[0]
    assert anchors.moved == "" and anchors.distance == pytest.approx(0.1)
    later = Anchors(Script(answer, "style"), training, heard.append)
    shift[0] = 0.5
    for _ in range(3):
        await later.look()
    assert len(heard) == 3 and "at the end of its training" in heard[2] and later.moved
    watching = asyncio.create_task(later.watch(0.01))
    await asyncio.sleep(0.03)
    watching.cancel()
