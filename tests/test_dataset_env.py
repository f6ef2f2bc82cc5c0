"""Rows as tasks: JSON as it is written, Parquet and data sets in the Hub's form by the real `datasets`."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from fakes import trajectory, turn
from pydantic import ValidationError

from envs.dataset import DatasetConfig, DatasetEnv
from envs.env import Task
from envs.message import Message
from envs.session import Deadlines, EnvSession
from reward.answer import exact
from reward.score import JudgeFault, of_row, score
from rl.config import RunConfig, load_config
from rl.config_file import ConfigError
from rl.preflight.check import check_run
from rl.preflight.environments import check_hub_rows, read_later

ROWS = [{"question": f"what is {n} + 1?", "answer": n + 1} for n in range(60)]


def write(folder: Path, kind: str, rows: list[dict]) -> str:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def env(**config) -> DatasetEnv:
    return DatasetEnv(DatasetConfig(**config))


def test_a_column_of_lists_in_lists_is_no_matter(tmp_path):
    file = tmp_path / "deep.jsonl"
    row = f'{{"question": "a", "answer": 1, "more": {"[" * 900}{"]" * 900}}}\n'
    file.write_text(row, encoding="utf-8")
    e = env(path=str(file), heldout_path=str(file), question="question")
    assert [one.data["answer"] for one in tasks(e, "heldout", 1)] == ["1"]


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
        ({"path": __file__}, "has to end in .jsonl, .json or .parquet, or in .csv"),
        ({"path": "rows.jsonl", "heldout_split": "test"}, "with path, give heldout_path"),
        (
            {"path": "rows.jsonl", "split_column": "split"},
            "with split_column, heldout_split says which",
        ),
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
    array.write_text(json.dumps(ROWS), encoding="utf-8")
    lines.write_text("\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
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
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    e = env(hub=str(tmp_path), heldout_split="test")
    assert questions(tasks(e, "heldout", 100)) == {row["question"] for row in ROWS[:20]}
    assert questions(tasks(e, "train", 200)) == {row["question"] for row in ROWS[20:]}
    with pytest.raises(ValueError, match=rf"{tmp_path}, split tset cannot be read: Unknown split"):
        tasks(env(hub=str(tmp_path), heldout_split="tset"), "heldout", 1)


def test_rows_on_the_hub_are_read_by_train_before_anything_starts_and_the_check_says_so(tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "train.jsonl").write_text(
        '{"question": "1 + 1?", "answer": "2"}\n{"question": "2?"}\n', "utf-8"
    )
    config = tmp_path / "demo.toml"
    config.write_text(
        f'name = "demo"\nruns_dir = "{tmp_path}/runs"\neval = {{ before = false, after = false }}\n'
        '[model.init]\nfamily = "qwen3_moe"\npreset = "tiny"\n[[env]]\nid = "dataset"\njudges = ["exact"]\n'
        f'config = {{ hub = "{hub}" }}\n',
        encoding="utf-8",
    )
    plain = {"model": {"init": {}}, "name": "x"}
    tables = [
        {"id": "dataset", "judges": ["exact"], "config": {"hub": "a/b"}},
        {"id": "calculator"},
    ]
    [said] = read_later(RunConfig.model_validate({**plain, "env": tables}))
    assert said.startswith(
        "env 'dataset': the rows of a/b are on the Hugging Face Hub; `dorado train` reads"
    )
    with pytest.raises(ConfigError, match=r"env 'dataset': data set .*hub, split train: row 2: "):
        check_hub_rows(load_config(config))
    assert not (tmp_path / "runs").exists()


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
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence) as caught:
        tasks(env(path=str(path)), "train", 1)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def read(folder: Path, text: str | bytes, name: str = "rows.jsonl", **config) -> list[dict]:
    """The tasks' data of a file that is checked as before a run."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    e = env(path=str(path), **config)
    e.probe()
    splits = [split for split in ("train", "heldout") if e._rows(split)]
    found = {json.dumps(t.data): t.data for split in splits for t in tasks(e, split, 9)}
    return [found[key] for key in sorted(found)]


