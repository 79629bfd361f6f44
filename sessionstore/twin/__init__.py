"""The in-memory twin of a server: it runs the same Calls and returns the same replies."""

from .executor import AsyncMemoryExecutor, MemoryExecutor

__all__ = ["AsyncMemoryExecutor", "MemoryExecutor"]
