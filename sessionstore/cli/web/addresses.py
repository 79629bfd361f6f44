"""Addresses of pages. Any id fits into one."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote, urlencode

from ...errors import InvalidArgument
from ...keys import encode_id

# An id may be "..", so ids are not parts of a path. A form field cannot hold every character, so
# the ids are encoded within the parameter `at`.


def place(*ids: str) -> str:
    """Ids as the value of `at`: "shop/ann/today"."""
    return "/".join(encode_id("id", each) for each in ids)


def address(page: str, *ids: str, **parameters: object) -> str:
    """The address of a page about an application, a user or a session.

    Args:
        page: the name of the page.
        *ids: the application, the user and the session.
        **parameters: more parameters; None and "" are left out.
    """
    given = {"at": place(*ids)} if ids else {}
    given |= {name: str(each) for name, each in parameters.items() if each not in (None, "")}
    query = urlencode(given, safe="/", quote_via=quote)
    return f"/{page}?{query}" if query else f"/{page}"


def ids_in(parameters: Mapping[str, str], number: int) -> list[str]:
    """The ids in the parameters of a request.

    Raises:
        InvalidArgument: there are more or fewer ids, or one is not valid.
    """
    try:
        ids = [unquote(part, errors="strict") for part in parameters.get("at", "").split("/")]
    except UnicodeDecodeError:
        ids = []
    if len(ids) != number:
        raise InvalidArgument("the address of this page is not complete")
    for name, each in zip(("app_name", "user_id", "session_id"), ids, strict=False):
        encode_id(name, each)
    return ids


def number_in(parameters: Mapping[str, str], name: str) -> int | None:
    """A parameter that is a number; None if it is missing.

    Raises:
        InvalidArgument: it is not a number of at most 16 digits.
    """
    text = parameters.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 16):
        raise InvalidArgument(f"{name} must be a number in the address of this page")
    return int(text)