GOOD = '{"question": "a", "answer": "1"}\n'
PROMPT = {"question": "prompt"}


def prompt(*messages: object) -> str:
    return json.dumps({"prompt": messages, "answer": 1})


@pytest.mark.parametrize(
    ("text", "config", "sentence"),
    [
        (f"{GOOD}null", {}, "row 2: a row has to be an object, such as {...}, not None"),
        (f"{GOOD}\n[1]", {}, "row 3: a row has to be an object"),
        (f'{GOOD}{{"question": "b", "ans', {}, "cannot be read: row 2: not valid JSON: Untermin"),
        (
            f'{GOOD}{{"question": "b"}}',
            {},
            "row 2: there is no column 'answer', there are question",
        ),
        ('{"question": " ", "answer": 1}', {}, "row 1: 'question' is empty"),
        ('{"question": "a", "answer": ""}', {}, "row 1: 'answer' is empty"),
        (
            '{"question": "a", "answer": Infinity}',
            {},
            "'answer' has to be text or a number, not inf",
        ),
        (b'{"question": "caf\xe9"}', {}, "row 1: it is not UTF-8 (byte 0xe9): save the file as"),
        (
            f'{GOOD}{{"question": {"[" * 100_000}',
            {},
            "row 2: not readable: it is nested too deeply",
        ),
        (
            '{"question": "a", "answer": 1, "image": "a.png"}',
            {},
            "row 1: the column 'image' holds 'a.png', which a policy of text would not see",
        ),
        (
            '{"question": "a", "answer": "no mark"}',
            {"answer_after": "####"},
            "row 1: 'answer' has nothing after '####'",
        ),
        (
            '{"question": "a", "answer": ["1", "one"]}',
            {},
            "not ['1', 'one']: where any of several is right, name the column as `answers`",
        ),
        ('{"question": "a", "right": []}', {"answers": "right"}, "'right' holds no answer"),
        ('{"question": "a", "right": [null]}', {"answers": "right"}, "'right' has to be text or a"),
        (
            '{"question": "a", "model": {"truth": 1}}',
            {"answer": "model.ground_truth"},
            "there is no column 'model.ground_truth', there are question, model.truth",
        ),
        (
            prompt({"role": "user", "content": [{"type": "image_url"}]}),
            PROMPT,
            "'prompt': a message holds 'image_url', which a policy of text would not see",
        ),
        (
            prompt({"from": "human", "value": "x"}),
            PROMPT,
            "has to be an object with role and content",
        ),
        (prompt({"role": "human", "content": "x"}), PROMPT, "one of system, user, assistant, not"),
        (prompt({"role": "user", "content": None}), PROMPT, "content has to be text, not None"),
        (
            prompt({"role": "assistant", "content": "x"}),
            PROMPT,
            "the last message has to be the user",
        ),
        (prompt(), PROMPT, "the last message has to be the user's"),
    ],
)
def test_a_row_that_cannot_be_a_task_is_found_before_a_run_by_file_and_number(
    tmp_path, text, config, sentence
):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text, **config)
    said = str(caught.value)
    assert sentence in said and f"data set {tmp_path}/rows.jsonl" in said and "\n" not in said
    assert len(said) < 500


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("question,answer\na\n", "row 2: it has 1 cells, and the header 2 columns"),
        ('question,answer\n"a\nb",1\nc,2,3\n', "row 4: it has 3 cells"),
        ("question,question\na,1\n", "row 1: two columns have one name"),
        ('question,answer\n"a,1\n', "row 2: not valid CSV"),
        ("q,a\nb,1\n", "row 2: there is no column 'question', there are q, a"),
    ],
)
def test_a_table_in_csv_that_does_not_fit_is_one_sentence_with_the_line(tmp_path, text, sentence):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text, "rows.csv")
    assert sentence in str(caught.value)


def test_a_table_in_csv_is_rows_with_whatever_its_cells_hold(tmp_path):
    text = '\ufeffquestion,answer\n"a, ""b""\nc",2\n\ncafé,3\n'
    assert read(tmp_path, text, "rows.csv") == [
        {"question": 'a, "b"\nc', "answer": "2"},
        {"question": "café", "answer": "3"},
    ]


