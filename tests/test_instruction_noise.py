"""Noise on requests: what carries the task survives every kind of it, and each kind does what it says."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.instruction_noise import (
    FRAMES,
    REDUNDANT,
    WORDINGS,
    add_redundant,
    add_typos,
    load_bearing,
    paraphrase,
    pieces,
    withhold,
)
from envs.message import ToolSchema

SET_STATUS = ToolSchema(
    "set_status",
    "change an order",
    {"properties": {"order": {"type": "integer"}, "status": {"enum": ["held", "Shipped"]}}},
)
DATA = {"verb": "cancel", "rows": {"mira": 731, "Ben": ["blue lamp", {"note": "by the window"}]}}
WORDS = load_bearing(DATA, [SET_STATUS])
TEXT = (
    'Please cancel the order of mira and tell everybody. Write "please wait" into /notes/big.txt '
    "but not into `old file`, then show me 12 of Whole Foods' lamps."
)
ORDINARY = st.sampled_from(
    [*WORDINGS, "Please", "kitchen", "window", "yesterday", "garden,", "ok?"]
)
CARRYING = st.one_of(
    st.sampled_from(['"please wait here"', "`get all`", "'big one'", "/a/b.txt", "mira@x", "Rome"]),
    st.sampled_from([*sorted(WORDS), "not", "only", "except", "three", "first"]),
    st.integers(-999, 999).map(str),
)
REQUESTS = st.lists(st.one_of(ORDINARY, CARRYING), min_size=1, max_size=12).map(" ".join)
SEEDS = st.integers(0, 2**32).map(random.Random)


def kept(text: str, words: frozenset[str] = WORDS) -> list[str]:
    return [piece.text for piece in pieces(text, words) if piece.kind == "kept"]


def test_load_bearing_words_are_those_of_the_data_and_of_the_schemas_in_parts_too():
    assert {"cancel", "mira", "731", "ben", "blue", "lamp", "window"} <= WORDS
    assert {"set_status", "set", "status", "order", "held", "shipped"} <= WORDS
    assert "change" not in WORDS, "a description is no identity"


def test_identifiers_names_and_quotations_of_an_opening_are_load_bearing_wherever_they_stand_again():
    opening = ["goods(unit_price, stock): see Paris", 'say "quiet now" to the cook']
    words = load_bearing({}, [], opening)
    assert {"goods", "unit_price", "price", "stock", "paris", "quiet", "now"} <= words
    assert words.isdisjoint({"cook", "say", "see"})


def test_what_follows_a_quotation_without_a_space_belongs_to_it():
    assert kept('"big"large `wrong`please', frozenset()) == ['"big"', "large", "`wrong`", "please"]


def test_what_is_kept_of_a_request():
    assert kept(TEXT) == [
        "cancel", "the", "order", "mira", "and", '"please wait"', "/notes/big.txt", "but", "not",
        "`old file`", ",", "then", "12", "Whole", "Foods'",
    ]  # fmt: skip


@given(
    REQUESTS, st.frozensets(st.sampled_from(["please", "window", "kitchen", "entire", "thanks"]))
)
def test_pieces_end_to_end_are_the_text_and_words_of_the_task_are_never_free(text, more):
    found = pieces(text, WORDS | more)
    assert "".join(piece.text for piece in found) == text
    for piece in found:
        if piece.kind == "free":
            assert re.fullmatch(r"[A-Za-z]+[.,;:!?]*", piece.text)
            assert piece.text.rstrip(".,;:!?").lower() not in WORDS | more


@given(
    REQUESTS, st.frozensets(st.sampled_from(["kindly", "hope", "thanks", "help", "begin"])), SEEDS
)
def test_no_wording_and_no_typo_touches_or_adds_what_carries_the_task(text, more, rng):
    words = WORDS | more
    before = kept(text, words)
    text = paraphrase(text, words, rng)
    assert kept(text, words) == before
    text = add_redundant(text, words, rng)
    assert kept(text, words) == before
    text = add_typos(text, words, 1.0, rng)
    assert kept(text, words) == before


@given(st.text(), SEEDS)
def test_no_text_breaks_any_kind_of_noise(text, rng):
    assert "".join(piece.text for piece in pieces(text, WORDS)) == text
    for noisy in (paraphrase, add_redundant, withhold):
        noisy(text, WORDS, rng)
    add_typos(text, WORDS, 1.0, rng)


@given(REQUESTS, SEEDS)
def test_withholding_replaces_one_stretch_that_carries_something_and_leaves_the_rest(text, rng):
    short = withhold(text, WORDS, rng)
    if not any(any(c.isalnum() for c in part) for part in kept(text)):
        assert short == text
        return
    before, after = short.split("...")
    assert text.startswith(before) and text.endswith(after)
    gone = text[len(before) : len(text) - len(after)]
    assert gone.strip() == gone
    assert any(part in gone for part in kept(text))


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("read k7", {"read ..."}),
        ("47 times 86 ?", {"47 times ... ?"}),
        ("cancel mira", {"cancel ..."}),
        ("cancel the order of mira", {"cancel the order ..."}),
        ("go home", {"go home"}),
        ("cancel mira. hold ben", {"cancel mira. ..."}),
        ("cancel mira, hold ben, rest", {"cancel mira, ... rest", "cancel mira, hold ben, ..."}),
        ("cancel mira\nhold ben\nkindly", {"cancel mira\n...\nkindly"}),
        ("cancel `a and b` and rest", {"cancel `a and b` ..."}),
    ],
)
def test_a_withheld_clause_is_not_the_first_one_and_carries_something(text, short):
    words = load_bearing({"k": "cancel hold mira ben k7 rest"}, [])
    assert {withhold(text, words, random.Random(seed)) for seed in range(30)} == short


def test_typing_errors_are_small_and_only_in_longer_words_in_lower_case():
    text = "Garden near the big kitchen, yesterday"
    seen = {add_typos(text, WORDS, 1.0, random.Random(seed)) for seed in range(200)}
    assert text not in seen
    for one in seen:
        first, near, the, big, kitchen, yesterday = one.split()
        assert (first, the, big) == ("Garden", "the", "big")
        assert near[0] == "n" and near != "near" and abs(len(near) - 4) <= 1
        assert kitchen.endswith(",") and kitchen != "kitchen," and yesterday != "yesterday"


def test_a_typing_error_never_makes_another_word_of_the_task():
    words = frozenset({"wnidow", "widow", "windw"})
    seen = {add_typos("window", words, 1.0, random.Random(seed)) for seed in range(300)}
    assert seen.isdisjoint(words) and len(seen) > 3


def test_typing_errors_come_at_the_share_that_is_asked_for():
    text = " ".join(["kitchen"] * 4000)
    written = add_typos(text, WORDS, 0.1, random.Random(0)).split()
    # A swap of equal letters changes nothing; `kitchen` has none.
    assert 0.08 < sum(word != "kitchen" for word in written) / 4000 < 0.12


def test_other_wordings_replace_words_or_else_frame_the_text():
    rng = random.Random(0)
    assert paraphrase("Please wait", WORDS, rng) == "Kindly wait"
    framed = {paraphrase("read k7", WORDS, rng) for _ in range(50)}
    assert framed == {
        (f"{a} " if a else "") + "read k7" + (f"\n{b}" if b else "") for a, b in FRAMES
    }
    taken = frozenset(w.rstrip(":") for frame in FRAMES for part in frame for w in part.split())
    assert paraphrase("read k7", taken, rng) == "read k7", "every frame holds a word of the task"


def test_words_after_a_text_never_join_its_last_word():
    def after(text: str) -> set[str]:
        made = {add_redundant(text, WORDS, random.Random(seed)) for seed in range(60)}
        return {one.removeprefix(text)[0] for one in made if one.startswith(text)}

    assert after("call it blue") == after('say "hi"') == after("a\nb.") == {"\n"}
    assert after("call it blue.") == after("47 times 86 ?") == {" "}


def test_redundant_detail_stands_before_or_after_on_a_line_of_its_own_where_there_are_lines():
    seen = {add_redundant("read\nk7", WORDS - {"the"}, random.Random(s)) for s in range(200)}
    sentences = {text.replace("read\nk7", "").strip("\n") for text in seen}
    assert sentences <= set(REDUNDANT) and len(sentences) > 2
    assert {text.count("\n") for text in seen} == {2}
    assert any(text.startswith("read") for text in seen) and any(t.endswith("k7") for t in seen)


def test_what_is_added_holds_no_word_that_turns_a_sentence():
    added = [*REDUNDANT, *(part for frame in FRAMES for part in frame)]
    added += [other for others in WORDINGS.values() for other in others]
    assert [kept(text, frozenset()) for text in added if kept(text, frozenset())] == []
