# SPDX-License-Identifier: MIT
"""`dmaplane kv`: a prefill server, a decode server, and who has which blocks of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from dmaplane._address import Require
    from dmaplane.kv import Books
    from dmaplane.kv.serve import Door, Site, SiteSettings

SECRET_VARIABLE: Final = "DMAPLANE_SECRET"
PREFILL_PORT: Final = 7471

_EPILOG: Final = """\
Example: two servers and a question, in three terminals:

  dmaplane kv prefill

  dmaplane kv decode --http 127.0.0.1:8000

  curl -s 127.0.0.1:8000/v1/completions -d '{"prompt": "Hello"}'

Exit codes: 0 stopped by a signal; 1 the plane or the peer refused; 2 wrong usage.
"""
_LEAKS_EPILOG: Final = """\
Example: leases of a decode server that are older than a minute:

  dmaplane kv leaks --server 127.0.0.1:8000 --older-than 60 --json

Exit codes: 0 there are none; 1 there are some, or no server answers; 2 wrong usage.
"""

app = typer.Typer(
    name="kv",
    help="KV caches from prefill to decode: the servers.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EngineOption = Annotated[str, typer.Option("--engine", help="numpy or transformers.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the engine; may be repeated."),
]
BlocksOption = Annotated[int, typer.Option(help="Blocks in the pool.", min=1, max=1 << 24)]
TokensOption = Annotated[
    int | None,
    typer.Option(help="Tokens in a block; the engine's own if left out.", min=1, max=4096),
]
OrderOption = Annotated[str | None, typer.Option(help="NHD or HND; the engine's own if left out.")]
PlaneOption = Annotated[str, typer.Option(help="auto, kernel or embedded.")]
RequireOption = Annotated[
    str | None, typer.Option(help="The only path bytes may take: shm, tcp or verbs.")
]
SecretOption = Annotated[
    str | None,
    typer.Option(
        help=f"File with the secret both sides know (or the variable {SECRET_VARIABLE}); "
        "needed beyond loopback."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, on one line, when ready.")
]
StdinOption = Annotated[
    bool, typer.Option("--until-stdin-ends", help="Stop when standard input ends, too.")
]


@app.command("prefill", epilog=_EPILOG)
def prefill(
    listen: Annotated[
        str, typer.Option(help="Where decode servers connect; port 0: any free one.")
    ] = f"127.0.0.1:{PREFILL_PORT}",
    http: Annotated[
        str | None, typer.Option(help="Where /health, /metrics and /kv/leases are; else nowhere.")
    ] = None,
    engine: EngineOption = "numpy",
    settings: SetOption = None,
    blocks: BlocksOption = 512,
    block_tokens: TokensOption = None,
    order: OrderOption = None,
    plane: PlaneOption = "auto",
    require: RequireOption = None,
    secret_file: SecretOption = None,
    until_stdin_ends: StdinOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compute caches of prompts; send them on layer by layer."""
    serve = require_package()
    site = site_settings(engine, settings, blocks, block_tokens, order, plane)
    secret, path = secret_of(secret_file), path_of(require)
    door = None if http is None else _door(http)

    async def life(open_site: Site, ready: Callable[[Any], None], stop: asyncio.Event) -> None:
        await serve.serve_prefill(
            open_site, listen=listen, secret=secret, require=path, http=door, ready=ready, stop=stop
        )

    _run(site, life, until_stdin_ends=until_stdin_ends, as_json=as_json)


