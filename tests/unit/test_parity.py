"""The services for asyncio and for threads have the same names, signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import sessionstore
import sessionstore.service
import sessionstore.sync

CLASSES = ["SessionService", "RedisSessionService", "InMemorySessionService"]
RENAMED = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}
METHODS_LIMIT = 40  # a guard against a loop over nothing


def classes(name: str) -> tuple[type, type]:
    return getattr(sessionstore.service, name), getattr(sessionstore.sync, name)


def own_members(kind: type) -> dict[str, Any]:
    """What a class defines itself: public names, its initializer and context manager."""
    special = {"__init__", *RENAMED, *RENAMED.values()}
    return {
        name: member
        for name, member in vars(kind).items()
        if not name.startswith("_") or name in special
    }


def pairs(name: str) -> list[tuple[str, Any, Any]]:
    asynchronous, threaded = classes(name)
    others = own_members(threaded)
    return [
        (member_name, member, others.get(RENAMED.get(member_name, member_name)))
        for member_name, member in own_members(asynchronous).items()
    ]


def threaded_wording(text: str) -> str:
    """What a docstring for asyncio reads like for threads, whitespace aside."""
    for ours, theirs in (("redis.asyncio.Redis", "redis.Redis"), ("tasks", "threads")):
        text = text.replace(ours, theirs)
    return " ".join(text.split())


def spaced(text: str | None) -> str:
    return " ".join((text or "").split())


def test_the_modules_offer_the_same_classes() -> None:
    def defined(module: Any) -> set[str]:
        return {
            name
            for name, member in vars(module).items()
            if inspect.isclass(member) and member.__module__ == module.__name__
        }

    assert defined(sessionstore.service) == defined(sessionstore.sync) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_names(name: str) -> None:
    asynchronous, threaded = classes(name)
    renamed = {RENAMED.get(member, member) for member in own_members(asynchronous)}
    assert renamed == set(own_members(threaded))
    assert [base.__name__ for base in asynchronous.__mro__] == [
        base.__name__ for base in threaded.__mro__
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_signatures(name: str) -> None:
    for member_name, member, other in pairs(name):
        signature = str(inspect.signature(member)).replace("AsyncExecutor", "SyncExecutor")
        assert signature == str(inspect.signature(other)), member_name


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_docstrings(name: str) -> None:
    asynchronous, threaded = classes(name)
    assert threaded_wording(asynchronous.__doc__ or "") == spaced(threaded.__doc__)
    for member_name, member, other in pairs(name):
        assert threaded_wording(member.__doc__ or "") == spaced(other.__doc__), member_name


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    for kind in classes(name):
        assert kind.__doc__
        for member_name, member in own_members(kind).items():
            if not member_name.startswith("__"):
                assert member.__doc__, member_name


def test_methods_of_the_one_are_coroutines_and_of_the_other_are_not() -> None:
    found = pairs("SessionService")
    assert 15 < len(found) < METHODS_LIMIT
    for member_name, member, other in found:
        if member_name != "__init__":
            assert inspect.iscoroutinefunction(member), member_name
            assert not inspect.iscoroutinefunction(other), member_name


def test_every_public_method_is_named_after_what_it_does() -> None:
    verbs = {"append", "clear", "create", "delete", "get", "list", "pop", "update"}
    verbs |= {"acquire", "release", "renew"}
    for name in own_members(sessionstore.service.SessionService):
        if name not in RENAMED and name != "__init__":
            assert re.fullmatch(rf"({'|'.join(verbs)})_\w+", name), name


def test_arguments_are_named_alike_everywhere() -> None:
    for _, member, _ in pairs("SessionService"):
        for name in inspect.signature(member).parameters:
            assert name not in {"app", "user", "sid", "ttl", "num"}


def test_both_services_of_a_module_take_the_same_options() -> None:
    only_redis = {"url", "instance_name", "call_timeout", "extra_options", "client"}
    only_redis |= {"wait_replicas", "read_from"}
    only_memory = {"cleanup_interval", "clock"}
    for module in (sessionstore.service, sessionstore.sync):
        redis_options = dict(inspect.signature(module.RedisSessionService).parameters)
        memory_options = dict(inspect.signature(module.InMemorySessionService).parameters)
        assert set(redis_options) - only_redis == set(memory_options) - only_memory
        for name in set(redis_options) & set(memory_options):
            assert redis_options[name] == memory_options[name]


def test_the_package_offers_everything_that_it_names() -> None:
    assert sorted(sessionstore.__all__) == sessionstore.__all__
    for name in sessionstore.__all__:
        assert getattr(sessionstore, name).__doc__
