"""Paths stay inside the roots, however they are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simpletuner.webui.confinement import Refused, inside


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root, which is the working directory, with a neighbour whose name begins as its own does."""
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root-neighbour").mkdir()
    (tmp_path / "root-neighbour" / "secret").write_text("s")
    monkeypatch.chdir(tmp_path / "root")
    return tmp_path / "root"


def test_what_is_inside_is_resolved(root: Path) -> None:
    assert inside("folder/../folder/file", [root]) == root / "folder" / "file"
    assert inside(root / "new" / "file", [root]) == root / "new" / "file"
    assert inside(".", [root]) == root
    (root / "link").symlink_to("folder")
    assert inside("link/file", [root]) == root / "folder" / "file"


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../root-neighbour/secret",
        "folder/../../root-neighbour/secret",
        "/etc/passwd",
        "//etc/passwd",
        "/proc/self/environ",
        "~root/secret",
        "~",
        "",
        " ",
        "nul\0byte",
        "\0",
        "half-\ud800-character",
        "x" * 256,
        "é" * 128,
        "a/" * 2100,
        "..\\secret",
        "C:\\secret",
        "C:/secret",
        "c:secret",
        "\\\\host\\share",
    ],
)
def test_what_is_outside_or_no_path_is_refused(root: Path, path: str) -> None:
    with pytest.raises(Refused):
        inside(path, [root])


def test_a_root_itself_may_be_reached_from_elsewhere(root: Path) -> None:
    other = root.parent / "root-neighbour"
    assert inside(other / "secret", [root, other]) == other / "secret"
    assert inside("../root-neighbour/secret", [root, other]) == other / "secret"


def test_the_home_folder_is_where_the_trainer_would_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root / "folder"))
    assert inside("~/file", [root]) == root / "folder" / "file"


def test_links_out_are_refused(root: Path) -> None:
    (root / "file").symlink_to("../root-neighbour/secret")
    (root / "parent").symlink_to("../root-neighbour")
    (root / "chain").symlink_to("parent")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "loop").symlink_to("loop")
    for path in ("file", "parent/secret", "parent/new", "chain/secret", "dangling", "dangling/new", "loop", "loop/x"):
        with pytest.raises(Refused):
            inside(path, [root])


def test_a_link_made_later_is_refused_then(root: Path) -> None:
    assert inside("folder/file", [root]) == root / "folder" / "file"
    (root / "folder").rmdir()
    (root / "folder").symlink_to("../root-neighbour")
    with pytest.raises(Refused):
        inside("folder/file", [root])


def test_a_refusal_says_where_one_may_go(root: Path) -> None:
    with pytest.raises(Refused, match=rf"'/etc' lies outside of '{root}'.*--root"):
        inside("/etc", [root])


_PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "folder", "out", "in", "file", "~", "root-neighbour", "\0", "\\"]),
    st.text(max_size=5),
)


@given(st.lists(_PARTS, max_size=8), st.booleans())
@example(["out", "secret"], False)
@example(["in", "..", ".."], False)
def test_nothing_leads_out(parts: list[str], absolute: bool) -> None:
    """Whatever is asked for, the file system itself agrees that what is given out lies in the root."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder).resolve()
        (top / "root" / "folder").mkdir(parents=True)
        (top / "root-neighbour").mkdir()
        (top / "root" / "out").symlink_to(top / "root-neighbour")
        (top / "root" / "folder" / "in").symlink_to(top / "root")
        text = "/".join(parts)
        try:
            found = inside(f"/{text}" if absolute else top / "root" / text, [top / "root"])
        except Refused:
            return
        assert os.path.realpath(found) == str(found)
        assert os.path.commonpath([found, top / "root"]) == str(top / "root")
