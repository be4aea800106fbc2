from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Every build collects garbage, which would take most of its time here: the libraries' objects are left out."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
