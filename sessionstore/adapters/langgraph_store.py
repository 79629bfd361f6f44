"""LangGraph: a `BaseStore` for long-term memory that is kept in sessionstore, on plain Redis.

An item is a session of its own, so it expires by itself: its namespace is the user, its key the
session id. The labels that follow a prefix are state of the user `.PREFIX`, so namespaces are found
without a scan of the keyspace. A search or a listing forgets a label whose items have expired.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

import sessionstore.sync

from .. import flows
from ..calls import Flow
from ..errors import InvalidArgument, LimitExceeded, SessionExists, SessionNotFound
from ..keys import ID_LIMIT, encode_id
from ..model import Session, SessionKey
from ..ops import Ops, ids_of
from ..options import check_int
from ..tiers import encode_change
from ..transform import TierOwner
from . import framework
from .services import AnyService, Services

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

_PAGE_LIMIT = 100
_ATTEMPTS = 20
_MS_PER_MINUTE = 60_000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class StoredStore(BaseStore):
    """Long-term memory of LangGraph: `builder.compile(store=StoredStore(service))`.

    Reading an item takes one round trip, or two if it has a TTL. Storing one takes three, the first
    of a namespace a few more. A search reads the items of its namespaces one after the other, in
    each the most recently updated first, until it has found enough. There is no index of values: a
    filter, and a query in words, look at up to `scan_limit` items.

    Args:
        service: a service of sessionstore, as for StoredCheckpointSaver. Its `session_ttl` is the
            TTL of items that are stored without one; reads refresh TTLs if its
            `refresh_ttl_on_read` says so.
        app_name: 1 to 256 bytes of UTF-8. Nothing else may use this application.
        sync_service: a service of `sessionstore.sync` on the same server, with one for asyncio.
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
        self._embeddings: Any = ensure_embeddings(index.get("embed")) if index else None
        self._paths = [tokenize_path(path) for path in (index or {}).get("fields") or ["$"]]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._services!r})"

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Results of several operations. See `abatch`."""
        wanted = list(ops)
        texts, queries = self._texts(wanted), self._queries(wanted)
        vectors = self._embeddings.embed_documents(texts) if texts else []
        of_queries = {query: self._embeddings.embed_query(query) for query in queries}
        of_texts = dict(zip(texts, vectors, strict=True))
        return self._services.run(self._batch, wanted, of_texts, of_queries)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Results of several operations: all reads, then of two writes of an item the last.

        Raises:
            InvalidArgument: a namespace, a key or a value cannot be stored, or there is a query and
                no embedding function.
            LimitExceeded: more than `scan_limit` items or namespaces would be read.
            BackendError: the store refused the call or did not answer (maybe_applied).
        """
        wanted = list(ops)
        texts, queries = self._texts(wanted), self._queries(wanted)
        vectors = await self._embeddings.aembed_documents(texts) if texts else []
        of_queries = {query: await self._embeddings.aembed_query(query) for query in queries}
        of_texts = dict(zip(texts, vectors, strict=True))
        return await self._services.arun(self._batch, wanted, of_texts, of_queries)

    # -- flows ---------------------------------------------------------------------------------

    def _batch(
        self,
        ops: Ops,
        wanted: Sequence[Op],
        of_texts: Mapping[str, list[float]],
        of_queries: Mapping[str, list[float]],
    ) -> Flow[list[Result]]:
        puts = {
            self._key(op.namespace, op.key): (op.namespace, self._state(op, of_texts))
            for op in wanted
            if isinstance(op, PutOp)
        }
        ops = _with_ttl(ops, 0)
        results: list[Result] = []
        for op in wanted:
            if isinstance(op, GetOp):
                results.append((yield from self._get(ops, op)))
            elif isinstance(op, SearchOp):
                results.append((yield from self._search(ops, op, of_queries.get(op.query or ""))))
            elif isinstance(op, ListNamespacesOp):
                results.append((yield from self._list_namespaces(ops, op)))
            elif isinstance(op, PutOp):
                results.append(None)
            else:
                raise InvalidArgument(f"{type(op).__name__} is not an operation of a store")
        for key, (namespace, state) in puts.items():
            if state is None:
                yield from flows.delete_session(ops, *ids_of(key))
            else:
                yield from self._put(ops, key, state)
                yield from self._register(ops, namespace)
        return results

    def _get(self, ops: Ops, op: GetOp) -> Flow[Item | None]:
        key = self._key(op.namespace, op.key)
        session = yield from flows.get_session(ops, key, 0, None)
        if session is None or "value" not in session.state:
            return None
        if op.refresh_ttl:
            yield from self._refresh(ops, [session])
        return Item(namespace=op.namespace, **_shown(session))

    def _refresh(self, ops: Ops, sessions: Iterable[Session]) -> Flow[None]:
        """Refresh the TTL of items that have one."""
        timed = [session for session in sessions if "ttl" in session.state]
        if timed:
            yield tuple(
                _with_ttl(ops, each.state["ttl"]).read_fields(each.key, []) for each in timed
            )

    def _put(self, ops: Ops, key: SessionKey, state: Mapping[str, Any]) -> Flow[None]:
        timed = _with_ttl(ops, state.get("ttl", 0))
        for _ in range(_ATTEMPTS):
            found = yield ops.read_fields(key, [b".ttl"])
            if found not in (None, [None]) and "ttl" not in state:
                # A session keeps the deadline that it has.
                yield from flows.delete_session(ops, *ids_of(key))
                found = None
            try:
                if found is None:
                    yield from flows.create_session(timed, *ids_of(key), state)
                else:
                    yield from flows.update_session_state(timed, key, state, (), None)
            except (SessionExists, SessionNotFound):
                continue
            return
        raise InvalidArgument(
            f"item {key.session_id!r} was created and deleted by others in every attempt"
        )

    def _search(self, ops: Ops, op: SearchOp, vector: list[float] | None) -> Flow[list[SearchItem]]:
        if op.query and vector is None:
            raise InvalidArgument("query needs an embedding function: StoredStore(index=...)")
        wanted = op.offset + op.limit
        found: list[tuple[float | None, Namespace, Session]] = []
        scanned = 0
        for namespace in (yield from self._below(ops, op.namespace_prefix)):
            cursor: str | None = ""
            while cursor is not None and (vector is not None or len(found) < wanted):
                page = yield from self._page(ops, namespace, _PAGE_LIMIT, cursor or None)
                cursor = page.cursor
                for session in page:
                    if vector is None and len(found) == wanted:
                        break
                    scanned += 1
                    if scanned > self._scan_limit:
                        raise self._too_many("items", op.namespace_prefix)
                    if _is_like(session.state.get("value"), op.filter or {}):
                        vectors = session.state.get("vectors", ())
                        score = _similarity(vector, vectors) if vector is not None else None
                        found.append((score, namespace, session))
        if vector is not None:
            found.sort(key=lambda each: -math.inf if each[0] is None else each[0], reverse=True)
        found = found[op.offset : wanted]
        if op.refresh_ttl:
            yield from self._refresh(ops, [session for _, _, session in found])
        return [
            SearchItem(namespace=namespace, score=score, **_shown(session))
            for score, namespace, session in found
        ]

    def _list_namespaces(self, ops: Ops, op: ListNamespacesOp) -> Flow[list[Namespace]]:
        conditions = op.match_conditions or ()
        start: Namespace = ()  # the longest prefix without a wildcard
        for condition in conditions:
            if condition.match_type == "prefix":
                path = (*condition.path, "*")
                start = max(start, path[: path.index("*")], key=len)
        found: set[Namespace] = set()
        for namespace in (yield from self._below(ops, start)):
            is_wanted = all(_meets(condition, namespace) for condition in conditions)
            if is_wanted and (yield from self._page(ops, namespace, 1)):
                found.add(namespace[: op.max_depth])
        return sorted(found)[op.offset : op.offset + op.limit]

    def _page(
        self, ops: Ops, namespace: Namespace, limit: int, cursor: str | None = None
    ) -> Flow[Any]:
        """A page of the items of a namespace."""
        user_id = _user_id(namespace)
        return flows.list_sessions(ops, self._app_name, user_id, limit, 0, 0, cursor)

    # -- namespaces ----------------------------------------------------------------------------

    def _register(self, ops: Ops, namespace: Namespace) -> Flow[None]:
        """Name every label of a namespace under the prefix before it."""
        calls = []
        for depth, label in enumerate(namespace):
            owner = TierOwner(self._app_name, _children(namespace[:depth]))
            state = {f"user:{label}": True}
            if ops.data_keys is not None:  # each user has another one
                yield from flows.update_user_state(ops, *owner, state, (), if_absent=True)
                continue
            change = encode_change(ops.options.codec, owner, state, tier="user")
            calls.append(ops.update_user_state(*owner, change, if_absent=True))
        if calls:
            yield tuple(calls)

    def _below(self, ops: Ops, prefix: Namespace) -> Flow[list[Namespace]]:
        """A namespace and those below it, in order. Forgets those that are empty."""
        found: list[Namespace] = []
        waiting = [prefix]
        while waiting:
            namespace = waiting.pop()
            if len(found) >= self._scan_limit:
                raise self._too_many("namespaces", prefix)
            found.append(namespace)
            labels = yield from self._labels(ops, namespace)
            waiting += [(*namespace, label) for label in sorted(labels, reverse=True)]
            if namespace != prefix and not labels:
                yield from self._forget_if_empty(ops, namespace)
        return [namespace for namespace in found if namespace]

    def _labels(self, ops: Ops, prefix: Namespace) -> Flow[Iterable[str]]:
        """The labels that follow a prefix."""
        return flows.get_user_state(ops, self._app_name, _children(prefix))

    def _forget_if_empty(self, ops: Ops, namespace: Namespace) -> Flow[None]:
        if (yield from self._page(ops, namespace, 1)):
            return
        removed = [f"user:{namespace[-1]}"]
        parent = _children(namespace[:-1])
        yield from flows.update_user_state(ops, self._app_name, parent, {}, removed)
        # An item that was stored in between may have found the label still there.
        if (yield from self._labels(ops, namespace)) or (yield from self._page(ops, namespace, 1)):
            yield from self._register(ops, namespace)

    # -- parts ---------------------------------------------------------------------------------

    def _key(self, namespace: Namespace, key: str) -> SessionKey:
        encode_id("key", key)
        return SessionKey(self._app_name, _user_id(namespace), key)

    def _state(self, op: PutOp, of_texts: Mapping[str, list[float]]) -> dict[str, Any] | None:
        """The state of an item, checked; None = delete the item."""
        ttl = {}
        if op.ttl is not None:
            ttl["ttl"] = check_int("ttl in milliseconds", round(op.ttl * _MS_PER_MINUTE), low=1)
        if op.value is None:
            return None
        try:
            value = _decode(_encode(dict(op.value)))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidArgument(f"value of item {op.key!r} is not JSON: {error}") from error
        return {"value": value, "vectors": [of_texts[text] for text in self._texts([op])], **ttl}

    def _texts(self, ops: Iterable[Op]) -> list[str]:
        """The texts of values to embed, each once."""
        found: dict[str, None] = {}
        for op in ops if self._embeddings else ():
            if isinstance(op, PutOp) and op.value is not None and op.index is not False:
                for path in self._paths if op.index is None else map(tokenize_path, op.index):
                    found.update(dict.fromkeys(get_text_at_path(op.value, path)))
        return list(found)

    def _queries(self, ops: Iterable[Op]) -> list[str]:
        ops = ops if self._embeddings else ()
        return [op.query for op in ops if isinstance(op, SearchOp) and op.query]

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
                f"namespace {namespace!r} must consist of non-empty strings without '.'"
            )
    name = ".".join(namespace)
    size = len(name.encode("utf-8", "replace"))
    if not name or size >= ID_LIMIT:
        raise InvalidArgument(
            f"namespace has {size} bytes with '.' between labels; 1 to {ID_LIMIT - 1} are allowed"
        )
    return name


