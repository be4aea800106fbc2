"""What a cache's records take, known without torch."""

from __future__ import annotations

import math

from simpletuner.configuration.alignment_shared import CacheType

BYTES: dict[CacheType, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
PAGE = 4096
"""Bytes of LMDB's pages: a record of half a page or more has pages of its own."""
OVERHEAD = 256
"""Bytes of a record beside its numbers: names, shapes, the checksum."""


def feature_bytes(tokens: int, width: int, dtype: CacheType) -> int:
    """Bytes that the features of so many tokens take; int8 has a scale of 4 bytes a token."""
    return tokens * (width * BYTES[dtype] + (4 if dtype == "int8" else 0))


def on_disk(size: int) -> int:
    """About what a record of ``size`` bytes takes in a store; small ones share pages, which are half full at worst."""
    whole = size + OVERHEAD
    return whole if whole < PAGE // 2 else math.ceil(whole / PAGE) * PAGE
