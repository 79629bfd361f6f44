"""The text of every event, for sessionstore and its peers. Imports nothing."""

TEXT = ("What an agent says, and what its tools return, is mostly text of this kind. " * 14)[:1024]
"""1 KB of text. An encoded event has about 1,140 bytes."""

TTL_SECONDS = 3600
