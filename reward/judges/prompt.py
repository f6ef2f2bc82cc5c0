"""The judges' own prompts: `NAME.vN.md` in `prompts/`, or a file of the user's."""

from functools import cache
from pathlib import Path

from envs.prompt import Prompt, prompt_in

FOLDER = Path(__file__).parent / "prompts"


@cache
def find_prompt(name: str, wanted: str = "") -> Prompt:
    """The newest prompt of this name, the version that is wanted, or a file. Raises UnknownPrompt."""
    return prompt_in(FOLDER, name, wanted)
