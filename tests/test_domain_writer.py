"""Domains that a model writes: a recorded writer makes its mistakes, and each is found for its own reason."""

import pytest

from envs.generated.domain_file import FOLDER, builtin, builtin_names
from rl.env_tools.domain_writer import Attempt, NotWritten, judged, keep_rejected, written_domain

KNOWN = [builtin(name) for name in builtin_names()]
CLINIC = (FOLDER / "clinic.toml").read_text(encoding="utf-8")
# A domain of its own: the clinic with one more tool and one rule less.
GOOD = CLINIC.replace('"clinic"', '"surgery"', 1).replace(', "patient.owed >= 100"', "") + (
    '\n[tool.rest]\ndoes = "a doctor goes home"\nargs = { doctor = "doctor" }\n'
    'needs = ["doctor.on_duty = yes"]\neffects = ["doctor.on_duty = no"]\nask = ["send {doctor} home"]\n'
)


def answer(text):
    return f"Here it is:\n```toml\n{text}\n```"


FEW = GOOD.split("[tool.book_visit]")[0].split("[entity.slot]")[0] + (
    '[tool.block]\ndoes = "x"\nargs = { patient = "patient" }\nneeds = ["patient.state = active"]\n'
    'effects = ["patient.state = blocked"]\nask = ["block {patient}"]\n'
)
MISTAKES = {
    "talk": ("I would need to know more first.", "no ```toml block"),
    "syntax": (answer(GOOD.replace("[tool.rest]", "[tool.rest")), "is no TOML"),
    "a field that is not": (answer(GOOD.replace("doctor.on_duty = no", "doctor.mood = no")), "no field mood"),
    "an entity that is not": (
        answer(GOOD.replace('doctor = "doctor" }', 'doctor = "ref nurse" }')), "no entity 'nurse'",
    ),
    "a word that is no choice": (
        answer(GOOD.replace("doctor.on_duty = no", "doctor.on_duty = perhaps")),
        "'perhaps' is none of",
    ),
    "an argument unsaid": (answer(GOOD.replace("send {doctor} home", "send home")), "does not say doctor"),
    "nothing happens": (
        answer(GOOD.replace('effects = ["doctor.on_duty = no"]', "effects = []")),
        "has to change something",
    ),
    "a number for a row": (
        answer(GOOD.replace("doctor.on_duty = no", "doctor.on_duty = doctor")),
        "on_duty is of text",
    ),
    "too small": (answer(FEW), "20 are the least"),
    "a renaming": (answer(CLINIC.replace("patient", "guest")), "is the domain clinic with other names"),
    "what can never be": (
        answer(GOOD.replace('["doctor.on_duty = yes"]', '["doctor.on_duty = yes", "doctor.on_duty = no"]')),
        "tool.rest: no task was found",
    ),
    "too deep": (answer("x = " + "[" * 5000), "nested too deeply"),
    "too many digits": (answer("x = " + "9" * 5000), "is no TOML: Exceeds the limit"),
    "two of a name": (
        answer(GOOD.replace("[tool.rest]", "[tool.find_doctor]")),
        "two tools find_doctor",
    ),
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_found_for_its_own_reason(kind):
    text, reason = MISTAKES[kind]
    _, reasons = judged(text, KNOWN)
    assert any(reason in one for one in reasons), reasons
    assert sum(reason in " ".join(judged(other, KNOWN)[1]) for other in ("", answer("x = ["))) <= 1


def test_a_writer_that_learns_of_its_mistakes_writes_a_domain(tmp_path):
    said = [text for text, _ in MISTAKES.values()][:3]
    script = iter([*said, answer(GOOD)])
    heard = []

    def writer(chat):
        heard.append(chat[-1]["content"])
        return next(script)

    domain, tried = written_domain(writer, "a surgery", KNOWN)
    assert domain.name == "surgery"
    assert [bool(one.reasons) for one in tried] == [True, True, True, False]
    assert "a surgery" in heard[0]
    assert "no ```toml block" in heard[1]
    keep_rejected(tmp_path, "a surgery", tried)
    keep_rejected(tmp_path / "half", "\ud800", [Attempt("\ud800", ("half a letter",))])
    kept = sorted(path.name for path in tmp_path.glob("*.txt"))
    assert kept == ["a-surgery-1.txt", "a-surgery-2.txt", "a-surgery-3.txt"]
    assert (tmp_path / kept[0]).read_text(encoding="utf-8").startswith("# the answer has no")


def test_a_writer_that_never_learns_is_given_up():
    with pytest.raises(NotWritten, match="no domain in 2 attempts; the last: the answer has no"):
        written_domain(lambda chat: "no", "nothing", KNOWN, attempts=2)
