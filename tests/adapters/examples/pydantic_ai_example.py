"""Pydantic AI: an agent that remembers, with a model that only counts what it was sent.

python pydantic_ai_example.py [redis://localhost:6379]
"""

from __future__ import annotations

import asyncio
import sys

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from sessionstore import InMemorySessionService, RedisSessionService
from sessionstore.adapters.pydantic_ai import StoredMessageHistory


def count(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Answers how many messages it was sent."""
    del info
    return ModelResponse(parts=[TextPart(f"I was sent {len(messages)} messages.")])


async def main(url: str | None) -> None:
    """Two turns, each as if by a process of its own: nothing but the store is shared."""
    service = RedisSessionService(url, session_ttl=3600) if url else InMemorySessionService()
    agent = Agent(FunctionModel(count))
    async with service:
        for question in ("Do you remember me?", "And now?"):
            history = StoredMessageHistory("today", service, app_name="shop", user_id="ann")
            result = await agent.run(question, message_history=await history.load())
            await history.store(result.new_messages())
            print(f"{question} {result.output}")
        print(len(await history.load()), "messages are stored")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
