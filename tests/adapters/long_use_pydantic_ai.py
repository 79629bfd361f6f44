"""Long use of Pydantic AI: python tests/adapters/long_use_pydantic_ai.py history|conversations."""

from __future__ import annotations

from typing import Any

from long_use_support import MakeCase, main
from pydantic_ai import Agent, Conversation
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import UsageLimits

from sessionstore import RedisSessionService
from sessionstore.adapters.pydantic_ai import StoredMessageHistory
from sessionstore.adapters.pydantic_conversations import StoredConversationStore

WINDOW = 40  # messages that the model is sent
UNLIMITED = UsageLimits(request_limit=None)  # a conversation counts the requests of all its runs


def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call a tool for a prompt, and answer its result. Every result must have its call."""
    del info
    calls: set[str] = set()
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                calls.add(part.tool_call_id)
            elif isinstance(part, ToolReturnPart):
                assert part.tool_call_id in calls, "a result without its call"
    last = messages[-1].parts[-1]
    if isinstance(last, UserPromptPart):
        call = ToolCallPart("look", {"at": last.content}, tool_call_id=f"call of {last.content}")
        return ModelResponse(parts=[call])
    assert isinstance(last, ToolReturnPart)
    return ModelResponse(parts=[TextPart(f"answer to {last.tool_call_id}")])


def look(at: str) -> dict[str, Any]:
    """Look."""
    return {"at": at, "found": ["x" * 200, {"tags": {at, "blue", "mug"}}]}


AGENT = Agent(FunctionModel(respond), tools=[look])


class History:
    """StoredMessageHistory."""

    def __init__(self, service: RedisSessionService) -> None:
        self._history = StoredMessageHistory("today", service, app_name="shop", user_id="ann")

    async def make(self, number: int) -> str:
        """A run; the model is sent the newest turns."""
        before = await self._history.load(WINDOW)
        result = await AGENT.run(f"prompt {number}", message_history=before)
        return ModelMessagesTypeAdapter.dump_json(result.new_messages()).decode()

    async def store(self, turn: str) -> None:
        """Store it; a repeat is recognized."""
        await self._history.store(ModelMessagesTypeAdapter.validate_json(turn))

    async def found(self) -> list[str]:
        """The JSON of all messages."""
        return _as_json(await self._history.load())

    def expected(self, turn: str) -> list[str]:
        """The JSON of its messages."""
        return _as_json(ModelMessagesTypeAdapter.validate_json(turn))


def _as_json(messages: list[ModelMessage]) -> list[str]:
    return [ModelMessagesTypeAdapter.dump_json([message]).decode() for message in messages]


class Conversations:
    """StoredConversationStore."""

    def __init__(self, service: RedisSessionService) -> None:
        self._store = StoredConversationStore(service, app_name="shop", user_id="ann")

    async def make(self, number: int) -> str:
        """A prompt."""
        return f"prompt {number}"

    async def store(self, turn: str) -> None:
        """Run, and save, unless a worker has saved it."""
        conversation = await self._store.load("talk", limit=WINDOW)
        conversation = conversation or Conversation(conversation_id="talk")
        if f"answer to call of {turn}" not in _texts(conversation.messages):
            result = await AGENT.run(turn, conversation=conversation, usage_limits=UNLIMITED)
            await self._store.save(result)

    async def found(self) -> list[str]:
        """What is said in all messages."""
        conversation = await self._store.load("talk")
        return _texts(conversation.messages) if conversation else []

    def expected(self, turn: str) -> list[str]:
        """What is said in a turn."""
        call = f"call of {turn}"
        return [turn, call, f"result of {call}", f"answer to {call}"]


def _texts(messages: list[ModelMessage]) -> list[str]:
    found = []
    for message in messages:
        part = message.parts[-1]
        if isinstance(part, ToolCallPart):
            found.append(part.tool_call_id)
        elif isinstance(part, ToolReturnPart):
            found.append(f"result of {part.tool_call_id}")
        else:
            assert isinstance(part, (TextPart, UserPromptPart))
            found.append(str(part.content))
    return found


CASES: dict[str, MakeCase] = {"history": History, "conversations": Conversations}


if __name__ == "__main__":
    main(__file__, CASES, kept_whole=["conversations"])
