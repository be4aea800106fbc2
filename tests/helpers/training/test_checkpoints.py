from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator

from simpletuner.helpers.training.checkpoints import find_resumable, require_same_shape, save_checkpoint
from simpletuner.helpers.utils.run_folder import MANIFEST, find_checkpoints, read_state


def save(output: Path, step: int, keep: int = 0, content: str = "weights") -> Path:
    accelerator = Accelerator(cpu=True)
    write = lambda folder: (folder / "weights").write_text(content)  # noqa: E731
    return save_checkpoint(accelerator, output, {"step": step}, write, keep)  # type: ignore[arg-type]


def test_a_checkpoint_is_found_with_its_state(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    assert find_resumable("latest", tmp_path) == (folder, {"step": 5})
    assert find_resumable(str(folder), tmp_path) == (folder, {"step": 5})
    assert find_resumable(None, tmp_path) is None
    assert find_resumable("latest", tmp_path / "empty") is None


def test_the_oldest_go_first_and_never_the_new_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=2)
    assert [step for step, _ in find_checkpoints(tmp_path)] == [2, 3]
    left_over = tmp_path / "checkpoint-9"
    left_over.mkdir()
    new = save(tmp_path, 4, keep=1)
    assert new.is_dir()


def test_the_same_step_again_takes_its_place(tmp_path: Path) -> None:
    save(tmp_path, 1, content="old")
    folder = save(tmp_path, 1, content="new, and longer")
    assert (folder / "weights").read_text() == "new, and longer"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_failed_write_leaves_earlier_ones(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"checkpoint-2 can't be written .*earlier checkpoints are untouched"):
        save_checkpoint(Accelerator(cpu=True), tmp_path, {"step": 2}, fail, 0)
    found = find_resumable("latest", tmp_path)
    assert found is not None and found[1] == {"step": 1}


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"state": {"step": 2}}', '{"state": {}, "files": {"gone": 3}}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, manifest: str) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    (folder / MANIFEST).write_text(manifest)
    with pytest.raises(ValueError, match="checkpoint-2 is no intact checkpoint"):
        read_state(folder)
    found = find_resumable("latest", tmp_path)
    assert found is not None and found[1] == {"step": 1}


def test_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "weights").unlink()
    with pytest.raises(ValueError, match=r"resume_from_checkpoint: .*weights is missing or torn"):
        find_resumable("latest", tmp_path)


def test_an_earlier_one_isnt_resumed_beside_later_ones(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    save(tmp_path, 2)
    with pytest.raises(ValueError, match="checkpoint-2"):
        find_resumable(str(first), tmp_path)
    assert find_resumable(str(first), tmp_path / "elsewhere") == (first, {"step": 1})


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    manifest = json.loads((save(tmp_path, 1) / MANIFEST).read_text())
    assert manifest["files"] == {"weights": len("weights")}


def test_options_that_shape_the_state_are_compared(tmp_path: Path) -> None:
    require_same_shape(tmp_path, {"lora_rank": 4}, {"lora_rank": 4, "new_option": 1})
    with pytest.raises(ValueError, match="lora_rank was 4 and is 8"):
        require_same_shape(tmp_path, {"lora_rank": 4}, {"lora_rank": 8})
