"""`m3 rollout`: names, flags and help of its commands. What they do is `rollout_actions`', imported when one runs."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from m3_operator.rollout_actions import Rollout

app = typer.Typer(
    help="Look at, stop, go on with and take back the rollout of an M3Deployment.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="name of the M3Deployment")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="its namespace; without it: that of the kubeconfig's context")
]
Kubeconfig = Annotated[Path | None, typer.Option(help="default: $KUBECONFIG, or ~/.kube/config")]


@app.command()
def status(
    name: Name,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    timeout: Annotated[
        float, typer.Option(min=0, help="seconds after which it gives up; 0: not before the rollout does")
    ] = 0.0,
) -> None:
    """Wait until the new revision is rolled out; exit code 1 if it is stuck or was rolled back."""
    _run(name, namespace, kubeconfig, lambda rollout: rollout.wait(timeout_seconds=timeout))


@app.command()
def history(name: Name, namespace: Namespace = None, kubeconfig: Kubeconfig = None) -> None:
    """List the revisions that are kept."""
    _run(name, namespace, kubeconfig, lambda rollout: rollout.history())


@app.command()
def undo(
    name: Name,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    to_revision: Annotated[
        int | None,
        typer.Option(min=1, help="number in the history; without it: the last one that was rolled out before"),
    ] = None,
) -> None:
    """Write an earlier revision back into the spec. Replicas and what else no pod carries stay."""
    _run(name, namespace, kubeconfig, lambda rollout: rollout.undo(to_revision))


@app.command()
def pause(name: Name, namespace: Namespace = None, kubeconfig: Kubeconfig = None) -> None:
    """Replace no further group."""
    _run(name, namespace, kubeconfig, lambda rollout: rollout.set_paused(is_paused=True))


@app.command()
def resume(name: Name, namespace: Namespace = None, kubeconfig: Kubeconfig = None) -> None:
    """Go on replacing groups."""
    _run(name, namespace, kubeconfig, lambda rollout: rollout.set_paused(is_paused=False))


@app.command()
def restart(name: Name, namespace: Namespace = None, kubeconfig: Kubeconfig = None) -> None:
    """Replace every group by one of the same spec, as a rollout."""
    _run(name, namespace, kubeconfig, lambda rollout: rollout.restart())


def _run(
    name: str, namespace: str | None, kubeconfig: Path | None, action: "Callable[[Rollout], Awaitable[None]]"
) -> None:
    from m3_operator.rollout_actions import run

    run(name, namespace, kubeconfig, action)
