"""Pydantic AI's ConversationStore: what every store promises, checked on its own store too."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from adapters_support import Backend, needs, opened

import sessionstore
from sessionstore import BackendUnavailable, CorruptData, InvalidArgument, SessionKey
from sessionstore.calls import AsyncExecutor, Call
from sessionstore.observe import wrap_executor

pydantic_ai: Any = needs("pydantic_ai", "pydantic-ai")
kinds: Any = needs("pydantic_ai.conversation_store", "pydantic-ai")
messages: Any = needs("pydantic_ai.messages", "pydantic-ai")
models: Any = needs("pydantic_ai.models.test", "pydantic-ai")
exceptions: Any = needs("pydantic_ai.exceptions", "pydantic-ai")
adapter: Any = needs("sessionstore.adapters.pydantic_conversations", "pydantic-ai")

Check = Callable[[Any], Awaitable[None]]
CONTRACT: list[Check] = []
"""What every ConversationStore promises: functions that take an empty store."""


def promised(check: Check) -> Check:
    CONTRACT.append(check)
    return check


def _look(at: str) -> dict[str, Any]:
    """Look."""
    return {"at": at, "found": [1, 2.5, None]}


AGENT = pydantic_ai.Agent(models.TestModel(), tools=[_look])


def said(text: str) -> Any:
    return messages.ModelRequest(parts=[messages.UserPromptPart(text)])


def talk(name: str = "talk", *texts: str) -> Any:
    """A conversation that is not stored yet."""
    return pydantic_ai.Conversation(conversation_id=name, messages=[said(text) for text in texts])


async def run(store: Any, name: str = "talk", prompt: str = "Hi", **options: Any) -> Any:
    """Continue a conversation by a run, and save it."""
    conversation = await store.load(name) or talk(name)
    result = await AGENT.run(prompt, conversation=conversation)
    await store.save(result, **options)
    return result


async def texts(store: Any, name: str = "talk", **options: Any) -> list[str]:
    """What was said in a conversation of prompts alone."""
    conversation = await store.load(name, **options)
    return [message.parts[0].content for message in conversation.messages]


async def refuses(awaitable: Awaitable[Any], error: Any = kinds.ConversationConflict) -> None:
    with pytest.raises(error):
        await awaitable


# -- saving and loading ----------------------------------------------------------------------------


@promised
async def what_was_never_saved_is_not_there(store: Any) -> None:
    assert await store.load("talk") is None
    assert await store.load_entries("talk") is None
    assert await store.read_record("talk") is None
    assert await store.list_conversations() == []
    await store.delete("talk")


@promised
async def a_run_is_loaded_as_it_was_saved(store: Any) -> None:
    result = await AGENT.run("Hi", conversation=talk())
    entries = await store.save(result, scope="ann")
    found = await store.load("talk")
    assert found == result.conversation
    assert found.messages == result.all_messages()
    assert found.usage == result.usage
    assert [entry.message for entry in entries] == found.messages
    assert [entry.parent_id for entry in entries] == [None, *[entry.id for entry in entries[:-1]]]
    assert await store.load_entries("talk") == entries
    assert [await store.read_entry(entry.id) for entry in entries] == entries
    record = await store.read_record("talk")
    assert record.head_id == entries[-1].id
    assert (record.scope, record.branches, record.forked_from) == ("ann", [], None)


@promised
async def a_save_stores_only_what_is_new(store: Any) -> None:
    await run(store)
    before = await store.load_entries("talk")
    result = await AGENT.run("Again", conversation=await store.load("talk"))
    added = await store.save(result)
    assert [entry.message for entry in added] == result.new_messages()
    assert await store.load_entries("talk") == [*before, *added]
    assert await store.save(result.conversation) == []
    assert await store.load_entries("talk") == [*before, *added]


@promised
async def a_saved_conversation_can_be_continued(store: Any) -> None:
    conversation = talk("talk", "one")
    await store.save(conversation)
    conversation.messages.append(said("two"))
    await store.save(conversation)
    assert await texts(store) == ["one", "two"]
    assert conversation.revision == (await store.read_record("talk")).revision


@promised
async def a_conversation_without_messages_is_kept(store: Any) -> None:
    await store.save(talk())
    assert (await store.load("talk")).messages == []
    assert (await store.read_record("talk")).head_id is None
    assert len(await store.list_conversations()) == 1


@promised
async def changing_what_was_saved_or_loaded_changes_nothing_stored(store: Any) -> None:
    conversation = talk("talk", "one")
    await store.save(conversation)
    conversation.messages[0].parts[0].content = "changed"
    (await store.load("talk")).messages[0].parts[0].content = "changed"
    record = await store.read_record("talk")
    record.branches.append("changed")
    assert await texts(store) == ["one"]
    assert (await store.read_record("talk")).branches == []


@promised
async def a_window_is_loaded_and_saved_to_the_whole(store: Any) -> None:
    await store.save(talk("talk", *"abcde"))
    window = await store.load("talk", limit=2)
    assert [message.parts[0].content for message in window.messages] == ["d", "e"]
    window.messages.append(said("f"))
    await store.save(window)
    assert await texts(store) == list("abcdef")
    assert await texts(store, limit=99) == list("abcdef")
    assert await texts(store, limit=0) == []
    assert len(await store.load_entries("talk", limit=3)) == 3
    await refuses(store.load("talk", limit=-1), exceptions.UserError)


@promised
async def a_paused_run_keeps_what_it_waits_for(store: Any) -> None:
    def send(to: str) -> str:
        """Send."""
        raise exceptions.ApprovalRequired(metadata={"why": to})

    kinds_of_output = [str, pydantic_ai.DeferredToolRequests]
    agent = pydantic_ai.Agent(models.TestModel(), tools=[send], output_type=kinds_of_output)
    result = await agent.run("Send it", conversation=talk())
    await store.save(result)
    found = await store.load("talk")
    assert found.deferred_tool_requests == result.output
    assert found.deferred_tool_requests.approvals
    assert found == result.conversation


# -- conflicts -------------------------------------------------------------------------------------


@promised
async def of_two_writers_one_wins(store: Any) -> None:
    await store.save(talk("talk", "one"))
    first, second = await store.load("talk"), await store.load("talk")
    first.messages.append(said("first"))
    second.messages.append(said("second"))
    await store.save(first)
    await refuses(store.save(second))
    assert await texts(store) == ["one", "first"]


@promised
async def of_many_writers_at_once_one_wins(store: Any) -> None:
    await store.save(talk("talk", "one"))
    loaded = [await store.load("talk") for _ in range(8)]
    for number, conversation in enumerate(loaded):
        conversation.messages.append(said(str(number)))
    saves = [store.save(conversation) for conversation in loaded]
    results = await asyncio.gather(*saves, return_exceptions=True)
    [winner] = [number for number, result in enumerate(results) if isinstance(result, list)]
    losers = [result for result in results if not isinstance(result, list)]
    assert {type(result) for result in losers} == {kinds.ConversationConflict}
    assert await texts(store) == ["one", str(winner)]


@promised
async def of_many_that_create_it_one_wins(store: Any) -> None:
    saves = [store.save(talk("talk", str(number))) for number in range(8)]
    results = await asyncio.gather(*saves, return_exceptions=True)
    [winner] = [number for number, result in enumerate(results) if isinstance(result, list)]
    assert await texts(store) == [str(winner)]


@promised
async def a_new_conversation_does_not_replace_one(store: Any) -> None:
    await store.save(talk("talk", "one"))
    await refuses(store.save(talk("talk", "two")))
    assert await texts(store) == ["one"]


@promised
async def a_copy_from_before_a_delete_is_not_saved(store: Any) -> None:
    await store.save(talk("talk", "one"))
    old = await store.load("talk")
    await store.delete("talk")
    old.messages.append(said("two"))
    await refuses(store.save(old))
    assert await store.load("talk") is None
    await store.save(talk("talk", "new"))
    await refuses(store.save(old))
    assert await texts(store) == ["new"]


@promised
async def records_are_written_only_over_the_expected_one(store: Any) -> None:
    record = kinds.ConversationRecord(conversation_id="talk", head_id=None)
    await refuses(store.write_record(record, expected_revision="other"))
    await store.write_record(record, expected_revision=None)
    await refuses(store.write_record(record, expected_revision=None))
    later = dataclasses.replace(record, revision="later", scope="x")
    await refuses(store.write_record(later, expected_revision="other"))
    assert await store.read_record("talk") == record
    await store.write_record(later, expected_revision=record.revision)
    assert await store.read_record("talk") == later
    await refuses(store.delete_record("talk", expected_revision=record.revision))
    await store.delete_record("talk", expected_revision="later")
    await refuses(store.delete_record("talk", expected_revision="later"))
    assert await store.read_record("talk") is None


@promised
async def a_conflict_leaves_no_entries(store: Any) -> None:
    await store.save(talk("talk", "one"))
    head = (await store.read_record("talk")).head_id
    entry = kinds.ConversationEntry(parent_id=head, message=said("two"))
    record = kinds.ConversationRecord(conversation_id="talk", head_id=entry.id)
    await refuses(store.write_record(record, new_entries=[entry], expected_revision="other"))
    await refuses(store.read_entry(entry.id), LookupError)


@promised
async def a_head_must_be_stored(store: Any) -> None:
    record = kinds.ConversationRecord(conversation_id="talk", head_id="nowhere")
    await refuses(store.write_record(record, expected_revision=None))
    assert await store.read_record("talk") is None
    assert await store.list_conversations() == []


# -- branches and forks ----------------------------------------------------------------------------


@promised
async def a_branch_leaves_the_history_stored(store: Any) -> None:
    await store.save(talk("talk", *"abcd"))
    entries = await store.load_entries("talk")
    found = await store.load("talk")
    branched = await store.branch("talk", at=2, expected_revision=found.revision)
    assert [message.parts[0].content for message in branched.messages] == ["a", "b"]
    branched.messages.append(said("x"))
    await store.save(branched)
    assert await texts(store) == ["a", "b", "x"]
    record = await store.read_record("talk")
    assert record.branches == [entries[-1].id]
    back = await store.branch("talk", from_entry=entries[-1].id, expected_revision=record.revision)
    assert [message.parts[0].content for message in back.messages] == list("abcd")
    assert await texts(store) == list("abcd")
    assert len((await store.read_record("talk")).branches) == 1
    inner = await store.branch("talk", from_entry=entries[0].id, expected_revision=back.revision)
    assert [message.parts[0].content for message in inner.messages] == ["a"]
    empty = await store.branch("talk", at=0, expected_revision=inner.revision)
    assert empty.messages == []
    empty.messages.append(said("y"))
    await store.save(empty)
    assert await texts(store) == ["y"]


@promised
async def a_branch_is_refused_where_it_cannot_be(store: Any) -> None:
    await store.save(talk("talk", "a", "b"))
    await store.save(talk("other", "c"))
    revision = (await store.load("talk")).revision
    [elsewhere] = await store.load_entries("other")
    await refuses(store.branch("talk", at=1, expected_revision="old"))
    for wrong in (
        {"at": 3},
        {"at": -1},
        {"from_entry": "nowhere"},
        {"from_entry": elsewhere.id},
        {},
        {"at": 1, "from_entry": elsewhere.id},
    ):
        refused = store.branch("talk", **wrong, expected_revision=revision)
        await refuses(refused, exceptions.UserError)
    await refuses(store.branch("none", at=0, expected_revision=None), exceptions.UserError)
    assert await texts(store) == ["a", "b"]


@promised
async def a_rewritten_history_branches_off(store: Any) -> None:
    await store.save(talk("talk", "a", "b", "c"))
    tip = (await store.read_record("talk")).head_id
    conversation = await store.load("talk")
    conversation.messages[1:] = [said("x"), said("y")]
    added = await store.save(conversation)
    assert len(added) == 2
    assert await texts(store) == ["a", "x", "y"]
    assert (await store.read_record("talk")).branches == [tip]
    assert [entry.message.parts[0].content for entry in await store.read_history(tip)] == list(
        "abc"
    )


@promised
async def a_fork_starts_with_the_history_and_goes_its_own_way(store: Any) -> None:
    await store.save(talk("talk", "a", "b", "c"), scope="ann")
    source = await store.load_entries("talk")
    whole = await store.fork("talk", new_conversation_id="whole")
    part = await store.fork("talk", at=2, new_conversation_id="part", scope="bob")
    point = await store.fork("talk", from_entry=source[0].id)
    assert await store.load_entries("whole") == source
    assert await store.load_entries("part") == source[:2]
    assert len(point.messages) == 1
    part.messages.append(said("x"))
    await store.save(part)
    assert await texts(store, "part") == ["a", "b", "x"]
    assert await texts(store) == ["a", "b", "c"]
    record = await store.read_record("part")
    assert (record.scope, record.forked_from) == ("bob", "talk")
    assert record.forked_at == source[1].id
    assert (await store.read_record("whole")).scope == "ann"
    again = await store.fork("part", new_conversation_id="again")
    assert len(again.messages) == 3
    await refuses(store.fork("talk", new_conversation_id="part"))
    await refuses(store.fork("none"), exceptions.UserError)
    await refuses(store.fork("talk", at=4), exceptions.UserError)
    whole.messages.append(said("z"))
    await store.save(whole)
    assert await texts(store, "whole") == ["a", "b", "c", "z"]


@promised
async def a_fork_outlives_what_it_was_forked_from(store: Any) -> None:
    await store.save(talk("talk", "a", "b"))
    source = await store.load_entries("talk")
    await store.fork("talk", new_conversation_id="fork", at=1)
    await store.delete("talk")
    assert await store.load("talk") is None
    assert await store.load_entries("fork") == source[:1]
    assert await store.read_entry(source[0].id) == source[0]
    await refuses(store.read_entry(source[1].id), LookupError)
    await store.delete("fork")
    await refuses(store.read_entry(source[0].id), LookupError)


@promised
async def a_fork_of_a_branch_that_was_left(store: Any) -> None:
    await store.save(talk("talk", "a", "b"))
    tip = (await store.read_record("talk")).head_id
    await store.branch("talk", at=1, expected_revision=(await store.load("talk")).revision)
    await store.fork("talk", from_entry=tip, new_conversation_id="fork")
    assert await texts(store, "fork") == ["a", "b"]
    assert await texts(store) == ["a"]


# -- scopes, lists, deletion -----------------------------------------------------------------------


@promised
async def a_scope_hides_a_conversation(store: Any) -> None:
    await store.save(talk("talk", "a"), scope="ann")
    assert await store.load("talk", scope="bob") is None
    assert await store.load_entries("talk", scope="bob") is None
    assert (await store.load("talk", scope="ann")).messages
    revision = (await store.load("talk")).revision
    refused = store.branch("talk", at=0, expected_revision=revision, scope="bob")
    await refuses(refused, exceptions.UserError)
    await refuses(store.fork("talk", source_scope="bob"), exceptions.UserError)
    await refuses(store.save(await store.load("talk"), scope="bob"))
    await store.delete("talk", scope="bob")
    assert await texts(store) == ["a"]
    await store.delete("talk", scope="ann")
    assert await store.load("talk") is None


@promised
async def lists_begin_with_the_last_saved(store: Any) -> None:
    for name, scope in [("a", "x"), ("b", "y"), ("c", "x"), ("d", None)]:
        await store.save(talk(name, name), scope=scope)
    await run(store, "a")
    found = await store.list_conversations()
    assert [record.conversation_id for record in found] == ["a", "d", "c", "b"]
    assert [record.updated_at for record in found] == sorted(
        (record.updated_at for record in found), reverse=True
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"limit": 2}, "ad"),
        ({"scope": "x"}, "ac"),
        ({"scope": "x", "limit": 1}, "a"),
        ({"scope": "z"}, ""),
        ({"limit": 0}, ""),
    ]
    for options, expected in cases:
        listed = await store.list_conversations(**options)
        assert [record.conversation_id for record in listed] == list(expected)
    assert found[0] == await store.read_record("a")
    await refuses(store.list_conversations(limit=-1), exceptions.UserError)


@promised
async def what_was_deleted_is_gone(store: Any) -> None:
    await store.save(talk("talk", "a"))
    await store.save(talk("other", "b"))
    entries = await store.load_entries("talk")
    await store.delete("talk")
    await store.delete("talk")
    assert await store.load("talk") is None
    assert [record.conversation_id for record in await store.list_conversations()] == ["other"]
    await refuses(store.read_entry(entries[0].id), LookupError)
    await store.save(talk("talk", "new"))
    assert await texts(store) == ["new"]


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_a_promise_of_a_conversation_store(backend: Backend, check: Check) -> None:
    async with opened(backend) as service:
        await check(stored(service))


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_a_promise_of_pydantic_ais_own_store(check: Check) -> None:
    await check(kinds.InMemoryConversationStore())


# -- of this store ---------------------------------------------------------------------------------


def stored(service: Any, user_id: str = "ann") -> Any:
    return adapter.StoredConversationStore(service, app_name="shop", user_id=user_id)


@pytest.fixture
async def service(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield service


async def test_another_object_finds_everything(service: Any) -> None:
    await run(stored(service))
    entries = await stored(service).load_entries("talk")
    await stored(service).save(talk("other", "a"))
    for entry in entries:
        assert await stored(service).read_entry(entry.id) == entry
    await stored(service).fork("talk", new_conversation_id="fork", at=2)
    assert await stored(service).load_entries("fork") == entries[:2]
    with pytest.raises(LookupError, match="entry 'none' is not stored"):
        await stored(service).read_entry("none")
    assert await stored(service, "bob").list_conversations() == []


async def test_more_messages_than_go_in_one_call(service: Any) -> None:
    said_at_first = [str(number) for number in range(700)]
    store = stored(service)
    await store.save(talk("talk", *said_at_first))
    assert await texts(stored(service)) == said_at_first
    await store.fork("talk", new_conversation_id="fork")
    await store.delete("talk")
    assert await texts(stored(service), "fork") == said_at_first
    assert await texts(stored(service), "fork", limit=650) == said_at_first[-650:]


async def test_the_services_limit_trims(backend: Backend) -> None:
    async with opened(backend, session_event_limit=5) as service:
        store = stored(service)
        conversation = talk("talk", *"abc")
        await store.save(conversation)
        first = await store.load_entries("talk")
        conversation.messages += [said(text) for text in "defg"]
        await store.save(conversation)
        assert await texts(store) == list("cdefg")
        await store.branch("talk", at=3, expected_revision=conversation.revision)
        assert await texts(store) == list("cde")
        with pytest.raises(LookupError, match="deleted or trimmed"):
            await store.read_entry(first[0].id)


async def test_a_message_that_pydantic_ai_cannot_serialize_is_refused(service: Any) -> None:
    store = stored(service)
    with pytest.raises(InvalidArgument, match=r"^new_entries\[1\]\.parts\[0\]\.content "):
        await store.save(talk("talk", "a", "\ud800"))
    assert await store.load("talk") is None
    assert await store.list_conversations() == []
    await store.save(talk("talk", "a"))
    assert await texts(store) == ["a"]


async def test_what_is_no_record_is_not_read_as_one() -> None:
    async with sessionstore.InMemorySessionService() as service:
        await service.create_session(
            app_name="shop", user_id="ann", session_id="talk", state={"record": {"a": 1}}
        )
        with pytest.raises(CorruptData, match="holds a record that is not of Pydantic AI"):
            await stored(service).load("talk")


class Failing:
    """Fails a Call of a name, once."""

    def __init__(self, inner: AsyncExecutor, name: str, after: bool) -> None:
        self._inner, self._name, self._after = inner, name, after

    async def execute(self, call: Call[Any]) -> list[Any]:
        if call.name != self._name:
            return await self._inner.execute(call)
        self._name = ""
        if self._after:
            await self._inner.execute(call)
        raise BackendUnavailable("the connection was lost", maybe_applied=True)

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.mark.parametrize("is_applied", [False, True])
@pytest.mark.parametrize("name", ["create_session", "append_events", "update_session_state"])
async def test_a_save_that_failed_can_be_made_again(name: str, is_applied: bool) -> None:
    async with sessionstore.InMemorySessionService() as service:
        store = stored(service)
        if name == "update_session_state":  # a save without new messages
            await store.save(talk("talk", "a"))
        conversation = await store.load("talk") or talk("talk", "a")
        wrap_executor(service, lambda inner: Failing(inner, name, is_applied))
        with pytest.raises(BackendUnavailable):
            await store.save(conversation)
        if is_applied and name != "create_session":
            with pytest.raises(kinds.ConversationConflict):  # as Pydantic AI says: load it again
                await store.save(conversation)
            conversation = await store.load("talk")
        await store.save(conversation)
        assert await texts(store) == ["a"]
        session = await service.get_session(app_name="shop", user_id="ann", session_id="talk")
        assert session is not None
        assert len(session.events) == 1


async def test_a_deletion_that_failed_is_completed() -> None:
    async with sessionstore.InMemorySessionService() as service:
        store = stored(service)
        await store.save(talk("talk", "a"))
        wrap_executor(service, lambda inner: Failing(inner, "delete_user", False))
        with pytest.raises(BackendUnavailable):
            await store.delete("talk")
        assert await store.list_conversations() == []
        await store.delete("talk")
        assert await service.get_session(app_name="shop", user_id="ann", session_id="talk") is None


async def test_a_deletion_spares_what_was_created_since() -> None:
    async with sessionstore.InMemorySessionService() as service:
        store = stored(service)
        await store.save(talk("talk", "old"))

        class Racing:
            def __init__(self, inner: AsyncExecutor) -> None:
                self._inner, self._has_raced = inner, False

            async def execute(self, call: Call[Any]) -> list[Any]:
                if call.name == "delete_user" and not self._has_raced:
                    self._has_raced = True
                    await stored(service).save(talk("talk", "new"))
                return await self._inner.execute(call)

            async def aclose(self) -> None:
                await self._inner.aclose()

        wrap_executor(service, Racing)
        await store.delete("talk")
        assert await texts(store) == ["new"]


async def test_a_session_that_others_wrote_to_is_no_conflict(service: Any) -> None:
    store = stored(service)
    await store.save(talk("talk", "a"))
    conversation = await store.load("talk")
    key = SessionKey("shop", "ann", "talk")
    changed = service.update_session_state(key, {"title": "Talk"})
    if isinstance(changed, Awaitable):
        await changed
    conversation.messages.append(said("b"))
    await store.save(conversation)
    assert await texts(store) == ["a", "b"]


def test_the_repr_names_the_service_and_the_user() -> None:
    text = repr(stored(sessionstore.InMemorySessionService()))
    expected = "StoredConversationStore(InMemorySessionService(), app_name='shop', user_id='ann')"
    assert text == expected
