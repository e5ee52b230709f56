"""The command `m3`: a thin door to what others own.

Owns names and help of commands and flags, and how failures read: one line on standard error and a non-zero exit.
Everything heavy is imported inside the command that needs it, so that `m3 --help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from m3_operator import rollout_command
from m3_operator.errors import OperatorError

app = typer.Typer(
    help="MiniMax-M3 on your own Kubernetes, or on this machine.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(rollout_command.app, name="rollout")


@app.command()
def up(
    file: Annotated[
        Path | None,
        typer.Argument(help="YAML with M3Deployments and M3Routers, as for kubectl apply; without it: a tiny example"),
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="port of the endpoint; further routers get the next free ones")
    ] = 8080,
    check: Annotated[
        bool, typer.Option("--check", help="ask every model with the OpenAI SDK, verify the answers, and stop")
    ] = False,
    state_dir: Annotated[Path, typer.Option(help="where checkpoints, keys and logs are kept")] = Path(".m3"),
) -> None:
    """Run what FILE describes as local processes, until Ctrl-C."""
    from m3_operator.local.console import Display
    from m3_operator.local.up import UpOptions
    from m3_operator.local.up import up as run

    run(UpOptions(file=file, port=port, check=check, state=state_dir), Display())


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
def tiny(context: typer.Context) -> None:
    """Write a random tiny checkpoint: m3 tiny DIR [--seed N ...]; m3 tiny --help lists the flags."""
    os.execv(sys.executable, [sys.executable, "-m", "m3_worker.tiny", *context.args])  # noqa: S606 (no shell)


@app.command()
def plan(
    files: Annotated[list[Path], typer.Argument(help="YAML with M3Deployments, as for kubectl apply")],
    output: Annotated[
        Literal["table", "json"], typer.Option("--output", "-o", help="table for people, json for programs")
    ] = "table",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="directory whose config.json tells the size of models that cannot be read from here"),
    ] = None,
) -> None:
    """Say what FILES need: GPUs, memory of a rank, cache, context; exit code 1 if something does not fit."""
    from m3_operator.capacity_report import PlanOptions, report

    report(PlanOptions(files=tuple(files), output=output, checkpoint=checkpoint), print)


@app.command()
def crd(
    output: Annotated[
        Path | None, typer.Option(help="NAME.yaml for one file, else a directory for a file each; without it: stdout")
    ] = None,
) -> None:
    """Print the CustomResourceDefinitions."""
    from m3_operator.crd import render_all

    files = render_all()
    together = "".join(files.values())
    try:
        if output is None:
            print(together, end="")
        elif output.suffix in (".yaml", ".yml"):
            output.write_text(together, encoding="utf-8")
        else:
            output.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (output / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OperatorError(f"{output}: {error.strerror}") from None


@app.command()
def chat(
    *,
    text: Annotated[str, typer.Argument(help="what to say")],
    url: Annotated[str, typer.Option(help="the endpoint")] = "http://127.0.0.1:8080",
    key: Annotated[str | None, typer.Option(envvar="M3_API_KEY", help="the API key", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="the model; without it: the first that the endpoint lists")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer in tokens")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds without a byte after which it gives up")] = 120.0,
) -> None:
    """Send one message to an endpoint and print the answer as it comes."""
    from m3_operator.chat import ChatRequest, for_terminal, stream_chat

    request = ChatRequest(url=url, text=text, key=key, model=model, max_tokens=max_tokens, timeout_seconds=timeout)
    for piece in stream_chat(request):
        print(for_terminal(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    print()


@app.command()
def top(
    url: Annotated[str, typer.Option(help="the admin port of a router")] = "http://127.0.0.1:9090",
    key_file: Annotated[
        Path | None, typer.Option(help="file with the admin key; not needed on the router's own machine")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="seconds between two looks")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="print one picture and end")] = False,
) -> None:
    """Watch a router: lanes, workers, latency, spend, decisions. Ctrl-C ends it."""
    from m3_operator.top import TopOptions
    from m3_operator.top import top as run

    run(TopOptions(url=url, key_file=key_file, interval_seconds=interval, is_once=once))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed_version

    print(f"m3serve {installed_version('m3serve')}")


def main() -> NoReturn:
    """Run the command line and exit: 0, 1 for what went wrong, 2 for what was typed wrong."""
    command = typer.main.get_command(app)
    try:
        sys.exit(command.main(args=sys.argv[1:] or ["--help"], prog_name="m3", standalone_mode=False))
    except typer.TyperException as error:
        _fail(f"{error.format_message()} (see m3 --help)", error.exit_code)
    except OperatorError as error:
        _fail(str(error), 1)
    except OSError as error:  # a full disk, a directory that may not be written: nothing that a trace explains better
        _fail(str(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    print(f"m3: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
