"""Tensors on disk: LMDB shards of safetensors records, which a killed run leaves whole.

A store is a folder with `manifest.json`, which says what the records are and how they were made, and shards. A shard is
written by one process under another name, and once it has its own it never changes: so readers need no lock, and may
read while others write.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import threading
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import lmdb
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from simpletuner.configuration.json_files import read_object
from simpletuner.helpers.data.errors import DatasetError

logger = logging.getLogger(__name__)

FORMAT = 2
"""Raised when the way of writing records changes, so that older ones are refused."""
MANIFEST = "manifest.json"
SHARD, PARTIAL, REST, LOCK = ".mdb", ".partial", ".rest", ".lock"
SHARD_RECORDS = 10_000
SHARD_BYTES = 16 << 30
_MAP_SIZE = 64 << 30  # of a shard that is written: address space, not disk
_CHECKSUM = "__crc32__"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system that has none: names differ anyway
_DAMAGE = (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.PageNotFoundError)


class CacheMismatchError(DatasetError):
    """A cache was made otherwise than the configuration asks for; the message names both values."""


@dataclass(frozen=True)
class TensorStore:
    """Records of named tensors under hashed keys; small enough to travel to the processes that load."""

    folder: Path

    def claim(
        self,
        kind: str,
        identity: Mapping[str, Any],
        mends: Mapping[str, str] | None = None,
        *,
        unstated: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes the store for records of this identity, or checks that it is theirs. One without shards is anyone's.

        Args:
            identity: what the records depend on, as JSON has it.
            mends: what to set to keep the cache, by the identity's key.
            unstated: what older stores are whose manifest doesn't say it.

        Raises:
            CacheMismatchError: the store is of another identity.
            DatasetError: the manifest can't be read or written.
        """
        path = self.folder / MANIFEST
        wanted = {"format": FORMAT, "kind": kind, "identity": dict(identity)}
        if not self.shards():
            if not self._says(wanted):
                self._write_manifest(wanted)
        elif path.is_file():
            _refuse_others(self.folder, self.manifest(), wanted, mends or {}, unstated or {})
        else:
            raise CacheMismatchError(f"{self.folder} holds shards without a {MANIFEST}. {REBUILD}")

    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` says. Raises ``DatasetError`` where it is damaged."""
        try:
            return read_object(self.folder / MANIFEST)
        except ValueError as error:
            raise DatasetError(f"{self.folder / MANIFEST} is damaged ({error}). {REBUILD}") from error

    def fitted(self) -> dict[str, Tensor] | None:
        """What was fitted to the data before the first record was made; None before that."""
        kept = self.manifest().get("fitted")
        if kept is None:
            return None
        try:
            fitted = _unpacked(b64decode(kept))
        except (TypeError, ValueError):
            fitted = None
        if fitted is None:
            raise DatasetError(f"{self.folder / MANIFEST} is damaged. {REBUILD}")
        return fitted

    def keep_fitted(self, tensors: Mapping[str, Tensor]) -> None:
        """Stores in the manifest what every record depends on, such as a whitening."""
        self._write_manifest(self.manifest() | {"fitted": b64encode(_packed(tensors)).decode()})

    def count(self) -> None:
        """Notes in the manifest how many records there are, and their size on disk."""
        counts = {"records": len(self.keys()), "bytes": sum(path.stat().st_size for path in self.shards())}
        self._write_manifest(self.manifest() | counts)

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{SHARD}"))

    def keys(self) -> set[str]:
        """The keys of all records, read from the shards' indices: nothing is checked."""
        found: set[str] = set()
        for path in self.shards():
            try:
                with _reading(path) as transaction:
                    found.update(bytes(key).decode() for key in transaction.cursor().iternext(values=False))
            except (OSError, lmdb.Error) as error:
                raise DatasetError(f"cache_dir: can't read {path}: {_reason(error)}.") from error
        return found

    def intact(self, key: str) -> bool:
        """Whether the record is there and its checksum holds (it is read for that)."""
        return self._read(key) is not None

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of a record. Raises ``DatasetError`` where it is missing or damaged."""
        record = self._read(key)
        if record is None:
            raise DatasetError(
                f"{self.folder}: the record {key} is missing or damaged. Run `simpletuner cache` with this "
                "configuration: it finds what is damaged and makes it again."
            )
        return record

    def discard(self, keys: Iterable[str]) -> None:
        """Removes records, such as damaged ones: their shards are written anew without them."""
        gone = {key.encode() for key in keys}
        for path in self.shards() if gone else []:
            with _reading(path) as transaction:
                if not any(transaction.get(key) is not None for key in gone):
                    continue
                beside = path.with_suffix(REST)
                beside.unlink(missing_ok=True)  # of a removal that was killed
                with _told(self.folder), _open_for_writing(beside) as rest, rest.begin(write=True) as kept:
                    for key, value in transaction.cursor():
                        if bytes(key) not in gone:
                            kept.put(key, value)
            _close_reader(path)
            beside.replace(path)

    def adopt_partial_shards(self) -> None:
        """Gives the shards of processes that were killed their names: what was committed is whole."""
        for path in sorted(self.folder.glob(f"*{PARTIAL}")):
            lock = _lock(path)
            if lock is None:
                continue  # its writer is alive
            with lock:
                whole = path.with_suffix(SHARD)
                if whole.exists():  # it was to be written anew without some records, and is still as good as it was
                    path.unlink(missing_ok=True)
                elif path.exists() and _is_readable(path):
                    path.replace(whole)
                else:
                    path.unlink(missing_ok=True)
                Path(lock.name).unlink()

    def discard_broken_shards(self) -> list[Path]:
        """Removes shards that end too early or whose index is damaged, which can't be read safely; returns them."""
        broken = [path for path in self.shards() if not _is_readable(path)]
        for path in broken:
            path.unlink()
        return broken

    def reopen(self) -> None:
        """Closes what this process has open of it: another may have written shards anew (see `discard`)."""
        for path in self.shards():
            _close_reader(path)

    def remove(self) -> None:
        """Deletes the store, if there is one."""
        self.reopen()
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def writer(self, process: int) -> StoreWriter:
        """A context manager that writes records as the process of this index."""
        return StoreWriter(self.folder, process)

    def _read(self, key: str) -> dict[str, Tensor] | None:
        for path in self._listed_shards():
            try:
                with _reading(path) as transaction:
                    value = transaction.get(key.encode())
                    data = None if value is None else bytes(value)
            except _DAMAGE:
                continue
            except (OSError, lmdb.Error) as error:
                if not path.exists():
                    continue  # it was removed since it was listed
                raise DatasetError(f"cache_dir: can't read {path}: {_reason(error)}.") from error
            if data is not None:
                return _unpacked(data)
        return None

    def _listed_shards(self) -> Iterator[Path]:
        """The shards as this process last saw them, and then those that came since: listing is slow on some disks."""
        seen = _listings.get(self.folder, [])
        yield from seen
        now = _listings[self.folder] = self.shards()
        yield from (path for path in now if path not in seen)

    def _says(self, wanted: Mapping[str, Any]) -> bool:
        try:
            said = read_object(self.folder / MANIFEST)
        except (OSError, ValueError):
            return False
        return all(said.get(name) == value for name, value in wanted.items())

    def _write_manifest(self, content: Mapping[str, Any]) -> None:
        target = self.folder / MANIFEST
        beside = target.with_name(f"{MANIFEST}.new")
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            beside.replace(target)


REBUILD = "Run `simpletuner cache --rebuild` with this configuration to replace it, or set another cache_dir."


class StoreWriter:
    """Adds records to a store, a batch at a time; a batch is there as a whole or not at all.

    Others see the records when a shard is full, or the writer is closed.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self._folder = folder
        self._process = process
        self._path = folder
        self._environment: lmdb.Environment | None = None
        self._lock: IO[bytes] | None = None

    def write(self, records: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Writes records by key and waits until they are on the disk. Raises ``DatasetError`` where it is full."""
        values = {key.encode(): _packed(record) for key, record in records.items()}
        with _told(self._folder):
            environment = self._with_room(len(values), sum(map(len, values.values())))
            with environment.begin(write=True) as transaction:
                for key, value in values.items():
                    transaction.put(key, value)

    def close(self) -> None:
        """Gives the shard its name."""
        if self._environment is None or self._lock is None:
            return
        has_records = self._environment.stat()["entries"] > 0
        self._environment.close()
        if has_records:
            self._path.replace(self._path.with_suffix(SHARD))
        else:
            self._path.unlink()
        self._drop_lock()
        self._environment = None

    def _drop_lock(self) -> None:
        assert self._lock is not None
        Path(self._lock.name).unlink()
        self._lock.close()
        self._lock = None

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _with_room(self, records: int, size: int) -> lmdb.Environment:
        if self._environment is not None:
            state, there = self._environment.info(), self._environment.stat()
            used = (state["last_pgno"] + 1) * there["psize"]
            fits = there["entries"] + records <= SHARD_RECORDS and used + size <= SHARD_BYTES
            if fits or there["entries"] == 0:  # an empty shard takes any batch
                return self._environment
            self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in count():
            self._path = self._folder / f"{self._process:04}-{number:05}{PARTIAL}"
            if self._path.exists() or self._path.with_suffix(SHARD).exists():
                continue
            self._lock = _lock(self._path)
            if self._lock is None:
                continue
            if not self._path.with_suffix(SHARD).exists():
                break
            self._drop_lock()  # another builder has just finished this one
        self._environment = _open_for_writing(self._path)
        return self._environment


def _open_for_writing(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), subdir=False, map_size=_MAP_SIZE, lock=False, readahead=False, meminit=False)


def _lock(path: Path) -> IO[bytes] | None:
    """The lock of a partial shard, which ends with its process; None while another holds it."""
    file = path.with_suffix(LOCK).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return file


# Readers: one open file a process and shard, opened when it is first read.

_readers: dict[Path, lmdb.Environment] = {}
_listings: dict[Path, list[Path]] = {}
_opening = threading.Lock()


@contextmanager
def _reading(path: Path) -> Iterator[lmdb.Transaction]:
    with _opening:
        environment = _readers.get(path)
        if environment is None:
            environment = _readers[path] = lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, readahead=False, max_spare_txns=16
            )
    with environment.begin(buffers=True) as transaction:
        yield transaction


def _close_reader(path: Path) -> None:
    environment = _readers.pop(path, None)
    if environment is not None:
        environment.close()


def _begin_anew() -> None:
    """A process that was forked opens its own: LMDB's don't outlive a fork, and a thread may have held the lock."""
    global _opening
    _opening = threading.Lock()
    for path in list(_readers):
        _close_reader(path)


os.register_at_fork(after_in_child=_begin_anew)


def _is_readable(path: Path) -> bool:
    """Whether a shard has all the pages that it says, and its index can be walked.

    LMDB maps the file: reading beyond its end would end the process. Raises ``DatasetError`` where the system refuses.
    """
    _close_reader(path)
    if path.stat().st_size == 0:
        return False
    try:
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment:
            if path.stat().st_size < (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]:
                return False
            with environment.begin(buffers=True) as transaction:
                return sum(1 for _ in transaction.cursor().iternext(values=False)) == environment.stat()["entries"]
    except _DAMAGE:
        return False
    except lmdb.Error as error:  # no memory, no permission: the shard may well be whole
        raise DatasetError(f"cache_dir: can't read {path}: {_reason(error)}.") from error


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Tells what the disk refuses in one sentence."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        raise DatasetError(
            f"cache_dir: can't write to {folder}: {_reason(error)}. Free space or set another folder; what is cached "
            "so far is kept."
        ) from error


def _reason(error: Exception) -> str:
    """What the system said."""
    told = error.strerror if isinstance(error, OSError) else None
    return str(error).rpartition(": ")[2] if told is None else told


def _refuse_others(
    folder: Path,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    mends: Mapping[str, str],
    unstated: Mapping[str, Any],
) -> None:
    there, here = found.get("identity"), wanted["identity"]
    if not isinstance(there, dict) or found.get("format") != FORMAT or found.get("kind") != wanted["kind"]:
        raise CacheMismatchError(
            f"{folder} is no cache of {wanted['kind']} in format {FORMAT}: its {MANIFEST} says format "
            f"{found.get('format')!r}, kind {found.get('kind')!r}. {REBUILD}"
        )
    there = {**unstated, **there}
    differences = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if not differences:
        return
    told = "; ".join(
        f"{name} is {here.get(name)!r} here and {there.get(name)!r} there"
        + (f" ({mends[name]})" if name in mends else "")
        for name in differences
    )
    raise CacheMismatchError(f"The cache of {wanted['kind']} in {folder} was made otherwise: {told}. {REBUILD}")


# Records


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    record = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(record | {_CHECKSUM: _checksum(record)})


def _unpacked(data: bytes) -> dict[str, Tensor] | None:
    try:
        record = safetensors.torch.load(data)
    except SafetensorError:
        return None
    checksum = record.pop(_CHECKSUM, None)
    return record if checksum is not None and torch.equal(checksum, _checksum(record)) else None


def _checksum(tensors: Mapping[str, Tensor]) -> Tensor:
    """`(1,)`: over names, types, shapes and bytes."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return torch.tensor([value])
