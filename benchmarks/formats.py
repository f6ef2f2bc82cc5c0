"""Generated tool calls written in every format and read back: how many come back as they were, and how fast.

    python benchmarks/formats.py --calls 10000

Strings hold quotes, raw newlines, unicode, JSON and the marks of all formats, except what a format without
quotes cannot write (docs/formats.md). Every tenth text is read twice more: inside a thought, out of which no
call may come; and cut off in the middle, which may be malformed and may not be another call.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from written_calls import WRITERS, generated, tokenizer  # pyright: ignore[reportMissingImports]

from envs.message import ToolSchema
from rollout.format import FORMATS
from rollout.reading import Written, read
from rollout.thought import THOUGHTS


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--calls", type=int, default=10_000, help="calls per format")
    arguments.add_argument("--format", default="", help="one format alone")
    arguments.add_argument("--show", type=int, default=0, help="so many that came back otherwise")
    given = arguments.parse_args()
    made = tokenizer()
    print(
        "| format | read by | calls | back as they were | out of thoughts | cut: other calls | µs a text |"
    )
    print(7 * "|---" + "|", flush=True)
    for name in [given.format] if given.format else WRITERS:
        row(name, made, given.calls, given.show)


def row(name: str, made: object, count: int, show: int) -> None:
    """Print the line of one format."""
    record = FORMATS[name]
    if record.parser:
        from rollout.vllm_parsers import reader_of

        reader = reader_of(record, made)
    else:

        def reader(text: str, tools: Sequence[ToolSchema], thinking: bool, /) -> Written:
            return read(text, tools, record, thinking=thinking)

    rng, found, seconds = random.Random(name), Counter[str](), 0.0
    while found["calls"] < count:
        calls, tools = generated(rng, name)
        text = WRITERS[name](calls)
        start = time.perf_counter()
        back = reader(text, tools, False)
        seconds += time.perf_counter() - start
        same = back.calls == tuple(calls) and not back.malformed
        found["texts"] += 1
        found["calls"] += len(calls)
        found["same"] += len(calls) * same
        if not same and show:
            show -= 1
            print(f"{text!r}\n  {calls}\n  {back}")
        if found["texts"] % 10:
            continue
        found["thought"] += len(reader(thought(name, text), tools, False).calls)
        cut = reader(text[: rng.randrange(len(text))], tools, False)
        found["cut"] += any(call not in calls for call in cut.calls)
    who = f"vLLM `{record.parser}`" if record.parser else "Dorado"
    print(
        f"| `{name}` | {who} | {found['calls']:,} | {found['same']:,} | {found['thought']:,} "
        f"| {found['cut']:,} | {1e6 * seconds / found['texts']:,.0f} |",
        flush=True,
    )


def thought(name: str, text: str) -> str:
    """A thought that speaks of these calls, and an answer."""
    if name == "harmony":
        return f"<|channel|>analysis<|message|>{text}<|end|>"
    mark = FORMATS[name].thought if FORMATS[name].thought in THOUGHTS else "<think>"
    return f"{mark}{text.replace(THOUGHTS[mark], '')}{THOUGHTS[mark]}so"


if __name__ == "__main__":
    main()
