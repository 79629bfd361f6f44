"""The web application of GUIDE.md in a browser that is reloaded while an answer is written."""

from __future__ import annotations

import random
import shutil
from typing import Any

import pytest
from adapters_support import needs
from test_live_readme import ports as ports  # the fixture

playwright: Any = needs("playwright.async_api", "frameworks")
CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

NUM_ANSWERS = 5
RELOADS_PER_ANSWER = 4
PAGE = """
<!doctype html><title>chat</title><pre id="messages"></pre><pre id="written"></pre>
<script>
  const show = (id, text) => { document.getElementById(id).textContent = text }
  let messages = [], written = ""
  const source = new EventSource("/ann/today")
  source.onmessage = (entry) => {
    const [author, partial, content] = JSON.parse(entry.data)
    if (partial) written += content
    else { messages.push(content); written = "" }
    show("messages", JSON.stringify(messages)); show("written", written)
  }
</script>
"""


async def test_a_page_that_is_reloaded_shows_every_answer_whole(ports: list[int]) -> None:
    chance = random.Random(3)
    origin = f"http://127.0.0.1:{ports[0]}"
    expected: list[str] = []
    num_in_the_middle = 0
    async with playwright.async_playwright() as started:
        browser = await started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = await browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))

        async def serve(route: Any) -> None:
            await route.fulfill(body=PAGE, content_type="text/html")

        await page.route(f"{origin}/", serve)
        await page.goto(f"{origin}/")
        for number in range(NUM_ANSWERS):
            message = f"question {number} " + "word " * 60
            answer = f"You said: {message}"
            expected += [message, answer]
            response = await page.request.post(f"{origin}/ann/today", data=message)
            assert response.status == 202
            for _ in range(RELOADS_PER_ANSWER):
                await page.wait_for_timeout(chance.uniform(0, 300))
                await page.reload()
                await page.wait_for_function("messages.length || written")
                written = await page.evaluate("written")
                assert f"{answer} ".startswith(written)
                num_in_the_middle += bool(written)
            await page.wait_for_function(f"messages.length >= {len(expected)}")
            assert await page.evaluate("messages") == expected
            assert await page.evaluate("written") == ""
        assert problems == []
        await browser.close()
    assert num_in_the_middle > 3