def test_a_cell_of_a_table_in_csv_may_be_long(tmp_path):
    text = "x" * 200_000
    found = read(tmp_path, f"question,answer\n{text},2\n", "rows.csv")
    assert found == [{"question": text, "answer": "2"}]


def test_half_a_surrogate_pair_in_a_row_is_its_escape(tmp_path):
    [row] = read(tmp_path, '{"question": "\\ud800?", "answer": "\\udce9"}')
    assert row == {"question": r"\ud800?", "answer": r"\udce9"}


def test_a_column_for_pictures_that_is_empty_hinders_nothing(tmp_path):
    assert read(tmp_path, '{"question": "a", "answer": 1, "image": null, "images": []}')


async def test_a_prompt_of_messages_opens_the_episode_as_it_is(tmp_path):
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "3?"}],
        },
    ]
    line = json.dumps({"prompt": said, "reward_model": {"ground_truth": "5"}})
    columns = {"question": "prompt", "answer": "reward_model.ground_truth"}
    [data] = read(tmp_path, line, system="Not this.", **columns)
    assert data["answer"] == "5"
    e = env(path=str(tmp_path / "rows.jsonl"), system="Not this.", **columns)
    assert await e.reset(Task("dataset", data)) == [
        Message("system", "Be brief."),
        Message("user", "1 + 1?"),
        Message("assistant", "2"),
        Message("user", "and 3?"),
    ]


async def test_a_rows_own_system_text_stands_before_the_config_s(tmp_path):
    rows = [
        {"question": "a", "answer": 1, "how": "In French."},
        {"question": "b", "answer": 1, "how": None},
    ]
    settings = {"system": "Be brief.", "system_column": "how"}
    first, second = read(tmp_path, "\n".join(map(json.dumps, rows)), **settings)
    e = env(path=str(tmp_path / "rows.jsonl"), **settings)
    told = [(await e.reset(Task("dataset", data)))[0] for data in (first, second)]
    assert told == [Message("system", "In French."), Message("system", "Be brief.")]


async def test_any_of_several_right_answers_is_right(tmp_path):
    line = '{"question": "2 + 2", "answers": {"text": ["4", "four", 4.0]}}'
    [data] = read(tmp_path, line, answers="answers.text")
    task = Task("dataset", data)
    assert data["answers"] == ["4", "four", "4"]
    for said, right in (("four", 1.0), ("4", 1.0), ("five", 0.0)):
        assert await exact(task, trajectory(turns=(turn(text=said),))) == {"exact": right}


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    assert len(read(tmp_path, GOOD)) == 1
    assert len(read(tmp_path, GOOD + '{"question": "b", "answer": 2}')) == 2


def test_several_files_are_one_data_set_and_a_row_is_named_by_its_own(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    paths = [write(folder, "jsonl", ROWS[n * 20 : n * 20 + 20]) for n, folder in enumerate(folders)]
    e = env(path=paths[:2], heldout_path=[paths[2]])
    assert questions(tasks(e, "train", 200)) == {row["question"] for row in ROWS[:40]}
    assert questions(tasks(e, "heldout", 100)) == {row["question"] for row in ROWS[40:]}
    names = [name for name, _ in e.named_tasks("train")]
    assert names[0] == f"data set {paths[0]}: row 1" and names[-1] == f"data set {paths[1]}: row 20"


def test_the_values_of_a_column_are_splits(tmp_path):
    kinds = ["train", "extra", "test", "other"]
    rows = [{**row, "split": kinds[n % 4]} for n, row in enumerate(ROWS)]
    e = env(
        path=write(tmp_path, "jsonl", rows),
        split_column="split",
        train_split=["train", "extra"],
        heldout_split="test",
    )
    found = [questions(tasks(e, split, 200)) for split in ("train", "heldout")]
    wanted = [
        {r["question"] for r in rows if r["split"] in some} for some in (kinds[:2], kinds[2:3])
    ]
    assert found == wanted


def test_splits_of_a_data_set_in_the_form_of_the_hub_may_be_several(tmp_path):
    for name, rows in (("train", ROWS[:10]), ("more", ROWS[10:20]), ("test", ROWS[20:30])):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    files = {name: f"{name}.jsonl" for name in ("train", "more", "test")}
    card = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": file} for name, file in files.items()],
            }
        ]
    }
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n", encoding="utf-8")
    e = env(hub=str(tmp_path), train_split=["train", "more"], heldout_split="test")
    assert questions(tasks(e, "train", 100)) == {row["question"] for row in ROWS[:20]}
    assert questions(tasks(e, "heldout", 100)) == {row["question"] for row in ROWS[20:30]}


