"""`dorado judge …`: the commands, and nothing else; what they do is in the modules beside this one."""

from pathlib import Path
from typing import Annotated

import typer

FAILED = 1
app = typer.Typer(no_args_is_help=True, help="Hold judges to labels, tune them, try them.")
Rows = Annotated[
    Path,
    typer.Argument(
        help="Labelled answers: question, and chosen and rejected, or answer and label."
    ),
]
Model = Annotated[
    str,
    typer.Option("--model", help="A URL, or a checkpoint folder, which vLLM serves for the while."),
]
Served = Annotated[str, typer.Option(help="The model's name at the server.")]
KeyEnv = Annotated[str, typer.Option("--key-env", help="The variable that holds the server's key.")]
Settings = Annotated[str, typer.Option("--config", help="The judge's settings, as a JSON object.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AtOnce = Annotated[int, typer.Option(min=1, help="Questions at the same time.")]
Length = Annotated[
    int, typer.Option(min=64, help="Of a served checkpoint: most tokens of a question.")
]


@app.command("eval")
def eval_(
    file: Rows,
    model: Model = "",
    judge: Annotated[str, typer.Option(help="rubric, ranking, …, or module:function.")] = "ranking",
    config: Settings = "",
    served: Served = "",
    key_env: KeyEnv = "OPENAI_API_KEY",
    again: Annotated[int, typer.Option(min=0, help="Times that each row is judged again.")] = 0,
    at_once: AtOnce = 16,
    most: Annotated[int, typer.Option(min=0, help="Rows (0: all).")] = 0,
    max_model_len: Length = 2048,
    as_json: AsJson = False,
) -> None:
    """Hold a judge to labels: agreement, position and length bias, self-consistency, calibration."""
    from rl.judge_tools.commands import Asked, eval_command

    asked = Asked(served, key_env, max_model_len, at_once)
    raise typer.Exit(
        eval_command(file, model, judge, config, asked, again=again, most=most, as_json=as_json)
    )


@app.command()
def tune(
    file: Rows,
    out: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    model: Model = "",
    principles: Annotated[
        Path | None, typer.Option(help="A TOML file to begin with (default: six that ship).")
    ] = None,
    writer: Annotated[str, typer.Option(help="Generates and reflects (default: the model).")] = "",
    served: Served = "",
    key_env: KeyEnv = "OPENAI_API_KEY",
    rounds: Annotated[int, typer.Option(min=1, help="Two proposals each, at most.")] = 5,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="That what is accepted is better.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    at_once: AtOnce = 16,
    max_model_len: Length = 2048,
    as_json: AsJson = False,
) -> None:
    """Tune a judge's principles against an opponent; a proposal has to win on held-out pairs."""
    from rl.judge_tools.commands import Asked, tune_command

    raise typer.Exit(
        tune_command(
            file,
            out,
            model,
            Asked(served, key_env, max_model_len, at_once),
            principles=principles,
            writer=writer,
            rounds=rounds,
            confidence=confidence,
            seed=seed,
            as_json=as_json,
        )
    )


@app.command()
def play(
    model: Model = "",
    judge: Annotated[str, typer.Option(help="rubric, principles, writing, …")] = "principles",
    config: Settings = "",
    served: Served = "",
    key_env: KeyEnv = "OPENAI_API_KEY",
    max_model_len: Length = 2048,
) -> None:
    """Write to a judge: a question, an answer, and what it says; an empty line ends a text."""
    from rl.judge_tools.commands import Asked, play_command

    asked = Asked(served, key_env, max_model_len)
    raise typer.Exit(play_command(model, judge, config, asked))
