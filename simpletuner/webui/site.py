"""Where a server works: the folder of its projects, and the folders that it may touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simpletuner.configuration.paths import kind_of, local_path


@dataclass(frozen=True)
class Site:
    """``configs`` is the folder of the projects; all that the server reads, writes or shows lies in ``roots``.

    All paths are resolved; ``configs`` lies in one of the roots.
    """

    configs: Path
    roots: tuple[Path, ...]

    @property
    def runs(self) -> Path:
        """The folder of the records of runs."""
        return self.configs / ".runs"


def make_site(configs: Path, roots: Sequence[Path] = ()) -> Site:
    """A site whose roots are these folders, by default the working directory, and that of its projects.

    ``configs`` need not exist yet. Raises ``ValueError`` for a root that is no folder, or a file in the place of
    ``configs``.
    """
    folder = _resolved(configs)
    file = next((path for path in (folder, *folder.parents) if kind_of(path) == "file"), None)
    if file is not None:
        raise ValueError(f"{str(folder)!r} can be no folder of projects: {str(file)!r} is a file. Name a folder.")
    given = [_resolved(root) for root in roots] or [Path.cwd().resolve()]
    for root in given:
        if kind_of(root) != "folder":
            raise ValueError(f"--root {str(root)!r} is no folder. Name a folder that exists.")
    if not any(folder.is_relative_to(root) for root in given):
        given.append(folder)
    return Site(folder, tuple(dict.fromkeys(given)))


def examples_folder() -> Path:
    """The examples that new projects are made from: those of an installed package, or of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "examples"
    return installed if kind_of(installed) == "folder" else package.parent / "config" / "examples"


def _resolved(path: Path) -> Path:
    try:
        return local_path(str(path)).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symlinks, or what can be no path
        raise ValueError(f"{str(path)!r} can be no folder: {error}") from error
