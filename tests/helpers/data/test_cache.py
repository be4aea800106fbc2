"""Records are whole, checked, and written at once or not at all."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.helpers.data.cache import TensorStore
from simpletuner.helpers.data.errors import DatasetError

KEY = "ab" * 20


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "half": torch.arange(6).reshape(2, 3).bfloat16().T,  # not contiguous
        "label": torch.tensor(7),
        "nothing": torch.empty(0, 4),
    }


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The nearest thing to a full disk that needs no rights: writes beyond `size` bytes fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    assert not store.intact(KEY)
    store.write(KEY, some_tensors())
    assert store.intact(KEY)
    read = store.read(KEY)
    assert read.keys() == some_tensors().keys()
    for name, tensor in some_tensors().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_missing_record_says_how_to_rebuild(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cache_dir: .*missing or damaged; start the run again"):
        TensorStore(tmp_path).read(KEY)


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, position: float, bit: int) -> None:
    store = TensorStore(tmp_path_factory.mktemp("store"))
    original = {"latents": torch.randn(4, 4, generator=torch.Generator().manual_seed(0))}
    store.write(KEY, original)
    data = bytearray(store.path(KEY).read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    store.path(KEY).write_bytes(data)
    # A flip in the padding of the header changes no value: then the record is as good as before.
    assert not store.intact(KEY) or torch.equal(store.read(KEY)["latents"], original["latents"])


@given(share=st.floats(0, 1, exclude_max=True))
def test_any_torn_record_is_found(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    store = TensorStore(tmp_path_factory.mktemp("store"))
    store.write(KEY, some_tensors())
    data = store.path(KEY).read_bytes()
    store.path(KEY).write_bytes(data[: int(share * len(data))])
    assert not store.intact(KEY)


def test_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    store.write(KEY, some_tensors())
    with file_size_limit(1000), pytest.raises(DatasetError, match=r"cache_dir: can't write .*Free space"):
        store.write(KEY, {"latents": torch.zeros(4096)})
    assert store.intact(KEY)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{KEY}.safetensors"]


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    store.write(KEY, some_tensors())
    old, new = (store.path(KEY).with_name(f"{name}.tmp") for name in ("old", "new"))
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.remove_leftovers()
    assert not old.exists()
    assert new.exists()
    assert store.intact(KEY)
