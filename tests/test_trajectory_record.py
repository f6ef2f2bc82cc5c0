"""Records of trajectories as the dashboard reads them: whatever the file, the index or the learner left."""

import json
from dataclasses import asdict, replace

import pytest
from fakes import scored, trajectory, turn
from hypothesis import given
from hypothesis import strategies as st
from recorded_run import RecordedRun

from envs.message import Message, ToolCall
from rl.dashboard import trajectory_record
from rl.dashboard.learned_record import Learned, read_learned
from rl.dashboard.token_text import token_texts
from rl.dashboard.token_view import (
    MAX_TOKENS,
    QUANTITIES,
    legend,
    policy_tokens,
    scale,
    token_rows,
)
from rl.dashboard.trajectory_index import Hit, find
from rl.dashboard.trajectory_record import (
    BranchView,
    TrajectoryView,
    Unreadable,
    as_view,
    read_record,
)
from rollout.engine import VersionSpan
from rollout.trajectory import Branch, Phase, ScoredTrajectory

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture
def run(tmp_path):
    recorded = RecordedRun(tmp_path)
    yield recorded
    recorded.close()


def hit(run: RecordedRun, id: str = "a.0") -> Hit:
    found = find(run.path, id)
    assert found is not None
    return found


def view(run: RecordedRun, id: str = "a.0") -> TrajectoryView:
    return read_record(run.path, hit(run, id))


def whole(id: str = "a.0") -> ScoredTrajectory:
    """Two turns, the first with a call, the second by two versions."""
    first = turn(
        (1, 2, 3),
        (4, 5),
        calls=(ToolCall("add", {"a": 2, "b": [1, "x"]}),),
        observations=(Message("tool", "3", name="add"),),
    )
    spans = (VersionSpan(0, 0, 1), VersionSpan(1, 1, 3))
    second = replace(turn((6,), (7, 8, 9)), versions=spans, rollout_logprobs=(-0.5, -1.0, -9.0))
    played = trajectory(id, turns=(first, second), fault="late")
    phases = (Phase("generate", 100.0, 0.5), Phase("tool", 100.5, 0.25))
    played = replace(played, phases=phases, trace="Traceback", notes={"sandbox": "bubblewrap"})
    return ScoredTrajectory(played, {"solved": 1.0, "format": 0.5}, 1.5)


def record() -> dict:
    return json.loads(whole().as_json())


def test_what_a_run_wrote_is_read_whole(run):
    run.rewards("z", 0.0)
    run.group("a", [whole()])
    read = view(run)
    assert (read.id, read.group, read.env, read.reward) == ("a.0", "a", "calculator", 1.5)
    assert (read.rewards, read.fault, read.trace) == (
        (("solved", 1.0), ("format", 0.5)),
        "late",
        "Traceback",
    )
    assert [one.text for one in read.opening] == ["6 times 7 ?"]
    first, second = read.turns
    assert first.calls[0].arguments == (("a", "2"), ("b", '[1, "x"]'))
    assert (first.observations[0].role, first.observations[0].name) == ("tool", "add")
    assert (second.prompt_ids, second.completion_ids) == ((6,), (7, 8, 9))
    assert (second.logprobs, second.versions) == ((-0.5, -1.0, -9.0), (0, 1, 1))
    assert [one.seconds for one in read.phases] == [0.5, 0.25]
    assert (read.notes, read.problems) == ((("sandbox", "bubblewrap"),), ())


def test_segments_branches_and_the_agents_log_are_read():
    first, second = whole().trajectory.turns
    turns = (replace(first, thought="hm"), replace(second, segment=1, begins="branch"))
    branch = Branch(1, 0, 2, "user", "Summary: …")
    played = replace(whole().trajectory, turns=turns, branches=(branch,), log="exit 0")
    read = as_view(json.loads(replace(whole(), trajectory=played).as_json()))
    assert [(t.segment, t.begins, t.thought) for t in read.turns] == [
        (0, "", "hm"),
        (1, "branch", ""),
    ]
    assert (read.num_segments, read.log, read.problems) == (2, "exit 0", ())
    assert read.branches == (BranchView(1, 0, 2, "user", "Summary: …"),)


