"""Runs the flows of an adapter on the service, or the two services, that it was given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from inspect import Signature, signature
from typing import Any, Concatenate, ParamSpec, TypeVar

import sessionstore.sync

from ..calls import Flow
from ..errors import InvalidArgument
from ..ops import Ops
from ..service import SessionService

P = ParamSpec("P")
T = TypeVar("T")

AnyService = SessionService | sessionstore.sync.SessionService
"""A service for asyncio or one of `sessionstore.sync`."""


class Services:
    """Runs flows on the services that an adapter was given.

    Args:
        adapter: the adapter's name, for error messages.
        service: a service for asyncio or one of `sessionstore.sync`.
        sync_service: one of `sessionstore.sync`, in addition to one for asyncio.

    Raises:
        InvalidArgument: these are not services, or both are of one kind.
    """

    def __init__(
        self,
        adapter: str,
        service: AnyService,
        sync_service: sessionstore.sync.SessionService | None = None,
    ) -> None:
        if not isinstance(service, AnyService):
            kind = type(service).__name__
            raise InvalidArgument(f"service must be a service of sessionstore, not {kind}")
        self._adapter = adapter
        self._service = service
        self._for_asyncio = service if isinstance(service, SessionService) else None
        self._for_threads = sync_service if isinstance(service, SessionService) else service
        # Where methods without await run, called from other threads.
        self._loop = _running_loop()
        if sync_service is not None:
            if not isinstance(sync_service, sessionstore.sync.SessionService):
                raise InvalidArgument("sync_service must be a service of sessionstore.sync")
            if self._for_asyncio is None:
                raise InvalidArgument("with sync_service, service must be one for asyncio")

    def __repr__(self) -> str:
        return repr(self._service)

    async def arun(
        self, flow: Callable[Concatenate[Ops, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a flow returns. Without a service for asyncio it runs in a thread."""
        service = self._for_asyncio
        if service is None:
            return await asyncio.to_thread(lambda: self.run(flow, *args, **kwargs))
        self._loop = asyncio.get_running_loop()
        return await service._run(flow(service._ops, *args, **kwargs))

    def run(
        self, flow: Callable[Concatenate[Ops, P], Flow[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a flow returns. With only a service for asyncio, it runs on that service's loop.

        Raises:
            NotImplementedError: there is only a service for asyncio, and its loop does not run, or
                runs in this thread.
        """
        service = self._for_threads
        if service is None:
            loop = self._loop
            if loop is None or not loop.is_running() or loop is _running_loop():
                raise NotImplementedError(
                    f"this {self._adapter} has a service for asyncio: await its asynchronous "
                    "methods, or give it one of sessionstore.sync"
                )
            waiting = self.arun(flow, *args, **kwargs)
            return asyncio.run_coroutine_threadsafe(waiting, loop).result()
        return service._run(flow(service._ops, *args, **kwargs))


def both(
    flow: Callable[Concatenate[Any, Ops, P], Flow[T]],
) -> tuple[Callable[Concatenate[Any, P], T], Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]]:
    """The methods without and with await that run a flow of an adapter on its `_services`.

    They have the docstring of the flow, and its arguments without `ops`.
    """

    def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._services.run(partial(flow, self), *args, **kwargs)

    async def arun(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._services.arun(partial(flow, self), *args, **kwargs)

    parameters = [each for name, each in signature(flow).parameters.items() if name != "ops"]
    methods: tuple[Any, Any] = (run, arun)
    for method, prefix in zip(methods, ("", "a"), strict=True):
        method.__doc__ = flow.__doc__
        method.__name__ = prefix + flow.__name__.removeprefix("_")
        method.__qualname__ = flow.__qualname__.replace(flow.__name__, method.__name__)
        method.__signature__ = Signature(parameters)
    return methods


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if one does."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None
