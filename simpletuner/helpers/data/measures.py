"""What a file holds, found by decoding it once and remembered by path, size and time of change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

from simpletuner.helpers.data.errors import DatasetError, MediaError
from simpletuner.helpers.data.media import measure
from simpletuner.helpers.data.parallel import ordered_map


@dataclass(frozen=True)
class FileState:
    """A file as the file system shows it, and how many of its frames matter."""

    path: str
    size: int
    mtime_ns: int
    max_frames: int


@dataclass(frozen=True)
class Measure:
    """The upright picture's width and height, the usable frames, and the hash of the file's content."""

    width: int
    height: int
    frames: int
    digest: str


def measure_files(
    paths: Sequence[Path], max_frames: int, index: Path, *, workers: int
) -> Iterator[tuple[Path, Measure | MediaError]]:
    """Measures files in order; those that ``index`` (JSON lines) knows unchanged are not opened.

    Lines are appended as files are measured, so a killed scan goes on where it was. Bad files are not remembered:
    the fault may have been the disk's. Raises ``DatasetError`` if ``index`` can't be written.
    """
    known = _read_index(index)
    look = partial(_look, max_frames=max_frames, known=known)
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with index.open("a", encoding="utf-8", buffering=1) as lines:
            for path, state, found in ordered_map(look, paths, workers):
                if state is not None and isinstance(found, Measure) and state not in known:
                    # The line break comes first, so that a line torn by a kill spoils no other.
                    lines.write("\n" + json.dumps(asdict(state) | asdict(found)))
                yield path, found
    except OSError as error:
        raise DatasetError(
            f"cache_dir: can't write {index}: {error.strerror}. Free space or set another folder."
        ) from error


def _look(
    path: Path, max_frames: int, known: dict[FileState, Measure]
) -> tuple[Path, FileState | None, Measure | MediaError]:
    try:
        status = path.stat()
        state = FileState(str(path.resolve()), status.st_size, status.st_mtime_ns, max_frames)
        if state in known:
            return path, state, known[state]
        with path.open("rb") as file:
            digest = _digest(iter(partial(file.read, 1 << 20), b""))
        return path, state, Measure(*measure(path, max_frames), digest)
    except MediaError as error:
        return path, None, error
    except OSError as error:
        return path, None, MediaError(path, error.strerror)


def _digest(chunks: Iterator[bytes]) -> str:
    content = blake2b(digest_size=16)
    for chunk in chunks:
        content.update(chunk)
    return content.hexdigest()


def _read_index(index: Path) -> dict[FileState, Measure]:
    if not index.is_file():
        return {}
    known = {}
    for line in index.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            state = FileState(row["path"], row["size"], row["mtime_ns"], row["max_frames"])
            known[state] = Measure(row["width"], row["height"], row["frames"], row["digest"])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # torn by a kill: the file is measured again
    return known
