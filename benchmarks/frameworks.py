"""Agent frameworks for bench_adapters: a message, our adapter, and the framework's own storages.

A class imports its framework when it is instantiated, and raises ImportError if it is missing.
`new_message` makes a message with 1 KB of text. `serialise` turns it into bytes or text as the
framework does. `appender` returns a function that appends through our adapter. `own` and
`own_on_redis` give the framework's own storages: by name, a function that makes an appender for
session number n.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from sessionstore import SessionKey

from .harness import Harness, Server
from .payload import TEXT, TTL_SECONDS

Append = Callable[[Any], Awaitable[Any]]
"""Appends one message of the framework to one session."""

Makers = dict[str, Callable[[int], Any]]
"""By name, a function that returns an appender for session number n, or an awaitable of it."""


class Framework:
    """Defaults for frameworks.

    Attributes:
        name: its distribution.
        extra: the extra of sessionstore that installs it.
        adapter: the measured method of our adapter.
        gives_ids: its messages have ids and times, which the adapter keeps.
        shows_events: an append updates the caller's session object, like a Session.
        stores_events: every message becomes an event. Otherwise the engine gets events of about
            the same size.
    """

    name = ""
    extra = ""
    adapter = ""
    gives_ids = False
    shows_events = False
    stores_events = True

    def own(self, harness: Harness, directory: Path) -> Makers:
        """Storages in memory or in a file of the directory."""
        del harness, directory
        return {}

    def own_on_redis(self, harness: Harness, server: Server) -> Makers:
        """Storages on Redis."""
        del harness, server
        return {}


class OpenAIAgents(Framework):
    """OpenAI Agents SDK: an item."""

    name = "openai-agents"
    extra = "openai-agents"
    adapter = "StoredSession.add_items"

    def __init__(self) -> None:
        self._adapter: Any = import_module("sessionstore.adapters.openai_agents").StoredSession

    def new_message(self) -> Any:
        """An item as the SDK adds it."""
        return {"role": "assistant", "content": TEXT}

    def serialise(self, item: Any) -> Any:
        """As the SDK's own sessions do."""
        return json.dumps(item)

    async def appender(self, service: Any, key: SessionKey) -> Append:
        """A function that appends through the adapter."""
        session = self._adapter(key.session_id, service, app_name=key.app_name, user_id=key.user_id)
        return lambda item: session.add_items([item])

    def own(self, harness: Harness, directory: Path) -> Makers:
        """SQLite, the first storage in the SDK's documentation."""
        sqlite: Any = import_module("agents").SQLiteSession

        def in_sqlite(number: int) -> Append:
            session = sqlite(f"session{number}", directory / "sessions.db")
            harness.at_end(session.close)
            return lambda item: session.add_items([item])

        return {"openai-agents SQLiteSession, a file": in_sqlite}

    def own_on_redis(self, harness: Harness, server: Server) -> Makers:
        """The SDK's extension."""
        session_of: Any = import_module("agents.extensions.memory.redis_session").RedisSession
        client: Any = import_module("redis.asyncio").Redis(unix_socket_path=server.socket_path)
        harness.at_end(client.aclose)

        def in_redis(number: int) -> Append:
            session = session_of(f"session{number}", redis_client=client, ttl=TTL_SECONDS)
            return lambda item: session.add_items([item])

        return {"openai-agents RedisSession": in_redis}


class LangChain(Framework):
    """LangChain: a message of a model."""

    name = "langchain-core"
    extra = "langchain"
    adapter = "StoredChatMessageHistory.aadd_messages"

    def __init__(self) -> None:
        self._adapter: Any = import_module(
            "sessionstore.adapters.langchain"
        ).StoredChatMessageHistory
        self._kind: Any = import_module("langchain_core.messages").AIMessage
        self._to_dict: Any = import_module("langchain_core.messages").message_to_dict

    def new_message(self) -> Any:
        """An answer of a model."""
        return self._kind(content=TEXT)

    def serialise(self, message: Any) -> Any:
        """As LangChain's own histories do."""
        return json.dumps(self._to_dict(message))

    async def appender(self, service: Any, key: SessionKey) -> Append:
        """A function that appends through the adapter."""
        history = self._adapter(key.session_id, service, app_name=key.app_name, user_id=key.user_id)
        return lambda message: history.aadd_messages([message])

    def own(self, harness: Harness, directory: Path) -> Makers:
        """A list in memory."""
        del harness, directory
        kind: Any = import_module("langchain_core.chat_history").InMemoryChatMessageHistory

        def in_memory(number: int) -> Append:
            del number
            history = kind()
            return lambda message: history.aadd_messages([message])

        return {"langchain InMemoryChatMessageHistory": in_memory}

    def own_on_redis(self, harness: Harness, server: Server) -> Makers:
        """The history of langchain-community, if that is installed."""
        del harness
        kind: Any = import_module(
            "langchain_community.chat_message_histories.redis"
        ).RedisChatMessageHistory

        def in_redis(number: int) -> Append:
            history = kind(f"session{number}", url=server.url, ttl=TTL_SECONDS)
            return lambda message: history.aadd_messages([message])

        return {"langchain-community RedisChatMessageHistory": in_redis}


