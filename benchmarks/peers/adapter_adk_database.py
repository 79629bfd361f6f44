"""google-adk: DatabaseSessionService on an SQLite file in a temporary directory."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from . import adapter_adk_memory


class Adapter(adapter_adk_memory.Adapter):
    """The calls of the worker."""

    async def _make_service(self, url: str) -> Any:
        del url
        self._directory = tempfile.TemporaryDirectory()  # removed when the process ends
        sessions: Any = import_module("google.adk.sessions.database_session_service")
        file = Path(self._directory.name) / "sessions.db"
        # With SQLite's default of 5 seconds, many tasks at once fail: "database is locked".
        return sessions.DatabaseSessionService(
            db_url=f"sqlite+aiosqlite:///{file}", connect_args={"timeout": 60}
        )
