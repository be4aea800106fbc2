"""Records are whole, checked, and written at once or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from simpletuner.helpers.data import store as store_module
from simpletuner.helpers.data.errors import DatasetError
from simpletuner.helpers.data.store import MANIFEST, CacheMismatchError, TensorStore
from tests.disk import disk_with_room_for
from tests.helpers.data.apart import Say, apart

Record = dict[str, torch.Tensor]


def some_tensors() -> Record:
    return {
        "bfloat": torch.arange(6).reshape(2, 3).bfloat16().T,  # not contiguous
        "half": torch.tensor([[1.5, -2.0]]).half(),
        "float": torch.randn(2, 3, 4)[:, ::2],
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "bytes": torch.tensor([-128, 127], dtype=torch.int8),
        "unsigned": torch.tensor([255], dtype=torch.uint8),
        "numbers": torch.tensor([2**40, -1]),
        "flags": torch.tensor([True, False]),
        "label": torch.tensor(7),
        "nothing": torch.empty(0, 4),
    }


def numbered(number: int, side: int = 40) -> Record:
    """A record that is told from all others."""
    return {"latents": torch.full((side, side), float(number)), "number": torch.tensor(number)}


def fill(store: TensorStore, count: int, *, first: int = 0, process: int = 0, batch: int = 1) -> None:
    with store.writer(process) as writer:
        for start in range(first, first + count, batch):
            writer.write({f"r{number}": numbered(number) for number in range(start, start + batch)})


def numbers_in(store: TensorStore) -> set[int]:
    """The numbers of the records that are there and whole."""
    keys = store.keys()
    found = {int(key[1:]) for key in keys if key.startswith("r")}
    assert all(same(store.read(f"r{number}"), numbered(number)) for number in found)
    return found


def same(one: Record, other: Record) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TensorStore]:
    store = TensorStore(tmp_path / "store")
    yield store
    store.remove()


# Writing and reading


def test_what_is_written_is_read(store: TensorStore) -> None:
    record = some_tensors()
    assert not store.intact("mine")
    with store.writer(0) as writer:
        writer.write({"mine": record, "other": {}})
    assert store.intact("mine")
    assert same(store.read("mine"), record)
    assert store.read("other") == {}
    assert store.keys() == {"mine", "other"}


def test_a_record_is_replaced(store: TensorStore) -> None:
    with store.writer(0) as writer:
        writer.write({"mine": numbered(1)})
        writer.write({"mine": numbered(2)})
    assert same(store.read("mine"), numbered(2))
    assert store.keys() == {"mine"}


def test_missing_record_says_what_makes_it_again(store: TensorStore) -> None:
    missing = r"store: the record mine is missing or damaged\. Run `simpletuner cache`"
    with pytest.raises(DatasetError, match=missing):
        store.read("mine")
    fill(store, 1)
    with pytest.raises(DatasetError, match=missing):
        store.read("mine")


def test_what_is_read_is_ones_own(store: TensorStore) -> None:
    """Not a view of the file, which may be written, or closed, later."""
    fill(store, 1)
    store.read("r0")["latents"].zero_()
    record = store.read("r0")
    store.remove()
    assert same(record, numbered(0))


def test_a_full_shard_is_followed_by_another(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_RECORDS", 5)
    fill(store, 12, batch=2)
    assert [path.name for path in store.shards()] == ["0000-00000.mdb", "0000-00001.mdb", "0000-00002.mdb"]
    before = [path.read_bytes() for path in store.shards()]
    fill(store, 2, first=12)
    assert [path.read_bytes() for path in store.shards()[:3]] == before  # a finished shard never changes
    assert numbers_in(store) == set(range(14))


def test_a_shard_is_full_by_its_bytes_too(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 40_000)
    fill(store, 9)
    assert all(path.stat().st_size <= 40_000 + 8192 for path in store.shards())
    assert len(store.shards()) > 1
    with store.writer(0) as writer:
        writer.write({"wide": numbered(9, side=200)})  # larger than a shard: it gets one to itself
    assert same(store.read("wide"), numbered(9, side=200))
    store.discard(["wide"])
    assert numbers_in(store) == set(range(9))


def test_processes_write_shards_of_their_own(store: TensorStore) -> None:
    with store.writer(0) as one, store.writer(1) as other:
        for number in range(0, 6, 2):
            one.write({f"r{number}": numbered(number)})
            other.write({f"r{number + 1}": numbered(number + 1)})
    assert [path.name for path in store.shards()] == ["0000-00000.mdb", "0001-00000.mdb"]
    assert numbers_in(store) == set(range(6))


def test_what_came_since_the_last_look_is_read(store: TensorStore) -> None:
    fill(store, 2)
    assert numbers_in(store) == {0, 1}
    fill(store, 2, first=2)
    assert numbers_in(store) == {0, 1, 2, 3}
    fill(store, 2, first=4, process=7)
    assert store.intact("r5")


def test_writers_of_two_runs_take_shards_of_their_own(store: TensorStore) -> None:
    """Both are process 0 of their run; neither sees what the other is still writing."""
    with store.writer(0) as one, store.writer(0) as other:
        one.write({"r0": numbered(0)})
        other.write({"r1": numbered(1)})
        assert store.keys() == set()
        one.write({"r2": numbered(2)})
    assert len(store.shards()) == 2
    assert numbers_in(store) == {0, 1, 2}


def test_a_writer_that_writes_nothing_leaves_nothing(store: TensorStore) -> None:
    with store.writer(0):
        pass
    assert not store.folder.exists()


def files_in(store: TensorStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_nothing_but_shards_is_left_of_writing(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_RECORDS", 2)
    fill(store, 4)
    store.discard(["r1"])
    store.adopt_partial_shards()
    assert files_in(store) == ["0000-00000.mdb", "0000-00001.mdb"]


# Damage


def value_of(shard: Path, marker: bytes) -> range:
    """Where the safetensors bytes of the record lie that holds `marker`: length, header and tensors."""
    data = shard.read_bytes()
    place = data.index(marker)
    assert data.find(marker, place + 1) == -1
    header = [match.start() for match in re.finditer(rb'\{"[a-z0-9_]+":\{"dtype"', data[:place])][-1]
    length = int.from_bytes(data[header - 8 : header], "little")
    facts = json.loads(data[header : header + length])
    end = header + length + max(fact["data_offsets"][1] for fact in facts.values())
    assert header + length <= place < end
    return range(header - 8, end)


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.fixture(scope="module")
def two_records(tmp_path_factory: pytest.TempPathFactory) -> TensorStore:
    store = TensorStore(tmp_path_factory.mktemp("damage") / "store")
    generator = torch.Generator().manual_seed(0)
    sides = {"small": 8, "large": 64}  # in a page with others, and in pages of its own
    with store.writer(0) as writer:
        writer.write({name: {"latents": torch.randn(side, side, generator=generator)} for name, side in sides.items()})
    return store


@pytest.mark.parametrize("name", ["small", "large"])
@settings(deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found_or_harmless(two_records: TensorStore, name: str, place: float, bit: int) -> None:
    (shard,), record = two_records.shards(), two_records.read(name)
    value = value_of(shard, record["latents"].numpy().tobytes())
    position = value[int(place * len(value))]
    flip(shard, position, bit)
    try:
        # A flip in the padding of the header changes no value: then the record is as good as before.
        assert not two_records.intact(name) or same(two_records.read(name), record)
        assert two_records.intact("large" if name == "small" else "small")
    finally:
        flip(shard, position, bit)
    assert two_records.intact(name)


def test_a_damaged_record_is_told_and_can_be_discarded_and_written_again(store: TensorStore) -> None:
    fill(store, 3)
    flip(store.shards()[0], value_of(store.shards()[0], numbered(1)["latents"].numpy().tobytes())[-1], 0)
    assert [store.intact(f"r{number}") for number in range(3)] == [True, False, True]
    with pytest.raises(DatasetError, match="r1 is missing or damaged"):
        store.read("r1")
    store.discard(["r1", "never there"])
    assert store.keys() == {"r0", "r2"}
    fill(store, 1, first=1)
    assert numbers_in(store) == {0, 1, 2}


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_shard_is_removed_alone(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    store = TensorStore(tmp_path_factory.mktemp("store"))
    fill(store, 3)
    fill(store, 3, first=3, process=1)
    whole, torn = store.shards()
    assert store.intact("r4")  # so that it is open when it is cut
    os.truncate(torn, int(share * torn.stat().st_size))
    assert store.discard_broken_shards() == [torn]
    assert store.shards() == [whole]
    assert numbers_in(store) == {0, 1, 2}
    assert not store.intact("r4")
    fill(store, 3, first=3, process=1)
    assert numbers_in(store) == set(range(6))
    store.remove()


@pytest.mark.parametrize("content", [b"", b"half a page", bytes(50_000), random.Random(0).randbytes(60_000)], ids=len)
def test_a_shard_of_garbage_is_removed_alone(store: TensorStore, content: bytes) -> None:
    fill(store, 2)
    garbage = store.folder / "0001-00000.mdb"
    garbage.write_bytes(content)
    assert store.discard_broken_shards() == [garbage]
    assert numbers_in(store) == {0, 1}


def test_a_shard_whose_pages_were_lost_is_removed(store: TensorStore) -> None:
    """As file systems leave a file after a power cut: as long as it was, and zeros from some place on."""
    fill(store, 40)
    (shard,) = store.shards()
    length = shard.stat().st_size
    os.truncate(shard, 8192)
    os.truncate(shard, length)
    assert store.discard_broken_shards() == [shard]
    assert store.keys() == set()


def test_whole_shards_are_left_alone(store: TensorStore) -> None:
    fill(store, 20)
    store.discard([f"r{number}" for number in range(0, 20, 2)])
    assert store.discard_broken_shards() == []
    assert numbers_in(store) == set(range(1, 20, 2))


# Processes


def write_endlessly(say: Say, folder: Path, process: int) -> None:
    """Batches of four without end, and the number of records after each."""
    store, there = TensorStore(folder), 0
    with store.writer(process) as writer:
        while True:
            writer.write({f"r{number}": numbered(number) for number in range(there, there + 4)})
            there += 4
            say(there)


@pytest.mark.parametrize("batches", [1, 3, 10])
def test_a_kill_loses_no_committed_batch(store: TensorStore, batches: int) -> None:
    with apart(write_endlessly, store.folder, 0) as writing:
        committed = [writing.hear() for _ in range(batches)][-1]
        os.kill(writing.process.pid or 0, signal.SIGKILL)
        assert writing.exit_code() == -signal.SIGKILL
    assert store.keys() == set()
    store.adopt_partial_shards()
    assert store.discard_broken_shards() == []
    there = numbers_in(store)
    assert there == set(range(len(there)))
    assert len(there) >= committed and len(there) % 4 == 0  # a batch is there as a whole or not at all
    assert files_in(store) == ["0000-00000.mdb"]
    fill(store, 4, first=len(there))
    assert numbers_in(store) == set(range(len(there) + 4))


@pytest.mark.parametrize("content", [b"", b"half a page", bytes(50_000)], ids=len)
def test_a_shard_that_was_torn_with_its_writer_is_not_adopted(store: TensorStore, content: bytes) -> None:
    fill(store, 2)
    (store.folder / "0000-00001.partial").write_bytes(content)
    (store.folder / "0000-00001.lock").touch()
    store.adopt_partial_shards()
    assert files_in(store) == ["0000-00000.mdb"]
    assert numbers_in(store) == {0, 1}


def test_a_shard_that_another_process_writes_is_left_to_it(store: TensorStore) -> None:
    """As when two runs that share a `cache_dir` are started one after the other."""
    fill(store, 40)
    with apart(write_endlessly, store.folder, 0) as writing:
        committed = writing.hear()
        for _ in range(20):
            store.adopt_partial_shards()
            assert store.discard_broken_shards() == []
            assert numbers_in(store) == set(range(40))
            committed = writing.hear()
        assert store.shards() == [store.folder / "0000-00000.mdb"]
        fill(store, 4, first=40)
    store.adopt_partial_shards()
    assert numbers_in(store) >= {*range(44), *range(committed)}
    assert len(store.shards()) == 3


def test_a_refusal_of_the_system_is_no_damage(store: TensorStore) -> None:
    fill(store, 2)
    with apart(check_without_memory, store.folder) as checking:
        assert "0000-00000.mdb" in checking.hear()
    assert numbers_in(store) == {0, 1}


def check_without_memory(say: Say, folder: Path) -> None:
    """Looks for broken shards where the system lets no more memory be mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, ((pages + 1024) * resource.getpagesize(),) * 2)
    try:
        say(str(TensorStore(folder).discard_broken_shards()))
    except DatasetError as error:
        say(str(error))


