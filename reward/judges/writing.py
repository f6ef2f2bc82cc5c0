"""Writing: format and language of the final answer, by rules; the reward is the share of rules that hold.

Asks no model. Languages are told by their commonest words, or by their script.
"""

import json
import re
import unicodedata
from typing import Literal

from pydantic import Field, field_validator, model_validator

from envs.chat_model import ChatModel
from envs.env import Task
from reward.judges.shown import answer_of, words
from reward.model_judge import JudgeSettings, model_judge
from rollout.trajectory import Judgement, Trajectory

Language = Literal[
    "", "en", "de", "fr", "es", "it", "pt", "nl", "zh", "ja", "ko", "ru", "ar", "el", "he"
]
_COMMON = {
    "en": "the and of to in is that it was for with as are you this be on not have at by from or an we they "
    "there would can will your what which if how i my do",
    "de": "der die und das ist nicht ein eine zu den mit von auf für im dem sich auch es ich sie wir als an "
    "wie bei nach aus wird sind oder aber einen kann",
    "fr": "le la les et des est une un du en que pour dans qui sur pas au avec il elle ce je vous nous sont "
    "plus par mais ou être cette",
    "es": "el la los las y de que en un una es por con para no se del al lo como más su pero esta este son "
    "está yo hay muy",
    "it": "il la di e che è un una per non con del della sono in si gli le da come ma anche questo più al "
    "nel ho molto",
    "pt": "o a os as e de que em um uma é por com para não se do da no na como mais mas este esta são você "
    "está muito",
    "nl": "de het een en van is dat niet in op te met voor zijn er aan die ook als maar om bij dit wordt "
    "naar we kan",
}  # fmt: skip
_WORDS = {language: frozenset(text.split()) for language, text in _COMMON.items()}
_SCRIPTS = {
    "zh": ("CJK",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "ar": ("ARABIC",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
}
# Shorter texts have too few common words to tell their language by.
_LEAST_WORDS = 4


class WritingSettings(JudgeSettings):
    """language: of the answer. json_object: the whole answer is one. pattern: a regular expression in it.

    forbidden: texts that it may not hold, in any case of letters. min_words, max_words: 0: no bound.
    """

    language: Language = ""
    json_object: bool = False
    pattern: str = ""
    forbidden: tuple[str, ...] = ()
    min_words: int = Field(default=0, ge=0)
    max_words: int = Field(default=0, ge=0)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _some(self) -> "WritingSettings":
        asked = (self.language, self.json_object, self.pattern, self.forbidden)
        if not any((*asked, self.min_words, self.max_words)):
            raise ValueError('give a rule, such as language = "en" or max_words = 100')
        if self.max_words and self.min_words > self.max_words:
            raise ValueError(
                f"no text has at least {self.min_words} words and at most {self.max_words}: lower "
                "min_words"
            )
        if not all(one.strip() for one in self.forbidden):
            raise ValueError("forbidden: an empty text is in every answer: leave it out")
        return self


@model_judge(WritingSettings, asks=False)
async def writing(
    task: Task, trajectory: Trajectory, model: ChatModel | None, settings: WritingSettings
) -> Judgement:
    """Judge the final answer."""
    held = rules(answer_of(trajectory), settings)
    metrics = {name: float(one) for name, one in held.items()}
    return Judgement({"writing": sum(metrics.values()) / len(metrics)}, metrics=metrics)


def rules(answer: str, settings: WritingSettings) -> dict[str, bool]:
    """Each rule that is set, and whether it holds."""
    held: dict[str, bool] = {}
    if settings.language:
        held["language"] = is_language(answer, settings.language)
    if settings.json_object:
        held["json_object"] = _is_object(answer)
    if settings.pattern:
        held["pattern"] = re.search(settings.pattern, answer[: settings.max_characters]) is not None
    if settings.forbidden:
        small = answer.casefold()
        held["forbidden"] = not any(one.casefold() in small for one in settings.forbidden)
    if settings.min_words:
        held["min_words"] = words(answer) >= settings.min_words
    if settings.max_words:
        held["max_words"] = words(answer) <= settings.max_words
    return held


def is_language(text: str, language: str) -> bool:
    """True if the text is in the language: no other one has more of its words, or its script prevails.

    A text of less than four words in Latin letters is in whichever is asked for.
    """
    letters = [unicodedata.name(one, "").split(" ")[0] for one in text if one.isalpha()]
    if not letters:
        return False
    if language in _SCRIPTS:
        own = sum(any(name.startswith(script) for script in _SCRIPTS[language]) for name in letters)
        kana = any(name in ("HIRAGANA", "KATAKANA") for name in letters)
        return (
            2 * own > len(letters)
            and (language != "ja" or kana)
            and not (language == "zh" and kana)
        )
    if 2 * sum(name == "LATIN" for name in letters) <= len(letters):
        return False
    said = re.findall(r"[^\W\d_]+", text.casefold())
    if len(said) < _LEAST_WORDS:
        return True
    counts = {name: sum(word in known for word in said) for name, known in _WORDS.items()}
    return counts[language] > 0 and counts[language] == max(counts.values())


def _is_object(answer: str) -> bool:
    try:
        return isinstance(json.loads(answer), dict)
    except (ValueError, RecursionError):
        return False
