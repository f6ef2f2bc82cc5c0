"""The text index of a run: what a search finds, what is counted of tools, and when it is begun anew."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import scored, turn
from recorded_run import RecordedRun

from envs.message import Message, ToolCall
from rl.dashboard import text_index
from rl.dashboard.record_text import MOST_WORDS, kind_of_error, record_text
from rl.dashboard.row_details import row_details
from rl.dashboard.text_index import TextIndex, remove_old
from rl.dashboard.trajectory_filter import TrajectoryFilter, read_filter, words_query
from rl.dashboard.trajectory_index import beside, fault_counts, hits, tally, tries
from rollout.trajectory import Phase, ScoredTrajectory


@pytest.fixture
def run(tmp_path):
    recorded = RecordedRun(tmp_path)
    yield recorded
    recorded.close()


@pytest.fixture
def texts(run, tmp_path) -> TextIndex:
    return TextIndex(run.path, tmp_path / "cache")


def called(id: str, tool: str, result: str, said: str = "text", **changes) -> ScoredTrajectory:
    """A trajectory with one call, its result, and what the policy said."""
    one = turn(
        text=said,
        calls=(ToolCall(tool, {"customer": "rosa"}),),
        observations=(Message("tool", result, name=tool),),
    )
    made = scored(id, turns=[one], **changes)
    phases = (Phase("generate", 1.0, 2.0), Phase("tool", 3.0, 0.25))
    opening = (Message("system", "be brief"), Message("user", "hold  the order\nof rosa"))
    return replace(made, trajectory=replace(made.trajectory, phases=phases, opening=opening))


def found(texts: TextIndex, text: str, within: str = "", **asked) -> list[str]:
    query = TrajectoryFilter(text=text, within=within, order="-newest", **asked)
    listed = [one.id for one in hits(texts.folder, query, texts.path)]
    assert tally(texts.folder, query, texts.path).hits == len(listed)
    return listed


def test_words_are_found_in_messages_tools_and_errors(run, texts):
    run.group("a", [called("a.0", "hold_order", "done", "Thinking of cancellation")])
    run.group("b", [called("b.0", "list_orders", "error: no row 17", env_rewards={})], env="units")
    run.group("c", [scored("c.0", stop="env_fault", fault="the sandbox was lost")])
    assert found(texts, "order") == [], "nothing is read yet"
    assert texts.grow(60)
    assert found(texts, "cancel") == ["a.0"], "the beginning of a word"
    assert found(texts, "ROSA hold") == ["a.0", "b.0"], "all words, in any order and case"
    assert found(texts, '"order of rosa"') == ["a.0", "b.0"]
    assert found(texts, '"rosa of order"') == []
    assert found(texts, "list_orders", "tools") == ["b.0"]
    assert found(texts, "list_orders", "messages") == []
    assert found(texts, "row", "errors") == ["b.0"]
    assert found(texts, "sandbox", "errors") == ["c.0"]
    assert found(texts, "rosa", env="units") == ["b.0"]
    first = hits(run.path, TrajectoryFilter(text="rosa"), texts.path)[0]
    asked = TrajectoryFilter(text="rosa")
    assert beside(run.path, asked, first, texts.path, forward=True) == "a.0"


@pytest.mark.parametrize(
    "text", ['"', "*", "a AND", "NEAR(", "{tools}: x", "-", "'; drop table", "()"]
)
def test_nothing_of_a_text_is_taken_for_the_index_own_language(run, texts, text):
    run.group("a", [called("a.0", "hold", "done")])
    texts.grow(60)
    for within in ("", "tools"):
        assert found(texts, text, within) in ([], ["a.0"])


def test_scripts_without_spaces_are_searched_letter_by_letter(run, texts):
    run.group("a", [called("a.0", "hold", "done", "请取消订单并退款")])
    texts.grow(60)
    assert found(texts, "订单") == ["a.0"]
    assert found(texts, "单订") == []
    assert words_query("订单") == '"订  单"*'


def test_a_search_with_a_nul_in_it_is_a_search(run, texts):
    run.group("a", [called("a.0", "hold", "done", "refund")])
    texts.grow(60)
    assert (
        found(texts, "ref\0") == ["a.0"] and found(texts, "\0") == found(texts, '"ref\0und"') == []
    )


def test_it_grows_with_the_run_a_batch_at_a_time(run, texts, monkeypatch):
    monkeypatch.setattr(text_index, "_BATCH", 2)
    run.group("a", [called(f"a.{n}", "hold", "done") for n in range(5)])
    assert not texts.grow(0.0) and texts.read() == 2
    assert texts.grow(60) and texts.read() == 5
    run.group("b", [called("b.0", "hold", "done")])
    assert texts.grow(60) and len(found(texts, "rosa")) == 6
    again = TextIndex(run.path, texts.path.parent)
    assert again.read() == 6, "it is kept"


def test_it_is_begun_anew_where_another_run_has_the_name(run, texts, tmp_path):
    run.group("a", [called("a.0", "hold", "done", "apples")])
    texts.grow(60)
    run.close()
    shutil.rmtree(run.path)
    other = RecordedRun(tmp_path)
    other.group("z", [called("z.0", "hold", "done", "pears")])
    fresh = TextIndex(other.path, texts.path.parent)
    assert fresh.grow(60)
    assert (found(fresh, "apples"), found(fresh, "pears")) == ([], ["z.0"])
    fresh.path.write_bytes(b"no database")
    assert TextIndex(other.path, texts.path.parent).grow(60)
    other.close()


def test_tools_are_counted_with_errors_seconds_and_an_example(run, texts):
    run.group("a", [called("a.0", "hold", "done"), called("a.1", "hold", "error: no row 17")])
    run.group("b", [called("b.0", "hold", "error: no row 4"), called("b.1", "list", "[]")])
    texts.grow(60)
    hold, listed = texts.tools()
    assert (hold.tool, hold.calls, hold.errors, hold.seconds, hold.longest) == (
        "hold",
        3,
        2,
        0.25,
        0.25,
    )
    assert (hold.example, json.loads(hold.arguments)) == ("b.0", {"customer": "rosa"})
    assert (listed.tool, listed.calls, listed.errors) == ("list", 1, 0)
    [error] = texts.errors()
    assert (error.error, error.times, error.example) == ("error: no row #", 2, "b.0")


def test_a_line_that_is_no_record_is_left_out(run, texts):
    run.group("a", [called("a.0", "hold", "done"), called("a.1", "hold", "done")])
    run.execute("update trajectories set offset = 3 where id = 'a.0'")
    assert texts.grow(60)
    assert found(texts, "rosa") == ["a.1"]


def test_a_row_has_first_words_named_rewards_and_the_advantage(run, texts):
    run.group("a", [called("a.0", "hold", "done"), called("a.1", "hold", "done")])
    run.learned("a.0", 1, [0.75, 0.75], [-0.1, -0.2], [0.1, 0.2])
    run.learned("a.0", 2, [0.5, 0.5], [-0.1, -0.2], [0.1, 0.2])
    run.learned("a.1", 2, [0.5, -0.25], [-0.1, -0.2], [0.1, 0.2])
    listed = hits(run.path, TrajectoryFilter())
    before = row_details(run.path, texts, listed)
    texts.grow(60)
    assert row_details(run.path, texts, listed) == before, "a short record is read for the page"
    assert before["a.0"].words == "hold the order of rosa"
    assert (before["a.0"].rewards, before["a.0"].advantage) == ("solved 1", "0.50")
    assert before["a.1"].advantage == "0.50 …"


def test_other_tries_of_a_task_come_by_version(run):
    run.group("a", [scored("a.0", turns=[turn(v=7)])])
    run.group("b", [scored("b.0", turns=[turn(v=2)])])
    run.group("c", [scored("c.0", turns=[turn(v=2)])], env="units")
    last = hits(run.path, TrajectoryFilter(env="calculator"))[0]
    assert [one.id for one in tries(run.path, last)] == ["b.0", "a.0"]


def test_faults_are_counted_with_the_newest_example(run):
    run.group("a", [scored(f"a.{n}", stop="env_fault", fault="it broke") for n in range(3)])
    run.group("b", [scored("b.0", stop="timeout", fault="late"), scored("b.1")])
    assert fault_counts(run.path) == [
        ("calculator", "env_fault", "it broke", 3, "a.2"),
        ("calculator", "timeout", "late", 1, "b.0"),
    ]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"turns": 3, "opening": "x", "rewards": [1], "phases": {}},
        {"turns": [{"calls": [{"name": 5, "arguments": None}], "observations": [7]}, None]},
        {"opening": [{"role": "user", "content": ["x"]}], "rewards": {"a": "b", "c": float("nan")}},
    ],
)
def test_whatever_a_record_holds_it_has_a_text(record):
    text = record_text(record)
    assert isinstance(text.messages, str) and json.loads(text.rewards) == {}


def test_first_words_are_few_and_an_error_loses_its_numbers():
    text = record_text({"opening": [{"role": "user", "content": "word " * 1000}]})
    assert len(text.words) == MOST_WORDS
    assert kind_of_error("error: no row 17 of 20\nTraceback") == "error: no row # of #"


def test_an_address_asks_for_step_task_and_text():
    asked = read_filter({"step": "3", "during": "x", "task": "t", "text": "a b", "within": "grep"})
    assert (asked.step, asked.during, asked.task, asked.text, asked.within) == (
        3,
        None,
        "t",
        "a b",
        "",
    )
    assert read_filter(dict(asked.query)) == asked


def test_old_indexes_are_removed(tmp_path: Path):
    for name, age in (("old.sqlite", 40), ("new.sqlite", 1)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1.0, 1.0) if age > 30 else None)
    remove_old(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["new.sqlite"]
