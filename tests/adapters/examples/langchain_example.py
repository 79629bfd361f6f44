"""LangChain: a chat that remembers, with a model that answers from a list.

python langchain_example.py [redis://localhost:6379]
"""

from __future__ import annotations

import sys

from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage

from sessionstore.adapters.langchain import StoredChatMessageHistory
from sessionstore.sync import InMemorySessionService, RedisSessionService


def main(url: str | None) -> None:
    """Two turns, each as if by a process of its own: nothing but the store is shared."""
    service = RedisSessionService(url, session_ttl=3600) if url else InMemorySessionService()
    model = FakeListChatModel(responses=["Two blue mugs, noted.", "You wanted two blue mugs."])
    with service:
        for question in ("Two blue mugs, please.", "What did I want?"):
            history = StoredChatMessageHistory("today", service, app_name="shop", user_id="ann")
            asked = HumanMessage(question)
            answer = model.invoke([*history.messages, asked])
            history.add_messages([asked, answer])
            print(f"{question} {answer.content}")
        print(len(history.messages), "messages are stored")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
