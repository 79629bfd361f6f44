"""Events as the pages show them: bounded in size, with tool calls to unfold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from ...model import Event
from ..opened import show_bytes
from ..transcript import Piece, pieces_of, show_image, to_json

_TEXT_LIMIT = 8000  # characters of a part that are shown
_LINE_LIMIT = 120  # characters next to the name of a tool
_FOLDED_FROM = 400  # characters of instructions for the agent
_PARTS_LIMIT = 40  # of an event
_VALUES_LIMIT = 200  # of a tier of state
_IMAGE_BYTES = 8 << 20  # of a page


class Part(msgspec.Struct, frozen=True):
    """A part of an event.

    Attributes:
        kind: "text", "call", "result", "data", "image", "more" or "note".
        text: the text; for an image its data URL.
        title: for a folded part: the name of the tool.
        line: for a folded part: the beginning of the text, on one line.
        num_left: how many characters are not shown.
    """

    kind: str
    text: str
    title: str = ""
    line: str = ""
    num_left: int = 0


class ShownEvent(msgspec.Struct, frozen=True):
    """An event, ready for the page.

    Attributes:
        position: where it stands in the log.
        author: who wrote it.
        kind: "user", "agent", "tool" or "system": how it looks.
        role: the role in the content, if it is not the author.
        at: its timestamp, in the local time zone.
        run: its invocation_id.
        branch: its branch.
        parts: the content.
        details: state changes and metadata.
        num_left: how many parts are not shown.
        starts_run: the previous event belongs to another run.
    """

    position: int
    author: str
    kind: str
    role: str
    at: datetime
    run: str
    branch: str
    parts: list[Part]
    details: list[Part]
    num_left: int = 0
    starts_run: bool = False

    @property
    def time(self) -> str:
        """The time of day, with the date unless it is today."""
        is_today = self.at.date() == datetime.now().astimezone().date()
        return self.at.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")


class Budget:
    """How many bytes of images a page may still show."""

    def __init__(self) -> None:
        self._left = _IMAGE_BYTES

    def takes(self, image: str) -> bool:
        """Whether an image fits."""
        self._left -= len(image)
        return self._left >= 0


def shown_events(positions: Iterable[int], events: Iterable[Event]) -> list[ShownEvent]:
    """Events of a session, one after another."""
    budget = Budget()
    shown: list[ShownEvent] = []
    for position, event in zip(positions, events, strict=True):
        starts_run = bool(shown) and shown[-1].run != event.invocation_id
        shown.append(_shown_event(position, event, budget, starts_run))
    return shown


def _shown_event(position: int, event: Event, budget: Budget, starts_run: bool) -> ShownEvent:
    pieces = _pieces(event.content)
    role = event.content.get("role") if isinstance(event.content, Mapping) else None
    role = role if isinstance(role, str) else ""
    kinds = {piece.kind for piece in pieces}
    kind = "agent"
    if event.author == "user" or (role == "user" and kinds != {"result"}):
        kind = "user"
    elif kinds == {"result"} or event.author == "tool" or role == "tool":
        kind = "tool"
    elif "system" in (event.author, role):
        kind = "system"
    return ShownEvent(
        position=position,
        author=event.author,
        kind=kind,
        role="" if role == event.author else role[:40],
        at=event.timestamp.astimezone(),
        run=event.invocation_id,
        branch=event.branch,
        parts=[_part(piece, budget, kind == "system") for piece in pieces[:_PARTS_LIMIT]],
        details=list(_details(event)),
        num_left=max(len(pieces) - _PARTS_LIMIT, 0),
        starts_run=starts_run,
    )


def parts_of(content: Any) -> list[Part]:
    """Any content, such as that of a summary."""
    budget = Budget()
    return [_part(piece, budget) for piece in _pieces(content)[:_PARTS_LIMIT]]


def value_part(value: Any, kind: str = "data", title: str = "") -> Part:
    """Any value, as JSON to unfold."""
    try:
        return _folded(kind, title, to_json(value))
    except RecursionError:
        return Part("note", "This value is nested too deeply to be shown.")


def value_parts(values: Mapping[str, Any]) -> list[tuple[str, Part]]:
    """Values by name, in alphabetical order. Long values, and many values, are cut."""
    shown = sorted(values)[:_VALUES_LIMIT]
    parts = [(name, value_part(values[name])) for name in shown]
    if len(values) > len(shown):
        parts.append(("…", Part("note", f"{len(values) - len(shown):,} more keys")))
    return parts


def plain_text(event: Event) -> str:
    """The content of an event as text, for searching. Images are left out."""
    return "\n".join(piece.text for piece in _pieces(event.content) if piece.kind != "image")


def _pieces(content: Any) -> list[Piece]:
    try:
        return pieces_of(content)
    except RecursionError:
        return [Piece("note", "This content is nested too deeply to be shown.")]


def _part(piece: Piece, budget: Budget, folds_text: bool = False) -> Part:
    if piece.kind == "image":
        if budget.takes(piece.text):
            return Part("image", piece.text, show_image(piece.text))
        size = show_bytes(len(piece.text) * 3 // 4)
        return Part("note", f"An image of {size} is not shown: the page has too many images.")
    if piece.kind == "call":
        name, _, arguments = piece.text.partition("(")
        return _folded("call", name, arguments.removesuffix(")"))
    if piece.kind in ("result", "data"):
        return _folded(piece.kind, "result" if piece.kind == "result" else "", piece.text)
    if folds_text and len(piece.text) > _FOLDED_FROM:
        return _folded("data", "", piece.text)
    return Part(piece.kind, piece.text[:_TEXT_LIMIT], num_left=_num_left(piece.text))


def _folded(kind: str, title: str, text: str) -> Part:
    shown = text[:_TEXT_LIMIT]
    line = " ".join(shown[: 2 * _LINE_LIMIT].split())
    line = line if len(line) <= _LINE_LIMIT else line[:_LINE_LIMIT] + "…"
    if len(shown) == len(text) and shown[:1] in ("{", "["):
        with suppress(msgspec.DecodeError, UnicodeEncodeError):  # it only looks like JSON
            shown = msgspec.json.format(shown.encode(), indent=2).decode()
    return Part(kind, shown, title, line, _num_left(text))


def _num_left(text: str) -> int:
    return max(len(text) - _TEXT_LIMIT, 0)


def _details(event: Event) -> Iterator[Part]:
    """What an event holds in addition to its content."""
    for name, value in (
        ("sets state", event.state_delta),
        ("adds to state", event.state_increments),
        ("removes state", event.state_removed),
        ("metadata", event.metadata),
    ):
        if value:
            yield value_part(value, "more", name)