def test_a_record_that_is_still_being_written_is_said_until_it_is_whole(run):
    run.group("a", [whole()])
    file = run.path / "trajectories" / "controller-0.jsonl"
    line = file.read_bytes()
    for cut in (1, len(line) // 2, len(line) - 1):
        file.write_bytes(line[:cut])
        with pytest.raises(Unreadable, match="at byte 0 is only half written"):
            view(run)
    file.write_bytes(line)
    assert view(run).id == "a.0"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("offset = 99999999", "ends before byte 99999999"),
        ("offset = -1", "does not say where"),
        ("offset = null", "does not say where"),
        ("offset = 9223372036854775807", "cannot be read|ends before"),
        ("offset = 3", "is no JSON object"),
        ("file = 'trajectories/gone.jsonl'", "is not there"),
        ("file = 'trajectories/../config.toml'", "no file of the run's trajectories folder"),
        ("file = '/etc/passwd'", "no file of the run's trajectories folder"),
        ("file = 'trajectories/..'", "no file of the run's trajectories folder"),
        ("file = 'config.toml'", "no file of the run's trajectories folder"),
        ("file = null", "no file of the run's trajectories folder"),
        ("file = 'trajectories/' || printf('%1000s', 'x')", "cannot be read|is not there"),
        ("id = 'b.0'", "holds another record"),
    ],
)
def test_an_index_that_points_elsewhere_is_a_sentence(run, change, sentence):
    run.group("a", [whole()])
    run.execute(f"update trajectories set {change}")
    with pytest.raises(Unreadable, match=sentence):
        view(run, "b.0" if change.startswith("id") else "a.0")


def test_a_link_out_of_the_run_folder_is_not_followed(run, tmp_path):
    run.group("a", [whole()])
    file = run.path / "trajectories" / "controller-0.jsonl"
    file.rename(tmp_path / "elsewhere.jsonl")
    file.symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(Unreadable, match="is not there"):
        view(run)


def test_a_line_of_a_megabyte_is_read_and_one_beyond_all_measure_is_said(run, monkeypatch):
    run.group("a", [scored("a.0", turns=[turn(text="x" * 2**20)])])
    assert len(view(run).turns[0].text) == 2**20
    monkeypatch.setattr(trajectory_record, "MAX_LINE", 2**20)
    with pytest.raises(Unreadable, match="longer than can be shown"):
        view(run)


def test_broken_unicode_can_be_sent_to_a_browser(run):
    run.group("a", [scored("a.0", turns=[turn(text="half \ud800 a pair")])])
    file = run.path / "trajectories" / "controller-0.jsonl"
    file.write_bytes(file.read_bytes().replace(b"6 times 7", b"6 \xff\xfe 7"))
    read = view(run)
    assert read.turns[0].text == "half ? a pair"
    assert json.dumps(asdict(read), ensure_ascii=False).encode()
    assert read.opening[0].text == "6 \ufffd\ufffd 7 ?"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"turns": None}, "the record: turns is no list"),
        ({"turns": [7]}, "the record: an item of turns is no object"),
        ({"task": "t"}, "the record: no task"),
        ({"fault": 3}, "the record: fault is no text"),
        ({"phases": [{"name": "tool"}]}, "the record: a phase without its seconds"),
    ],
)
def test_a_field_of_another_type_is_said_and_the_rest_is_shown(change, sentence):
    read = as_view({**record(), **change})
    assert sentence in read.problems
    assert (read.id, read.reward) == ("a.0", 1.5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"completion_ids": [1, "2"]}, "turn 1: completion_ids are no token ids"),
        ({"completion_ids": [True, 2]}, "turn 1: completion_ids are no token ids"),
        ({"prompt_ids": {}}, "turn 1: prompt_ids is no list"),
        ({"rollout_logprobs": [-1.0]}, "turn 1: 1 log-probs for 2 tokens"),
        ({"versions": [{"version": 1, "start": 0, "end": 10**9}]}, "turn 1: a span of versions"),
        ({"calls": [{"name": "add"}]}, "turn 1: a call without arguments"),
    ],
)
def test_a_turn_with_another_type_is_said_and_stays_aligned(change, sentence):
    broken = record()
    broken["turns"][0] |= change
    read = as_view(broken)
    assert any(problem.startswith(sentence) for problem in read.problems)
    for one in read.turns:
        assert len(one.completion_ids) == len(one.logprobs) == len(one.versions)


