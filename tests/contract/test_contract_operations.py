"""Every operation of the registry gives the same result on every backend as in memory."""

from __future__ import annotations

from typing import Any

import pytest
from support.operations import OPERATIONS
from support.scene import set_scene, shown, stored
from support.services import WITH_TTL

from sessionstore import BackendUnavailable, InMemorySessionService, SessionKey

CASES = [operation for operation in OPERATIONS if not operation.needs_expired]


async def test_every_operation_gives_the_same_and_stores_the_same(service: Any) -> None:
    for operation in CASES:
        key = SessionKey(operation.name.replace(" ", "-"), "user", "s")
        outcomes = []
        async with InMemorySessionService(**WITH_TTL) as twin:
            for each in (service, twin):
                scene = await set_scene(each, operation, key)
                result = shown(await operation.run(each, scene))
                outcomes.append((result, shown(scene.session), await stored(each, key)))
        assert outcomes[0] == outcomes[1], operation.name


async def test_a_closed_service_is_unavailable(service: Any) -> None:
    async with InMemorySessionService(**WITH_TTL) as twin:
        [needs_turn] = [each for each in CASES if each.name == "renew_turn"]
        scene = await set_scene(twin, needs_turn)
    for _ in range(2):
        await service.aclose()
    for operation in CASES:
        with pytest.raises(BackendUnavailable, match="closed") as caught:
            await operation.run(service, scene)
        assert not caught.value.maybe_applied
