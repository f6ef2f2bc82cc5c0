"""Makes the archive of `dorado dashboard --demo` from a finished run.

    python scripts/record_demo.py runs/quickstart

All files that pages read, and of the trajectories one group in `--keep-one-in`. Paths of this machine are
replaced.
"""

import argparse
import json
import shutil
import sqlite3
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path

from rl.dashboard.demo import ARCHIVE
from rl.record.run_folder import LEARNED

ROOT = Path(__file__).resolve().parent.parent
NAME = "quickstart"
# Read by no page.
LEFT_OUT = ("checkpoints", "trajectories", "trajectories.sqlite", "earlier", "wandb")


def main() -> None:
    """Write the archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--keep-one-in", type=int, default=12, metavar="GROUPS")
    given = parser.parse_args()
    run: Path = given.run.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        to = Path(temporary) / NAME
        shutil.copytree(run, to, ignore=lambda folder, names: [n for n in names if n in LEFT_OUT])
        keep_some(run, to, given.keep_one_in)
        keep_tokenizer(run, to)
        for file in to.rglob("*"):
            if (
                file.suffix in (".toml", ".json", ".jsonl", ".log")
                and file.name != "tokenizer.json"
            ):
                file.write_text(
                    without_paths(file.read_text(errors="replace", encoding="utf-8"), run),
                    encoding="utf-8",
                )
        index_offsets(to)
        with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
            archive.add(to, NAME, filter=_anonymous)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size:,} bytes")


def keep_some(run: Path, to: Path, one_in: int) -> None:
    """Copy the trajectories of one group in so many, with what training computed of them."""
    source = sqlite3.connect(f"file:{run / 'trajectories.sqlite'}?mode=ro", uri=True)
    kept = sqlite3.connect(to / "trajectories.sqlite")
    source.backup(kept)
    groups = [grp for [grp] in kept.execute("select distinct grp from trajectories order by grp")]
    dropped = [(grp,) for index, grp in enumerate(groups) if index % one_in]
    kept.executemany("delete from trajectories where grp = ?", dropped)
    kept.execute("delete from learned where id not in (select id from trajectories)")
    kept.commit()
    (to / "trajectories").mkdir()
    wanted: dict[str, list[int]] = defaultdict(list)
    for file, offset in kept.execute("select file, offset from trajectories"):
        wanted[file].append(offset)
    wanted[LEARNED] = [offset for [offset] in kept.execute("select offset from learned")]
    for file, offsets in wanted.items():
        with (run / file).open("rb") as lines, (to / file).open("wb") as out:
            for offset in sorted(offsets):
                lines.seek(offset)
                out.write(lines.readline())
    kept.close()


def index_offsets(to: Path) -> None:
    """Say where the lines lie now."""
    index = sqlite3.connect(to / "trajectories.sqlite")
    for path in (to / "trajectories").iterdir():
        file, offset = f"trajectories/{path.name}", 0
        for line in path.read_bytes().splitlines(keepends=True):
            record = json.loads(line)
            if file == LEARNED:
                key = (record["id"], record["step"])
                index.execute(
                    "update learned set offset = ? where id = ? and step = ?", (offset, *key)
                )
            else:
                index.execute(
                    "update trajectories set offset = ? where id = ?", (offset, record["id"])
                )
            offset += len(line)
    index.commit()
    index.execute("pragma journal_mode = delete")
    index.execute("vacuum")
    index.close()


def keep_tokenizer(run: Path, to: Path) -> None:
    """The tokenizer of the last checkpoint, for the tokens' text."""
    found = sorted(
        run.glob("checkpoints/step_*/**/tokenizer.json"), key=lambda p: p.stat().st_mtime
    )
    if found:
        place = to / found[-1].relative_to(run)
        place.parent.mkdir(parents=True)
        shutil.copy(found[-1], place)


def without_paths(text: str, run: Path) -> str:
    """Text as it would be of a run in ~/dorado."""
    known = {str(run): f"runs/{NAME}", str(run.parent): "runs", str(ROOT): "~/dorado"}
    for path, name in known.items():
        text = text.replace(path, name)
    return text


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
