"""The web application: which address leads to which page."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route, request_response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ...errors import SessionStoreError
from .access import Access, Guard
from .deleting import DeletingPages
from .following import Following
from .pages import Pages
from .session_pages import SessionPages

_STATIC = Path(__file__).parent / "static"


def _icon(_: Request) -> Response:
    return FileResponse(_STATIC / "icon.svg")


def make_app(pages: Pages, following: Following, access: Access) -> ASGIApp:
    """The application.

    Args:
        pages: the pages about the store.
        following: the streams of live events.
        access: the link and the cookie.
    """
    session = SessionPages(pages)
    routes = [
        Route("/", pages.overview),
        Route("/enter", pages.enter),
        Route("/health", pages.health),
        Route("/go", pages.go),
        Route("/users", pages.users),
        Route("/sessions", pages.sessions),
        Route("/session", session.session),
        Route("/facts", session.facts),
        Route("/search", session.search),
        Route("/raw/event", session.raw_event),
        Route("/raw/session", session.raw_session),
        Route("/live", following.follow),
        Mount("/static", StaticFiles(directory=_STATIC)),
        Route("/favicon.ico", _icon),  # browsers ask for it on pages that are not HTML
    ]
    if pages.allow_delete:
        deleting = DeletingPages(pages)
        routes += [
            Route("/delete", deleting.ask_session),
            Route("/delete", deleting.delete_session, methods=["POST"]),
            Route("/erase", deleting.ask_user),
            Route("/erase", deleting.erase_user, methods=["POST"]),
        ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            SessionStoreError: pages.problem,
            HTTPException: pages.missing,
            Exception: pages.problem,
        },
    )
    return Guard(app, access, request_response(pages.refused))