@app.command("decode", epilog=_EPILOG)
def decode(
    prefill_address: Annotated[
        str, typer.Option("--prefill", help="Where the prefill server listens.")
    ] = f"127.0.0.1:{PREFILL_PORT}",
    http: Annotated[
        str, typer.Option(help="Where completions are answered; port 0: any free one.")
    ] = "127.0.0.1:8000",
    engine: EngineOption = "numpy",
    settings: SetOption = None,
    blocks: BlocksOption = 512,
    block_tokens: TokensOption = None,
    order: OrderOption = None,
    plane: PlaneOption = "auto",
    require: RequireOption = None,
    secret_file: SecretOption = None,
    until_stdin_ends: StdinOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer completions over HTTP, from the caches that come.

    OpenAI's POST /v1/completions, greedy and with streaming; /health, /metrics, /kv/leases.
    """
    serve = require_package()
    site = site_settings(engine, settings, blocks, block_tokens, order, plane)
    link = serve.LinkSettings(
        address=prefill_address, secret=secret_of(secret_file), require=path_of(require)
    )
    door = _door(http)

    async def life(open_site: Site, ready: Callable[[Any], None], stop: asyncio.Event) -> None:
        await serve.serve_decode(open_site, link=link, http=door, ready=ready, stop=stop)

    _run(site, life, until_stdin_ends=until_stdin_ends, as_json=as_json)


@app.command("leaks", epilog=_LEAKS_EPILOG)
def leaks(
    server: Annotated[
        str, typer.Option(help="The --http address of a decode or prefill server.")
    ] = "127.0.0.1:8000",
    older_than: Annotated[
        float, typer.Option(help="Seconds; leases younger than that are in use.", min=0)
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Name holder, age and trace id of leases not yet free."""
    from dmaplane._errors import UnreachableError
    from dmaplane.cli import _output

    require_package()
    from dmaplane.kv import Books
    from dmaplane.kv.demo._client import fetch

    door = _door(server)
    try:
        status, body = asyncio.run(fetch(door.host, door.port, "/kv/leases"))
    except (OSError, asyncio.TimeoutError) as error:
        raise UnreachableError(f"no server answers at {server}: {error}") from error
    if status != 200:
        raise UnreachableError(f"what answers at {server} has no /kv/leases (status {status})")
    try:
        books = Books.of_json(json.loads(body))
    except ValueError as error:
        raise UnreachableError(f"what answers at {server} gives no books: {error}") from error
    old = books.leaks(older_than)
    if as_json:
        _output.emit(
            {
                "account": dataclasses.asdict(books.account),
                "leases": [dataclasses.asdict(row) for row in old],
            }
        )
    else:
        _show_leases(books, older_than)
    if old:
        raise typer.Exit(1)


def _show_leases(books: Books, older_than: float) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dmaplane.cli import _output
    from dmaplane.kv._leaks import HEADINGS, cells_of

    out = _output.console()
    old = books.leaks(older_than)
    if old:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in HEADINGS:
            table.add_column(name)
        for row in old:
            table.add_row(*map(Text, cells_of(row)))
        out.print(table)
    out.print(books.verdict(older_than), markup=False)


# ---- what the commands share


def require_package() -> Any:
    """dmaplane.kv.serve; the error says how to install what it needs."""
    from dmaplane._errors import UnsupportedError

    try:
        import dmaplane.kv.serve as package
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("h11", "PIL"):
            raise
        raise UnsupportedError(
            "dmaplane kv", f"the package {error.name}: pip install 'dmaplane[serve]'"
        ) from error
    return package


def site_settings(
    engine: str,
    settings: list[str] | None,
    blocks: int,
    block_tokens: int | None,
    order: str | None,
    plane: str,
) -> SiteSettings:
    from dmaplane.cli.topology import plane_name
    from dmaplane.kv import Order
    from dmaplane.kv.engine import NAMES
    from dmaplane.kv.serve import SiteSettings

    if engine not in NAMES:
        raise typer.BadParameter(f"{engine!r} is none of {', '.join(NAMES)}", param_hint="--engine")
    if order is not None and order not in get_args(Order):
        raise typer.BadParameter(f"{order!r} is none of NHD, HND", param_hint="--order")
    return SiteSettings(
        plane=plane_name(plane),
        engine=engine,
        engine_settings=tuple(map(_setting, settings or ())),
        blocks=blocks,
        block_tokens=block_tokens,
        order=order,  # type: ignore[arg-type] # compared with all there are
    )


def _setting(text: str) -> tuple[str, Any]:
    """'layers=4': a name, and a number where the value is one."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise typer.BadParameter(f"{text!r}; write NAME=VALUE", param_hint="--set")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def secret_of(file: str | None) -> str | None:
    if file is None:
        return os.environ.get(SECRET_VARIABLE) or None
    try:
        with open(file, encoding="utf-8") as opened:
            return opened.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file}: {error}", param_hint="--secret-file") from None


def path_of(path: str | None) -> Require | None:
    known: tuple[Literal["shm", "tcp", "verbs"], ...] = ("shm", "tcp", "verbs")
    for one in known:
        if path == one:
            return one
    if path is not None:
        raise typer.BadParameter(f"{path!r} is none of {', '.join(known)}", param_hint="--require")
    return None


def _door(address: str) -> Door:
    from dmaplane.kv.serve import Door

    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535 or not host:
        raise typer.BadParameter(f"{address!r}; write HOST:PORT", param_hint="address")
    return Door(host.removeprefix("[").removesuffix("]"), int(port))


def _run(
    settings: SiteSettings,
    life: Callable[[Site, Callable[[Any], None], asyncio.Event], Coroutine[Any, Any, None]],
    *,
    until_stdin_ends: bool,
    as_json: bool,
) -> None:
    """A server's life: until SIGINT, SIGTERM, or the end of what it was told to watch."""
    from dmaplane.kv.serve import opened

    def ready(told: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(told), flush=True)
        else:
            print(
                "\n".join(f"{name}: {value}" for name, value in told.items() if value is not None)
            )
            sys.stdout.flush()

    async def whole(site: Site) -> None:
        stop = asyncio.Event()
        with _stopping(stop, until_stdin_ends=until_stdin_ends):
            task = asyncio.get_running_loop().create_task(life(site, ready, stop))
            waiting = asyncio.get_running_loop().create_task(stop.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not task.done() and not stop.is_set():
                task.cancel()
            await task

    with opened(settings) as site:
        asyncio.run(whole(site))


@contextlib.contextmanager
def _stopping(stop: asyncio.Event, *, until_stdin_ends: bool) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    watched = sys.stdin.fileno() if until_stdin_ends else None

    def said(fd: int) -> None:
        if not os.read(fd, 4096):
            loop.remove_reader(fd)
            stop.set()

    if watched is not None:
        loop.add_reader(watched, said, watched)
    try:
        yield
    finally:
        if watched is not None:
            loop.remove_reader(watched)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
