"""Names of a store in order, in bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sessionstore.cli.keyspace import in_order


@given(st.lists(st.text("abc", max_size=3)), st.integers(1, 5))
def test_distinct_items_come_in_order_with_any_part_at_once(items: list[str], at_once: int) -> None:
    assert list(in_order(lambda: items, at_once)) == sorted(set(items))


def test_an_item_that_is_there_all_the_time_is_not_missed() -> None:
    reads = iter([["a", "c", "d", "b"], ["d", "a", "e", "c", "b"], ["e", "d", "c"], ["e"], []])
    assert list(in_order(lambda: next(reads), at_once=2)) == ["a", "b", "c", "d", "e"]
