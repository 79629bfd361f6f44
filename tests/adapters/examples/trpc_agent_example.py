"""tRPC-Agent with its sessions in sessionstore. Runs offline: a scripted model plays the LLM.

python trpc_agent_example.py [redis://localhost:6379]        without an address: in memory
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from typing import Any

from trpc_agent_sdk.agents import LlmAgent
from trpc_agent_sdk.context import InvocationContext
from trpc_agent_sdk.models import LLMModel, LlmRequest, LlmResponse
from trpc_agent_sdk.runners import Runner
from trpc_agent_sdk.tools import FunctionTool
from trpc_agent_sdk.types import Content, FunctionCall, Part

from sessionstore import InMemorySessionService, RedisSessionService
from sessionstore.adapters.trpc_agent import TrpcSessionService


class ScriptedModel(LLMModel):
    """Calls the tool with what the user said, then says what the tool returned."""

    @classmethod
    def supported_models(cls) -> list[str]:
        """Its own name only."""
        return ["scripted"]

    async def _generate_async_impl(
        self,
        request: LlmRequest,
        stream: bool = False,  # noqa: ARG002  # the interface has it
        ctx: InvocationContext | None = None,  # noqa: ARG002  # the interface has it
    ) -> AsyncGenerator[LlmResponse, None]:
        said = request.contents[-1].parts[-1]
        if said.function_response:
            cart = said.function_response.response["cart"]
            part = Part(text=f"In the cart: {', '.join(cart)}.")
        else:
            part = Part(
                function_call=FunctionCall(id="1", name="add_to_cart", args={"item": said.text})
            )
        yield LlmResponse(content=Content(role="model", parts=[part]))


async def add_to_cart(item: str, tool_context: InvocationContext) -> dict[str, Any]:
    """Put an item in the user's cart."""
    cart = [*tool_context.state.get("cart", []), item]
    tool_context.state["cart"] = cart
    tool_context.state["user:last_item"] = item
    return {"cart": cart}


async def main(url: str | None) -> None:
    """Say two things in one session, each in a process of its own, as it were."""
    store = RedisSessionService(url, session_ttl=86_400) if url else InMemorySessionService()
    sessions = TrpcSessionService(store)
    for item in ("two blue mugs", "a teapot"):
        agent = LlmAgent(
            name="assistant", model=ScriptedModel("scripted"), tools=[FunctionTool(add_to_cart)]
        )
        runner = Runner(
            app_name="shop",
            agent=agent,
            session_service=sessions,
        )
        message = Content(role="user", parts=[Part(text=item)])
        async for event in runner.run_async(user_id="ann", session_id="today", new_message=message):
            if event.get_text():
                print(f"{event.author}: {event.get_text()}")
        await runner.close()
    session = await sessions.get_session(app_name="shop", user_id="ann", session_id="today")
    assert session is not None
    print(len(session.events), "events,", session.state)
    await sessions.close()
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
