"""The process that sends a run's metrics to Weights & Biases: `python -m rl.record.wandb_process ORDER`.

In: the `Order` as JSON, then the lines that come to metrics.jsonl, until standard input ends. Out: a run of
W&B, and on standard output a sentence for what has gone wrong. Whatever W&B raises here, and whoever kills
its helper, the order begins anew as an offline run, which has every line; a second time this process ends.
"""

import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from wandb import Run

# Seconds: for W&B to answer at first, between two looks, and from the end of the run to the end of this.
INIT_SECONDS, LOOK_SECONDS, FINISH_SECONDS = 30.0, 0.5, 60


@dataclass(frozen=True)
class Order:
    """A run for W&B. folder: the run folder. begins: byte of metrics.jsonl at which this part begins.

    id: of the run at W&B. resumes: W&B knows it already. offline: it stays in the folder.
    """

    folder: str
    begins: int
    id: str
    resumes: bool
    name: str
    project: str
    entity: str | None
    config: dict[str, object]
    offline: bool = False


class HelperGone(Exception):
    """W&B's own process has died."""


def lines(file: Path, begins: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and values of each line, as it comes, until standard input ends and all is read."""
    ended = False
    with file.open("rb") as metrics:
        metrics.seek(begins)
        half = b""
        while True:
            half += metrics.readline()
            if half.endswith(b"\n"):
                values, half = json.loads(half), b""
                values.pop("time", None)
                yield values.pop("step"), values
            elif ended:
                return
            else:
                readable, _, _ = select.select([sys.stdin], [], [], LOOK_SECONDS)
                ended = bool(readable) and not os.read(sys.stdin.fileno(), 1)
                if not psutil.Process().children():
                    raise HelperGone("its helper process has died")


def send(order: Order) -> None:
    """Send all lines. Raises what W&B raises, and HelperGone."""
    mode = "offline" if order.offline else os.environ.get("WANDB_MODE") or None
    # W&B reads the variable itself, and refuses one that is empty.
    os.environ.pop("WANDB_MODE", None)
    import wandb

    if mode is None and not wandb.login(prompt=False):
        mode = "offline"
    run: Run = wandb.init(
        id=order.id,
        resume="allow" if order.resumes else None,
        project=order.project,
        entity=order.entity,
        name=order.name,
        mode=mode,  # pyright: ignore[reportArgumentType]
        dir=order.folder,
        config=order.config,
        settings=wandb.Settings(silent=False, console="off", init_timeout=INIT_SECONDS),
    )
    for step, values in lines(Path(order.folder) / "metrics.jsonl", order.begins):
        run.log(values, step=step)
    # Where W&B cannot be reached it would try for ever; what it has is in the folder.
    signal.alarm(FINISH_SECONDS)
    run.finish()
    wandb.teardown()


def say(sentence: str, folder: str) -> None:
    """Tell the run what has gone wrong, in one line."""
    print(f"W&B: {sentence}; {folder}/metrics.jsonl has every step", flush=True)


def main() -> None:
    """Send what the order asks for."""
    order = Order(**json.loads(sys.argv[1]))
    try:
        send(order)
    except ModuleNotFoundError:
        say("wandb is not installed (pip install wandb, or wandb.enabled = false)", order.folder)
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if order.offline:
            say(f"{said}; it gets nothing more", order.folder)
            sys.stdout.flush()
            os._exit(1)
        say(f"{said}; it goes on offline, and `wandb sync` sends that", order.folder)
        # Anew, since what is left of W&B in this process may wait for its helper for ever.
        again = json.dumps(asdict(replace(order, offline=True)))
        os.execv(sys.executable, [sys.executable, "-m", "rl.record.wandb_process", again])


if __name__ == "__main__":
    main()
