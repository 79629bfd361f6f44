"""The in-memory twin: carries out the same Calls as a server, and gives the same replies."""

from .executor import AsyncMemoryExecutor, MemoryExecutor

__all__ = ["AsyncMemoryExecutor", "MemoryExecutor"]