class Reading(Dataset[Record]):
    def __init__(self, store: TensorStore, count: int) -> None:
        self.store = store
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        return self.store.read(f"r{index}")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loading_processes_read_what_the_main_one_has_open(store: TensorStore, method: str) -> None:
    fill(store, 8)
    assert store.intact("r0")
    loader = DataLoader(
        Reading(store, 8),
        batch_size=None,
        num_workers=2 if method == "fork" else 1,
        multiprocessing_context=multiprocessing.get_context(method),
    )
    assert all(same(record, numbered(number)) for number, record in enumerate(loader))
    assert numbers_in(store) == set(range(8))  # still open here


def test_a_fork_may_write_where_its_parent_reads(store: TensorStore) -> None:
    fill(store, 2)
    assert store.intact("r0")
    child = multiprocessing.get_context("fork").Process(target=fill, args=(store, 2), kwargs={"first": 2})
    child.start()
    child.join()
    assert child.exitcode == 0
    assert numbers_in(store) == {0, 1, 2, 3}


def test_threads_read_at_once(store: TensorStore) -> None:
    fill(store, 50, batch=10)
    fill(store, 50, first=50, process=1, batch=10)
    store = pickle.loads(pickle.dumps(store))
    with ThreadPoolExecutor(8) as pool:
        order = [number for _ in range(4) for number in range(100)]
        assert all(pool.map(lambda number: same(store.read(f"r{number}"), numbered(number)), order))


