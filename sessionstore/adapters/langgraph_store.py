"""LangGraph: a `BaseStore` for long-term memory that is kept in sessionstore, on plain Redis.

An item is a session of its own, so it expires by itself: its namespace is the user, its key the
session id. The user `.PREFIX` has a session that names the labels that follow a prefix, so that
namespaces are found without a scan of the keyspace. A label whose items have expired is forgotten
when a search or a listing comes by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import msgspec

import sessionstore.sync

from .. import flows
from ..calls import Flow
from ..errors import InvalidArgument, LimitExceeded, SessionExists, SessionNotFound
from ..keys import ID_LIMIT, encode_id
from ..model import Session, SessionKey
from ..ops import Ops
from ..options import check_int
from ..tiers import Change, Delta
from ..times import from_us
from . import framework
from .flows import AnyService, Services

with framework("langgraph-checkpoint", extra="langgraph", tested=">=3.0,<5"):
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        Item,
        ListNamespacesOp,
        MatchCondition,
        PutOp,
        SearchItem,
        SearchOp,
        ensure_embeddings,
        get_text_at_path,
        tokenize_path,
    )

if TYPE_CHECKING:
    from langgraph.store.base import IndexConfig, Op, Result

__all__ = ["StoredStore"]

Namespace = tuple[str, ...]

_VALUE, _TTL, _VECTORS = b".value", b".ttl", b".vectors"
_TIMES = (b"created_us", b"updated_us")
_CHILDREN = "children"  # the session that names the labels that follow a prefix
_PAGE_LIMIT = 100
_ATTEMPTS = 20
_MS_PER_MINUTE = 60_000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class _Put(NamedTuple):
    """A PutOp, encoded."""

    namespace: Namespace
    key: str
    value: bytes | None
    ttl_ms: int
    vectors: list[list[float]]


class StoredStore(BaseStore):
    """Long-term memory of LangGraph: `builder.compile(store=StoredStore(service))`.

    Reading an item takes one round trip, or two if it has a TTL. Storing one takes three, the first
    of a namespace a few more. A search reads the items of its namespaces one after the other, in
    each the one updated last first, until it has found enough. There is no index of values: a
    filter, and a query in words, look at up to `scan_limit` items.

    Args:
        service: a service of sessionstore, as for StoredCheckpointSaver. Its `session_ttl` is the
            TTL of items that are stored without one; reads refresh TTLs if its
            `refresh_ttl_on_read` says so.
        app_name: 1 to 256 bytes of UTF-8. Nothing else may use this application.
        sync_service: a service of `sessionstore.sync` beside one for asyncio, on the same server.
        index: LangGraph's IndexConfig with the embedding function: `search(query=...)` then ranks
            the items that it looks at by their similarity. None = queries are not supported.
        scan_limit: the maximum number of items, or of namespaces, that a call looks at; more raise
            LimitExceeded.

    Raises:
        InvalidArgument: an argument is not valid.
    """

    supports_ttl = True

    def __init__(
        self,
        service: AnyService,
        *,
        app_name: str = "langgraph-store",
        sync_service: sessionstore.sync.SessionService | None = None,
        index: IndexConfig | None = None,
        scan_limit: int = 10_000,
    ) -> None:
        self._services = Services("StoredStore", service, sync_service)
        self._app_name = app_name
        encode_id("app_name", app_name)
        self._scan_limit = check_int("scan_limit", scan_limit, low=1)
        options = service._ops.options
        ttl_ms = options.session_ttl_ms
        self.ttl_config = {
            "default_ttl": ttl_ms / _MS_PER_MINUTE if ttl_ms else None,
            "refresh_on_read": options.refresh_ttl_on_read,
        }
        self._embeddings = ensure_embeddings(index.get("embed")) if index else None
        paths = (index.get("fields") or ["$"]) if index else []
        self._paths = [tokenize_path(path) for path in paths]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._services!r})"

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Results of several operations. See `abatch`."""
        wanted = list(ops)
        texts = self._texts(wanted)
        vectors = self._embeddings.embed_documents(texts) if self._embeddings and texts else []
        of_queries = {query: self._embed(query) for query in self._queries(wanted)}
        found = dict(zip(texts, vectors, strict=True))
        return self._services.run(self._batch, wanted, found, of_queries)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Results of several operations: all reads, then of two writes of an item the last.

        Raises:
            InvalidArgument: a namespace, a key or a value cannot be stored, or there is a query and
                no embedding function.
            LimitExceeded: more than `scan_limit` items or namespaces would be read.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so.
        """
        wanted = list(ops)
        texts = self._texts(wanted)
        vectors: list[list[float]] = []
        of_queries: dict[str, list[float]] = {}
        if self._embeddings is not None:
            vectors = await self._embeddings.aembed_documents(texts) if texts else []
            for query in self._queries(wanted):
                of_queries[query] = await self._embeddings.aembed_query(query)
        found = dict(zip(texts, vectors, strict=True))
        return await self._services.arun(self._batch, wanted, found, of_queries)

    # -- flows ---------------------------------------------------------------------------------

    def _batch(
        self,
        ops: Ops,
        wanted: Sequence[Op],
        vectors: Mapping[str, list[float]],
        of_queries: Mapping[str, list[float]],
    ) -> Flow[list[Result]]:
        puts = {
            (op.namespace, op.key): self._encoded(op, vectors)
            for op in wanted
            if isinstance(op, PutOp)
        }
        results: list[Result] = []
        for op in wanted:
            if isinstance(op, GetOp):
                results.append((yield from self._get(ops, op)))
            elif isinstance(op, SearchOp):
                vector = of_queries.get(op.query) if op.query else None
                results.append((yield from self._search(ops, op, vector)))
            elif isinstance(op, ListNamespacesOp):
                results.append((yield from self._list_namespaces(ops, op)))
            elif isinstance(op, PutOp):
                results.append(None)
            else:
                raise InvalidArgument(f"{type(op).__name__} is not an operation of a store")
        for put in puts.values():
            if put.value is None:
                key = self._key(put.namespace, put.key)
                yield from flows.delete_session(ops, key.app_name, key.user_id, key.session_id)
            else:
                yield from self._put(ops, put)
        return results

    def _get(self, ops: Ops, op: GetOp) -> Flow[Item | None]:
        key = self._key(op.namespace, op.key)
        found = yield _with_ttl(ops, 0).read_fields(key, [_VALUE, _TTL, *_TIMES])
        if found is None or found[0] is None:
            return None
        value, ttl, created_us, updated_us = found
        if ttl is not None and op.refresh_ttl:
            yield _with_ttl(ops, int(ttl)).read_fields(key, [_TTL])
        return Item(
            value=_decode(value),
            key=op.key,
            namespace=op.namespace,
            created_at=from_us(int(created_us)),
            updated_at=from_us(int(updated_us)),
        )

    def _put(self, ops: Ops, put: _Put) -> Flow[None]:
        key = self._key(put.namespace, put.key)
        timed = _with_ttl(ops, put.ttl_ms)
        pairs = [_VALUE, put.value or b"null"]
        removed = []
        if put.ttl_ms:
            pairs += [_TTL, b"%d" % put.ttl_ms]
        if put.vectors:
            pairs += [_VECTORS, _encode(put.vectors)]
        else:
            removed.append(_VECTORS)
        for _ in range(_ATTEMPTS):
            found = yield _with_ttl(ops, 0).read_fields(key, [_TTL])
            if found is not None and found[0] is not None and not put.ttl_ms:
                # Only a new session has no deadline again.
                yield from flows.delete_session(ops, key.app_name, key.user_id, key.session_id)
                found = None
            try:
                if found is None:
                    change = Change(Delta(pairs), Delta(), Delta(), {}, [])
                    yield timed.create_session(key, uuid4().hex, change)
                else:
                    yield timed.change_fields(key, [], [], Delta(pairs, removed))
            except (SessionExists, SessionNotFound):
                continue
            yield from self._register(ops, put.namespace)
            return
        raise InvalidArgument(f"others create and delete item {put.key!r} all the time")

    def _register(self, ops: Ops, namespace: Namespace) -> Flow[None]:
        """Name every label of a namespace under the prefix before it."""
        plain = _with_ttl(ops, 0)
        for depth, label in enumerate(namespace):
            key = self._children(namespace[:depth])
            field = b"." + label.encode()
            found = yield plain.read_fields(key, [field])
            if found is not None and found[0] is not None:
                continue
            delta = Delta([field, b"1"])
            try:
                if found is None:
                    change = Change(delta, Delta(), Delta(), {}, [])
                    yield plain.create_session(key, uuid4().hex, change)
                    continue
            except SessionExists:
                pass
            yield plain.change_fields(key, [], [], delta)

    def _search(self, ops: Ops, op: SearchOp, vector: list[float] | None) -> Flow[list[SearchItem]]:
        if op.query and vector is None:
            raise InvalidArgument("query needs an embedding function: StoredStore(index=...)")
        found: list[tuple[float | None, Namespace, Session]] = []
        wanted = op.offset + op.limit
        scanned = 0
        for namespace in (yield from self._below(ops, op.namespace_prefix)):
            cursor: str | None = None
            while vector is not None or len(found) < wanted:
                page = yield from self._page(ops, namespace, _PAGE_LIMIT, cursor)
                for session in page:
                    if vector is None and len(found) == wanted:
                        break
                    scanned += 1
                    if scanned > self._scan_limit:
                        raise self._too_many("items", op.namespace_prefix)
                    if _matches(session.state.get("value"), op.filter):
                        score = _similarity(vector, session.state.get("vectors"))
                        found.append((score, namespace, session))
                cursor = page.cursor
                if cursor is None:
                    break
        if vector is not None:
            found.sort(key=lambda each: -math.inf if each[0] is None else each[0], reverse=True)
        found = found[op.offset : wanted]
        if op.refresh_ttl:
            refreshes = [
                _with_ttl(ops, session.state["ttl"]).read_fields(session.key, [_TTL])
                for _, _, session in found
                if "ttl" in session.state
            ]
            if refreshes:
                yield tuple(refreshes)
        return [
            SearchItem(
                namespace=namespace,
                key=session.id,
                value=session.state["value"],
                created_at=session.created_at,
                updated_at=session.updated_at,
                score=score,
            )
            for score, namespace, session in found
        ]

    def _list_namespaces(self, ops: Ops, op: ListNamespacesOp) -> Flow[list[Namespace]]:
        conditions = op.match_conditions or ()
        start: Namespace = ()
        for condition in conditions:
            if condition.match_type == "prefix":
                path = tuple(condition.path)
                plain = path[: path.index("*")] if "*" in path else path
                start = max(start, plain, key=len)
        found: set[Namespace] = set()
        for namespace in (yield from self._below(ops, start)):
            is_wanted = all(_meets(condition, namespace) for condition in conditions)
            if is_wanted and (yield from self._page(ops, namespace, 1, None)):
                found.add(namespace[: op.max_depth])
        return sorted(found)[op.offset : op.offset + op.limit]

    def _below(self, ops: Ops, prefix: Namespace) -> Flow[list[Namespace]]:
        """A namespace and those below it, in order. Forgets those that are empty."""
        found: list[Namespace] = []
        waiting = [prefix]
        while waiting:
            namespace = waiting.pop()
            if len(found) >= self._scan_limit:
                raise self._too_many("namespaces", prefix)
            found.append(namespace)
            children: dict[bytes, bytes] = yield _with_ttl(ops, 0).read_all_fields(
                self._children(namespace)
            )
            labels = sorted((field[1:].decode() for field in children), reverse=True)
            waiting += [(*namespace, label) for label in labels]
            if not labels and namespace != prefix:
                yield from self._forget_if_empty(ops, namespace)
        return [namespace for namespace in found if namespace]

    def _forget_if_empty(self, ops: Ops, namespace: Namespace) -> Flow[None]:
        if (yield from self._page(ops, namespace, 1, None)):
            return
        field = b"." + namespace[-1].encode()
        key = self._children(namespace[:-1])
        try:
            yield _with_ttl(ops, 0).change_fields(key, [], [], Delta([], [field]))
        except SessionNotFound:
            return
        # An item that was stored in between may have found the label still there.
        below = yield _with_ttl(ops, 0).read_all_fields(self._children(namespace))
        if below or (yield from self._page(ops, namespace, 1, None)):
            yield from self._register(ops, namespace)

    def _page(self, ops: Ops, namespace: Namespace, limit: int, cursor: str | None) -> Flow[Any]:
        """A page of the items of a namespace."""
        return (
            yield from flows.list_sessions(
                ops, self._app_name, _user_id(namespace), limit, 0, 0, cursor
            )
        )

    # -- parts ---------------------------------------------------------------------------------

    def _key(self, namespace: Namespace, key: str) -> SessionKey:
        encode_id("key", key)
        return SessionKey(self._app_name, _user_id(namespace), key)

    def _children(self, prefix: Namespace) -> SessionKey:
        return SessionKey(self._app_name, f".{'.'.join(prefix)}", _CHILDREN)

    def _encoded(self, op: PutOp, vectors: Mapping[str, list[float]]) -> _Put:
        """A PutOp, checked and encoded."""
        self._key(op.namespace, op.key)
        ttl_ms = 0
        if op.ttl is not None:
            ttl_ms = round(op.ttl * _MS_PER_MINUTE)
            check_int("ttl in milliseconds", ttl_ms, low=1)
        if op.value is None:
            return _Put(op.namespace, op.key, None, ttl_ms, [])
        try:
            value = _encode(dict(op.value))
            _decode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidArgument(f"value of item {op.key!r} is not JSON: {error}") from error
        found = [vectors[text] for text in self._texts_of(op) if text in vectors]
        return _Put(op.namespace, op.key, value, ttl_ms, found)

    def _texts(self, ops: Sequence[Op]) -> list[str]:
        """The texts of values to embed, each once."""
        texts = (text for op in ops if isinstance(op, PutOp) for text in self._texts_of(op))
        return list(dict.fromkeys(texts))

    def _texts_of(self, op: PutOp) -> Iterator[str]:
        if self._embeddings is None or op.value is None or op.index is False:
            return
        paths = self._paths if op.index is None else [tokenize_path(path) for path in op.index]
        for path in paths:
            yield from get_text_at_path(op.value, path)

    def _queries(self, ops: Sequence[Op]) -> list[str]:
        if self._embeddings is None:
            return []
        return [op.query for op in ops if isinstance(op, SearchOp) and op.query]

    def _embed(self, query: str) -> list[float]:
        assert self._embeddings is not None
        found: list[float] = self._embeddings.embed_query(query)
        return found

    def _too_many(self, what: str, prefix: Namespace) -> LimitExceeded:
        limit = self._scan_limit
        return LimitExceeded(
            f"namespace {prefix!r} has more than {limit} {what} to look at (scan_limit)",
            limit=limit,
            actual=limit + 1,
        )


def _user_id(namespace: Namespace) -> str:
    """The user of a namespace. Labels contain no period, so it is unique."""
    for label in namespace:
        if not isinstance(label, str) or not label or "." in label:
            raise InvalidArgument(
                f"namespace {namespace!r} must consist of texts that are not empty, without '.'"
            )
    name = ".".join(namespace)
    size = len(name.encode("utf-8", "replace"))
    if not name or size >= ID_LIMIT:
        raise InvalidArgument(
            f"namespace has {size} bytes with '.' between labels; 1 to {ID_LIMIT - 1} are allowed"
        )
    return name


def _with_ttl(ops: Ops, ttl_ms: int) -> Ops:
    """Builds Calls for items with this TTL; 0 = none, and no TTL is refreshed."""
    options = msgspec.structs.replace(
        ops.options,
        session_ttl_ms=ttl_ms,
        user_state_ttl_ms=0,
        app_state_ttl_ms=0,
        refresh_ttl_on_read=ttl_ms > 0,
    )
    return Ops(options, app_in_own_slot=ops.app_in_own_slot)


def _similarity(vector: list[float] | None, vectors: list[list[float]] | None) -> float | None:
    """The highest cosine similarity of a vector with others; None without others."""
    if vector is None or not vectors:
        return None
    return max(_cosine(vector, other) for other in vectors)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    length = math.hypot(*one) * math.hypot(*other)
    return sum(map(float.__mul__, map(float, one), map(float, other))) / length if length else 0.0


def _matches(value: Any, wanted: Mapping[str, Any] | None) -> bool:
    """Whether a value has what a filter names."""
    if not isinstance(value, dict):
        return False
    return all(_is_like(value.get(name), part) for name, part in (wanted or {}).items())


def _is_like(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        if any(name.startswith("$") for name in wanted):
            return all(_compare(value, name, operand) for name, operand in wanted.items())
        return isinstance(value, dict) and _matches(value, wanted)
    if isinstance(wanted, (list, tuple)):
        return (
            isinstance(value, list)
            and len(value) == len(wanted)
            and all(map(_is_like, value, wanted))
        )
    return bool(value == wanted)


_ORDERED: dict[str, Callable[[float, float], bool]] = {
    "$gt": float.__gt__,
    "$gte": float.__ge__,
    "$lt": float.__lt__,
    "$lte": float.__le__,
}


def _compare(value: Any, operator: str, operand: Any) -> bool:
    if operator == "$eq":
        return bool(value == operand)
    if operator == "$ne":
        return bool(value != operand)
    if operator not in _ORDERED:
        raise InvalidArgument(f"filter: there is no operator {operator!r}")
    try:
        return _ORDERED[operator](float(value), float(operand))
    except (TypeError, ValueError):
        return False  # it is not a number


def _meets(condition: MatchCondition, namespace: Namespace) -> bool:
    """Whether a namespace begins or ends as a condition says; "*" stands for any label."""
    path = tuple(condition.path)
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[-len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))
