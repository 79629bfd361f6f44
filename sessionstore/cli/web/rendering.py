"""Renders the templates. Stored text is always escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from starlette.responses import HTMLResponse

from ..opened import counted, show_bytes, show_time
from .addresses import address, place

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_NAME_LENGTH = 300  # characters of a name; longer than any id


class Renderer:
    """Makes pages from templates.

    Args:
        **shared: values that every template gets.
    """

    def __init__(self, **shared: Any) -> None:
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader(__package__),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {"address": address, "place": place, **shared}
        self._templates.filters |= {
            "ago": _ago,
            "bytes": show_bytes,
            "counted": counted,
            "number": "{:,}".format,
            "time": show_time,
            "visible": _visible,
        }

    def text(self, template: str, values: Mapping[str, Any]) -> str:
        """A template as text."""
        return self._templates.get_template(template).render(values)

    def page(self, template: str, status_code: int = 200, **values: Any) -> HTMLResponse:
        """A template as a response."""
        text = self.text(template, values)
        return HTMLResponse(text.encode("utf-8", "replace"), status_code)


def _ago(moment: datetime | None) -> str:
    """A time relative to now: "3 min ago", "in 2 h"."""
    if moment is None:
        return "never"
    seconds = (datetime.now().astimezone() - moment).total_seconds()
    amount = abs(seconds)
    for unit, size in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE), ("s", 1)):
        if amount >= size or unit == "s":
            break
    if amount < 1:
        return "now"
    text = f"{amount // size:,.0f} {unit}"
    return f"{text} ago" if seconds > 0 else f"in {text}"


def _visible(text: str) -> str:
    """A name with control characters and direction marks escaped; a long name is cut."""
    if len(text) > _NAME_LENGTH:
        text = text[:_NAME_LENGTH] + "…"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode() or character
