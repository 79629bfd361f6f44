"""Long conversations through the adapters of the OpenAI Agents SDK and LangChain.

    python tests/adapters/long_use_histories.py openai-agents --turns 2000
    python tests/adapters/long_use_histories.py langchain --turns 2000

Every turn calls a tool. The model fails if it is sent a result without its call, a call without
its reasoning, or a conversation that begins inside a turn. The service is opened again every
`--restart` turns. One worker, a process of its own, is killed while it appends; the next one goes
on from what is stored. At the end the log must hold the newest items of all turns, each once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sessionstore
from sessionstore import RedisSessionService, SessionKey
from sessionstore.embedded import EmbeddedServer

KEY = SessionKey("shop", "ann", "long")
PAYLOAD = "x" * 200


class OpenAIAgents:
    """A conversation by the SDK's Runner; an answer, a call and its reasoning in every turn."""

    def __init__(self) -> None:
        import agents
        from openai_agents_support import ScriptedModel

        from sessionstore.adapters.openai_agents import StoredSession

        self._agents, self._session = agents, StoredSession
        self._model = ScriptedModel()
        self._agent = agents.Agent(name="shop", model=self._model, tools=[self._model.tool])
        self._quiet = agents.RunConfig(tracing_disabled=True)

    def open(self, service: Any) -> Any:
        return self._session(KEY.session_id, service, app_name=KEY.app_name, user_id=KEY.user_id)

    async def run(self, service: Any, number: int) -> None:
        session, message = self.open(service), f"turn {number} {PAYLOAD}"
        await self._agents.Runner.run(self._agent, message, session=session, run_config=self._quiet)
        self._model.sent.clear()

    async def next_turn(self, service: Any) -> int:
        """The number of the next turn. A turn that was not finished is removed and run again."""
        session = self.open(service)
        items = await session.get_items()
        while items and items[-1].get("type") != "message":
            popped = await session.pop_item()
            if popped is not None and popped.get("role") == "user":
                return int(popped["content"].split()[1])
        return int(items[-1]["content"][0]["text"].split()[1]) + 1 if items else 0

    def expected(self, number: int) -> list[str]:
        return ["user", f"rs_{number}", f"fc_{number}", f"call_{number}", f"msg_{number}"]

    def name_of(self, content: Any) -> str:
        return str(content.get("id") or content.get("call_id") or content["role"]).split(" ")[0]


class LangChain:
    """A conversation by RunnableWithMessageHistory; a turn is four messages in one append."""

    def __init__(self) -> None:
        import warnings

        from langchain_core import messages
        from langchain_core.runnables import RunnableLambda

        from sessionstore.adapters.langchain import StoredChatMessageHistory

        with warnings.catch_warnings(action="ignore"):
            from langchain_core.runnables.history import RunnableWithMessageHistory

            self._service: Any = None
            self._history = StoredChatMessageHistory
            self._messages = messages
            self._chain = RunnableWithMessageHistory(
                RunnableLambda(self._answer), lambda _: self.open(self._service)
            )

    def _answer(self, sent: list[Any]) -> list[Any]:
        assert sent[0].type == "human"
        calls = [call["id"] for message in sent for call in getattr(message, "tool_calls", ())]
        results = [message.tool_call_id for message in sent if message.type == "tool"]
        assert calls == results
        number = sent[-1].content.split()[1]
        call = {"name": "add", "args": {"item": "mug"}, "id": f"call_{number}"}
        return [
            self._messages.AIMessage("", tool_calls=[call], id=f"fc_{number}"),
            self._messages.ToolMessage("done", tool_call_id=f"call_{number}"),
            self._messages.AIMessage(f"answer {number}", id=f"msg_{number}"),
        ]

    def open(self, service: Any) -> Any:
        return self._history(KEY.session_id, service, app_name=KEY.app_name, user_id=KEY.user_id)

    async def run(self, service: Any, number: int) -> None:
        self._service = service
        message = self._messages.HumanMessage(f"turn {number} {PAYLOAD}")
        config: Any = {"configurable": {"session_id": KEY.session_id}}
        await self._chain.ainvoke([message], config)

    async def next_turn(self, service: Any) -> int:
        found = await self.open(service).aget_messages()
        return int(found[-1].content.split()[1]) + 1 if found else 0

    def expected(self, number: int) -> list[str]:
        return ["human", f"fc_{number}", f"call_{number}", f"msg_{number}"]

    def name_of(self, content: Any) -> str:
        data = content["data"]
        return str(data.get("id") or data.get("tool_call_id") or content["type"])


