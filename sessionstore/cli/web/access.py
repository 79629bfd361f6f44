"""Access to the pages: a browser must have opened the link that the command printed."""

from __future__ import annotations

import secrets
from ipaddress import ip_address
from threading import Lock
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none';"
    " base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send forms without an origin
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every response. Pages load nothing from other hosts, and have no inline scripts or styles."""

_OPEN_PATHS = ("/enter", "/static/")  # the link, and files of the package


class Access:
    """The link that works once, the cookie that it sets, and the token of forms.

    Args:
        port: where the command listens. Browsers send a cookie to all ports of a host.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._cookie_name = f"sessionstore-{port}"
        self._cookie = secrets.token_urlsafe(32)
        self._link_token = ""
        self._lock = Lock()
        self.form_token = secrets.token_urlsafe(32)

    def new_link(self) -> str:
        """A link that gives access once. Older links stop working."""
        self._link_token = secrets.token_urlsafe(32)
        return f"http://127.0.0.1:{self._port}/enter?token={self._link_token}"

    def use_link(self, token: str) -> bool:
        """Whether a token is that of the newest link. A token is valid once."""
        with self._lock:
            is_valid = bool(self._link_token) and _equal(token, self._link_token)
            if is_valid:
                self._link_token = ""
            return is_valid

    def set_cookie(self, response: Response) -> None:
        """Give access to the browser that receives a response."""
        response.set_cookie(self._cookie_name, self._cookie, httponly=True, samesite="strict")

    def has_cookie(self, request: Request) -> bool:
        """Whether a request has the cookie."""
        return _equal(request.cookies.get(self._cookie_name, ""), self._cookie)

    def is_own_form(self, request: Request, token: str) -> bool:
        """Whether a form was sent by a page of this command."""
        origin = request.headers.get("origin")
        is_same = origin is None or urlsplit(origin).netloc == request.headers.get("host")
        return is_same and _equal(token, self.form_token)


class Guard:
    """Refuses requests without the cookie, and adds HEADERS to every response.

    Args:
        app: the application.
        access: the cookie.
        refuse: the page for a request without the cookie.
    """

    def __init__(self, app: ASGIApp, access: Access, refuse: ASGIApp) -> None:
        self._app = app
        self._access = access
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._app
        if not _is_loopback(Headers(scope=scope).get("host", "")):
            app = Response("This is not the address of the inspector.\n", 400)
        elif not scope["path"].startswith(_OPEN_PATHS):
            app = self._app if self._access.has_cookie(Request(scope)) else self._refuse
        await app(scope, receive, send_with_headers)


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine.

    Another site can point its own host name at this machine (DNS rebinding). Any port is accepted,
    because a tunnel may use another one.
    """
    try:
        name = urlsplit(f"//{host}").hostname
        return name == "localhost" or (name is not None and ip_address(name).is_loopback)
    except ValueError:
        return False


def _equal(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), expected.encode())
