"""The text of every event, for sessionstore and its peers alike. Imports nothing."""

TEXT = ("What an agent says, and what its tools return, is mostly text of this kind. " * 14)[:1024]
"""1 KB, which makes an encoded event of about 1,140 bytes."""

TTL_SECONDS = 3600
