"""`dorado judge`: figures against labels, and tuning with its gate, over scripted models."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from test_judges import Script, longest, prompt_of
from typer.testing import CliRunner

from envs.chat_model import ChatRequest
from reward.judges.principles import Principles, dumped, made, read_principles
from reward.model_judge import JudgeSettings, find_model_judge
from rl.config_error import ConfigError
from rl.judge_tools.agreement import Seen, calibration_error, credit, figures, interval, wins
from rl.judge_tools.evaluate import evaluate
from rl.judge_tools.labelled import Pair, Single, labelled, read_labelled
from rl.judge_tools.tuning import Tuner, split

FLAWS = [f"flaw-{n}" for n in range(10)]


def test_wilsons_interval_is_that_of_a_reference():
    """9 of 10: 0.5958 to 0.9821 (Newcombe 1998, method 3, by hand)."""
    low, high = interval(9, 10)
    assert (low, high) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))
    assert interval(0, 0) == (0.0, 1.0)


def test_the_sign_test_counts_tails_of_a_coin():
    assert wins(5, 0) == 1 / 32
    assert wins(4, 1) == 6 / 32
    assert wins(0, 0) == wins(0, 7) == 1.0


def test_figures_of_a_judge_that_favours_length_and_the_first_place():
    seen = [
        Seen(1.0, (1.0, 1.0), longer=5, swayed=0.0, first=0.5),
        Seen(1.0, (0.0, 1.0), longer=-3, swayed=0.0, first=0.5),
        Seen(1.0, (0.5,), longer=2, swayed=1.0, first=1.0),
        Seen(1.0, (0.5,), longer=0, swayed=1.0, first=1.0),
    ]
    found = figures(seen)
    assert found["agreement"] == (1 + 0 + 0.5 + 0.5) / 4
    assert found["position_bias"] == 0.5 and found["names_first"] == 0.75
    assert found["length_bias"] == pytest.approx((1 + 1 + 0.5) / 3 - 2 / 3)
    assert found["self_consistency"] == 0.5


def test_calibration_of_one_who_says_what_is_so_is_perfect():
    assert calibration_error([0.75] * 4, [1, 1, 1, 0]) == pytest.approx(0)
    assert calibration_error([0.9] * 4, [1, 1, 0, 0]) == pytest.approx(0.4)
    assert [credit(0.7, 1.0), credit(0.7, 0.0), credit(0.5, 1.0)] == [1.0, 0.0, 0.5]


async def test_a_ranking_judge_is_held_to_pairs_and_faults_are_no_verdicts():
    def answer(request: ChatRequest) -> Any:
        return ValueError("away") if "broken" in prompt_of(request) else longest(request)

    pairs = [
        Pair("q", "long one", "x", {}),
        Pair("q", "y", "longer by far", {}),
        Pair("broken", "a", "bb", {}),
    ]
    found = await evaluate(pairs, find_model_judge("ranking"), {}, Script(answer))
    assert (found.figures["agreement"], found.figures["count"], found.figures["faults"]) == (
        0.5,
        2,
        1,
    )
    assert found.figures["length_bias"] == 0.5
    assert found.version == "ranking.v1"


async def test_a_judge_of_single_answers_is_held_to_pairs_and_to_labels():
    model = Script(lambda r: {"reason": "", "verdict": "bad" if "ugly" in prompt_of(r) else "good"})
    config = {"principles": ["It is not so."]}
    judge = find_model_judge("principles")
    pairs = [Pair("q", "fine", "ugly", {}), Pair("q", "fine", "also", {})]
    assert (await evaluate(pairs, judge, config, model)).figures["agreement"] == 0.75
    singles = [
        Single("q", "fine", 1.0, {}),
        Single("q", "ugly", 0.0, {}),
        Single("q", "no", 0.0, {}),
    ]
    found = (await evaluate(singles, judge, config, model, again=2)).figures
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["self_consistency"] == 1.0 and "position_bias" not in found


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q"}, "chosen and rejected, or answer and label"),
        ({"question": "q", "answer": "a", "label": "fine"}, "label has to be"),
        ({"question": "q", "answer": "a", "label": 2}, "label has to be"),
        ({"question": 1, "chosen": "a", "rejected": "b"}, "question has to be text"),
    ],
)
def test_a_row_without_a_label_is_refused(row, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        labelled(row)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"row 1: "):
        read_labelled(file)


def test_principles_are_a_file_and_at_most_ten(tmp_path):
    rules = Principles(('It says "what" is so.', "Über alles."))
    (tmp_path / "p.toml").write_text(dumped(rules), encoding="utf-8-sig")
    assert read_principles(tmp_path / "p.toml") == rules
    for wrong in (None, [], ["a", 1], [""], ["x"] * 11):
        with pytest.raises(ValueError):
            made(wrong, "here")


def world(seed: int, count: int = 400) -> list[Pair]:
    """Pairs whose rejected answers have one of ten planted flaws each."""
    draw = random.Random(seed)
    return [
        Pair(f"question {n}", f"clean text {n}", f"text {n} with {draw.choice(FLAWS)}", {})
        for n in range(count)
    ]


def detector(request: ChatRequest) -> dict[str, str]:
    """Finds a flaw for which there is a rule, and is wrong in one of twenty texts, whatever the rules are."""
    text = prompt_of(request)
    rules, _, rest = text.partition('Answer "bad"')[0].partition("<question")
    answer = rest.split("<answer", 1)[1]
    found = any(f"no {flaw}." in rules and f"{flaw}\n" in answer for flaw in FLAWS)
    if "everything is fine" in rules:
        found = False
    wrong = random.Random(answer).random() < 0.05
    return {"reason": "", "verdict": "bad" if found != wrong else "good"}


def honest(request: ChatRequest) -> dict[str, Any]:
    text = prompt_of(request)
    rules = re.findall(r"^\d+\. (.*)$", text, re.M)
    if "spoiling a text" in text:  # the opponent's
        return {"reason": "", "flaws": rules}
    if "how you have spoiled it" in text:
        [flaw] = re.findall(r"to be bad: (\S+)", text)
        return {"how": flaw, "answer": f"text {len(text)} with {flaw}"}
    missed = re.findall(r"with (flaw-\d)\n</text \w+>\nJudged good", text)
    return {"reason": "", "principles": [*rules, *(f"no {flaw}." for flaw in missed[:1])][-10:]}


def poisoned(request: ChatRequest) -> dict[str, Any]:
    """Proposals that make the judge worse, each in another way."""
    found = honest(request)
    if "principles" in found:
        rules = re.findall(r"^\d+\. (.*)$", prompt_of(request), re.M)
        draw = random.Random(prompt_of(request))
        worse = ["everything is fine."], rules[1:] or ["x"], [f"no {FLAWS[9]}."], ["It is long."]
        found["principles"] = draw.choice(worse)
    return found


def tuner(writer: Any, seed: int = 0, count: int = 300) -> Tuner:
    splits = split(world(seed, count), seed)
    return Tuner(Script(detector), Script(writer), splits, JudgeSettings(), seed=seed, drawn=8)


@pytest.mark.heavy
async def test_planted_flaws_are_detected_more_often_after_tuning():
    first = Principles(("no flaw-0.", "no flaw-1."))
    outcome = await tuner(honest, count=400).tune(first, tuple(FLAWS), rounds=25)
    assert outcome.before[0] < 0.35
    assert outcome.after[1] > outcome.before[2], "the intervals do not meet"
    accepted = [one for one in outcome.tried if one.accepted]
    assert accepted and all(one.better > one.worse for one in accepted)


async def test_a_poisoned_reflector_is_refused_every_time_over_fifty_proposals():
    first = Principles(tuple(f"no {flaw}." for flaw in FLAWS[:6]))
    outcome = await tuner(poisoned, seed=1, count=100).tune(first, tuple(FLAWS), rounds=25)
    assert len(outcome.tried) == 50
    assert not any(one.accepted for one in outcome.tried)
    assert outcome.principles == first and outcome.before == outcome.after


async def test_proposals_that_change_nothing_for_the_better_are_accepted_by_chance_alone():
    """The gate's promise: of proposals that are equally good, at most the share that the confidence says."""
    from rl.judge_tools.tuning import gate

    draw, accepted = random.Random(7), 0
    pairs = world(0, 100)

    async def right(principles: Principles, pairs: Any) -> list[bool]:
        return [draw.random() < 0.7 for _ in pairs]

    for number in range(400):
        tried = await gate(0, Principles(("a",)), Principles((f"b{number}",)), pairs, right, 0.05)
        accepted += tried.accepted
    assert accepted / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