@given(
    changes=st.dictionaries(st.sampled_from(sorted(record())), ANY, max_size=4),
    turn=st.dictionaries(st.sampled_from(sorted(record()["turns"][0])), ANY, max_size=4),
)
def test_whatever_a_record_holds_it_can_be_shown(changes, turn):
    odd = record()
    odd["turns"][0] |= turn
    read = as_view({**odd, **changes})
    assert all(type(one) is int for t in read.turns for one in t.completion_ids)
    assert all(isinstance(value, float) for _, value in read.rewards)
    texts = dict.fromkeys((i for t in read.turns for i in (*t.prompt_ids, *t.completion_ids)), "x")
    tokens = policy_tokens(read, None)
    for one, its in zip(read.turns, tokens, strict=True):
        for quantity in QUANTITIES:
            json.dumps(
                token_rows(one, its, quantity, scale(tokens, quantity), texts), allow_nan=False
            )


def learn(run: RecordedRun, **fields) -> Learned | str:
    run.group("a", [whole()])
    if fields:
        run.learned("a.0", **fields)
    return read_learned(run.path, hit(run), view(run).num_policy_tokens)


LEARNED = {
    "step": 3,
    "advantages": [0.5, 0.5, -1.0, -1.0, -1.0],
    "learner_logprobs": [-0.1, -0.2, -0.5, -1.5, -9.0],
    "entropies": [0.1, 0.2, 0.3, 0.4, 2.0],
    "experts": [[[token, 7], [3, 1]] for token in range(5)],
}


def test_what_the_learner_made_of_each_token_is_beside_what_the_engine_did(run):
    learned = learn(run, **LEARNED)
    assert isinstance(learned, Learned)
    assert (learned.step, learned.times) == (3, 1)
    tokens = policy_tokens(view(run), learned)
    assert [len(turn) for turn in tokens] == [2, 3]
    assert [one.difference for one in tokens[1]] == [0.0, -0.5, 0.0]
    assert [one.advantage for one in tokens[0]] == [0.5, 0.5]
    assert [one.entropy for one in tokens[1]] == [0.3, 0.4, 2.0]
    assert scale(tokens, "entropy") == 2.0
    assert [one.experts for one in tokens[0]] == [((0, 7), (3, 1)), ((1, 7), (3, 1))]
    (row,) = [
        row
        for row in token_rows(
            view(run).turns[1], tokens[1], "difference", 0.5, dict.fromkeys(range(10), "t")
        )
        if row["n"] == 2
    ]
    assert (
        row["style"] == "background: rgba(230,159,0,0.65)"
    )  # the learner held it to be less likely
    assert "difference -0.5" in row["hover"] and "trained on" in row["hover"]


def test_the_last_time_counts_and_one_advantage_is_that_of_all_tokens(run):
    run.group("a", [whole()])
    for step in (3, 5, 4):
        run.learned("a.0", **{**LEARNED, "step": step, "advantages": [float(step)] * 5})
    learned = read_learned(run.path, hit(run), 5)
    assert isinstance(learned, Learned)
    assert (learned.step, learned.times, learned.advantages) == (5, 3, (5.0,) * 5)


