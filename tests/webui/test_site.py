"""Where a server works."""

from __future__ import annotations

from pathlib import Path

import pytest

from simpletuner.webui.site import examples_folder, make_site


def test_the_working_directory_is_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    site = make_site(Path("config"))
    assert site.configs == tmp_path / "config" and site.roots == (tmp_path,)
    assert site.runs == tmp_path / "config" / ".runs"
    assert not site.configs.exists()


def test_the_configs_are_a_root_of_their_own_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    site = make_site(tmp_path / "config", [tmp_path / "data", tmp_path / "data"])
    assert site.roots == (tmp_path / "data", tmp_path / "config")


def test_paths_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    site = make_site(tmp_path / "link" / "." / "config", [tmp_path / "link"])
    assert site.configs == tmp_path / "real" / "config" and site.roots == (tmp_path / "real",)


def test_a_home_folder_is_meant_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_site(Path("~/config")).configs == tmp_path / "config"


@pytest.mark.parametrize("root", ["missing", "file"])
def test_a_root_is_a_folder(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"--root .*{root}"):
        make_site(tmp_path, [tmp_path / root])


def test_configs_are_no_file_and_no_loop(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="is a file"):
        make_site(tmp_path / "file" / "config")
    with pytest.raises(ValueError, match="can be no folder"):
        make_site(tmp_path / "loop" / "config")


def test_the_examples_of_the_checkout_are_there() -> None:
    assert (examples_folder() / "sd3-repa-lora.json").is_file()
