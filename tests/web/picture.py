"""Makes the picture of the inspector in README.md: `.venv/bin/python tests/web/picture.py`.

Another file can be named.
"""

from __future__ import annotations

import shutil
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import demo  # noqa: E402  # found now
from support.inspector import inspecting  # noqa: E402
from web_support import TTLS  # noqa: E402

from benchmarks.rigs.nodes import free_ports  # noqa: E402
from benchmarks.rigs.proxy import Proxy  # noqa: E402
from sessionstore.cli.web.addresses import address  # noqa: E402
from sessionstore.embedded import EmbeddedServer  # noqa: E402
from sessionstore.sync import RedisSessionService  # noqa: E402

PICTURE = Path(__file__).parent / "inspector.png"
SIZE: Any = {"width": 1080, "height": 960}


def main(target: Path) -> None:
    """Fill a server, start the inspector, and take the picture."""
    from playwright.sync_api import sync_playwright

    [port] = free_ports(1)
    with EmbeddedServer() as server, Proxy(str(server.socket_path), port=port) as proxy:
        with RedisSessionService(server.url, **TTLS) as service:
            demo.fill(service)
        with inspecting(proxy.url) as inspector, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport=SIZE, color_scheme="dark", reduced_motion="reduce")
            page.goto(inspector.link)
            page.goto(inspector.origin + address("session", *demo.IDS))
            page.locator('#live[data-state="on"]').wait_for()
            target.write_bytes(smaller(page.screenshot()))
            browser.close()
    print(f"{target}: {target.stat().st_size:,} bytes")


def smaller(png: bytes) -> bytes:
    """The same picture, compressed better."""
    at, data, rest = 8, b"", b""
    while at < len(png):
        [size] = struct.unpack(">I", png[at : at + 4])
        name, chunk = png[at + 4 : at + 8], png[at : at + size + 12]
        if name == b"IDAT":
            data += chunk[8:-4]
        elif name == b"IHDR":
            rest += chunk
        at += size + 12
    pixels = demo.png_chunk(b"IDAT", zlib.compress(zlib.decompress(data), 9))
    return png[:8] + rest + pixels + demo.png_chunk(b"IEND", b"")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