# A full disk


def size_of_what_is_written(store: TensorStore) -> int:
    (shard,) = store.folder.glob("*.partial")
    return shard.stat().st_size


def test_a_full_disk_is_one_clear_error_and_loses_nothing(store: TensorStore) -> None:
    with store.writer(0) as writer:
        writer.write({"r0": numbered(0)})
        with disk_with_room_for(size_of_what_is_written(store)), pytest.raises(DatasetError) as full:
            writer.write({f"r{number}": numbered(number) for number in range(1, 40)})
        message = str(full.value)
        assert message.startswith(f"cache_dir: can't write to {store.folder}: ")
        assert "Free space" in message and "\n" not in message and "mdb_" not in message
    assert store.discard_broken_shards() == []
    assert numbers_in(store) == {0}  # nothing of the batch


def test_a_writer_goes_on_when_there_is_room_again(store: TensorStore) -> None:
    with store.writer(0) as writer:
        writer.write({"r0": numbered(0)})
        with disk_with_room_for(size_of_what_is_written(store)), pytest.raises(DatasetError):
            writer.write({f"r{number}": numbered(number) for number in range(1, 40)})
        writer.write({f"r{number}": numbered(number) for number in range(1, 40)})
    assert numbers_in(store) == set(range(40))


@pytest.mark.parametrize("limit", [0, 5000, 10_000])
def test_a_disk_that_is_full_from_the_start(store: TensorStore, limit: int) -> None:
    with store.writer(0) as writer:
        with disk_with_room_for(limit), pytest.raises(DatasetError, match=r"^cache_dir: can't write to .*Free space"):
            writer.write({"r0": numbered(0)})
        writer.write({"r0": numbered(0)})
    store.adopt_partial_shards()
    assert store.discard_broken_shards() == []
    assert numbers_in(store) == {0}
    assert {name.partition(".")[2] for name in files_in(store)} == {"mdb"}


