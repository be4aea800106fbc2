from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simpletuner.configuration.cache_sizes import on_disk


@given(st.integers(0, 100_000))
def test_records_take_whole_pages_unless_they_are_small(size: int) -> None:
    assert size < on_disk(size) <= size + 256 + 4096
    assert size < 2048 or on_disk(size) % 4096 == 0
