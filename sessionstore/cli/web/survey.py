"""A scan of all keys, and the checks of the doctor. Both run in background threads."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from threading import Event, Lock, Thread
from typing import NamedTuple

from ...errors import SessionStoreError
from ...keys import StoredKey
from ...sync import SessionService
from ..doctor.data_checks import check_data, findings_of
from ..doctor.finding import Finding
from ..doctor.server_checks import check_server
from ..keyspace import Node, memory_of, primaries, scan
from ..stats import KINDS

_NAMES_LIMIT = 250_000  # of applications and users that are kept
_KEYS_PER_STEP = 1000
_SAMPLES = 200  # keys of a kind whose memory is measured
_SESSIONS_CHECKED = 300


class AppCount(NamedTuple):
    """An application, with the numbers that the scan found so far."""

    app_name: str
    num_users: int
    num_sessions: int


class UserCount(NamedTuple):
    """A user, with the number of sessions that the scan found so far."""

    user_id: str
    num_sessions: int


class Kind(NamedTuple):
    """A kind of key. num_bytes is estimated; None: the user may not run MEMORY USAGE."""

    name: str
    number: int
    num_bytes: int | None


class Survey:
    """Counts of all keys, and the findings of the doctor.

    Each is found by a thread, which starts with the first request. Pages show what is known so far.
    """

    def __init__(self, service: SessionService) -> None:
        self.keys = _Census(service)
        self.health = _Health(service)

    def stop(self) -> None:
        """End the threads."""
        self.keys.stop()
        self.health.stop()


class _Task:
    """Something that a thread does once, and again on request.

    Attributes:
        problem: why the last run failed; "" = it did not.
        ended_at: when the last run ended; None = no run has started, or one is running.
    """

    def __init__(self, service: SessionService) -> None:
        self._service = service
        self._lock = Lock()
        self._stopping = Event()
        self._thread: Thread | None = None
        self.problem = ""
        self.ended_at: datetime | None = None

    def start(self, *, again: bool = False) -> None:
        """Start the thread, unless it is running or has run. `again`: also if it has run."""
        with self._lock:
            if self._thread is not None and (self._thread.is_alive() or not again):
                return
            self.problem, self.ended_at = "", None
            self._thread = Thread(target=self._run, name=type(self).__name__, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()

    def _run(self) -> None:
        try:
            self._work()
        except SessionStoreError as error:
            self.problem = str(error)
        finally:
            self.ended_at = datetime.now(UTC)

    def _work(self) -> None:
        raise NotImplementedError

    def _scan(self) -> Iterator[StoredKey]:
        for key in scan(self._service):
            if self._stopping.is_set():
                return
            yield key


class _Census(_Task):
    """The applications and users of a store.

    Attributes:
        num_keys: keys that were looked at so far.
        is_cut: the scan stopped early, because there are too many users.
        kinds: the kinds of keys, once the scan has ended.
    """

    def __init__(self, service: SessionService) -> None:
        super().__init__(service)
        self._apps: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.num_keys = 0
        self.is_cut = False
        self.kinds: list[Kind] = []

    def apps(self) -> list[AppCount]:
        """The applications, by name."""
        with self._lock:
            found = [
                AppCount(app_name, len(users), users.total())
                for app_name, users in self._apps.items()
            ]
        return sorted(found)

    def users(
        self, app_name: str, text: str, after: str | None, limit: int
    ) -> tuple[list[UserCount], int]:
        """Users of an application, by id, and how many there are.

        Args:
            app_name: the application.
            text: a part of their ids; case does not matter.
            after: only users after this one.
            limit: how many to return.
        """
        with self._lock:
            found = list(self._apps[app_name].items()) if app_name in self._apps else []
        wanted = text.casefold()
        found = [each for each in found if wanted in each[0].casefold()]
        rest = found if after is None else [each for each in found if each[0] > after]
        return [UserCount(*each) for each in heapq.nsmallest(limit, rest)], len(found)

    def forget(self, app_name: str, user_id: str) -> None:
        """Leave out a user who was erased."""
        with self._lock:
            if app_name in self._apps:
                self._apps[app_name].pop(user_id, None)

    def _work(self) -> None:
        with self._lock:
            self._apps.clear()
            self.num_keys, self.is_cut, self.kinds = 0, False, []
        numbers: Counter[str] = Counter()
        samples: defaultdict[str, list[bytes]] = defaultdict(list)
        num_names = 0
        keys = self._scan()
        while num_names < _NAMES_LIMIT and (step := list(islice(keys, _KEYS_PER_STEP))):
            with self._lock:
                for key in step:
                    users = self._apps[key.app_name]
                    if key.user_id and not key.is_temporary:
                        users[key.user_id] += key.role == "session"
                num_names = len(self._apps) + sum(map(len, self._apps.values()))
                self.num_keys += len(step)
            for key in step:
                numbers[key.role] += 1
                if len(samples[key.role]) < _SAMPLES:
                    samples[key.role].append(key.key)
        self.is_cut = num_names >= _NAMES_LIMIT
        self.kinds = list(self._sizes(numbers, samples))

    def _sizes(self, numbers: Counter[str], samples: dict[str, list[bytes]]) -> Iterator[Kind]:
        for role, name in KINDS.items():
            if numbers[role]:
                size = memory_of(self._service, *samples[role])
                total = None if size is None else size * numbers[role] // len(samples[role])
                yield Kind(name, numbers[role], total)


class _Health(_Task):
    """The checks of the doctor.

    Attributes:
        findings: the findings so far.
    """

    def __init__(self, service: SessionService) -> None:
        super().__init__(service)
        self.findings: list[Finding] = []

    @property
    def problems(self) -> list[Finding]:
        """The warnings and errors."""
        return [each for each in self.findings if each.status in ("warning", "error")]

    def _work(self) -> None:
        found: list[Finding] = []
        for slot in primaries(self._service):
            found += check_server(Node(self._service, slot))
        self.findings = found
        damage = check_data(self._service, self._scan(), _SESSIONS_CHECKED)
        self.findings = [*found, *findings_of(damage)]