def test_the_last_answer_of_a_conversation_is_the_reference_where_no_column_is(tmp_path):
    said = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "6 times 7?"},
        {"role": "assistant", "content": "42"},
    ]
    [data] = read(tmp_path, json.dumps({"messages": said}), question="messages")
    assert data["answer"] == "42"
    assert [one["role"] for one in data["messages"]] == ["system", "user"]


async def test_a_row_names_its_judges_and_has_metadata_for_them(tmp_path):
    async def harsh(task: Task, trajectory) -> dict[str, float]:
        return {"harsh": float(task.data["metadata"]["level"])}

    rows = [
        {"question": "a", "answer": "1", "judge": "exact", "level": 3},
        {"question": "b", "judge": ["harsh"], "level": 4},
        {"question": "c", "answer": "1", "judge": "", "level": 5},
    ]
    for row in rows:
        row.setdefault("answer", "none")
    e = env(path=write(tmp_path, "jsonl", rows), judges_column="judge", metadata=["level"])
    found = {
        t.data["question"]: t for split in ("train", "heldout") for _, t in e.named_tasks(split)
    }
    given = {}
    for name, task in found.items():
        played = replace(trajectory(turns=[turn(text="1")], env_rewards={}), task=task)
        given[name] = (await score(played, [exact, harsh], {}, seconds=5)).rewards
    assert given == {"a": {"exact": 1.0}, "b": {"harsh": 4.0}, "c": {"exact": 1.0, "harsh": 5.0}}
    with pytest.raises(JudgeFault, match="names the judge 'harsh', and the environment has exact"):
        of_row(found["b"], [exact])


@pytest.mark.parametrize(
    ("row", "config", "sentence"),
    [
        ({"judge": 7}, {"judges_column": "judge"}, "'judge' has to name judges, as text, not 7"),
        (
            {"level": {"a": float("nan")}},
            {"metadata": ["level"]},
            "'level' is no JSON, and judges get",
        ),
        ({}, {"metadata": ["level"]}, "there is no column 'level', there are question, answer"),
        (
            {"split": None},
            {"split_column": "split", "heldout_split": "x"},
            "'split' has to be text or",
        ),
    ],
)
def test_a_row_whose_further_columns_are_wrong_is_one_sentence(tmp_path, row, config, sentence):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, json.dumps({"question": "a", "answer": "1", **row}), **config)
    assert sentence in str(caught.value) and "row 1" in str(caught.value)


def test_rows_may_have_no_answer_where_a_judge_needs_none(tmp_path):
    [data] = read(tmp_path, '{"question": "a"}', answer="")
    assert data == {"question": "a"}


def test_a_judge_of_a_row_that_there_is_not_is_found_before_a_run(tmp_path):
    path = write(tmp_path, "jsonl", [{**row, "judge": "exacct"} for row in ROWS])
    config = tmp_path / "demo.toml"
    config.write_text(
        f'name = "demo"\nruns_dir = "{tmp_path}/runs"\n[model.init]\n[[env]]\nid = "dataset"\n'
        f'judges = ["exact"]\nconfig = {{ path = ["{path}"], judges_column = "judge" }}\n',
        encoding="utf-8",
    )
    with pytest.raises(
        ConfigError, match=r"rows.jsonl: row \d+: the row of task \w+ names the judge 'ex"
    ):
        check_run(load_config(config))
