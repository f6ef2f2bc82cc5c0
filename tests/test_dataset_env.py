"""Rows as tasks: JSON as it is written, Parquet and data sets in the Hub's form by the real `datasets`."""

import itertools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from envs.dataset import DatasetConfig, DatasetEnv
from envs.env import Task
from envs.message import Message
from envs.session import Deadlines, EnvSession

ROWS = [{"question": f"what is {n} + 1?", "answer": n + 1} for n in range(60)]


def write(folder: Path, kind: str, rows: list[dict]) -> str:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def env(**config) -> DatasetEnv:
    return DatasetEnv(DatasetConfig(**config))


def tasks(e: DatasetEnv, split, count: int, seed: int = 0) -> list[Task]:
    return list(itertools.islice(e.tasks(split, seed), count))


def questions(found: list[Task]) -> set[str]:
    return {t.data["question"] for t in found}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_row_is_a_task_of_exactly_one_split(tmp_path, kind):
    e = env(path=write(tmp_path, kind, ROWS))
    train, heldout = (questions(tasks(e, split, 300)) for split in ("train", "heldout"))
    assert train.isdisjoint(heldout)
    assert train | heldout == {row["question"] for row in ROWS}
    assert 0 < len(heldout) < 20


def test_tasks_hold_question_and_answer_as_text_from_the_columns_that_are_named(tmp_path):
    rows = [{"problem": "6 times 7", "solution": 42, "source": "book"}] * 2
    rows += [{"problem": f"{n} times 7", "solution": 7 * n, "source": "book"} for n in range(20)]
    e = env(path=write(tmp_path, "jsonl", rows), question="problem", answer="solution")
    found = {t.data["question"]: t.data["answer"] for t in tasks(e, "train", 100)}
    found |= {t.data["question"]: t.data["answer"] for t in tasks(e, "heldout", 100)}
    assert found["6 times 7"] == "42"
    assert all(t.env == "dataset" for t in tasks(e, "train", 3))


def test_a_tiny_number_is_written_as_a_person_writes_it(tmp_path):
    rows = [
        {"question": f"{n}?", "answer": value} for n in range(40) for value in (1e-05, 0.5, 7.0)
    ]
    found = {
        t.data["answer"] for t in tasks(env(path=write(tmp_path, "jsonl", rows)), "train", 200)
    }
    assert found == {"0.00001", "0.5", "7"}


def test_a_question_that_occurs_twice_is_in_one_split_only(tmp_path):
    rows = [*ROWS, *({**row, "answer": "another"} for row in ROWS)]
    e = env(path=write(tmp_path, "jsonl", rows))
    train, heldout = (questions(tasks(e, split, 300)) for split in ("train", "heldout"))
    assert train.isdisjoint(heldout)


def test_the_order_is_that_of_the_seed_and_the_stream_never_ends(tmp_path):
    e = env(path=write(tmp_path, "jsonl", ROWS))
    assert tasks(e, "train", 200) == tasks(e, "train", 200)
    assert tasks(e, "train", 50) != tasks(e, "train", 50, seed=1)
    passes = tasks(e, "train", 2 * len(questions(tasks(e, "train", 300))))
    half = len(passes) // 2
    assert questions(passes[:half]) == questions(passes[half:])
    assert passes[:half] != passes[half:]


async def test_an_episode_asks_the_question_and_takes_the_text_as_the_answer(tmp_path):
    e = env(path=write(tmp_path, "jsonl", ROWS), system="Be brief.")
    session = EnvSession(e, Deadlines())
    opening = await session.open(Task("dataset", {"question": "1 + 1?", "answer": "2"}))
    assert opening.messages == (Message("system", "Be brief."), Message("user", "1 + 1?"))
    assert opening.tools == ()
    result = await session.step("2", ())
    assert (result.done, e.answer) == (True, "2")
    assert await session.score() == {}


def test_a_split_without_rows_is_an_error_that_names_file_and_split(tmp_path):
    trained = next(iter(questions(tasks(env(path=write(tmp_path, "jsonl", ROWS)), "train", 1))))
    path = write(tmp_path, "jsonl", [{"question": trained, "answer": 1}])
    with pytest.raises(ValueError, match=rf"{path}: split heldout is empty"):
        tasks(env(path=path), "heldout", 1)


