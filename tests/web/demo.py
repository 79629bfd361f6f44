"""Data for the picture of the inspector: a shop whose agent uses tools."""

from __future__ import annotations

import base64
import struct
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

from sessionstore import Event, SessionKey
from sessionstore.sync import SessionService

KEY = SessionKey("shop", "ann", "mugs-for-the-office")
IDS = ("shop", "ann", "mugs-for-the-office")


def png(red: int, green: int, blue: int, size: int = 96) -> str:
    """A picture of a mug, base64 of a PNG."""

    def is_mug(x: float, y: float) -> bool:
        corner = max(26 - x, x - 54, 0) ** 2 + max(y - 66, 0) ** 2
        is_body = 16 <= x < 64 and y >= 20 and corner < 10**2
        ring = (x - 62) ** 2 + (y - 44) ** 2
        return is_body or (x >= 62 and 10**2 <= ring < 16**2)

    def pixel(x: int, y: int) -> bytes:
        inside = sum(is_mug(x + i / 4, y + j / 4) for i in range(4) for j in range(4))
        mug, back = (red, green, blue), (0xF4, 0xF1, 0xEA)
        mixed = zip(mug, back, strict=True)
        return bytes((front * inside + behind * (16 - inside)) // 16 for front, behind in mixed)

    rows = b"".join(b"\0" + b"".join(pixel(x, y) for x in range(size)) for y in range(size))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    data += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def call(name: str, arguments: str) -> dict[str, Any]:
    """A tool call, as the OpenAI API has it."""
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


def result(output: str) -> dict[str, Any]:
    """The result of a tool."""
    return {"role": "tool", "content": output}


def fill(service: SessionService) -> None:
    """Store the sessions of the picture, and those of some other users."""
    for app_name, num_users in (("shop", 48), ("airline", 20), ("support", 12)):
        for number in range(num_users):
            for session_id in ("monday", "today")[: 1 + number % 2]:
                session = service.create_session(
                    app_name=app_name, user_id=f"user-{number:03d}", session_id=session_id
                )
                service.append_event(session, Event("user", "Hello"))
    session = service.create_session(
        app_name=KEY.app_name,
        user_id=KEY.user_id,
        session_id=KEY.session_id,
        state={
            "step": "checkout",
            "user:language": "en",
            "user:addresses": ["12 Harbour Road", "Office, 3rd floor"],
            "app:currency": "EUR",
            "app:free_shipping_from": 50,
        },
    )
    at = datetime.now(UTC) - timedelta(minutes=4)
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{png(37, 99, 190)}"}
    question = {"type": "input_text", "text": "Do you have twelve mugs like this one, in blue?"}
    stock = '{"items":[{"sku":"mug-blue-03","name":"Harbour mug","stock":340,"price":11.5}]}'
    turns: list[list[tuple[str, Any, dict[str, Any]]]] = [
        [
            ("user", {"role": "user", "content": [question, image]}, {}),
            ("assistant", call("search_products", '{"text":"mug","colour":"blue"}'), {}),
            ("tool", result(stock), {}),
            (
                "assistant",
                "Yes: the Harbour mug, 11.50 € each, and we have 340 of them.\n"
                "Twelve are 138.00 €, and shipping is free. Shall I put them into your cart?",
                {"last_search": "blue mug"},
            ),
        ],
        [
            ("user", "Please do. Deliver them to the office.", {}),
            ("assistant", call("add_to_cart", '{"sku":"mug-blue-03","count":12}'), {}),
            (
                "assistant",
                "Done. Twelve Harbour mugs go to “Office, 3rd floor”, on Thursday.",
                {"cart": [{"sku": "mug-blue-03", "count": 12}], "user:last_address": 1},
            ),
        ],
    ]
    for number, events in enumerate(turns):
        for author, content, delta in events:
            at += timedelta(seconds=7)
            event = Event(
                author,
                content,
                timestamp=at,
                invocation_id=f"run-{number}",
                state_delta=delta,
            )
            service.append_event(session, event)
        at += timedelta(seconds=40)