class PydanticAI(Framework):
    """Pydantic AI: a model's response. The framework stores nothing itself."""

    name = "pydantic-ai"
    extra = "pydantic-ai"
    adapter = "StoredMessageHistory.store"

    def __init__(self) -> None:
        self._adapter: Any = import_module("sessionstore.adapters.pydantic_ai").StoredMessageHistory
        self._messages: Any = import_module("pydantic_ai.messages")

    def new_message(self) -> Any:
        """An answer of a model."""
        return self._messages.ModelResponse(parts=[self._messages.TextPart(TEXT)])

    def serialise(self, message: Any) -> Any:
        """As Pydantic AI's documentation does."""
        return self._messages.ModelMessagesTypeAdapter.dump_json([message])

    async def appender(self, service: Any, key: SessionKey) -> Append:
        """A function that appends through the adapter."""
        history = self._adapter(key.session_id, service, app_name=key.app_name, user_id=key.user_id)
        return lambda message: history.store([message])


class PydanticConversations(PydanticAI):
    """Pydantic AI: a conversation to which a model's response is added, with its record."""

    name = "pydantic-ai, conversations"
    adapter = "StoredConversationStore.write_record"
    gives_ids = True
    stores_events = False  # an entry and a record

    def __init__(self) -> None:
        super().__init__()
        self._adapter = import_module(
            "sessionstore.adapters.pydantic_conversations"
        ).StoredConversationStore
        self._kinds: Any = import_module("pydantic_ai.conversation_store")

    async def appender(self, service: Any, key: SessionKey) -> Append:
        """A function that appends through the adapter."""
        store = self._adapter(service, app_name=key.app_name, user_id=key.user_id)
        return self._appender(store, key.session_id)

    def _appender(self, store: Any, conversation_id: str) -> Append:
        revision = head_id = None

        async def append(message: Any) -> None:
            nonlocal revision, head_id
            entry = self._kinds.ConversationEntry(parent_id=head_id, message=message)
            record = self._kinds.ConversationRecord(
                conversation_id=conversation_id, head_id=entry.id
            )
            await store.write_record(record, new_entries=[entry], expected_revision=revision)
            revision, head_id = record.revision, entry.id

        return append

    def own(self, harness: Harness, directory: Path) -> Makers:
        """Dicts in memory."""
        del harness, directory
        store = self._kinds.InMemoryConversationStore()
        name = "pydantic-ai InMemoryConversationStore"
        return {name: lambda number: self._appender(store, f"conversation{number}")}


class ClaudeAgent(Framework):
    """Claude Agent SDK: an entry of a subagent's transcript, which has no summary."""

    name = "claude-agent-sdk"
    extra = "claude-agent"
    adapter = "ClaudeSessionStore.append"
    gives_ids = True

    def __init__(self) -> None:
        self._adapter: Any = import_module("sessionstore.adapters.claude_agent").ClaudeSessionStore
        self._sdk: Any = import_module("claude_agent_sdk")

    def new_message(self) -> Any:
        """An answer of a model."""
        message = {"role": "assistant", "content": [{"type": "text", "text": TEXT}]}
        now = datetime.now(UTC).isoformat()
        return {"type": "assistant", "uuid": str(uuid4()), "timestamp": now, "message": message}

    def serialise(self, entry: Any) -> Any:
        """As a line of a transcript."""
        return json.dumps(entry)

    async def appender(self, service: Any, key: SessionKey) -> Append:
        """A function that appends through the adapter."""
        return self._appender(self._adapter(service, app_name=key.app_name), key)

    def _appender(self, store: Any, key: SessionKey) -> Append:
        where = {"project_key": key.user_id, "session_id": key.session_id, "subpath": "agent"}
        return lambda entry: store.append(where, [entry])

    def own(self, harness: Harness, directory: Path) -> Makers:
        """Dicts in memory."""
        del harness, directory
        store = self._sdk.InMemorySessionStore()

        def make(number: int) -> Append:
            return self._appender(store, SessionKey("own", f"u{number}", "one"))

        return {"claude-agent-sdk InMemorySessionStore": make}


class LangGraph(Framework):
    """LangGraph: a checkpoint with one channel."""

    name = "langgraph"
    extra = "langgraph"
    adapter = "StoredCheckpointSaver.aput"
    stores_events = False

    def __init__(self) -> None:
        self._adapter: Any = import_module("sessionstore.adapters.langgraph").StoredCheckpointSaver
        self._empty: Any = import_module("langgraph.checkpoint.base").empty_checkpoint
        jsonplus: Any = import_module("langgraph.checkpoint.serde.jsonplus")
        self._serde: Any = jsonplus.JsonPlusSerializer()

    def new_message(self) -> Any:
        """A checkpoint. Later checkpoints have higher ids."""
        # Equal values of one thread are stored once, so every text differs.
        made = self._empty()
        text = made["id"] + TEXT[len(made["id"]) :]
        return {**made, "channel_values": {"text": text}, "channel_versions": {"text": 1}}

    def serialise(self, made: Any) -> Any:
        """As LangGraph's own savers do."""
        return self._serde.dumps_typed(made)

    async def appender(self, service: Any, key: SessionKey) -> Append:
        """A function that appends through the adapter."""
        saver = self._adapter(service, app_name=key.app_name, user_id=key.user_id)
        return self._appender(saver, key.session_id)

    def _appender(self, saver: Any, thread_id: str) -> Append:
        config = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        metadata = {"source": "loop", "step": 1}
        return lambda made: saver.aput(config, made, metadata, made["channel_versions"])

    def own(self, harness: Harness, directory: Path) -> Makers:
        """Dicts in memory."""
        del harness, directory
        saver: Any = import_module("langgraph.checkpoint.memory").InMemorySaver()
        return {"langgraph InMemorySaver": lambda number: self._appender(saver, f"t{number}")}