def test_a_column_that_is_not_there_is_an_error_that_names_it_and_those_there_are(tmp_path):
    path = write(tmp_path, "jsonl", ROWS)
    with pytest.raises(ValueError, match=r"'problem'.*question") as caught:
        tasks(env(path=path, question="problem"), "train", 1)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "exactly one of hub"),
        ({"hub": "a/b", "path": "rows.jsonl"}, "exactly one of hub"),
        ({"path": "no_such_rows.jsonl"}, "'no_such_rows.jsonl' does not exist"),
        ({"path": "rows.csv"}, "has to end in .jsonl, .json or .parquet"),
        ({"path": "rows.jsonl", "heldout_split": "test"}, "with path, give heldout_path"),
        ({"hub": "a/b", "heldout_path": "rows.jsonl"}, "with hub, give heldout_split"),
    ],
)
def test_a_source_that_cannot_be_is_refused_before_anything_is_read(config, sentence):
    with pytest.raises(ValidationError, match=sentence):
        DatasetConfig(**config)


def answers(e: DatasetEnv, count: int = 300) -> dict[str, str]:
    found = [*tasks(e, "train", count), *tasks(e, "heldout", count)]
    return {t.data["question"]: t.data["answer"] for t in found}


def test_an_answer_in_json_is_what_was_written_whatever_the_other_rows_hold(tmp_path):
    odd = [1, 1.5, "x", "2020-01-01", True]
    rows = [{"question": f"q{n}", "answer": odd[n % len(odd)]} for n in range(60)]
    found = answers(env(path=write(tmp_path, "jsonl", rows)))
    assert found == {row["question"]: str(row["answer"]) for row in rows}


def test_a_whole_number_stays_one_beside_fractions_in_a_parquet_column(tmp_path):
    rows = [{"question": f"q{n}", "answer": n / 2} for n in range(60)]
    found = answers(env(path=write(tmp_path, "parquet", rows)))
    assert (found["q6"], found["q7"]) == ("3", "3.5")


def test_a_json_array_and_blank_lines_are_rows_too(tmp_path):
    array, lines = tmp_path / "rows.json", tmp_path / "rows.jsonl"
    array.write_text(json.dumps(ROWS))
    lines.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    wanted = {row["question"]: str(row["answer"]) for row in ROWS}
    assert answers(env(path=str(array))) == answers(env(path=str(lines))) == wanted


def test_of_a_worked_answer_what_follows_the_mark_is_the_reference(tmp_path):
    rows = [{"question": f"q{n}", "answer": f"{n} #### plus 1\n#### {n + 1} "} for n in range(60)]
    found = answers(env(path=write(tmp_path, "jsonl", rows), answer_after="####"))
    assert found == {f"q{n}": str(n + 1) for n in range(60)}


def test_a_second_file_is_held_out_and_none_of_its_questions_is_trained_on(tmp_path):
    (tmp_path / "test").mkdir()
    heldout = write(tmp_path / "test", "jsonl", ROWS[:20])
    e = env(path=write(tmp_path, "jsonl", ROWS[10:]), heldout_path=heldout)
    assert questions(tasks(e, "heldout", 100)) == {row["question"] for row in ROWS[:20]}
    assert questions(tasks(e, "train", 200)) == {row["question"] for row in ROWS[20:]}


def test_a_data_set_in_the_form_of_the_hub_has_splits_of_its_own(tmp_path):
    for name, rows in (("train", ROWS[10:]), ("test", ROWS[:20])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    e = env(hub=str(tmp_path), heldout_split="test")
    assert questions(tasks(e, "heldout", 100)) == {row["question"] for row in ROWS[:20]}
    assert questions(tasks(e, "train", 200)) == {row["question"] for row in ROWS[20:]}
    with pytest.raises(ValueError, match=rf"{tmp_path}, split tset cannot be read: Unknown split"):
        tasks(env(hub=str(tmp_path), heldout_split="tset"), "heldout", 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "split train is empty"),
        ('{"question": "a"', "cannot be read: "),
        (
            '{"question": "a", "answer": null}',
            "row 1: 'answer' has to be text or a number, not None",
        ),
        ('{"question": "a", "answer": NaN}', "row 1: 'answer' has to be text or a number, not nan"),
        ('{"question": "a", "answer": ["1"]}', "row 1: 'answer' has to be text or a number, not"),
    ],
    ids=["empty", "broken", "no answer", "no number", "a list"],
)
def test_rows_that_cannot_be_tasks_are_one_sentence_that_names_the_file(tmp_path, text, sentence):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        tasks(env(path=str(path)), "train", 1)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
