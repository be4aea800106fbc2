"""The rows of a `metrics.jsonl` that somebody else is writing: read once, and then only what was added.

A resumed run replaces its file by one without the rows that it trains again. Positions in the file are told by the
bytes before them and a checksum over these, so that a position is known again in the new file as long as all before it
is the same, by whichever server.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import zlib
from array import array
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

Row = dict[str, Any]
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # browsers know no NaN
_MOST_TABLES = 16
_MOST_FORMER = 4
_TAIL = 16384  # bytes of a file that hold its newest rows


@dataclass(frozen=True)
class Marks:
    """Where rows end in a file: after so many bytes, with this checksum over all of them."""

    ends: array[int] = field(default_factory=lambda: array("q"))
    sums: array[int] = field(default_factory=lambda: array("L"))

    def find(self, end: int, checksum: int, count: int) -> int | None:
        """How many of the first `count` rows lie before a position; None if it is none of this file's."""
        if end == 0:
            return 0
        index = bisect_left(self.ends, end, 0, count)
        return index + 1 if index < count and self.ends[index] == end and self.sums[index] == checksum else None


@dataclass(frozen=True)
class Table:
    """What a file held when it was looked at: the first `count` of `rows` (there may be more by now).

    `former` are files that it replaced, newest first, each with the number of rows that it shared with the next.
    """

    rows: list[Row] = field(default_factory=list)
    count: int = 0
    marks: Marks = field(default_factory=Marks)
    former: tuple[tuple[Marks, int], ...] = ()

    def position(self, index: int) -> tuple[int, int]:
        """Bytes and checksum before row `index`."""
        return (0, 0) if index == 0 else (self.marks.ends[index - 1], self.marks.sums[index - 1])

    def find(self, end: int, checksum: int) -> tuple[int, bool]:
        """The row that follows a position of this file, or else the first that differs from what lay before it then.

        Returns the index, and whether rows before that position are void.
        """
        index = self.marks.find(end, checksum, self.count)
        if index is not None:
            return index, False
        for number, (marks, _) in enumerate(self.former):
            index = marks.find(end, checksum, len(marks.ends))
            if index is not None:
                return min(index, *(shared for _, shared in self.former[: number + 1])), True
        return 0, True


class TableReader:
    """Reads one file again and again; what it returned stays as it is, and may be read by other threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._key: tuple[int, int, int] | None = None
        self._file = 0
        self._table = Table()
        self._last_line = b""

    def read(self) -> Table:
        with self._lock:
            try:
                found = self._path.stat()
                key = (found.st_ino, found.st_size, found.st_mtime_ns)
                if key != self._key:
                    with self._path.open("rb") as file:
                        self._read(file, os.fstat(file.fileno()).st_ino)
                    self._key = key  # if more came since, it is read at the next look
            except (FileNotFoundError, NotADirectoryError):
                self._key, self._last_line = None, b""
                self._replace(Table())
            return self._table

    def _read(self, file: BinaryIO, inode: int) -> None:
        if inode == self._file and self._continues(file):
            self._table = self._extended(self._table, file)
        else:
            file.seek(0)
            self._last_line = b""
            self._replace(self._extended(Table(), file))
        self._file = inode

    def _continues(self, file: BinaryIO) -> bool:
        """Whether what was last read of it is still there, as inodes are used again; stands behind that if so."""
        end, _ = self._table.position(self._table.count)
        file.seek(end - len(self._last_line))
        return file.read(len(self._last_line)) == self._last_line

    def _extended(self, table: Table, file: BinaryIO) -> Table:
        """The table with the whole lines that follow; a torn one waits for its end."""
        rows, marks = table.rows, table.marks
        end, checksum = table.position(table.count)
        for line in file:
            if not line.endswith(b"\n"):
                break
            end, checksum = end + len(line), zlib.crc32(line, checksum)
            row = _row(line)
            if row is None:
                continue
            rows.append(row)
            marks.ends.append(end)
            marks.sums.append(checksum)
            self._last_line = line
        return Table(rows, len(rows), marks, table.former)

    def _replace(self, table: Table) -> None:
        old = self._table
        pairs = zip(old.marks.sums, table.marks.sums, old.marks.ends, table.marks.ends, strict=False)
        shared = next((i for i, (a, b, c, d) in enumerate(pairs) if a != b or c != d), min(old.count, table.count))
        # A step is void as a whole.
        while 0 < shared < old.count and old.rows[shared - 1]["step"] == old.rows[shared]["step"]:
            shared -= 1
        former = old.former if shared == old.count else ((old.marks, shared), *old.former)[:_MOST_FORMER]
        self._table = Table(table.rows, table.count, table.marks, former)


_readers: OrderedDict[Path, TableReader] = OrderedDict()
_readers_lock = threading.Lock()


def read_table(path: Path | None) -> Table:
    """The rows of a file as it is now; empty if there is none. Raises `OSError`."""
    if path is None:
        return Table()
    with _readers_lock:
        reader = _readers.setdefault(path, TableReader(path))
        _readers.move_to_end(path)
        while len(_readers) > _MOST_TABLES:
            _readers.popitem(last=False)
    return reader.read()


def newest_rows(path: Path | None) -> list[Row]:
    """The last rows of a file, some dozens, without reading the rest; empty if there is none to be read."""
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - _TAIL))
            lines = file.read(_TAIL).split(b"\n")
    except OSError:
        return []
    whole = lines[:-1] if end <= _TAIL else lines[1:-1]
    return [row for row in map(_row, whole) if row is not None]


def _row(line: bytes) -> Row | None:
    try:
        row = _DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return {sys.intern(name): value for name, value in row.items()}