class GoogleADK(Framework):
    """Agent Development Kit: an event of a model."""

    name = "google-adk"
    extra = "adk"
    adapter = "AdkSessionService.append_event"
    gives_ids = True
    shows_events = True

    def __init__(self) -> None:
        self._adapter: Any = import_module("sessionstore.adapters.adk").AdkSessionService
        self._event: Any = import_module("google.adk.events").Event
        self._types: Any = import_module("google.genai.types")

    def new_message(self) -> Any:
        """An event with an answer of a model."""
        part = self._types.Part(text=TEXT)
        content = self._types.Content(role="model", parts=[part])
        return self._event(author="agent", content=content)

    def serialise(self, event: Any) -> Any:
        """As ADK's own services on databases do."""
        return event.model_dump_json(exclude_none=True)

    async def appender(self, service: Any, key: SessionKey) -> Append:
        """A function that appends through the adapter."""
        return await self._appender(self._adapter(service), key)

    async def _appender(self, sessions: Any, key: SessionKey) -> Append:
        ids = {"app_name": key.app_name, "user_id": key.user_id, "session_id": key.session_id}
        session = await sessions.get_session(**ids) or await sessions.create_session(**ids)
        return lambda event: sessions.append_event(session, event)

    def own(self, harness: Harness, directory: Path) -> Makers:
        """Dicts in memory, and SQLite if its requirements are installed."""
        sessions: Any = import_module("google.adk.sessions")
        found: Makers = {}

        def of(service: Any) -> Callable[[int], Any]:
            return lambda number: self._appender(service, SessionKey("own", f"u{number}", "one"))

        found["google-adk InMemorySessionService"] = of(sessions.InMemorySessionService())
        try:
            database: Any = import_module("google.adk.sessions.sqlite_session_service")
        except ImportError:
            return found
        in_file = database.SqliteSessionService(str(directory / "adk.db"))
        found["google-adk SqliteSessionService, a file"] = of(in_file)
        harness.at_end(getattr(in_file, "close", lambda: None))
        return found


class TrpcAgent(Framework):
    """tRPC-Agent: an event of a model."""

    name = "trpc-agent-py"
    extra = "trpc-agent"
    adapter = "TrpcSessionService.append_event"
    gives_ids = True
    shows_events = True

    def __init__(self) -> None:
        self._adapter: Any = import_module("sessionstore.adapters.trpc_agent").TrpcSessionService
        self._event: Any = import_module("trpc_agent_sdk.events").Event
        self._types: Any = import_module("trpc_agent_sdk.types")

    def new_message(self) -> Any:
        """An event with an answer of a model."""
        part = self._types.Part(text=TEXT)
        content = self._types.Content(role="model", parts=[part])
        return self._event(invocation_id="i", author="agent", content=content)

    def serialise(self, event: Any) -> Any:
        """As the framework's own services on databases do."""
        return event.model_dump_json(exclude_none=True)

    async def appender(self, service: Any, key: SessionKey) -> Append:
        """A function that appends through the adapter."""
        return await self._appender(self._adapter(service), key)

    async def _appender(self, sessions: Any, key: SessionKey) -> Append:
        session = await sessions.create_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
        )
        return lambda event: sessions.append_event(session, event)

    def own(self, harness: Harness, directory: Path) -> Makers:
        """Dicts in memory."""
        del directory
        sessions: Any = import_module("trpc_agent_sdk.sessions").InMemorySessionService()
        harness.at_end(sessions.close)
        return {
            "trpc-agent-py InMemorySessionService": lambda number: self._appender(
                sessions, SessionKey("own", f"u{number}", "one")
            )
        }

    def own_on_redis(self, harness: Harness, server: Server) -> Makers:
        """The framework's own service, on the same server."""
        sessions: Any = import_module("trpc_agent_sdk.sessions").RedisSessionService(
            db_url=server.url
        )
        harness.at_end(sessions.close)
        return {
            "trpc-agent-py RedisSessionService": lambda number: self._appender(
                sessions, SessionKey("own", f"u{number}", "one")
            )
        }


FRAMEWORKS: list[type[Any]] = [
    OpenAIAgents,
    LangChain,
    PydanticAI,
    PydanticConversations,
    ClaudeAgent,
    LangGraph,
    GoogleADK,
    TrpcAgent,
]