@pytest.mark.parametrize(
    ("fields", "outcome", "sentence"),
    [
        ({}, "sample", "The run has no record of what the learner made of it."),
        ({}, "filtered:zero_variance", "It was not trained on (filtered:zero_variance)."),
        ({}, "", "It was not trained on (it is of the split train)."),
    ],
)
def test_without_a_line_of_the_learner_there_is_a_sentence(run, fields, outcome, sentence):
    learn(run, **fields)
    run.execute("update trajectories set outcome = ?", outcome)
    assert read_learned(run.path, hit(run), 5) == sentence


@pytest.mark.parametrize("what", ["offset = 99999", "offset = 'x'", "offset = 5", "step = 'x'"])
def test_a_broken_line_of_the_learner_is_a_sentence_or_left_out(run, what):
    learn(run, **LEARNED)
    run.execute(f"update learned set {what}")
    found = read_learned(run.path, hit(run), 5)
    assert found if isinstance(found, str) else found.step == 0


@pytest.mark.heavy
@given(fields=st.fixed_dictionaries(dict.fromkeys(LEARNED, ANY)))
def test_whatever_the_learner_left_the_tokens_can_be_shown(tmp_path_factory, fields):
    recorded = RecordedRun(tmp_path_factory.mktemp("learned"))
    recorded.group("a", [whole()])
    path = recorded.path / "trajectories" / "learned.jsonl"
    path.write_text(json.dumps({"id": "a.0", **fields}) + "\n", encoding="utf-8")
    recorded.execute("insert into learned values ('a.0', 1, 0)")
    recorded.close()
    learned = read_learned(recorded.path, hit(recorded), 5)
    assert isinstance(learned, Learned)
    assert [len(turn) for turn in policy_tokens(view(recorded), learned)] == [2, 3]


def test_a_trajectory_that_was_not_trained_on_shows_it(run):
    run.group("a", [whole()])
    tokens = policy_tokens(view(run), None)
    rows = token_rows(view(run).turns[0], tokens[0], "mask", 1.0, dict.fromkeys(range(10), "t"))
    assert [row["kind"] for row in rows] == ["told"] * 3 + ["wrote"] * 2
    assert {row["style"] for row in rows[3:]} == {"background: rgba(230,159,0,0.50)"}
    assert "not trained on" in rows[4]["hover"]


def test_every_quantity_has_a_legend():
    assert all(legend(quantity, 0.5).endswith(".") for quantity in QUANTITIES)


def test_a_turn_of_very_many_tokens_is_drawn_in_part():
    one = as_view(json.loads(scored("a.0", turns=[turn(range(9000), (1, 2))]).as_json()))
    texts = {id: str(id) for id in range(9000)}
    rows = token_rows(one.turns[0], policy_tokens(one, None)[0], "logprob", 5.0, texts)
    assert len(rows) == MAX_TOKENS


def test_ids_are_told_by_the_tokenizer_of_the_newest_checkpoint(run):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    assert token_texts(run.path, [0]) is None
    for step, words in ((2, "old"), (10, "new")):
        folder = run.path / "checkpoints" / f"step_{step}" / "model"
        folder.mkdir(parents=True)
        words = {words: 0, "\ufffd": 1}
        Tokenizer(WordLevel(words, unk_token="\ufffd")).save(str(folder / "tokenizer.json"))
    assert token_texts(run.path, [0, 1, 999]) == ["new", "\ufffd", "<999>"]


def test_a_run_keeps_the_tokenizer_that_it_began_with(run, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    run.keep_tokenizer("a-hub/name")
    assert token_texts(run.path, [0]) is None
    Tokenizer(WordLevel({"first": 0}, unk_token="first")).save(str(tmp_path / "tokenizer.json"))
    run.keep_tokenizer(str(tmp_path))
    assert token_texts(run.path, [0]) == ["first"]


def test_a_tokenizer_that_is_none_leaves_the_ids(run):
    folder = run.path / "checkpoints" / "step_1" / "model"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert token_texts(run.path, [0]) is None
    (run.path / "config.toml").write_text('[model]\npath = "/nothing\\u0000here"', encoding="utf-8")
    assert token_texts(run.path, [0]) is None
