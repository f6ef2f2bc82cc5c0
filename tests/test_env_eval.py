"""`dorado env eval`: a served model, a checkpoint on a real engine, what is written and shown."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import scored
from rich.console import Console
from typer.testing import CliRunner

from envs.message import Message, ToolCall
from rl.cli import app
from rl.config import RunConfig, load_config
from rl.config_file import ConfigError
from rl.env_tools.eval.chat_model import ChatPolicy, ChatServer
from rl.env_tools.eval.players import Limits, server_players
from rl.env_tools.eval.run import NO_TOKENS, EvalFolder, limits_for, summary
from rl.env_tools.eval.view import EvalView
from rl.models.http_wire import base_of
from rollout.config import EngineConfig, EpisodeConfig, SamplingConfig
from rollout.engine import Completion, EngineFault, Request
from rollout.trajectory_file import read_trajectory

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent


def calls(*named: tuple[str, str], content: str | None = None) -> dict[str, Any]:
    """A server's answer with these tool calls."""
    made = [
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(named)
    ]
    message = {"role": "assistant", "content": content, "tool_calls": made}
    return {"choices": [{"message": message, "finish_reason": "tool_calls"}]}


def says(text: str, reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": reason}]}


def stirrer(body: dict[str, Any]) -> tuple[int, Any]:
    """Plays the kitchen of test_env_replay."""
    if body["messages"][-1]["role"] == "tool":
        return 200, says("served")
    return 200, calls(("stir", '{"times": 2}'), content="now")


def evaluate(tmp_path: Path, *arguments: str) -> Any:
    out = str(tmp_path / "out")
    command = ["env", "eval", "kitchen:Kitchen", "--out", out, *arguments]
    return CliRunner().invoke(app, command)


def written(folder: Path) -> list[Any]:
    lines = (
        (folder / "out" / "trajectories" / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    )
    return [read_trajectory(line).trajectory for line in lines]


def test_a_served_model_plays_and_its_trajectories_hold_no_made_up_tokens(serve, tmp_path):
    server = serve(stirrer)
    done = evaluate(tmp_path, "--model", server.url, "--tasks", "3", "--temperature", "0")
    assert done.exit_code == 0, done.output
    assert "pass rate: 1.0" in done.output
    first = written(tmp_path)[0]
    assert len(written(tmp_path)) == 3
    assert [t.completion_ids for t in first.turns] == [(), ()]
    assert [t.rollout_logprobs for t in first.turns] == [(), ()]
    assert first.notes == {"model": server.url, "tokens": NO_TOKENS}
    assert first.turns[0].calls == (ToolCall("stir", {"times": 2}),)
    body = server.asked[-1]
    assert (body["model"], body["temperature"]) == ("tiny", 0)
    assert [tool["function"]["name"] for tool in body["tools"]] == ["stir"]
    called, answered = body["messages"][-2:]
    assert (called["tool_calls"][0]["id"], answered["tool_call_id"]) == ("c0", "c0")
    assert "stirred" in answered["content"]


@pytest.mark.slow  # two commands, each with an environment in a process of its own
def test_what_an_evaluation_wrote_can_be_replayed(serve, tmp_path):
    server = serve(stirrer)
    evaluate(tmp_path, "--model", server.url, "--tasks", "1")
    again = CliRunner().invoke(app, ["env", "replay", f"{tmp_path}/out/eval-0"])
    assert (again.exit_code, "the same in all 2 turns" in again.output) == (0, True)


ROWS = "".join(json.dumps({"question": f"{n} + 1", "answer": n + 1}) + "\n" for n in range(60))


def right(body: dict[str, Any]) -> tuple[int, Any]:
    """Is always right about ROWS."""
    return 200, says(str(int(body["messages"][-1]["content"].split()[0]) + 1))


def evaluate_rows(tmp_path: Path, url: str, *arguments: str) -> Any:
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    config = json.dumps({"path": str(tmp_path / "rows.jsonl")})
    command = ["env", "eval", "dataset", "--model", url, "--tasks", "3", "--out", f"{tmp_path}/out"]
    run = [] if "--run" in arguments else ["--config", config]
    return CliRunner().invoke(app, [*command, *run, *arguments])


def test_rows_of_a_data_set_are_judged_by_the_judge_that_is_named(serve, tmp_path):
    done = evaluate_rows(tmp_path, serve(right).url, "--judge", "exact")
    assert (done.exit_code, "pass rate: 1.0" in done.output) == (0, True), done.output


def judging(body: dict[str, Any]) -> tuple[int, Any]:
    """Says yes to the criterion."""
    return 200, says('{"short": {"verdict": "yes", "reason": ""}}')


JUDGED = """
name = "t"
[model.init]
[[models]]
name = "judge"
url = "URL"
[[models]]
name = "unasked"
path = "/nowhere"
[[env]]
id = "dataset"
judges = ["exact"]
config = { path = "rows.jsonl" }
rewards = { exact = 0.5, style = 0.25, ranking = 2 }
[[env.judge]]
id = "rubric"
name = "style"
model = "judge"
config = { criteria = [{ name = "short", text = "It is short." }] }
[[env.judge]]
id = "ranking"
model = "judge"
"""


def test_judges_and_rows_of_a_runs_config_are_those_of_the_evaluation(serve, tmp_path):
    judge = serve(judging)
    text = JUDGED.replace("URL", judge.url)
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    done = evaluate_rows(tmp_path, serve(right).url, "--run", str(tmp_path / "run.toml"))
    assert done.exit_code == 0, done.output
    # A group of one has nobody to be compared with: one half, by a judge of whole groups.
    assert "mean reward: 1.75" in done.output
    assert len(judge.asked) == 3
    assert (
        json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["judged"] == 3
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--judge: environment 'dataset' gives no reward of its own"),
        (["--judge", "exacd"], "judge 'exacd' does not exist"),
        (["--judge", "exact", "--config", '{"path": "PATH"}'], "row 1: there is no column"),
    ],
)
def test_rows_that_cannot_be_judged_are_not_played(tmp_path, arguments, sentence):
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}', encoding="utf-8")
    arguments = [one.replace("PATH", f"{tmp_path}/bad.jsonl") for one in arguments]
    done = evaluate_rows(tmp_path, "http://127.0.0.1:1", *arguments)
    assert (done.exit_code, sentence in " ".join(done.output.split())) == (2, True), done.output
    assert not (tmp_path / "out").exists()


