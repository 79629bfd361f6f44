"""LangGraph: StoredStore beside LangGraph's own store, TTL, limits, refusals."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import pytest
from adapters_support import Backend, needs, opened
from langgraph_support import adapter, call

import sessionstore.sync
from sessionstore import InvalidArgument, LimitExceeded

memory: Any = needs("langgraph.store.memory", "langgraph")
stores: Any = needs("langgraph.store.base", "langgraph")

# The labels of namespaces have no deadline.
pytestmark = pytest.mark.without_ttl

NAMESPACES = [("a",), ("a", "b"), ("a", "c"), ("d",), ("d", "b"), ("d", "b", "e")]


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


@pytest.fixture
def store(service: Any) -> Any:
    return adapter.StoredStore(service)


def shown(found: Any) -> Any:
    """A result without times, in which a search has no order."""
    if isinstance(found, list):
        return sorted((shown(each) for each in found), key=repr)
    return (found.namespace, found.key, found.value) if isinstance(found, stores.Item) else found


@pytest.mark.parametrize("seed", range(4))
async def test_random_calls_are_answered_as_by_langgraphs_own_store(store: Any, seed: int) -> None:
    chance = random.Random(seed)
    both = store, memory.InMemoryStore()
    filters: list[Any] = [
        None,
        {"n": 3},
        {"n": {"$gte": 2, "$lt": 5}},
        {"n": {"$ne": 3}, "kind": "x"},
        {"n": {"$gt": 1}},
        {"n": {"$lte": 4}},
        {"kind": {"$eq": "y"}},
        {"deep": {"list": [1, "x"]}},
        {"none": None},
    ]
    for _ in range(80):
        namespace, key = chance.choice(NAMESPACES), chance.choice("klm")
        value = {"n": chance.randrange(7), "kind": chance.choice("xy"), "deep": {"list": [1, "x"]}}
        prefix = chance.choice([(), *NAMESPACES, ("nothing",)])
        what = chance.choice(["put", "put", "put", "get", "delete", "search", "list", "batch"])
        results = []
        some = chance.choice(filters)
        if what == "list":
            starts: list[Any] = [None, ("a",), ("d", "*"), ("*", "b")]
            where = {"prefix": chance.choice(starts), "suffix": chance.choice([None, ("b",)])}
            depth = chance.choice([None, 1, 2])
            # Theirs also lists namespaces whose items were all deleted.
            live = {item.namespace for item in await both[1].asearch((), limit=100)}
            theirs = live.intersection(await both[1].alist_namespaces(**where))
            found = await store.alist_namespaces(**where, max_depth=depth)
            assert found == sorted({each[:depth] for each in theirs})
            continue
        for each in both:
            if what == "put":
                results.append(await each.aput(namespace, key, value))
            elif what == "get":
                results.append(await each.aget(namespace, key))
            elif what == "delete":
                results.append(await each.adelete(namespace, key))
            elif what == "search":
                results.append(await each.asearch(prefix, filter=some, limit=100))
            else:
                puts = [stores.PutOp(namespace, name, value) for name in "kl"]
                ops = [stores.GetOp(namespace, key), *puts, stores.PutOp(namespace, "k", None)]
                results.append(await each.abatch(ops))
        assert shown(results[0]) == shown(results[1])
    everything = [shown(await each.asearch((), limit=100)) for each in both]
    assert everything[0] == everything[1]
    listed = {namespace for namespace, _, _ in everything[0]}
    assert await store.alist_namespaces() == sorted(listed)


async def test_an_item_is_read_as_it_was_stored(store: Any) -> None:
    value = {"text": "ü", "n": 1, "list": [1, {"a": None}], "at": datetime(2024, 5, 1, tzinfo=UTC)}
    before = datetime.now(UTC)
    await store.aput(("a", "b"), "key with : and {braces}", value)
    first = await store.aget(("a", "b"), "key with : and {braces}")
    assert first.value == {**value, "at": "2024-05-01T00:00:00Z"}
    assert abs(first.created_at - before) < timedelta(seconds=60)
    await store.aput(("a", "b"), "key with : and {braces}", {"n": 2})
    second = await store.aget(("a", "b"), "key with : and {braces}")
    assert (second.value, second.created_at) == ({"n": 2}, first.created_at)
    assert second.updated_at > first.updated_at
    assert await store.aget(("a",), "key with : and {braces}") is None


async def test_labels_may_look_like_state_keys(store: Any) -> None:
    labels = ["user:ann", "app:x", "temp:y", "user:", "a:{b}*"]
    for label in labels:
        await store.aput((label, "items"), "k", {"of": label})
    found = await store.alist_namespaces()
    assert found == sorted((label, "items") for label in labels)
    assert len(await store.asearch(())) == len(labels)
    for label in labels:
        assert [item.value["of"] for item in await store.asearch((label,))] == [label]
        await store.adelete((label, "items"), "k")
    for _ in range(3):
        assert await store.alist_namespaces() == []


async def test_pages_of_a_search(store: Any) -> None:
    for number in range(230):
        await store.aput(("a",), f"k{number}", {"n": number, "even": number % 2 == 0})
    found = await store.asearch(("a",), limit=5, offset=2)
    assert [item.value["n"] for item in found] == [227, 226, 225, 224, 223]
    found = await store.asearch(("a",), filter={"even": True}, limit=3, offset=100)
    assert [item.value["n"] for item in found] == [28, 26, 24]
    everything = await store.asearch(("a",), limit=1_000)
    assert [item.value["n"] for item in everything] == list(range(229, -1, -1))


async def test_deletion_leaves_nothing_of_the_namespace(service: Any, store: Any) -> None:
    await store.aput(("a", "b", "c"), "k", {"n": 1})
    await store.adelete(("a", "b", "c"), "k")
    await store.adelete(("a", "b", "c"), "k")
    for _ in range(3):
        assert await store.asearch(()) == []
        assert await store.alist_namespaces() == []
    ids = {"app_name": "langgraph-store", "user_id": "."}
    assert await call(service, "get_user_state", **ids) == {}


def test_items_expire_by_themselves() -> None:
    now = [1_700_000_000.0]
    service = sessionstore.sync.InMemorySessionService(session_ttl=600, clock=lambda: now[0])
    store = adapter.StoredStore(service)
    store.put(("a",), "short", {"n": 1}, ttl=1)
    store.put(("a",), "default", {"n": 2})
    store.put(("a",), "never", {"n": 3}, ttl=None)
    store.put(("a",), "once short", {"n": 4}, ttl=1)
    store.put(("a",), "once short", {"n": 5}, ttl=None)
    for _ in range(3):
        now[0] += 50
        assert store.get(("a",), "short").value == {"n": 1}  # which refreshes it
    for _ in range(3):
        now[0] += 50
        assert len(store.search(("a",))) == 4  # and so does this
    now[0] += 50
    assert store.get(("a",), "short", refresh_ttl=False) is not None
    now[0] += 30
    assert store.get(("a",), "short") is None
    assert {item.key for item in store.search(("a",))} == {"default", "never", "once short"}
    now[0] += 700
    assert {item.key for item in store.search(("a",))} == {"never", "once short"}
    store.put(("b",), "x", {}, ttl=1)
    now[0] += 90
    assert store.list_namespaces() == [("a",)]


async def test_a_ttl_may_become_shorter_or_longer(store: Any) -> None:
    await store.aput(("a",), "k", {"n": 1}, ttl=60)
    await store.aput(("a",), "k", {"n": 2}, ttl=1)
    await store.aput(("a",), "k", {"n": 3}, ttl=600)
    assert (await store.aget(("a",), "k")).value == {"n": 3}
    for ttl in (0, -1, 1e12):
        with pytest.raises(InvalidArgument):
            await store.aput(("a",), "k", {"n": 1}, ttl=ttl)


# -- queries in words ------------------------------------------------------------------------------


def embed(texts: Sequence[str]) -> list[list[float]]:
    return [[float(text.count(letter)) for letter in "abc"] for text in texts]


async def test_queries_rank_by_similarity(service: Any) -> None:
    index = {"dims": 3, "embed": embed, "fields": ["text"]}
    ours = adapter.StoredStore(service, index=index)
    theirs = memory.InMemoryStore(index=index)
    for each in (ours, theirs):
        for number, text in enumerate(["aaab", "bbb", "abc", "cc", "ccb"]):
            await each.aput(("a",), f"k{number}", {"text": text, "n": number})
        await each.aput(("a",), "plain", {"text": "aaa", "n": 9}, index=False)
    searches: list[tuple[str, dict[str, Any]]] = [
        ("a", {}),
        ("bc", {"limit": 2}),
        ("c", {"offset": 1, "limit": 3}),
        ("b", {"filter": {"n": {"$gt": 1}}}),
    ]
    for query, options in searches:
        results = [await each.asearch(("a",), query=query, **options) for each in (ours, theirs)]
        # Items of the same similarity have no order.
        scores = [[item.score for item in each] for each in results]
        assert scores[0] == pytest.approx(scores[1])
        if "limit" not in options:
            assert {item.key for item in results[0]} == {item.key for item in results[1]}
    [best] = await ours.asearch(("a",), query="cc", limit=1)
    assert (best.key, best.score) == ("k3", pytest.approx(1))


async def test_a_query_needs_an_embedding_function(store: Any) -> None:
    await store.aput(("a",), "k", {"n": 1})
    with pytest.raises(InvalidArgument, match="embedding function"):
        await store.asearch(("a",), query="n")


# -- limits and refusals ---------------------------------------------------------------------------


async def test_a_scan_is_bounded(service: Any) -> None:
    store = adapter.StoredStore(service, scan_limit=5)
    for number in range(6):
        await store.aput(("a",), f"k{number}", {"n": number})
    assert len(await store.asearch(("a",), limit=5)) == 5
    with pytest.raises(LimitExceeded, match="scan_limit"):
        await store.asearch(("a",), filter={"n": "none"})
    for number in range(6):
        await store.aput((f"b{number}",), "k", {})
    with pytest.raises(LimitExceeded, match="namespaces to look at"):
        await store.alist_namespaces()


async def test_what_cannot_be_stored_is_refused(store: Any) -> None:
    put = stores.PutOp
    for op, fault in [
        (put(("a.b",), "k", {}), "without '.'"),
        (put((), "k", {}), "1 to 255"),
        (put(("a",), "", {}), "key must not be empty"),
        (put(("a" * 300,), "k", {}), "300 bytes"),
        (put(("a",), "k", {"x": object()}), "is not JSON"),
        (put(("a",), "k", {"x": "\ud800"}), "is not JSON"),
    ]:
        with pytest.raises(InvalidArgument, match=fault):
            await store.abatch([put(("fine",), "k", {}), op])
    assert await store.asearch(()) == []
    await store.aput(("a",), "k", {"n": 1})
    with pytest.raises(InvalidArgument, match="no operator"):
        await store.asearch(("a",), filter={"n": {"$like": 1}})


async def test_writers_in_parallel_lose_nothing(service: Any) -> None:
    some = [adapter.StoredStore(service) for _ in range(3)]
    await asyncio.gather(
        *(some[n % 3].aput(("a", f"b{n % 5}"), f"k{n}", {"n": n}) for n in range(60))
    )
    found = await some[0].asearch(("a",), limit=100)
    assert sorted(item.value["n"] for item in found) == list(range(60))


async def test_a_graph_remembers(backend: Backend) -> None:
    graphs: Any = needs("langgraph.graph", "langgraph")

    class State(TypedDict, total=False):
        name: str
        known: list[str]

    config: Any = needs("langgraph.config", "langgraph")

    def remember(state: State) -> State:
        store = config.get_store()
        store.put(("names",), state["name"], {"name": state["name"]})
        return {"known": sorted(item.key for item in store.search(("names",)))}

    async with opened(backend) as service:
        builder = graphs.StateGraph(State)
        builder.add_node("remember", remember)
        builder.add_edge(graphs.START, "remember")
        graph = builder.compile(store=adapter.StoredStore(service))
        await graph.ainvoke({"name": "ann"})
        assert (await graph.ainvoke({"name": "bob"}))["known"] == ["ann", "bob"]