FRAMEWORKS: dict[str, Callable[[], Any]] = {"openai-agents": OpenAIAgents, "langchain": LangChain}


async def work(framework: str, url: str, options: dict[str, Any], last: int) -> None:
    """A worker: runs turns up to one, and prints the number of each."""
    conversation = FRAMEWORKS[framework]()
    async with RedisSessionService(url, **options) as service:
        for number in range(await conversation.next_turn(service), last):
            print(number, flush=True)
            await conversation.run(service, number)


async def kill_a_worker(framework: str, url: str, limit: int, last: int, seed: int) -> None:
    """Start a worker and kill it after some turns, at any moment of a turn."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, framework, "--url", url, "--worker", str(last)),
        *("--limit", str(limit)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(sessionstore.__file__).parents[1])},
    )
    assert process.stdout is not None
    chosen = random.Random(seed)
    for _ in range(chosen.randint(2, 5)):
        assert await process.stdout.readline(), "the worker ended"
    await asyncio.sleep(chosen.uniform(0, 0.02))
    process.kill()
    await process.wait()


async def converse(
    framework: str,
    url: str,
    *,
    turns: int,
    restart: int,
    limit: int = 0,
    seed: int = 1,
    report: Callable[[str], None] = print,
) -> None:
    """Hold a conversation, and check at the end what is stored.

    Args:
        framework: a key of FRAMEWORKS.
        url: the server.
        turns: number of turns.
        restart: number of turns after which the service is opened again.
        limit: `session_event_limit`; 0 = the default.
        seed: chooses when the worker is killed.
        report: gets a line after each restart.
    """
    options: dict[str, Any] = {"session_event_limit": limit} if limit else {}
    conversation = FRAMEWORKS[framework]()
    number, started = 0, time.monotonic()
    while number < turns:
        if number == restart:  # once
            await kill_a_worker(framework, url, limit, turns, seed)
        async with RedisSessionService(url, session_ttl=3600, **options) as service:
            first = await conversation.next_turn(service)
            number = min(first + restart, turns)
            for each in range(first, number):
                await conversation.run(service, each)
            memory = await _memory(url)
            report(
                f"{number} turns, {memory / 1024:.0f} KiB in the server, "
                f"{memory / number:.0f} bytes a turn, "
                f"{(time.monotonic() - started) / number * 1000:.1f} ms a turn"
            )
    await check(conversation, url, turns, limit or 1000)


async def _memory(url: str) -> int:
    from redis.asyncio import Redis

    client = Redis.from_url(url)
    try:
        return int(await client.memory_usage("events:{shop:ann}:long", samples=0) or 0)
    finally:
        await client.aclose()


async def check(conversation: Any, url: str, turns: int, limit: int) -> None:
    """The log holds the newest items of all turns, each once, in order."""
    expected = [name for number in range(turns) for name in conversation.expected(number)]
    async with RedisSessionService(url) as service:
        page = await service.get_events(KEY, limit=10_000)
    found = [conversation.name_of(event.content) for event in page.events]
    # A turn that was removed and run again made room, so the log may hold a few items less.
    assert found == expected[-len(found) :], "items were lost or doubled"
    assert min(limit, len(expected)) - 5 <= len(found) <= limit
    assert len({event.id for event in page.events}) == len(page.events)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("framework", choices=FRAMEWORKS)
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--restart", type=int, default=100)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a server whose session `long` of user `ann` may be used")
    parser.add_argument("--worker", type=int, help="run turns up to this one, and nothing else")
    given = parser.parse_args()
    options: dict[str, Any] = {"session_event_limit": given.limit} if given.limit else {}
    if given.worker is not None:
        asyncio.run(
            work(given.framework, given.url, {"session_ttl": 3600, **options}, given.worker)
        )
        return
    settings: dict[str, Any] = {
        "turns": given.turns,
        "restart": given.restart,
        "limit": given.limit,
        "seed": given.seed,
    }
    if given.url:
        asyncio.run(converse(given.framework, given.url, **settings))
        return
    with EmbeddedServer() as server:
        asyncio.run(converse(given.framework, server.url, **settings))


if __name__ == "__main__":
    main()
