"""The store of commands that look at existing data: --url, --key-prefix, --partition-by,
--dictionary, --key-ring, --key-store, --json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

from ..codec import CALL_SIZE_LIMIT
from ..compression import Zstd
from ..encryption import KeyRing
from ..errors import InvalidArgument, SessionStoreError
from ..instances import url_without_credentials
from ..sync import RedisSessionService, SessionService
from .store import CannotStart
from .transcript import to_json

_SIZE_LIMITS = ("event_size_limit", "value_size_limit", "summary_size_limit")

CONNECTION_OPTIONS = ("key_prefix", "partition_by", "dictionary", "key_ring", "key_store")
"""The parameters that `connection_options` adds and `opened_service` takes, without the URL."""

_OPTIONS = {"encryption": "--key-ring", "key_store": "--key-store"}
"""What options of a service are called here."""

F = TypeVar("F", bound=Callable[..., Any])


def store_options(command: F) -> F:
    """Give a command `service`, `as_json`, and the options that lead to them.

    If the command has the options --ttl and --codec, the service gets them.
    """

    @connection_options
    @wraps(command)
    def with_service(*, url: str, as_json: bool, **values: Any) -> Any:
        options = {name: values.pop(name) for name in CONNECTION_OPTIONS}
        for name, option in (("ttl", "session_ttl"), ("codec", "codec")):
            if name in values:
                options[option] = values.pop(name)
        with opened_service(url, **options) as service:
            return command(service=service, as_json=as_json, **values)

    return with_service  # type: ignore[return-value]  # click adds the options


def connection_options(command: F) -> F:
    """Give a command `url`, `as_json` and CONNECTION_OPTIONS."""

    @click.option(
        "--url",
        envvar="SESSIONSTORE_URL",
        metavar="URL",
        help="A running server: redis://, rediss://, unix://, redis+cluster://host:port,... or"
        " redis+sentinel://host:port,.../master.  [required; env: SESSIONSTORE_URL]",
    )
    @click.option("--key-prefix", default="", metavar="TEXT", help="The prefix of all keys.")
    @click.option(
        "--partition-by",
        type=click.Choice(["user", "app"]),
        default="user",
        show_default=True,
        help="The option of the services that wrote the data.",
    )
    @dictionary_option("--dictionary", "The first one compresses new values.")
    @click.option(
        "--key-ring",
        envvar="SESSIONSTORE_KEY_RING",
        metavar="FILE",
        help="A file of encryption keys, one line NAME:BASE64 for each. The first one encrypts."
        "  [env: SESSIONSTORE_KEY_RING]",
    )
    @click.option(
        "--key-store",
        envvar="SESSIONSTORE_KEY_STORE",
        metavar="URL",
        help="The key store, which has the data keys of users.  [env: SESSIONSTORE_KEY_STORE]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
    @wraps(command)
    def with_url(*, url: str | None, **values: Any) -> Any:
        if not url:
            raise click.UsageError("Name the server: pass --url, or set SESSIONSTORE_URL.")
        return command(url=url, **values)

    return with_url  # type: ignore[return-value]  # click adds the options


def dictionary_option(name: str, use: str) -> Callable[[F], F]:
    """An option that names dictionaries of compressed data."""
    return click.option(
        name,
        multiple=True,
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help=f"A dictionary for compressed values; may be repeated. {use}",
    )


def service_options(
    *,
    dictionary: Sequence[str] = (),
    key_ring: str | None = None,
    key_store: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The options of a service, from the options of a command.

    Reads change no TTL. Values of any size are stored, because other services have accepted them.
    """
    if key_store is not None and key_ring is None:
        raise click.UsageError("A key store needs a key ring: pass --key-ring, too.")
    try:
        compression = Zstd(dictionaries=dictionary) if dictionary else None
        ring = None if key_ring is None else KeyRing.from_file(key_ring)
    except (InvalidArgument, ImportError) as error:
        raise click.UsageError(f"{error}.") from error
    stored_as = {"compression": compression, "encryption": ring, "key_store": key_store}
    sizes = dict.fromkeys(_SIZE_LIMITS, CALL_SIZE_LIMIT)
    return {"refresh_ttl_on_read": False, **stored_as, **sizes, **options}


@contextmanager
def opened_service(url: str, **options: Any) -> Iterator[SessionService]:
    """A service of the command line. Its errors become one sentence and status 2."""
    try:
        service = RedisSessionService(url, **service_options(**options))
    except InvalidArgument as error:
        raise click.UsageError(f"{error}.") from error
    with service, named_errors(url):
        yield service


@contextmanager
def named_errors(url: str) -> Iterator[None]:
    """Errors of a store become one sentence, which names the store, and status 2."""
    try:
        yield
    except InvalidArgument as error:
        raise click.UsageError(f"{error}.") from error
    except SessionStoreError as error:
        text = str(error)
        for name, option in _OPTIONS.items():
            text = text.replace(f"the option {name} is needed", f"pass {option}")
        raise CannotStart(f"{url_without_credentials(url)}: {text}") from error


_CONTROLS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x7F, 0xA0), "\N{REPLACEMENT CHARACTER}"),
}


def visible(text: str) -> str:
    """A text whose control characters are symbols, so that it cannot control a terminal."""
    return text.translate(_CONTROLS)


class TextConsole(Console):
    """Prints lines on stdout. Control characters in them are symbols."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, soft_wrap=True)

    def show(self, line: Text | str) -> None:
        """Print a line."""
        text = Text(line) if isinstance(line, str) else line
        text.plain = visible(text.plain)  # of the same length, so styles stay in place
        self.print(text)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    click.echo(to_json(value))


def show_time(moment: datetime | None) -> str:
    """A time of the local zone, to the second; "never" for None."""
    if moment is None:
        return "never"
    return moment.astimezone().isoformat(" ", "seconds")


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 session", "2,000 sessions"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def show_bytes(size: int | None) -> str:
    """A size with a unit; "?" for None."""
    if size is None:
        return "?"
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
