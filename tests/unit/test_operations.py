"""The registry of operations is complete and well-formed."""

from __future__ import annotations

from support.operations import ALL, OPERATIONS

import sessionstore


def test_every_public_method_is_in_the_registry() -> None:
    public = {
        name
        for name in dir(sessionstore.SessionService)
        if not name.startswith("_") and name != "aclose"
    }
    tried = {operation.method for operation in OPERATIONS if not operation.is_internal}
    assert tried == public


def test_names_differ_and_roles_exist() -> None:
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for operation in OPERATIONS:
        assert {*operation.keys.split(), *operation.refreshes.split()} <= {*ALL.split(), "stream"}
