"""Shows events as a conversation. It knows the messages of the frameworks in adapters/."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

_encode = msgspec.json.Encoder(enc_hook=repr).encode

_TEXT = ("text", "content", "thinking", "output_text", "refusal")
_NESTED = ("parts", "content", "message", "data", "tool_calls")
_CALLS = {"function_call", "tool_use", "tool-call", "functionCall", "tool_call"}
_RESULTS = {
    *("function_call_output", "tool_result", "tool-return"),
    *("functionResponse", "function_response", "tool"),
}
_IMAGES = ("image_url", "source", "inlineData", "inline_data")
_MEDIA_TYPES = ("media_type", "mime_type", "mimeType")
_is_image = re.compile(r"data:image/(?:png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/_-]+=*").fullmatch


class Piece(NamedTuple):
    """A part of an event. kind: "text", "call", "result", "data" or "image", as a data URL."""

    kind: str
    text: str


def pieces_of(content: Any) -> list[Piece]:
    """The parts of an event's content, in order. What has no known form is "data", as JSON."""
    if content is None:
        return []
    try:
        return list(_pieces(content)) or [Piece("data", to_json(content))]
    except RecursionError:  # nested too deeply
        return [Piece("data", to_json(content))]


def to_json(value: Any) -> str:
    """A value as compact JSON; what JSON cannot hold as its repr."""
    return _encode(value).decode()


def show_image(data_url: str) -> str:
    """What an image is: "[image/png, 34 KB]"."""
    head, _, encoded = data_url.partition(";base64,")
    return f"[{head.removeprefix('data:')}, {len(encoded) * 3 // 4000:,} KB]"


def around(text: str, wanted: str) -> str:
    """The part of a text around the first match, on one line."""
    at = max(text.casefold().find(wanted), 0)
    first, end = max(at - 60, 0), at + len(wanted) + 60
    snippet = text[first:end]
    return ("..." if first else "") + snippet + ("..." if end < len(text) else "")


def _pieces(content: Any) -> Iterator[Piece]:
    if isinstance(content, str):
        if content:
            yield Piece("text", content)
    elif isinstance(content, list):
        for part in content:
            yield from _pieces(part)
    elif isinstance(content, Mapping):
        yield from _pieces_of_mapping(content)
    else:
        yield Piece("data", to_json(content))


def _pieces_of_mapping(content: Mapping[str, Any]) -> Iterator[Piece]:
    kind = content.get("type") or content.get("part_kind") or content.get("role")
    inner = next((content[key] for key in ("functionCall", "function_call") if content.get(key)), 0)
    if isinstance(inner, Mapping) or kind in _CALLS or isinstance(content.get("function"), Mapping):
        yield Piece("call", _call(inner or content.get("function") or content))
        return
    inner = content.get("functionResponse") or content.get("function_response")
    if isinstance(inner, Mapping) or kind in _RESULTS:
        yield Piece("result", _result(inner or content))
        yield from _images_in(inner or content)
        return
    image = _image_url(content)
    is_known = image is not None
    if image is not None:
        yield Piece("image", image)
    for key in _TEXT:
        if isinstance(content.get(key), str):
            is_known = True
            yield from _pieces(content[key])
            break
    for key in _NESTED:
        if isinstance(content.get(key), list | Mapping):
            is_known = True
            yield from _pieces(content[key])
    if not is_known:
        yield Piece("data", to_json(content))


def _call(call: Any) -> str:
    name = call.get("name") or call.get("tool_name") or "tool"
    for key in ("arguments", "args", "input"):
        if key in call:
            given = call[key]
            return f"{name}({given if isinstance(given, str) else to_json(given)})"
    return f"{name}()"


def _result(result: Any) -> str:
    for key in ("output", "response", "content", "result"):
        if key in result:
            given = result[key]
            return given if isinstance(given, str) else to_json(given)
    return to_json(result)


def _images_in(value: Any) -> Iterator[Piece]:
    """The images anywhere in a value."""
    if isinstance(value, list):
        for part in value:
            yield from _images_in(part)
    elif isinstance(value, Mapping):
        image = _image_url(value)
        if image is not None:
            yield Piece("image", image)
            return
        for part in value.values():
            yield from _images_in(part)


def _image_url(content: Mapping[str, Any]) -> str | None:
    """The data URL of an image; None if a mapping holds no image, or only its address."""
    for place in (content, *(content.get(key) for key in _IMAGES)):
        url = place.get("url") or _encoded_image(place) if isinstance(place, Mapping) else place
        if isinstance(url, str) and url.startswith("data:image/") and _is_image(url):
            head, _, encoded = url.partition(",")
            return f"{head},{encoded.replace('-', '+').replace('_', '/')}"
    return None


def _encoded_image(place: Mapping[str, Any]) -> str | None:
    media_type = next((place[key] for key in _MEDIA_TYPES if key in place), None)
    data = place.get("data") or place.get("base64")
    if isinstance(data, bytes):
        data = b64encode(data).decode()
    if isinstance(media_type, str) and isinstance(data, str):
        return f"data:{media_type};base64,{data}"
    return None
