"""The Calls about servers."""

from __future__ import annotations

from typing import Any, Literal

from ..calls import Call, Command
from ..replies import decode_role
from .base import BaseOps


class ServerOps(BaseOps):
    """Calls about servers."""

    @staticmethod
    def ping() -> Call[Literal["primary", "replica"]]:
        """The role of a server. HELLO without arguments changes nothing, and needs no rights."""
        return Call("ping", decode_role, commands=(("HELLO",),), writes=False, slot=0)

    @staticmethod
    def list_primaries() -> Call[list[int]]:
        """One slot of every primary of the cluster."""

        def decode(replies: list[Any]) -> list[int]:
            slot_of = {tuple(primary[:3]): slot for slot, _, primary, *_ in replies[0]}
            return sorted(slot_of.values())

        command: Command = ("CLUSTER", "SLOTS")  # any server answers it
        return Call("list_users", decode, commands=(command,), writes=False, slot=0)
