"""Preference pairs by agents: who is in a pair, what faults cost, and the command over a stand-in server."""

import json
from collections import Counter
from typing import Any

from test_judges import Script, prompt_of
from typer.testing import CliRunner

from envs.chat_model import ChatRequest, ModelFault
from rl.cli import app
from rl.judge_tools.pairs import Agents, rows_of
from rl.preference_data import read_pair

WRITTEN = ("a rude word", "a kind word", "an odd word", "a rude thing")


def agent(prompt: str, number: int) -> Any:
    """Writer, critic and reviser. The critic calls what is rude bad, and is of two minds of what is odd."""
    if "You mend" in prompt:
        return {"answer": prompt.split("rude ")[1].split("\n")[0].split("<")[0] + ", kindly"}
    if "You judge" not in prompt:
        return WRITTEN[number % 4]
    if "lost" in prompt:
        return ModelFault("it is away")
    bad = "rude" in prompt or ("odd" in prompt and number >= 1000)
    return {"merits": "short", "flaws": "rude", "verdict": "bad" if bad else "good"}


async def test_a_pair_is_a_good_and_a_bad_answer_of_which_every_look_says_so():
    model = Script(lambda request: agent(prompt_of(request), request.number))
    counts: Counter[str] = Counter()
    agents = Agents(model, model, most=3)
    found = [r async for r in rows_of(["greet", "lost", "write"], agents, 2, 0, counts)]
    rows = [row for each in found for row in each]
    assert {row["prompt"] for row in rows} == {"greet", "write"} and len(rows) == 6
    for row in rows:
        assert "rude" in row["rejected"] and row["rejected_by"] == "writer"
        assert "rude" not in row["chosen"] and "odd" not in row["chosen"]
        assert read_pair(row).shared == 1
    assert {row["chosen_by"] for row in rows} <= {"writer", "reviser"}
    assert counts["writer: unsure"] == 2 and counts["writer: bad"] == 4
    assert counts["reviser: good"] == 4 and counts["faults"] == 1 and counts["pairs"] == 6
    assert counts["fault: it is away"] == 1


async def test_answers_that_are_cut_off_or_empty_are_in_no_pair():
    def said(request: ChatRequest) -> Any:
        return "" if "You judge" not in prompt_of(request) else agent(prompt_of(request), 0)

    counts: Counter[str] = Counter()
    model = Script(said)
    assert [r async for r in rows_of(["greet"], Agents(model, model), 1, 0, counts)] == [[]]
    assert not counts["pairs"]


def test_the_command_writes_rows_and_goes_on_with_a_file_that_is_there(serve, tmp_path):
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        found = agent(body["messages"][0]["content"], body.get("seed", 0))
        text = found if isinstance(found, str) else json.dumps(found)
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    server = serve(answer)
    questions, out = tmp_path / "questions.jsonl", tmp_path / "pairs.jsonl"
    questions.write_text('{"prompt": "greet Ana"}\n{"question": "greet Ben"}\n', encoding="utf-8")
    asked = ["reward", "pairs", str(questions), str(out), "--model", server.url]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and "8 pairs of 2 questions" in done.output, done.output
    assert len(out.read_text(encoding="utf-8").splitlines()) == 8
    count = len(server.asked)
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 0 and "0 pairs of 0 questions" in again.output
    assert len(server.asked) == count
    kept = out.read_text(encoding="utf-8")
    out.write_text(kept + '{"prompt": "greet B', encoding="utf-8")
    torn = CliRunner().invoke(app, asked)
    assert torn.exit_code == 0 and out.read_text(encoding="utf-8") == kept, "a writer was killed"
    out.write_text(kept.rstrip("\n"), encoding="utf-8")
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert out.read_text(encoding="utf-8") == kept
    nowhere = CliRunner().invoke(app, [*asked[:3], str(tmp_path / "no" / "p.jsonl"), *asked[4:]])
    assert nowhere.exit_code == 2 and "p.jsonl: No such file" in nowhere.output
    questions.write_text('{"text": "greet"}\n', encoding="utf-8")
    wrong = CliRunner().invoke(app, [*asked[:3], str(tmp_path / "new.jsonl"), *asked[4:]])
    assert wrong.exit_code == 2 and "row 1: question has to be text" in wrong.output
