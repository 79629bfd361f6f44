"""The peers, their requirements and their venvs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DIRECTORY = Path(
    os.environ.get("SESSIONSTORE_PEERS") or Path(__file__).resolve().parent.parent / ".peers"
)
"""Where the venvs are. The environment variable SESSIONSTORE_PEERS overrides it."""

REQUIREMENTS = {
    "trpc-agent-py": [
        "trpc-agent-py==1.2.0",
        "sqlalchemy[asyncio]==2.1.9",
        "redis==8.1.0",
        "hiredis==3.5.0",
    ],
    "google-adk": [
        "google-adk==2.13.0",
        "google-adk-community==0.5.0",
        "sqlalchemy[asyncio]==2.1.9",
        "aiosqlite==0.22.1",
        "hiredis==3.5.0",
    ],
    "adk-session-services": ["adk-session-services==0.1.4", "hiredis==3.5.0"],
    "openai-agents": ["openai-agents[redis]==0.24.0", "hiredis==3.5.0"],
    "llama-index": ["llama-index-storage-chat-store-redis==0.8.0", "hiredis==3.5.0"],
    "langchain-community": ["langchain-community==0.4.2", "redis==8.1.0", "hiredis==3.5.0"],
}
"""The requirements of each venv."""


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class Peer:
    """One session store.

    Attributes:
        name: its name in tables.
        label: a short name for pictures.
        venv: its venv. "" = ours.
        adapter: the module that calls it.
        package: the package whose version is reported.
    """

    name: str
    label: str
    venv: str
    adapter: str
    package: str

    @property
    def python(self) -> Path:
        """The interpreter of its venv. Without a venv: ours, if the package is installed here."""
        own = DIRECTORY / self.venv / ("Scripts" if os.name == "nt" else "bin") / "python"
        is_here = not self.venv or (not own.exists() and _is_installed(self.package))
        return Path(sys.executable) if is_here else own


OURS = Peer("sessionstore", "sessionstore", "", "adapter_sessionstore", "sessionstore")

ON_REDIS = [
    Peer(
        "trpc-agent-py RedisSessionService",
        "tRPC-Agent",
        "trpc-agent-py",
        "adapter_trpc",
        "trpc-agent-py",
    ),
    Peer(
        "google-adk-community RedisSessionService",
        "ADK community",
        "google-adk",
        "adapter_adk_community",
        "google-adk-community",
    ),
    Peer(
        "google-adk DatabaseSessionService, SQLite",
        "ADK SQLite",
        "google-adk",
        "adapter_adk_database",
        "google-adk",
    ),
    Peer(
        "adk-session-services RedisSessionService",
        "adk-session-services",
        "adk-session-services",
        "adapter_adk_session_services",
        "adk-session-services",
    ),
    Peer(
        "openai-agents RedisSession",
        "OpenAI Agents",
        "openai-agents",
        "adapter_openai_agents",
        "openai-agents",
    ),
    Peer(
        "llama-index RedisChatStore",
        "LlamaIndex",
        "llama-index",
        "adapter_llama_index",
        "llama-index-storage-chat-store-redis",
    ),
    Peer(
        "langchain RedisChatMessageHistory",
        "LangChain",
        "langchain-community",
        "adapter_langchain",
        "langchain-community",
    ),
]

IN_MEMORY = [
    Peer(
        "google-adk InMemorySessionService",
        "ADK",
        "google-adk",
        "adapter_adk_memory",
        "google-adk",
    ),
    Peer(
        "trpc-agent-py InMemorySessionService",
        "tRPC-Agent",
        "trpc-agent-py",
        "adapter_trpc_memory",
        "trpc-agent-py",
    ),
]
