"""The command `sessionstore web`: an inspector in the browser. It needs the extra `web`."""

from __future__ import annotations

import os
import socket
from typing import Any

import click

from ..opened import connection_options, opened_service, print_json
from ..store import CannotStart

_LOOPBACK = "127.0.0.1"
_CALL_TIMEOUT_S = 3.0  # then a page says that the server does not answer


@click.command(
    "web",
    short_help="Look at stored data in a browser.",
    help="""Look at applications, users and sessions in a browser, and follow sessions live.

It prints a link to a page on this machine. The link works once; press Enter for a new one. The
pages change nothing and refresh no TTL. With --allow-delete they can delete sessions and users,
after a confirmation. Ctrl-C stops it.""",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="NUMBER",
    help="A port of 127.0.0.1.  [default: a free one]",
)
@click.option("--open", "opens", is_flag=True, help="Open the link in the browser.")
@click.option("--allow-delete", is_flag=True, help="Let the pages delete sessions and users.")
@connection_options
def web(
    url: str,
    port: int,
    opens: bool,
    allow_delete: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run the command; the help text is above."""
    try:
        from .serving import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _LIBRARIES:
            raise
        raise CannotStart(
            "The web inspector needs the extra `web`: pip install 'sessionstore[web]'"
        ) from None

    def announce(link: str) -> None:
        if as_json:
            print_json({"link": link})
        else:
            click.echo(link)
        if opens:
            click.launch(link)

    options["call_timeout"] = _CALL_TIMEOUT_S
    with opened_service(url, **options) as service:
        service.ping()
        try:
            listener = socket.create_server((_LOOPBACK, port))
        except OSError as error:
            raise CannotStart(f"cannot use port {port}: {os.strerror(error.errno or 0)}") from error
        with listener:
            serve(service, url, options, listener, announce, allow_delete=allow_delete)


_LIBRARIES = ("jinja2", "starlette", "uvicorn")