def test_a_server_that_fails_is_infrastructure_and_no_reward_of_0(serve, tmp_path):
    server = serve(lambda body: (500, {"error": "out of memory"}))
    done = evaluate(tmp_path, "--model", server.url, "--tasks", "2")
    assert done.exit_code == 1
    assert {t.stop_reason for t in written(tmp_path)} == {"engine_fault"}
    assert "HTTP 500" in written(tmp_path)[0].fault
    assert "pass rate" not in done.output


def test_a_server_that_is_not_there_is_one_sentence(tmp_path):
    done = evaluate(tmp_path, "--model", "http://127.0.0.1:1", "--tasks", "1")
    assert done.exit_code == 1
    assert "error: http://127.0.0.1:1/v1/models" in done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "/nowhere/at/all"], "does not exist"),
        (["--model", "http://x", "--temperature", "-1"], "--temperature: -1"),
        (["--model", "http://x", "--run", "no.toml"], "no.toml"),
        (["--model", "http://x", "--config", '{"n": 1}'], "unknown key"),
    ],
)
def test_a_bad_input_is_refused_and_nothing_is_written(tmp_path, arguments, sentence):
    done = evaluate(tmp_path, *arguments)
    assert (done.exit_code, sentence in " ".join(done.output.split())) == (2, True)
    assert list(tmp_path.iterdir()) == []


async def test_a_server_that_names_no_model_is_one_sentence(serve):
    server = serve(stirrer)
    limits = Limits(EpisodeConfig(), EngineConfig(), SamplingConfig())
    for server.models in (None, "x", {"a": 1}, [], ["gpt"], [{"name": "gpt"}], [None, {"id": 3}]):
        with pytest.raises(EngineFault, match="names no model: give one with --served"):
            async with server_players(server.url, "", limits, 1, 1.0):
                pass


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(ConfigError, match="out/in cannot be written: Not a directory"):
        EvalFolder(tmp_path / "out" / "in", ())


