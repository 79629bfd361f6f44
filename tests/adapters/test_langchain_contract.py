"""LangChain: the kinds of tests that its own histories pass, with its history and ours."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from adapters_support import Backend, needs, opened

messages: Any = needs("langchain_core.messages", "langchain")
history_module: Any = needs("langchain_core.chat_history", "langchain")
runnables: Any = needs("langchain_core.runnables", "langchain")
with_history: Any = needs("langchain_core.runnables.history", "langchain")
prompts: Any = needs("langchain_core.prompts", "langchain")
adapter: Any = needs("sessionstore.adapters.langchain", "langchain")

# Early versions of LangChain use what pydantic has deprecated since; RunnableWithMessageHistory has
# a successor, LangGraph.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(params=["InMemoryChatMessageHistory", "StoredChatMessageHistory"])
async def open_history(request: pytest.FixtureRequest, backend: Backend) -> AsyncIterator[Any]:
    """Opens a history by its session id, as often as needed."""
    if request.param == "InMemoryChatMessageHistory":
        if backend != ("sync", None):
            pytest.skip("once is enough")
        histories: dict[str, Any] = {}

        def open_own(session_id: str) -> Any:
            if session_id not in histories:
                with warnings.catch_warnings(action="ignore"):
                    histories[session_id] = history_module.InMemoryChatMessageHistory()
            return histories[session_id]

        yield open_own
        return
    async with opened(backend) as service:

        def open_stored(session_id: str) -> Any:
            return adapter.StoredChatMessageHistory(
                session_id, service, app_name="shop", user_id="ann"
            )

        yield open_stored


def to(session_id: str) -> Any:
    return {"configurable": {"session_id": session_id}}


def texts(found: list[Any]) -> list[Any]:
    return [message.content for message in found]


def remembering(answer: Callable[..., Any], open_history: Any, **keys: str) -> Any:
    return with_history.RunnableWithMessageHistory(
        runnables.RunnableLambda(answer), open_history, **keys
    )


def echo(sent: list[Any]) -> Any:
    said = [message.content for message in sent if message.type == "human"]
    return messages.AIMessage(f"you said: {', '.join(said)}")


async def test_a_chain_remembers(open_history: Any) -> None:
    chain = remembering(echo, open_history)
    for question in ("hello", "good bye"):
        answer = await chain.ainvoke([messages.HumanMessage(question)], to("1"))
    assert answer.content == "you said: hello, good bye"
    assert texts(await open_history("1").aget_messages()) == [
        "hello",
        "you said: hello",
        "good bye",
        "you said: hello, good bye",
    ]


async def test_sessions_are_apart(open_history: Any) -> None:
    chain = remembering(echo, open_history)
    for session_id in ("1", "2", "1"):
        answer = await chain.ainvoke([messages.HumanMessage(session_id)], to(session_id))
    assert answer.content == "you said: 1, 1"
    assert len(await open_history("2").aget_messages()) == 2


async def test_a_batch_writes_to_every_session(open_history: Any) -> None:
    chain = remembering(echo, open_history)
    asked = [[messages.HumanMessage(str(number))] for number in range(5)]
    await chain.abatch(asked, [to(str(number)) for number in range(5)])
    for number in range(5):
        found = await open_history(str(number)).aget_messages()
        assert texts(found) == [str(number), f"you said: {number}"]


async def test_a_chain_that_takes_and_gives_dicts(open_history: Any) -> None:
    def answer(given: dict[str, Any]) -> dict[str, Any]:
        sent = [*given["history"], messages.HumanMessage(given["question"])]
        return {"answer": echo(sent)}

    keys = {
        "input_messages_key": "question",
        "output_messages_key": "answer",
        "history_messages_key": "history",
    }
    chain = remembering(answer, open_history, **keys)
    await chain.ainvoke({"question": "one"}, to("1"))
    found = await chain.ainvoke({"question": "two"}, to("1"))
    assert found["answer"].content == "you said: one, two"
    assert [message.type for message in await open_history("1").aget_messages()] == [
        "human",
        "ai",
        "human",
        "ai",
    ]


async def test_a_prompt_with_a_place_for_messages(open_history: Any) -> None:
    prompt = prompts.ChatPromptTemplate.from_messages(
        [("system", "Be brief."), prompts.MessagesPlaceholder("history"), ("human", "{question}")]
    )

    def answer(value: Any) -> Any:
        return messages.AIMessage(f"I was sent {len(value.to_messages())} messages.")

    chain = with_history.RunnableWithMessageHistory(
        prompt | runnables.RunnableLambda(answer),
        open_history,
        input_messages_key="question",
        history_messages_key="history",
    )
    for expected in (2, 4, 6):
        found = await chain.ainvoke({"question": "Hi"}, to("1"))
        assert found.content == f"I was sent {expected} messages."


async def test_an_answer_of_several_messages(open_history: Any) -> None:
    call = {"name": "add", "args": {"item": "mug"}, "id": "call_1"}

    def answer(_: list[Any]) -> list[Any]:
        return [
            messages.AIMessage("", tool_calls=[call]),
            messages.ToolMessage("done", tool_call_id="call_1"),
            messages.AIMessage("Added."),
        ]

    chain = remembering(answer, open_history)
    for _ in range(2):
        await chain.ainvoke([messages.HumanMessage("Add a mug.")], to("1"))
    kinds = [message.type for message in await open_history("1").aget_messages()]
    assert kinds == ["human", "ai", "tool", "ai"] * 2


async def test_a_streamed_answer_is_one_message(open_history: Any) -> None:
    def answer(_: list[Any]) -> Any:
        for part in ("He", "llo"):
            yield messages.AIMessageChunk(part)

    chain = with_history.RunnableWithMessageHistory(
        runnables.RunnableGenerator(answer_of(answer)), open_history
    )
    parts = [part.content async for part in chain.astream([messages.HumanMessage("Hi")], to("1"))]
    assert parts == ["He", "llo"]
    found = await open_history("1").aget_messages()
    assert texts(found) == ["Hi", "Hello"]


def answer_of(answer: Callable[[Any], Any]) -> Any:
    async def generate(given: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for each in given:
            for part in answer(each):
                yield part

    return generate


async def test_messages_can_be_trimmed_for_a_model(open_history: Any) -> None:
    history = open_history("1")
    for number in range(4):
        await history.aadd_messages(
            [messages.HumanMessage(f"question {number}"), messages.AIMessage(f"answer {number}")]
        )
    found = messages.trim_messages(
        await history.aget_messages(), max_tokens=3, token_counter=len, start_on="human"
    )
    assert texts(found) == ["question 3", "answer 3"]


async def test_what_was_cleared_is_gone_for_the_next_run(open_history: Any) -> None:
    chain = remembering(echo, open_history)
    await chain.ainvoke([messages.HumanMessage("one")], to("1"))
    await open_history("1").aclear()
    answer = await chain.ainvoke([messages.HumanMessage("two")], to("1"))
    assert answer.content == "you said: two"
