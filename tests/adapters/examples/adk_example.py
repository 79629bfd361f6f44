"""Google ADK with its sessions in sessionstore. Runs offline: a scripted model plays the LLM.

python adk_example.py [redis://localhost:6379]        without an address: in memory
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.tools.tool_context import ToolContext
from google.genai import types

from sessionstore import InMemorySessionService, RedisSessionService
from sessionstore.adapters.adk import AdkSessionService


class ScriptedModel(BaseLlm):
    """Calls the tool with what the user said, then says what the tool returned."""

    model: str = "scripted"

    async def generate_content_async(
        self,
        llm_request: LlmRequest,
        stream: bool = False,  # noqa: ARG002  # the interface has it
    ) -> AsyncGenerator[LlmResponse, None]:
        said = (llm_request.contents[-1].parts or [types.Part()])[-1]
        if said.function_response:
            cart = (said.function_response.response or {})["cart"]
            part = types.Part(text=f"In the cart: {', '.join(cart)}.")
        else:
            call = types.FunctionCall(name="add_to_cart", args={"item": said.text})
            part = types.Part(function_call=call)
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


def add_to_cart(item: str, tool_context: ToolContext) -> dict[str, Any]:
    """Put an item in the user's cart."""
    cart = [*tool_context.state.get("cart", []), item]
    tool_context.state["cart"] = cart
    tool_context.state["user:last_item"] = item
    return {"cart": cart}


async def main(url: str | None) -> None:
    """Say two things in one session, each in a process of its own, as it were."""
    store = RedisSessionService(url, session_ttl=86_400) if url else InMemorySessionService()
    async with store:
        sessions = AdkSessionService(store)
        await sessions.create_session(app_name="shop", user_id="ann", session_id="today")
        for item in ("two blue mugs", "a teapot"):
            agent = LlmAgent(name="assistant", model=ScriptedModel(), tools=[add_to_cart])
            runner = Runner(app_name="shop", agent=agent, session_service=sessions)
            message = types.Content(role="user", parts=[types.Part(text=item)])
            async for event in runner.run_async(
                user_id="ann", session_id="today", new_message=message
            ):
                for part in (event.content and event.content.parts) or []:
                    if part.text:
                        print(f"{event.author}: {part.text}")
        session = await sessions.get_session(app_name="shop", user_id="ann", session_id="today")
        assert session is not None
        print(len(session.events), "events,", session.state)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