async def test_what_a_reflector_cannot_say_is_recorded_and_dropped():
    def broken(request: ChatRequest) -> Any:
        found = honest(request)
        return {"reason": "", "principles": []} if "principles" in found else found

    outcome = await tuner(broken, count=20).tune(
        Principles(("no flaw-0.",)), tuple(FLAWS), rounds=2
    )
    assert outcome.tried and all("list of sentences" in one.fault for one in outcome.tried)


def test_pairs_of_one_question_stay_together():
    pairs = [Pair(f"q{n % 7}", str(n), "", {}) for n in range(70)]
    found = split(pairs, 3)
    parts = [{pair.question for pair in part} for part in (found.train, found.gate, found.test)]
    assert set.union(*parts) == {pair.question for pair in pairs}
    assert sum(map(len, parts)) == 7
    with pytest.raises(ValueError, match="at least 5 questions"):
        split(pairs[:3], 0)


def rows(folder: Path) -> Path:
    file = folder / "pairs.jsonl"
    lines = [
        {"question": p.question, "chosen": p.chosen, "rejected": p.rejected} for p in world(0, 20)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def test_the_commands_speak_to_a_server(serve, tmp_path):
    from rl.cli import app

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        said = {"reason": "", "better": "second", "verdict": "good", "how": "", "answer": "x"}
        said |= {"principles": ["It is short."], "flaws": ["it lies"]}
        return 200, {"choices": [{"message": {"content": json.dumps(said)}}]}

    server, file = serve(answer), rows(tmp_path)
    run = CliRunner().invoke
    found = run(app, ["judge", "eval", str(file), "--model", server.url, "--json"])
    figures_ = json.loads(found.stdout)
    assert (figures_["agreement"], figures_["position_bias"], figures_["calls"]) == (0.5, 1.0, 40)
    out = tmp_path / "tuned"
    found = run(app, ["judge", "tune", str(file), str(out), "--model", server.url, "--rounds", "2"])
    assert found.exit_code == 0, found.output
    assert read_principles(out / "principles.toml").texts[0].startswith("It does what")
    tried = [json.loads(line) for line in (out / "tuning.jsonl").read_text("utf-8").splitlines()]
    assert tried and not any(one["accepted"] for one in tried)
    text = "Why?\n\nSo.\n\n"
    found = run(app, ["judge", "play", "--model", server.url, "--judge", "writing", "--config",
                      '{"max_words": 1}'], input=text)  # fmt: skip
    assert "'writing': 1.0" in found.stdout, found.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["FILE"], "--model: give a URL"),
        (["FILE", "--model", "nowhere"], "no URL and no checkpoint folder"),
        (
            ["FILE", "--model", "http://x", "--judge", "vague"],
            "--judge: judge 'vague' does not exist",
        ),
        (["FILE", "--model", "http://x", "--config", "{"], "--config: "),
        (["FILE", "--model", "http://x", "--config", '{"method": "x"}'], "--config: config.method"),
        (["none.jsonl", "--model", "http://x"], "a file of labelled answers is wanted"),
    ],
)
def test_a_bad_option_is_one_sentence(arguments, said, tmp_path):
    from rl.cli import app

    file = str(rows(tmp_path))
    found = CliRunner().invoke(
        app, ["judge", "eval", *(file if a == "FILE" else a for a in arguments)]
    )
    assert found.exit_code == 2
    assert said in found.output
