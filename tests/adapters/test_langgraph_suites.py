"""LangGraph: the kinds of tests in its own suites, each beside LangGraph's own saver.

Pregel, large cases, time travel, persistence of subgraphs, interruption. A scenario returns all
that it has seen; with StoredCheckpointSaver it sees the same.
"""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

import pytest
from adapters_support import Backend, needs, opened
from langgraph_support import THREAD, Calls, adapter, seen

import sessionstore.sync

graphs: Any = needs("langgraph.graph", "langgraph")
memory: Any = needs("langgraph.checkpoint.memory", "langgraph")
types: Any = needs("langgraph.types", "langgraph")
functional: Any = needs("langgraph.func", "langgraph")
messages: Any = needs("langchain_core.messages", "langgraph")

Compile = Callable[..., Calls]
Scenario = Callable[[Compile], Awaitable[list[Any]]]


class State(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]
    count: Annotated[int, operator.add]
    last: str


class Log(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


def says(*words: Any) -> Callable[[State], State]:
    return lambda _: {"log": list(words), "count": 1, "last": str(words[-1])}


def asks(question: str) -> Callable[[State], State]:
    return lambda _: {"log": [(question, types.interrupt(question))]}


def chain(*nodes: tuple[str, Any], state: Any = State) -> Any:
    builder = graphs.StateGraph(state)
    before = graphs.START
    for name, node in nodes:
        builder.add_node(name, node)
        builder.add_edge(before, name)
        before = name
    return builder


def answer(result: Any) -> Any:
    """What a run gives, without the ids of interrupts."""
    if not isinstance(result, dict):
        return result
    asked = sorted(str(each.value) for each in result.get("__interrupt__", ()))
    return {**{name: part for name, part in result.items() if name != "__interrupt__"}, "?": asked}


async def everything(calls: Calls) -> list[Any]:
    """The present state with subgraphs, and the history."""
    history = [seen(each) for each in await calls.history(THREAD)]
    return [seen(await calls.state(THREAD, subgraphs=True)), *history]


# -- pregel ----------------------------------------------------------------------------------------


async def fan_out_and_in(make: Compile) -> list[Any]:
    builder = graphs.StateGraph(State)
    builder.add_node("plan", says("plan"))
    builder.add_node("work", lambda state: {"log": [state["last"]], "count": 1})
    builder.add_node("end", says("end"))
    builder.add_edge(graphs.START, "plan")
    builder.add_conditional_edges(
        "plan", lambda _: [types.Send("work", {"last": f"part {n}"}) for n in range(12)], ["work"]
    )
    builder.add_edge("work", "end")
    graph = make(builder)
    shown = [answer(await graph.invoke({"log": ["in"]}, THREAD)) for _ in range(3)]
    return [*shown, *(await everything(graph))]


async def commands_route_and_update(make: Compile) -> list[Any]:
    def route(state: State) -> Any:
        done = state.get("count", 0) >= 4
        return types.Command(update={"log": ["r"], "count": 1}, goto="end" if done else "route")

    builder = graphs.StateGraph(State)
    builder.add_node("route", route, destinations=("route", "end"))
    builder.add_node("end", says("end"))
    builder.add_edge(graphs.START, "route")
    graph = make(builder)
    shown = [answer(await graph.invoke({"log": []}, THREAD))]
    return [*shown, *(await everything(graph))]


async def failures_resume(make: Compile) -> list[Any]:
    failing = {"left": 2}

    def sometimes(_: State) -> State:
        failing["left"] -= 1
        if failing["left"] >= 0:
            raise RuntimeError("no connection")
        return {"log": ["worked"]}

    builder = graphs.StateGraph(State)
    for name, node in (("good", says("good")), ("bad", sometimes), ("end", says("end"))):
        builder.add_node(name, node)
    builder.add_edge(graphs.START, "good")
    builder.add_edge(graphs.START, "bad")
    builder.add_edge(["good", "bad"], "end")
    graph = make(builder)
    shown: list[Any] = []
    for number in range(3):
        try:
            shown.append(answer(await graph.invoke(None if number else {"log": ["in"]}, THREAD)))
        except RuntimeError as error:
            shown.append(str(error))
    # The tasks that the failing one stops differ from run to run.
    return [*shown, seen(await graph.state(THREAD))]


async def state_is_updated_as_a_node(make: Compile) -> list[Any]:
    graph = make(chain(("one", says(1)), ("two", says(2)), ("three", says(3))))
    await graph.update(THREAD, {"log": ["before the first"]}, as_node="__start__")
    shown = [answer(await graph.invoke(None, THREAD))]
    await graph.update(THREAD, {"log": ["as one"]}, as_node="one")
    shown.append(answer(await graph.invoke(None, THREAD)))
    await graph.update(THREAD, None, as_node="three")
    return [*shown, *(await everything(graph))]


async def many_turns(make: Compile) -> list[Any]:
    graph = make(chain(("one", says("a" * 300)), ("two", says("b"))))
    for number in range(25):
        await graph.invoke({"log": [number]}, THREAD)
    return await everything(graph)


# -- large cases -----------------------------------------------------------------------------------


class Chat(TypedDict, total=False):
    messages: Annotated[list[Any], graphs.add_messages]


async def an_agent_whose_tool_calls_are_edited(make: Compile) -> list[Any]:
    def model(state: Chat) -> Chat:
        turn = len(state["messages"])
        if isinstance(state["messages"][-1], messages.HumanMessage):
            asked = [{"name": "search", "args": {"query": f"q{turn}"}, "id": f"c{turn}"}]
            return {"messages": [messages.AIMessage("", tool_calls=asked, id=f"m{turn}")]}
        return {"messages": [messages.AIMessage(f"done {turn}", id=f"m{turn}")]}

    def tools(state: Chat) -> Chat:
        [called] = state["messages"][-1].tool_calls
        found = f"result of {called['args']['query']}"
        made = messages.ToolMessage(found, tool_call_id=called["id"], id=f"t{called['id']}")
        return {"messages": [made]}

    builder = graphs.StateGraph(Chat)
    builder.add_node("model", model)
    builder.add_node("tools", tools)
    builder.add_edge(graphs.START, "model")
    builder.add_conditional_edges(
        "model", lambda state: "tools" if state["messages"][-1].tool_calls else graphs.END
    )
    builder.add_edge("tools", "model")
    graph = make(builder, interrupt_after=["model"])
    shown: list[Any] = []
    for turn in range(3):
        asked = messages.HumanMessage(f"question {turn}", id=f"h{turn}")
        shown.append(answer(await graph.invoke({"messages": [asked]}, THREAD)))
        last = (await graph.state(THREAD)).values["messages"][-1]
        calls = [{**last.tool_calls[0], "args": {"query": "edited"}}]
        edited = messages.AIMessage("", tool_calls=calls, id=last.id)
        await graph.update(THREAD, {"messages": [edited]})
        shown.append(answer(await graph.invoke(None, THREAD)))
        shown.append(answer(await graph.invoke(None, THREAD)))
    removed = messages.RemoveMessage(id="h1")
    await graph.update(THREAD, {"messages": [removed]})
    return [*shown, *(await everything(graph))]


# -- time travel -----------------------------------------------------------------------------------


async def every_checkpoint_is_replayed_and_forked(make: Compile) -> list[Any]:
    graph = make(chain(("one", says(1)), ("ask", asks("go?")), ("two", says(2))))
    await graph.invoke({"log": ["in"]}, THREAD)
    await graph.invoke(types.Command(resume="yes"), THREAD)
    shown: list[Any] = []
    for past in await graph.history(THREAD):
        shown.append(answer(await graph.invoke(None, past.config)))
        fork = await graph.update(past.config, {"log": ["fork"]})
        shown.append(seen(await graph.state(fork)))
        shown.append(answer(await graph.invoke(None, fork)))
        if (await graph.state(THREAD)).next:
            shown.append(answer(await graph.invoke(types.Command(resume="again"), THREAD)))
    return [*shown, *(await everything(graph))]


async def a_subgraph_is_replayed(make: Compile) -> list[Any]:
    inner = chain(("in", says("in")), ("ask", asks("inner?"))).compile()
    graph = make(chain(("before", says("before")), ("sub", inner), ("after", says("after"))))
    await graph.invoke({"log": ["a"]}, THREAD)
    await graph.invoke(types.Command(resume="first"), THREAD)
    shown: list[Any] = []
    for past in await graph.history(THREAD):
        if past.next == ("sub",):
            shown.append(answer(await graph.invoke(None, past.config)))
            shown.append(answer(await graph.invoke(types.Command(resume="second"), THREAD)))
    return [*shown, *(await everything(graph))]


# -- persistence of subgraphs ----------------------------------------------------------------------


def subgraphs(sub_saver: bool | None) -> Scenario:
    async def scenario(make: Compile) -> list[Any]:
        deepest = chain(("deep", says("deep")), ("ask", asks("deep?")))
        middle = chain(("mid", says("mid")), ("deepest", deepest.compile(checkpointer=sub_saver)))
        outer = chain(("sub", middle.compile(checkpointer=sub_saver)), ("end", says("end")))
        graph = make(outer)
        shown: list[Any] = []
        for number in range(3):
            shown.append(answer(await graph.invoke({"log": [number]}, THREAD)))
            shown.append(seen(await graph.state(THREAD, subgraphs=True)))
            shown.append(answer(await graph.invoke(types.Command(resume=f"r{number}"), THREAD)))
        return [*shown, *(await everything(graph))]

    return scenario


async def parallel_subgraphs(make: Compile) -> list[Any]:
    inner = chain(("in", lambda _: {"log": ["in"]}), ("ask", asks("each?")), state=Log).compile()
    builder = graphs.StateGraph(Log)
    for name in ("left", "right"):
        builder.add_node(name, inner)
        builder.add_edge(graphs.START, name)
    graph = make(builder)
    shown = [answer(await graph.invoke({"log": []}, THREAD))]
    asked = (await graph.state(THREAD)).interrupts
    one = types.Command(resume={asked[0].id: "one"})
    shown.append(len((await graph.invoke(one, THREAD)).get("__interrupt__", ())))
    rest = {each.id: "rest" for each in (await graph.state(THREAD)).interrupts}
    shown.append(len((await graph.invoke(types.Command(resume=rest), THREAD))["log"]))
    return [*shown, *(await everything(graph))[:1]]


# -- interruption ----------------------------------------------------------------------------------


def static_interrupts(**where: Any) -> Scenario:
    async def scenario(make: Compile) -> list[Any]:
        graph = make(chain(("one", says(1)), ("two", says(2)), ("three", says(3))), **where)
        shown = [answer(await graph.invoke({"log": ["in"]}, THREAD))]
        while (state := await graph.state(THREAD)).next:
            shown += [seen(state), answer(await graph.invoke(None, THREAD))]
        return [*shown, *(await everything(graph))]

    return scenario


async def a_node_asks_several_times(make: Compile) -> list[Any]:
    def ask(_: State) -> State:
        return {"log": [types.interrupt("first?"), types.interrupt("second?")]}

    graph = make(chain(("ask", ask), ("end", says("end"))))
    shown = [answer(await graph.invoke({"log": ["in"]}, THREAD))]
    for word in ("a", "b"):
        shown.append(answer(await graph.invoke(types.Command(resume=word), THREAD)))
    shown.append(answer(await graph.invoke({"log": ["new turn"]}, THREAD)))
    shown.append(answer(await graph.invoke({"log": ["instead of an answer"]}, THREAD)))
    return [*shown, *(await everything(graph))]


async def tasks_and_an_entrypoint(make: Compile) -> list[Any]:
    @functional.task
    def double(number: int) -> int:
        return 2 * number

    class Functional:
        def compile(self, checkpointer: Any) -> Any:
            @functional.entrypoint(checkpointer=checkpointer)
            def flow(number: int, *, previous: Any = None) -> Any:
                doubled = [double(each) for each in range(number)]
                told = types.interrupt("sure?")
                total = sum(each.result() for each in doubled) + (previous or 0)
                return functional.entrypoint.final(value=(total, told), save=total)

            return flow

    graph = make(Functional())
    shown: list[Any] = []
    for number in (3, 4):
        await graph.invoke(number, THREAD)
        shown.append(await graph.invoke(types.Command(resume="yes"), THREAD))
    return shown


SCENARIOS: dict[str, Scenario] = {
    "fan out and in": fan_out_and_in,
    "commands": commands_route_and_update,
    "failures": failures_resume,
    "updates": state_is_updated_as_a_node,
    "many turns": many_turns,
    "agent": an_agent_whose_tool_calls_are_edited,
    "time travel": every_checkpoint_is_replayed_and_forked,
    "time travel in a subgraph": a_subgraph_is_replayed,
    "subgraphs": subgraphs(None),
    "stateful subgraphs": subgraphs(True),
    "parallel subgraphs": parallel_subgraphs,
    "interrupt before": static_interrupts(interrupt_before=["two", "three"]),
    "interrupt after": static_interrupts(interrupt_after="*"),
    "questions": a_node_asks_several_times,
    "functions": tasks_and_an_entrypoint,
}


def compile_with(saver: Any, awaited: bool) -> Compile:
    return lambda builder, **options: Calls(builder.compile(checkpointer=saver, **options), awaited)


@pytest.mark.skipif(
    not hasattr(memory.InMemorySaver, "_ordered_writes"),
    reason="this release of LangGraph gives writes in the order of their arrival",
)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_as_with_langgraphs_own_saver(backend: Backend, name: str) -> None:
    async with opened(backend) as service:
        for awaited in (True, False) if backend[0] == "sync" else (True,):
            results = []
            for saver in (adapter.StoredCheckpointSaver(service), memory.InMemorySaver()):
                await saver.adelete_thread("t1")

                results.append(await SCENARIOS[name](compile_with(saver, awaited)))
            assert results[0] == results[1]


# -- deepagents ------------------------------------------------------------------------------------


def test_a_deep_agent_lives_for_hundreds_of_turns() -> None:
    """It keeps messages and files in delta channels. The file is written once, long ago."""
    deepagents: Any = pytest.importorskip("deepagents", reason="needs deepagents")
    models: Any = needs("langchain_core.language_models", "langgraph")
    outputs: Any = needs("langchain_core.outputs", "langgraph")

    class Scripted(models.BaseChatModel):
        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, *_: Any, **__: Any) -> Any:
            return self

        def _generate(self, prompt: list[Any], *_: Any, **__: Any) -> Any:
            asked = [each for each in prompt if each.type == "human"]
            calls = []
            if len(asked) == 1 and prompt[-1].type == "human":
                args = {"file_path": "/notes.txt", "content": "hello"}
                calls = [{"name": "write_file", "id": "c1", "args": args}]
            said = messages.AIMessage(f"answer {len(asked)}", tool_calls=calls)
            return outputs.ChatResult(generations=[outputs.ChatGeneration(message=said)])

    service = sessionstore.sync.InMemorySessionService()
    for turn in range(130):
        if turn % 26 == 0:  # as if the process had started again
            saver = adapter.StoredCheckpointSaver(service, keep_checkpoints=20)
            agent = deepagents.create_deep_agent(model=Scripted(), checkpointer=saver)
        found = agent.invoke({"messages": [("user", f"question {turn}")]}, THREAD)
    assert len(found["messages"]) == 2 * 130 + 2
    assert list(found["files"]) == ["/notes.txt"]
