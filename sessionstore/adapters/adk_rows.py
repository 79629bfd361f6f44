"""Reads what ADK's DatabaseSessionService has stored, by ADK's own models: for `import --from adk`.

It takes any database that SQLAlchemy has an asynchronous driver for, and both schemas of ADK: with
events as JSON, and with pickled actions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from ..errors import InvalidArgument
from . import framework

with framework("google-adk", extra="adk", tested=">=2.8,<3"):
    from google.adk.sessions.migration import _schema_check_utils as versions
    from google.adk.sessions.schemas import v0, v1
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

_SESSIONS_PER_READ = 100


async def read_rows(url: str) -> AsyncGenerator[tuple[Any, ...], None]:
    """All rows: (app, state), (app, user, state), and for each session
    (app, user, id, state, created, updated, events), with each event as a dict of JSON values.

    Raises:
        InvalidArgument: the database cannot be read; says why, without the URL.
    """
    try:
        engine = create_async_engine(url)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise InvalidArgument(f"the database cannot be opened: {_reason(error)}") from error
    try:
        async with aclosing(_read(engine)) as rows:
            async for row in rows:
                yield row
    except (SQLAlchemyError, OSError) as error:
        raise InvalidArgument(f"the database cannot be read: {_reason(error)}") from error
    finally:
        await engine.dispose()


def _reason(error: Exception) -> str:
    """The first line: SQLAlchemy adds the statement, and where to read about the error."""
    return str(error).partition("\n")[0]


async def _read(engine: AsyncEngine) -> AsyncGenerator[tuple[Any, ...], None]:
    async with engine.connect() as connection:
        version = await connection.run_sync(versions.get_db_schema_version_from_connection)
    schema: Any = v0 if version == versions.SCHEMA_VERSION_0_PICKLE else v1
    async with AsyncSession(engine) as database:
        app, user = schema.StorageAppState, schema.StorageUserState
        async for each in await database.stream_scalars(select(app).order_by(app.app_name)):
            yield each.app_name, dict(each.state)
        by_user = select(user).order_by(user.app_name, user.user_id)
        async for each in await database.stream_scalars(by_user):
            yield each.app_name, each.user_id, dict(each.state)
        session = schema.StorageSession
        place = session.app_name, session.user_id, session.id
        ids = (await database.execute(select(*place).order_by(*place))).all()
        for key in ids:
            found = await database.get(session, tuple(key))
            if found is not None:
                events = await _events(database, schema.StorageEvent, tuple(key))
                times = _in_utc(found.create_time), _in_utc(found.update_time)
                yield *key, dict(found.state), *times, events
            database.expunge_all()


async def _events(database: AsyncSession, event: Any, key: tuple[str, ...]) -> list[dict[str, Any]]:
    wanted = (event.app_name, event.user_id, event.session_id)
    query = select(event).order_by(event.timestamp, event.id)
    for column, value in zip(wanted, key, strict=True):
        query = query.where(column == value)
    events = []
    for stored in (await database.execute(query)).scalars():
        data = stored.to_event().model_dump(exclude_none=True, mode="json")
        if data.get("long_running_tool_ids"):
            data["long_running_tool_ids"].sort()  # a set, whose order is not the same each time
        events.append(data)
    return events


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
