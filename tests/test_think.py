"""`dorado eval --think`: K answers, their aggregation and the vote, played with a served model."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from fakes import scored
from test_env_eval import calls, says
from typer.testing import CliRunner

from envs.aggregate import Aggregate
from reward.mathematics import answer_key
from rl.cli import app
from rl.config import load_config
from rl.env_tools.eval.think import plain_key, prepared, vote
from rollout.trajectory import ScoredTrajectory
from rollout.trajectory_file import read_trajectory

pytestmark = pytest.mark.process

CONFIG = """
name = "demo"
[model.init]
[eval]
tasks = 3
[[env]]
id = "{id}"
"""
WORKS = {"plus": "add", "added": "add", "minus": "subtract", "less": "subtract"}


class Thinker:
    """Calculates; says the result in every fourth episode of a task, and always where it sees answers."""

    def __init__(self, usage: bool = True) -> None:
        self.usage = usage
        self.lock = Lock()
        self.count: Counter[str] = Counter()
        self.shown: list[str] = []

    def __call__(self, body: dict[str, Any]) -> tuple[int, Any]:
        asked, last = body["messages"][0]["content"], body["messages"][-1]
        if last["role"] == "tool":
            answer = says(self.said(asked, last["content"]))
        elif "turn it" in asked:
            answer = calls(("turn", "{}"))
        else:
            a, word, *_, b, _ = asked.splitlines()[0].split()
            numbers = json.dumps({"a": int(a), "b": int(b)})
            answer = calls((WORKS.get(word, "multiply"), numbers))
        return 200, answer | ({"usage": {"completion_tokens": 10}} if self.usage else {})

    def said(self, asked: str, right: str) -> str:
        with self.lock:
            if "Several attempts" in asked:
                self.shown.append(asked)
                return right
            self.count[asked] += 1
            return right if self.count[asked] % 4 == 1 else "none"


def evaluate(tmp_path: Path, url: str, id: str, *arguments: str) -> Any:
    file = tmp_path / "run.toml"
    file.write_text(CONFIG.format(id=id), encoding="utf-8")
    out = str(tmp_path / "out")
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(app, ["eval", url, "--config", str(file), "--out", out, *arguments])


def test_heavy_thinking_is_compared_with_a_vote_of_as_many_tokens(serve, tmp_path):
    thinker = Thinker()
    done = evaluate(tmp_path, serve(thinker).url, "calculator", "--think", "4")
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    found = told["think"]["calculator"]
    rates = {
        name: (way["rate"], way["answers"], way["tokens"]) for name, way in found["ways"].items()
    }
    assert rates == {
        "one answer": (0.25, 1, 20),
        "vote": (0, 4, 80),
        "vote, as many tokens": (0, 5, 100),
        "heavy thinking": (1, 5, 100),
    }
    assert found["gain"] == {"rate": 1, "low": 1, "high": 1}
    assert (found["tasks"], found["left_out"]) == (3, 0)
    assert told["env"]["calculator"]["pass_rate"] == 0.25 and told["samples_per_task"] == 4
    assert len(thinker.shown) == 3 and all(a.count("] none") == 3 for a in thinker.shown)
    text = (tmp_path / "out" / "trajectories" / "eval.jsonl").read_text(encoding="utf-8")
    played = [read_trajectory(line).trajectory for line in text.splitlines()]
    assert Counter(t.env for t in played) == {"calculator": 15, "calculator-think": 3}
    assert len({t.id for t in played}) == 18
    assert "heavy thinking" in done.output and "+1.00" in done.output
    again = CliRunner().invoke(app, ["env", "replay", f"{tmp_path}/out/eval-0.think"])
    assert (again.exit_code, "the same in all 2 turns" in again.output) == (0, True), again.output


@pytest.mark.parametrize(
    ("id", "code", "sentence"),
    [
        ("silent_envs:Valve", 2, "ends an episode with a tool call (turn) and not with a text"),
        (
            "silent_envs:Unsaid",
            1,
            "no episode of silent_envs:Unsaid ended with a text of the policy",
        ),
    ],
)
def test_an_environment_without_a_final_text_is_refused(serve, tmp_path, id, code, sentence):
    done = evaluate(tmp_path, serve(Thinker()).url, id, "--think", "2")
    said = " ".join(done.output.replace("│", " ").split())
    assert (done.exit_code, sentence in said) == (code, True), done.output


def test_a_server_that_counts_no_tokens_is_refused(serve, tmp_path):
    url = serve(Thinker(usage=False)).url
    done = evaluate(tmp_path, url, "calculator", "--think", "2", "--eval.tasks", "1")
    assert done.exit_code == 1 and "does not say how many tokens" in done.output


@pytest.mark.parametrize("named", ["", "calc"])
def test_a_run_that_aggregates_is_evaluated_on_its_originals(tmp_path, named):
    own = f'[[env]]\nid = "calculator"\nname = "{named}"\n' if named else ""
    file = tmp_path / "run.toml"
    file.write_text(
        f'name = "x"\n[model.init]\n{own}[[env]]\nid = "envs.aggregate:Aggregate"\nname = "weighs"\n'
        'judges = ["exact"]\n[env.config]\nof = "calculator"\ntemplate = "among {answers}"\n',
        encoding="utf-8",
    )
    config, thinking = prepared(load_config(file), 4)
    [table] = config.all_envs
    label = named or "calculator"
    assert (table.id, table.label, config.eval.samples_per_task) == ("calculator", label, 4)
    assert table.judges == (() if named else ("exact",))
    made = thinking[label].make()
    assert isinstance(made, Aggregate)
    assert (made.config.template, made.config.answers) == ("among {answers}", 4)


def said(text: str, reward: float) -> ScoredTrajectory:
    one = scored("x", reward)
    turn = replace(one.trajectory.turns[0], text=text, calls=())
    trajectory = replace(one.trajectory, turns=(turn,), stop_reason="completed")
    return replace(one, trajectory=trajectory, rewards={"solved": reward})


def test_a_vote_is_the_expectation_over_ties_and_over_episodes_of_one_answer():
    a, a2, b, c = said("A", 1), said(" a ", 0), said("b", 0), said("c", 1)
    assert vote([a, b, c], plain_key) == pytest.approx(2 / 3)
    assert vote([a, a2, b, c], plain_key) == 0.5
    assert vote([a, b, b, c], plain_key) == 0
    assert vote([said("", 0), said("", 0), a], plain_key) == 1
    assert vote([said("", 1)], plain_key) == 0 and vote([], plain_key) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"so \boxed{0.5}", "The answer is 1/2.", True),
        ("The answer is 1,000", r"I get \boxed{1000}", True),
        ("it is 7", "I think it is 8", False),
        (r"\boxed{(1, 2)}", r"\boxed{(3, 2)}", False),
        (r"\boxed{x + 1}", r"thus $x + 1$", True),
    ],
)
def test_answers_of_mathematics_are_counted_by_what_they_say(one, other, same):
    assert (answer_key(one) == answer_key(other)) == same