def _shown(session: Session) -> dict[str, Any]:
    """What an item shows of its session."""
    return {
        "key": session.id,
        "value": session.state["value"],
        "created_at": session.created_at,
        "updated_at": session.updated_at,
    }


def _children(prefix: Namespace) -> str:
    """The user whose state is the labels that follow a prefix."""
    return f".{'.'.join(prefix)}"


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


def _similarity(vector: list[float], vectors: Iterable[list[float]]) -> float | None:
    """The highest cosine similarity of a vector with others; None without others."""

    def cosine(other: list[float]) -> float:
        length = math.hypot(*vector) * math.hypot(*other)
        return sum(map(operator.mul, vector, other)) / length if length else 0.0

    return max(map(cosine, vectors), default=None)


def _is_like(value: Any, wanted: Any) -> bool:
    """Whether a value has what a filter names."""
    if isinstance(wanted, dict):
        if any(name.startswith("$") for name in wanted):
            return all(_compare(value, name, operand) for name, operand in wanted.items())
        return isinstance(value, dict) and all(
            _is_like(value.get(name), part) for name, part in wanted.items()
        )
    if isinstance(wanted, (list, tuple)):
        is_list = isinstance(value, list) and len(value) == len(wanted)
        return is_list and all(map(_is_like, value, wanted))
    return bool(value == wanted)


_ORDERED = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}


def _compare(value: Any, name: str, operand: Any) -> bool:
    if name in ("$eq", "$ne"):
        return bool(value == operand) is (name == "$eq")
    if name not in _ORDERED:
        raise InvalidArgument(f"filter: there is no operator {name!r}")
    try:
        return bool(_ORDERED[name](float(value), float(operand)))
    except (TypeError, ValueError):
        return False  # it is not a number


def _meets(condition: MatchCondition, namespace: Namespace) -> bool:
    """Whether a namespace begins or ends as a condition says; "*" stands for any label."""
    path = tuple(condition.path)
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[-len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))