def test_an_evaluation_overwrites_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    done = evaluate(tmp_path, "--model", "http://127.0.0.1:1")
    assert (done.exit_code, "exists already" in done.output) == (2, True)


@pytest.mark.parametrize(
    "given", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/chat/completions"]
)
def test_a_servers_url_may_be_given_with_and_without_its_path(given):
    assert base_of(given) == "http://h:1/v1"


class Scripted(ChatServer):
    """A server that answers from a list."""

    def __init__(self, *answers: Any) -> None:
        super().__init__("http://fake/v1", "m", 1.0, 1.0, None)  # pyright: ignore
        object.__setattr__(self, "answers", list(answers))

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self.answers.pop(0)  # pyright: ignore[reportAttributeAccessIssue]


def turn(policy: ChatPolicy) -> Completion:
    return asyncio.run(policy.generate(Request("r", "s", (), 8)))


def test_a_call_that_cannot_be_read_goes_back_to_the_policy_under_each_of_its_ids():
    policy = ChatPolicy(Scripted(calls(("a", "{"), ("b", "{}"))))
    policy.prompt([Message("user", "go")], ())
    turn(policy)
    found = policy.read((), ())
    assert found.malformed == "a: the arguments have to be a JSON object" and not found.calls
    policy.suffix([Message("tool", "error: no")], ())
    assert [m.get("tool_call_id") for m in policy.chat[-2:]] == ["c0", "c1"]


def test_a_turn_that_was_cut_off_is_said_to_be():
    policy = ChatPolicy(Scripted(says("and so", "length")))
    policy.prompt([Message("user", "go")], ())
    assert turn(policy).finish_reason == "length"


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{}]}, {"choices": "x"}])
def test_an_answer_of_another_shape_is_the_servers_fault(answer):
    with pytest.raises(EngineFault, match="has no choices"):
        turn(ChatPolicy(Scripted(answer)))


def test_limits_are_those_of_the_runs_config_where_there_is_one():
    run = load_config(ROOT / "configs" / "quickstart.toml")
    assert isinstance(run, RunConfig)
    assert limits_for("http://x", run, None).episode == run.episode
    assert limits_for("http://x", run, 0.5).sampling.temperature == 0.5
    assert limits_for("http://x", run, 0).sampling.top_p < 1e-3
    with pytest.raises(ConfigError):
        limits_for("http://x", run, -1)


def test_faults_count_in_no_rate():
    played = [
        scored("a", 1.0),
        scored("b", 0.0),
        scored("c", 0.0, stop="engine_fault", fault="it died"),
    ]
    found = summary(played)
    assert (found["judged"], found["pass_rate"], found["first_fault"]) == (2, 0.5, "it died")
    assert summary([])["pass_rate"] is None


def test_the_view_shows_the_running_rate_and_the_last_trajectories():
    out = io.StringIO()
    view = EvalView("kitchen", 4, Console(file=out, width=100))
    for one in (scored("a", 1.0), scored("b", 0.0), scored("c", stop="timeout", fault="too slow")):
        episode: Any = type("E", (), {"id": one.trajectory.id})()
        view.begins(episode)
        view.ends(episode, one)
    assert "3/4  1/2 (50%)  c  1 turns  timeout  too slow" in out.getvalue()
    view.console.print(view.render())
    assert "1/2 (50%)" in out.getvalue().splitlines()[4]


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_checkpoint_plays_on_a_real_engine_and_its_tokens_are_recorded(checkpoint, tmp_path):
    out = tmp_path / "out"
    command = ["env", "eval", "calculator", "--model", str(checkpoint), "--tasks", "3"]
    short = ["--run", str(ROOT / "configs" / "quickstart.toml"), "--out", str(out)]
    done = CliRunner().invoke(app, [*command, *short])
    assert done.exit_code == 0, done.output
    played = written(tmp_path)
    assert len(played) == 3
    for one in played:
        assert one.notes == {"model": str(checkpoint)}
        assert all(t.completion_ids and t.rollout_logprobs for t in one.turns)
    again = CliRunner().invoke(app, ["env", "replay", f"{out}/{played[0].id}"])
    assert again.exit_code == 0, again.output
