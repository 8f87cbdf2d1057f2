# SPDX-License-Identifier: MIT
"""The `dmaplane` command.

One file per command; each is a function that typer turns into arguments. What
they do lives elsewhere in the package and is imported only when a command
runs, so that `dmaplane --help` costs next to nothing.

Exit codes, the same for every command: 0 all is well; 1 a check or claim
failed, or the plane refused; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from dmaplane.cli import bench, demo, doctor, kv, stream, top, topology

__all__ = ["main"]

_EPILOG = """\
Exit codes: 0 all is well; 1 a check or a claim failed; 2 wrong usage.

First steps: 'dmaplane doctor' says what this machine has, 'dmaplane demo' moves KV caches.
"""

app = typer.Typer(
    name="dmaplane",
    help="Buffers for AI transports: allocated, placed, shared and torn down safely.",
    epilog=_EPILOG,
    invoke_without_command=True,
    add_completion=False,
    # Plain text: it greps, pastes, and fits 80 columns without boxes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from dmaplane import __version__

        print(f"dmaplane {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


for _command in (doctor, topology, demo, bench, top):
    app.command(
        _command.__name__.rpartition(".")[2],
        epilog=_command.EPILOG,
        context_settings=getattr(_command, "CONTEXT", None),
    )(_command.command)

app.add_typer(kv.app)
app.add_typer(stream.app)


def main() -> None:
    """Runs the command line; always ends by SystemExit."""
    from dmaplane._errors import DmaplaneError, InvalidError

    try:
        app(prog_name="dmaplane")
    except DmaplaneError as error:
        from dmaplane.cli import _output

        _output.failure(error, as_json="--json" in sys.argv)
        sys.exit(2 if isinstance(error, InvalidError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read us (head, less) has had enough; the interpreter must not
        # find the pipe broken again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
