"""Makes the table of docs/formats.md: what Dorado makes of each chat template that the package `trl` ships.

    python scripts/chat_templates.py            # prints the table; --write puts it into the page

Flows in: the templates of the installed package. Flows out: a row per template: its format, what it keeps of
thoughts, and how far a conversation rendered turn by turn is the one rendered whole, else the reason. The
tokenizer is a byte-level one of ours with the template's own marks: no checkpoint is needed.
"""

import argparse
import importlib.util
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rollout.renderer import Renderer
from rollout.template_check import TemplateFault, check_template

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/formats.md"
BEGIN, END = "<!-- templates -->", "<!-- end of templates -->"
# Marks that templates end a turn with, and those by which GLM's begins the next one.
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<|observation|>",
    "<|tool_response>",
    "<|end|>",
    "</s>",
)
MARK = re.compile(r"<[|/]?[\w\uff5c\u2581:| ]{2,40}[|\uff5c]?>|\[/?[A-Z_]{4,20}\]")
ROLES = {
    "system and tools": frozenset(("system", "tool")),
    "tools": frozenset(("tool",)),
    "system": frozenset(("system",)),
    "user and assistant": frozenset[str](),
}


@dataclass(frozen=True)
class Row:
    """A template as Dorado takes it. plays: with which roles beside user and assistant, "" with none.
    reason: why not with more."""

    name: str
    format: str
    history: str
    plays: str
    reason: str


def templates() -> dict[str, str]:
    """The templates of the installed package `trl` by name; none where it is not installed."""
    spec = importlib.util.find_spec("trl")
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(Path(places[0], "chat_templates").glob("*.jinja")) if places else []
    return {file.stem: file.read_text(encoding="utf-8") for file in files}


def renderer_of(template: str, folder: Path) -> Renderer:
    """A renderer of a template, with a byte-level tokenizer that has its marks, made in a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    marks = list(dict.fromkeys(MARK.findall(template)))
    ends = [mark for mark in ENDS if mark in template]
    if "<|channel|>" in ends or "<|call|>" in ends:  # harmony's ends a message, and not a turn
        ends = [mark for mark in ends if mark != "<|end|>"]
    if "<|observation|>" in ends:
        ends.append("<|user|>")
    if "eos_token" in template or not ends:
        ends = ["</s>", *ends]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={one: n for n, one in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token=ends[0],
        additional_special_tokens=[*ends, *marks],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    ids = [tokenizer.convert_tokens_to_ids(end) for end in ends]
    GenerationConfig(eos_token_id=ids).save_pretrained(folder)
    return Renderer(folder)


def row_of(name: str, template: str) -> Row:
    """Try a template."""
    with tempfile.TemporaryDirectory(prefix="dorado-template-") as folder:
        renderer = renderer_of(template, Path(folder))
        plays, reason = played(renderer)
        return Row(name, renderer.format.name, renderer.history, plays, reason)


def played(renderer: Renderer) -> tuple[str, str]:
    """With which roles conversations are the same turn by turn and at once, and why not with more."""
    reason = ""
    for name, roles in ROLES.items():
        try:
            check_template(renderer, roles=roles)
        except TemplateFault as fault:
            found = str(fault).partition("the chat template ")[2].partition(";")[0]
            reason = reason or found
        else:
            return name, reason
    return "", reason


def lines() -> Iterator[str]:
    """The table."""
    yield "| template | format | thoughts kept | turn by turn as at once with | why not with more |"
    yield "|---|---|---|---|---|"
    for name, template in templates().items():
        row = row_of(name, template)
        reason = row.reason.replace("|", "\\|")
        yield f"| `{row.name}` | `{row.format}` | {row.history} | {row.plays or 'one turn'} | {reason} |"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--write", action="store_true", help="put it into docs/formats.md")
    table = "\n".join(lines())
    if not arguments.parse_args().write:
        print(table)
        return
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