def test_a_disk_that_fills_where_the_next_shard_begins(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_RECORDS", 2)
    with store.writer(0) as writer:
        writer.write({"r0": numbered(0), "r1": numbered(1)})
        for _ in range(2):
            with disk_with_room_for(0), pytest.raises(DatasetError, match=r": File too large\. Free space"):
                writer.write({"r2": numbered(2)})
        writer.write({"r2": numbered(2)})
    assert numbers_in(store) == {0, 1, 2}


@pytest.mark.parametrize("limit", [0, 10_000, 100_000])
def test_a_full_disk_is_told_by_what_removes_records_too(store: TensorStore, limit: int) -> None:
    fill(store, 60)
    with disk_with_room_for(limit), pytest.raises(DatasetError, match="cache_dir: can't write to"):
        store.discard([f"r{number}" for number in range(0, 60, 2)])
    assert numbers_in(store) == set(range(60))
    store.adopt_partial_shards()  # what was begun is no better than what was there
    store.reopen()
    assert numbers_in(store) == set(range(60))
    store.discard([f"r{number}" for number in range(0, 60, 2)])
    assert numbers_in(store) == set(range(1, 60, 2))


def discard_endlessly(say: Say, folder: Path) -> None:
    """Removes one record after the other from a store of many."""
    for number in range(10_000):
        TensorStore(folder).discard([f"r{number}"])
        say(number)


def test_what_a_killed_removal_left_is_not_taken_for_the_shard(store: TensorStore, tmp_path: Path) -> None:
    """It lies beside the shard that it was to replace, and may lack any of its records."""
    fill(store, 5)
    with TensorStore(tmp_path / "other").writer(0) as writer:
        writer.write({"r4": numbered(4)})
        (unfinished,) = (tmp_path / "other").glob("*.partial")
        shutil.copy(unfinished, store.folder / "0000-00000.rest")
    store.discard(["r4"])
    assert numbers_in(store) == {0, 1, 2, 3}
    with TensorStore(tmp_path / "again").writer(0) as writer:
        writer.write({"r4": numbered(4)})
        (unfinished,) = (tmp_path / "again").glob("*.partial")
        shutil.copy(unfinished, store.folder / "0000-00000.partial")
    store.adopt_partial_shards()
    store.reopen()
    assert numbers_in(store) == {0, 1, 2, 3}
    assert files_in(store) == ["0000-00000.mdb"]


def discard(say: Say, folder: Path, key: str) -> None:
    TensorStore(folder).discard([key])


def test_a_process_that_reads_is_not_disturbed_by_one_that_removes(store: TensorStore) -> None:
    fill(store, 5)
    assert numbers_in(store) == {0, 1, 2, 3, 4}
    with apart(discard, store.folder, "r1") as discarding:
        assert discarding.exit_code() == 0
    assert same(store.read("r0"), numbered(0)) and same(store.read("r4"), numbered(4))
    store.reopen()
    assert numbers_in(store) == {0, 2, 3, 4}


@pytest.mark.parametrize("discarded", [1, 4])
def test_a_kill_while_records_are_removed_loses_no_other(store: TensorStore, discarded: int) -> None:
    fill(store, 400, batch=400)
    with apart(discard_endlessly, store.folder) as discarding:
        last = [discarding.hear() for _ in range(discarded)][-1]
        os.kill(discarding.process.pid or 0, signal.SIGKILL)
        assert discarding.exit_code() == -signal.SIGKILL
    store.adopt_partial_shards()
    assert store.discard_broken_shards() == []
    there = numbers_in(store)
    assert there == set(range(400 - len(there), 400)) and there.isdisjoint(range(last + 1))


def test_what_was_fitted_is_kept_in_the_manifest(store: TensorStore) -> None:
    store.claim("features", {"width": 4})
    assert store.fitted() is None
    fitted = {"mean": torch.randn(7), "matrix": torch.randn(7, 4)}
    store.keep_fitted(fitted)
    fill(store, 2)
    store.count()
    store.claim("features", {"width": 4})
    kept = TensorStore(store.folder).fitted()
    assert kept is not None and same(kept, fitted)
    assert store.manifest()["records"] == 2
    manifest = json.loads((store.folder / MANIFEST).read_text())
    for damaged in (manifest["fitted"][:-100], manifest["fitted"][:300] + "A" + manifest["fitted"][301:], 3):
        (store.folder / MANIFEST).write_text(json.dumps(manifest | {"fitted": damaged}))
        with pytest.raises(DatasetError, match=rf"{MANIFEST} is damaged.*--rebuild"):
            store.fitted()


# The manifest


def test_a_store_is_claimed_once_and_by_its_own_only(store: TensorStore) -> None:
    identity = {"encoder": "one", "width": 16, "size": "auto"}
    store.claim("features", identity)
    fill(store, 1)
    store.claim("features", dict(reversed(identity.items())))
    with pytest.raises(CacheMismatchError) as refused:
        store.claim("features", identity | {"encoder": "two", "width": 32}, {"width": "see the_option"})
    message = str(refused.value)
    assert "encoder is 'two' here and 'one' there" in message
    assert "width is 32 here and 16 there (see the_option)" in message
    assert "size" not in message.partition("there")[0] and "--rebuild" in message and str(store.folder) in message
    assert numbers_in(store) == {0}


def test_a_fact_that_one_side_lacks_is_a_difference(store: TensorStore) -> None:
    store.claim("features", {"width": 16})
    fill(store, 1)
    with pytest.raises(CacheMismatchError, match="dtype is 'bf16' here and None there"):
        store.claim("features", {"width": 16, "dtype": "bf16"})


def test_another_kind_or_format_is_refused(store: TensorStore) -> None:
    store.claim("latents", {})
    fill(store, 1)
    with pytest.raises(CacheMismatchError, match=r"no cache of features in format \d+: .* kind 'latents'"):
        store.claim("features", {})
    path = store.folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(CacheMismatchError, match="says format 1"):
        store.claim("latents", {})


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"format": 2}'], ids=repr)
def test_a_damaged_manifest_is_named(store: TensorStore, content: bytes) -> None:
    store.claim("latents", {})
    fill(store, 1)
    (store.folder / MANIFEST).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"store.*{MANIFEST}.*--rebuild"):
        store.claim("latents", {})


