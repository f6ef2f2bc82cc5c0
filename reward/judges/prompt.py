"""The judges' own prompts: `NAME.vN.md` in `prompts/`, or a file of the user's, which has the same places."""

from functools import cache
from pathlib import Path

from envs.prompt import Prompt, UnknownPrompt, prompt_in

FOLDER = Path(__file__).parent / "prompts"
# Places that a prompt of one's own may do without: what is asked there it may say itself.
OPTIONAL = frozenset(("question", "criterion"))


@cache
def find_prompt(name: str, wanted: str = "") -> Prompt:
    """The newest prompt of this name, the version that is wanted, or a file. Raises UnknownPrompt, also for a
    file that has a place which nothing fills, or lacks that of the answer."""
    found = prompt_in(FOLDER, name, wanted)
    known = prompt_in(FOLDER, name).places
    if unknown := sorted(found.places - known):
        there = ", ".join(f"{{{{{one}}}}}" for one in sorted(known))
        raise UnknownPrompt(
            f"prompt {wanted}: nothing fills its place {{{{{unknown[0]}}}}}; there are {there}"
        )
    if lacking := sorted(known - found.places - OPTIONAL):
        raise UnknownPrompt(
            f"prompt {wanted}: it lacks the place {{{{{lacking[0]}}}}}, which the judge has to see"
        )
    return found
