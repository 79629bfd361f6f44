"""OpenAI Agents SDK: an agent that remembers, with a model that only counts what it was sent.

python openai_agents_example.py [redis://localhost:6379]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

from sessionstore import InMemorySessionService, RedisSessionService
from sessionstore.adapters.openai_agents import StoredSession


class CountingModel(Model):
    """Answers how many items it was sent."""

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """The answer; the second argument is the input."""
        items = args[1] if len(args) > 1 else kwargs["input"]
        text = ResponseOutputText(
            annotations=[], text=f"I was sent {len(items)} items.", type="output_text"
        )
        message = ResponseOutputMessage(
            id="msg_1", content=[text], role="assistant", status="completed", type="message"
        )
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Not needed here."""
        raise NotImplementedError


async def main(url: str | None) -> None:
    """Two turns, each as if by a process of its own: nothing but the store is shared."""
    service = RedisSessionService(url, session_ttl=3600) if url else InMemorySessionService()
    agent = Agent(name="counter", model=CountingModel())
    async with service:
        for question in ("Do you remember me?", "And now?"):
            session = StoredSession("today", service, app_name="shop", user_id="ann")
            result = await Runner.run(
                agent, question, session=session, run_config=RunConfig(tracing_disabled=True)
            )
            print(f"{question} {result.final_output}")
        print(len(await session.get_items()), "items are stored")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