@pytest.mark.parametrize("content", [None, b"", b'{"format": 1}'], ids=repr)
def test_a_store_without_a_shard_is_anyones(store: TensorStore, content: bytes | None) -> None:
    """As one that was made by a run that could make no record: its message said what to change."""
    store.claim("features", {"width": 16})
    if content is not None:
        (store.folder / MANIFEST).write_bytes(content)
    store.claim("features", {"width": 8})
    fill(store, 1)
    with pytest.raises(CacheMismatchError, match="width is 16 here and 8 there"):
        store.claim("features", {"width": 16})


def test_shards_without_a_manifest_are_nobodys(store: TensorStore) -> None:
    fill(store, 1)
    with pytest.raises(CacheMismatchError, match=rf"shards without a {MANIFEST}.*--rebuild"):
        store.claim("latents", {})


def test_a_manifest_that_cannot_be_written(store: TensorStore) -> None:
    with disk_with_room_for(0), pytest.raises(DatasetError, match="cache_dir: can't write to"):
        store.claim("latents", {})
    store.claim("latents", {"model": "one"})
    with disk_with_room_for(0), pytest.raises(DatasetError, match="cache_dir: can't write to"):
        store.count()
    assert store.manifest()["identity"] == {"model": "one"}


def test_records_are_counted(store: TensorStore) -> None:
    store.claim("latents", {"model": "one"})
    fill(store, 3)
    fill(store, 2, first=3, process=1)
    store.count()
    counted = store.manifest()
    assert counted["records"] == 5
    assert counted["bytes"] == sum(path.stat().st_size for path in store.folder.glob("*.mdb"))
    store.claim("latents", {"model": "one"})  # counts are no part of the identity


def test_a_removed_store_is_gone_and_can_be_made_again(store: TensorStore) -> None:
    store.remove()  # where there is none
    store.claim("latents", {})
    fill(store, 2)
    assert store.intact("r1")
    store.remove()
    assert not store.folder.exists()
    assert not store.intact("r1") and store.keys() == set()
    fill(store, 1)
    assert numbers_in(store) == {0}
