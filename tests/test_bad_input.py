"""Bad input as a user meets it: one message that names the option or the file and the mend, and an exit code.

2: configuration, data or model can't be used. 1: the run broke. Commands run in this process, so an exception that
leaves them, which a user would see as a traceback, fails the test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from simpletuner.cli import main
from simpletuner.helpers.data.build import build_caches
from simpletuner.helpers.training import trainer
from tests.disk import disk_with_room_for
from tests.runs import metrics, run, write_config, write_data

TinyFolder = Callable[[str], Path]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def refuses(self, *words: str, code: int = 2) -> None:
        """Exactly one error, which holds these words; no other output is as long as a traceback."""
        assert self.code == code, self.err
        assert len(self.errors) == 1, self.err
        for word in words:
            assert word in self.errors[0], self.err
        assert "Traceback" not in self.err and "The configuration is valid" not in self.out


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """`command("train", config, "--seed", 1)`: the command line in this process, without a hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def invoke(name: str, config: Path, *flags: object) -> Outcome:
        AcceleratorState._reset_state(reset_partial_state=True)
        capsys.readouterr()
        code = main([name, "--config", str(config), *map(str, flags)])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    yield invoke
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and the caches of those who use it: a run then starts in a moment."""
    root = tmp_path_factory.mktemp("shared")
    write_data(root)
    return root


@pytest.fixture
def config(shared: Path, tmp_path: Path, tiny_folder: TinyFolder) -> Path:
    """A valid configuration of `sd3`; it writes to `tmp_path/run`."""
    data, caches = shared / "multidatabackend.json", str(shared / "caches")
    return write_config(tmp_path, tiny_folder("sd3"), data=data, cache_dir=caches)


@pytest.fixture
def own_data(tmp_path: Path, tiny_folder: TinyFolder) -> Path:
    """A valid configuration of `sd3` whose data, in `tmp_path/data`, may be spoilt."""
    return write_config(tmp_path, tiny_folder("sd3"), max_train_steps=1)


@pytest.fixture
def model_copy(tmp_path: Path, tiny_folder: TinyFolder) -> Path:
    """A model folder that may be spoilt."""
    return Path(shutil.copytree(tiny_folder("sd3"), tmp_path / "model"))


def images(root: Path) -> list[Path]:
    return sorted((root / "data").glob("*.png"))


def set_entry(root: Path, **options: Any) -> None:
    """Changes the only data set of `root/multidatabackend.json`."""
    path = root / "multidatabackend.json"
    (entry,) = json.loads(path.read_text())
    path.write_text(json.dumps([entry | options]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fill_with_nan(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: torch.full_like(value, float("nan")) for name, value in tensors.items()}, path, {"format": "pt"})


# Configuration: `check` and `train` say the same


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--crepa_lamda 1", ["crepa_lamda", 'Did you mean "crepa_lambda"?']),
        ("--learning_rate fast", ["learning_rate", '"fast"', "a number of more than 0", "default (0.0001)"]),
        ("--lora_rank 0", ["lora_rank", "0", "at least 1"]),
        (
            "--data_backend_config gone.json",
            ["data_backend_config", "no such file", "'gone.json'", "working directory"],
        ),
        ("--pretrained_model_name_or_path ./gone", ["pretrained_model_name_or_path", "no such file or folder"]),
        ("--model_family sd33", ["model_family", "sd33", 'Did you mean "sd3"?']),
        ("--crepa_enabled --crepa_block_index 3", ["crepa_block_index", "3", "3 blocks", "Use 0 to 2"]),
        (
            "--crepa_enabled --crepa_feature_source backbone --crepa_teacher_block_index 9",
            ["crepa_teacher_block_index", "9", "Use 0 to 2"],
        ),
        ("--crepa_enabled --crepa_encoder dinov5_vits14", ["crepa_encoder", "dinov5_vits14", "dinov2_vits14"]),
        ("--crepa_enabled --crepa_encoder org/dino", ["crepa_encoder", "org/dino", "timm/<name>"]),
        ("--crepa_enabled --crepa_encoder ./gone", ["crepa_encoder", "no such file or folder"]),
        ("--crepa_enabled --crepa_encoder_image_size 50", ["crepa_encoder_image_size", "50", "42, 56"]),
        ("--urepa_enabled", ["urepa_enabled", "transformer", "crepa_enabled"]),
        (
            "--layersync_enabled --layersync_student_block 1 --layersync_teacher_block 1",
            ["layersync_teacher_block", "1 is the student's block", "deeper"],
        ),
        ("--resolution 60", ["resolution", "60", "48 or 64"]),
        ("--resolution 512", ["resolution", "512", "256 pixels a side", "Lower it"]),
        ("--validation_prompt x --validation_resolution 65", ["validation_resolution", "65", "64 or 80"]),
        ("--prediction_type epsilon", ["prediction_type", "epsilon", "flow_matching"]),
        ("--resume_from_checkpoint ./gone", ["resume_from_checkpoint", "no such file"]),
        ("--resume_from_checkpoint .", ["resume_from_checkpoint", "manifest.json", "checkpoint-500"]),
        (f"--output_dir {__file__}/below", ["output_dir", "is a file", "Name a folder"]),
        ("stray", ["stray", "Write --option value"]),
    ],
)
def test_configuration(command: Command, config: Path, flags: str, words: list[str]) -> None:
    checked = command("check", config, *flags.split())
    checked.refuses(*words)
    assert command("train", config, *flags.split()) == checked


def test_switch_in_quotes(command: Command, config: Path) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_ema": "yes"}))
    command("check", config).refuses("use_ema", '"yes"', "Write true, without quotes")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{'resolution': 64}", "is not valid JSON at line 1, column 2"),
        ("[]", "holds no JSON object"),
        ("\udc89", "is not UTF-8"),
    ],
)
def test_configuration_files(command: Command, tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    command("check", path).refuses(str(path), words)
    command("train", tmp_path).refuses(str(tmp_path), "Is a directory")


def test_prefix_for_another_kind_of_model(command: Command, config: Path, tiny_folder: TinyFolder) -> None:
    flags = ["--model_family", "sd1x", "--pretrained_model_name_or_path", tiny_folder("sd1x"), "--crepa_enabled"]
    outcome = command("check", config, *flags, "--aspect_bucket_alignment", "64")
    outcome.refuses("crepa_enabled", "sd1x is a UNet", "urepa_enabled")


def test_home_folder(
    command: Command, config: Path, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a JSON file no shell has expanded "~"; it must not become the name of a folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert command("train", config, "--output_dir=~/out", "--max_train_steps", 1).code == 0
    assert (tmp_path / "out" / "checkpoint-1").is_dir() and not Path("~").exists()
    command("check", config, "--data_backend_config=~nobody-of-this-name/b.json").refuses(
        "data_backend_config", "~nobody"
    )


def test_tracker_that_is_not_installed(command: Command, config: Path) -> None:
    command("check", config, "--report_to", "dvclive").refuses("report_to", "pip install dvclive", "tensorboard")


def test_half_precision_on_the_cpu(command: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    command("train", config, "--mixed_precision", "fp16").refuses("mixed_precision", "fp16", "bf16 or no")


def test_output_dir_that_cannot_be_made(command: Command, config: Path) -> None:
    command("train", config, "--output_dir", "/proc/nothing").refuses("output_dir", "/proc/nothing", "Set another")


# Models and encoders


def test_model_of_another_family(command: Command, config: Path, tiny_folder: TinyFolder) -> None:
    for family in ("sd1x", "wan", "dit"):
        folder = tiny_folder(family)
        outcome = command("check", config, "--pretrained_model_name_or_path", folder)
        outcome.refuses("pretrained_model_name_or_path", str(folder), f"Set model_family to {family}")


@pytest.mark.parametrize(
    ("spoil", "words", "found_by_check"),
    [
        (lambda folder: shutil.rmtree(folder / "transformer"), "needs transformer/config.json", True),
        (lambda folder: (folder / "transformer" / "config.json").write_text("{"), "can't be read", True),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "has no folder tokenizer/", False),
        (lambda folder: shutil.rmtree(folder / "vae"), "AutoencoderKL in vae/", False),
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json", False),
        (lambda folder: truncate(next((folder / "text_encoder").glob("*.safetensors"))), "get it again", False),
        (lambda folder: truncate(next((folder / "transformer").glob("*.safetensors"))), "get it again", False),
        (lambda folder: next((folder / "transformer").glob("*.safetensors")).unlink(), "pickled weights", False),
        (lambda folder: fill_with_nan(next((folder / "text_encoder_3").glob("*.safetensors"))), "not finite", False),
        (lambda folder: fill_with_nan(next((folder / "vae").glob("*.safetensors"))), "not finite", False),
    ],
)
def test_spoilt_model_folders(
    command: Command, config: Path, model_copy: Path, spoil: Callable[[Path], None], words: str, found_by_check: bool
) -> None:
    spoil(model_copy)
    flags = ["--pretrained_model_name_or_path", model_copy]
    assert command("check", config, *flags).code == (2 if found_by_check else 0)
    command("train", config, *flags).refuses(str(model_copy), words)


def test_model_that_is_not_on_this_machine(command: Command, config: Path) -> None:
    outcome = command("train", config, "--pretrained_model_name_or_path", "nobody/nothing")
    outcome.refuses("pretrained_model_name_or_path", "'nobody/nothing'", "HF_HUB_OFFLINE", "local folder")
    assert outcome.err.count("\n") == 1


def test_local_encoders(command: Command, config: Path, tmp_path: Path, tiny_teacher: Path) -> None:
    """What can be seen without loading is seen by `check`."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    flags = ["--crepa_enabled", "--crepa_encoder", folder, "--crepa_encoder_image_size", "56"]
    command("check", config, *flags).refuses("crepa_encoder", str(folder), "holds no model.safetensors")
    shutil.copy(tiny_teacher / "model.safetensors", folder)
    command("check", config, *flags).refuses("crepa_encoder", "config.json")
    (folder / "config.json").write_text("{}")
    command("check", config, *flags).refuses("crepa_encoder", "names no architecture")
    shutil.copy(tiny_teacher / "config.json", folder)
    assert command("check", config, *flags).code == 0
    truncate(folder / "model.safetensors")
    command("train", config, *flags).refuses(str(folder), "can't be loaded")


@pytest.mark.parametrize("name", ["dinov2_vits14", "timm/vit_of_nobody"])
def test_encoders_that_cannot_be_loaded(command: Command, config: Path, name: str) -> None:
    flags = ["--crepa_enabled", "--crepa_encoder", name, "--crepa_encoder_image_size", "56"]
    command("train", config, *flags).refuses(repr(name), "can't be loaded", "local folder")


# Data


def test_bad_images_are_skipped_and_counted(
    command: Command, own_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truncated, *_ = images(tmp_path)
    truncate(truncated)
    (tmp_path / "data" / "page.jpg").write_text("<html>")
    (tmp_path / "data" / "none.png").touch()
    outcome = command("train", own_data)
    assert outcome.code == 0 and outcome.errors == []
    (record,) = caplog.records
    assert "skipped 3 of 9 files" in record.message
    assert all(name in record.message for name in (truncated.name, "page.jpg", "none.png"))


def test_odd_images_are_trained_on(command: Command, own_data: Path, tmp_path: Path) -> None:
    Image.new("RGB", (300, 1), "red").save(tmp_path / "data" / "line.png")
    Image.new("L", (1, 1)).save(tmp_path / "data" / "dot.png")
    Image.new("RGBA", (37, 91)).save(tmp_path / "data" / "odd.png")
    assert command("train", own_data, "--num_train_epochs", 1, "--max_train_steps", 0).code == 0


def test_only_bad_images(command: Command, own_data: Path, tmp_path: Path) -> None:
    for path in images(tmp_path):
        path.write_bytes(path.read_bytes()[:40])
    command("train", own_data).refuses("instance_data_dir", "none of the 7 files", "0.png: is no image", "Mend them")


def test_empty_and_missing_folders(command: Command, own_data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    set_entry(tmp_path, instance_data_dir=str(tmp_path / "empty"))
    command("train", own_data).refuses(
        "instance_data_dir", str(tmp_path / "empty"), "holds no image", "Put files there"
    )
    set_entry(tmp_path, instance_data_dir=str(tmp_path / "gone"))
    outcome = command("check", own_data)
    outcome.refuses("multidatabackend.json: small.instance_data_dir", str(tmp_path / "gone"), "Check the path")
    assert command("train", own_data) == outcome


def test_captions(command: Command, own_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Empty captions are trained on as such, with a warning; none at all is an error."""
    texts = sorted((tmp_path / "data").glob("*.txt"))
    for path in texts:
        path.write_text(" \n")
    assert command("train", own_data).code == 0
    assert "7 captions are empty and count as the empty prompt" in caplog.text
    for path in texts:
        path.unlink()
    outcome = command("train", own_data, "--output_dir", tmp_path / "other")
    outcome.refuses("caption_strategy 'textfile'", "finds no caption", "choose another caption_strategy")


def test_torn_metadata(command: Command, own_data: Path, tmp_path: Path) -> None:
    set_entry(tmp_path, caption_strategy="metadata")
    command("check", own_data).refuses("small.metadata_file", "metadata.jsonl")
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n{"file_na')
    command("train", own_data).refuses("metadata.jsonl, line 2", "Mend or remove the line")


def test_dit_with_images_that_are_not_square(
    command: Command, own_data: Path, tmp_path: Path, tiny_folder: TinyFolder
) -> None:
    flags = ["--model_family", "dit", "--pretrained_model_name_or_path", tiny_folder("dit")]
    command("train", own_data, *flags).refuses(
        "crop_aspect of 'small'", "1.png", "96×64", "Set crop_aspect to 'square'"
    )
    flags += ["--validation_prompt", "x", "--validation_resolution", "64x96"]
    command("check", own_data, *flags).refuses("validation_resolution", "64x96", "Use 96")


def test_prompt_that_is_no_class(command: Command, own_data: Path, tmp_path: Path, tiny_folder: TinyFolder) -> None:
    set_entry(tmp_path, crop_aspect="square")
    flags = ["--model_family", "dit", "--pretrained_model_name_or_path", tiny_folder("dit")]
    command("train", own_data, *flags, "--validation_prompt", "cow").refuses("'cow'", "validation_prompt", "picture 0")


# Runs that break


def test_loss_that_is_not_finite(command: Command, config: Path, tmp_path: Path) -> None:
    outcome = command("train", config, "--learning_rate", "1e30", "--max_grad_norm", 0, "--max_train_steps", 9)
    outcome.refuses("not finite at step 2", "loss nan", "learning_rate 1e+30", "Lower learning_rate", code=1)
    assert list((tmp_path / "run").glob("checkpoint-*")) == []


def test_damaged_weights_cost_no_checkpoint(
    command: Command, config: Path, tmp_path: Path, model_copy: Path, shared: Path
) -> None:
    """The run that diverges saves nothing of it, names the checkpoint before, and that one goes on."""
    assert command("train", config, "--max_train_steps", 2).code == 0
    fill_with_nan(next((model_copy / "transformer").glob("*.safetensors")))
    flags = ["--resume_from_checkpoint", "latest", "--checkpoint_step_interval", 1]
    outcome = command("train", config, *flags, "--pretrained_model_name_or_path", model_copy)
    outcome.refuses("not finite at step 3", code=1)
    assert f"Kept {tmp_path / 'run' / 'checkpoint-2'}; continue" in outcome.err
    assert command("train", config, *flags).code == 0
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]


def test_disk_full_while_caching(command: Command, own_data: Path, tmp_path: Path) -> None:
    with disk_with_room_for(500):
        command("train", own_data).refuses("cache_dir", "files.jsonl", "Free space or set another folder")
    with disk_with_room_for(3000):
        command("train", own_data).refuses("cache_dir", "can't write to", "what is cached so far is kept")
    assert command("train", own_data).code == 0


@pytest.mark.parametrize("size", [3000, 20_000])
def test_disk_full_while_saving(command: Command, config: Path, tmp_path: Path, size: int) -> None:
    """The earlier checkpoint is as it was, what was written of the new one is gone, and the run goes on later."""
    assert command("train", config, "--max_train_steps", 2).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    flags = ["--resume_from_checkpoint", "latest"]
    with disk_with_room_for(size):
        outcome = command("train", config, *flags)
    outcome.refuses("output_dir", str(tmp_path / "run"), "checkpoint of step 4 can't be written", "disk space", code=1)
    assert f"Kept {tmp_path / 'run' / 'checkpoint-2'}; continue" in outcome.err
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoint-2").iterdir()} == before
    assert list((tmp_path / "run").glob(".*")) == []
    assert command("train", config, *flags).code == 0
    assert (tmp_path / "run" / "checkpoint-4").is_dir()


def test_disk_full_for_the_logs(command: Command, config: Path) -> None:
    """Without a file's name in the system's error, the option that leads to it is named."""
    assert command("cache", config).code == 0
    with disk_with_room_for(100):
        command("train", config).refuses("output_dir", "can't be read or written", code=1)


def test_image_that_broke_after_the_scan(command: Command, own_data: Path, tmp_path: Path, tiny_teacher: Path) -> None:
    assert command("train", own_data).code == 0
    for path in images(tmp_path):  # of the same size and time of change: the scan trusts what it knows
        state = path.stat()
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    flags = ["--crepa_enabled", "--crepa_encoder", tiny_teacher, "--crepa_encoder_image_size", "56"]
    outcome = command("train", own_data, *flags, "--output_dir", tmp_path / "other")
    outcome.refuses(".png: is no image", "mend or remove it")


# Other runs


def test_earlier_checkpoints_are_not_mixed_with(command: Command, config: Path, tmp_path: Path) -> None:
    """A new run would prune its own checkpoints before the later ones of the old run, and resume from those."""
    assert command("train", config, "--max_train_steps", 2).code == 0
    outcome = command("train", config)
    outcome.refuses("output_dir", str(tmp_path / "run"), "up to step 2", "--resume_from_checkpoint latest")
    again = command("train", config, "--max_train_steps", 2, "--resume_from_checkpoint", "latest")
    assert again.code == 0 and "nothing is left to train. Raise max_train_steps" in again.err


def test_ctrl_c_saves_and_says_how_to_go_on(command: Command, config: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "run" / "checkpoint-1").is_dir():
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    outcome = command("train", config, "--max_train_steps", 1_000_000, "--checkpoint_step_interval", 1)
    watcher.join()
    stopped = max(row["step"] for row in metrics(tmp_path))
    assert outcome.code == 0
    assert f"Stopped after step {stopped}; continue with --resume_from_checkpoint latest." in outcome.err
    assert (tmp_path / "run" / f"checkpoint-{stopped}" / "manifest.json").is_file()


def test_ctrl_c_before_the_first_step(command: Command, own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        build_caches(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "build_caches", interrupted)
    outcome = command("train", own_data)
    assert (outcome.code, outcome.errors) == (130, [])
    assert outcome.err.startswith("Stopped while preparing.")


def test_what_a_user_sees(own_data: Path, tmp_path: Path) -> None:
    """A process of its own, its output in a file: our lines and no others, from libraries neither."""
    truncated, *_ = images(tmp_path)
    truncate(truncated)
    done = run("-m", "simpletuner.cli", "train", "--config", str(own_data), "--report_to", "tensorboard")
    assert (done.returncode, done.stdout) == (0, "")
    warning, *checks, step, last = done.stderr.splitlines()
    assert warning == f"warning: small: skipped 1 of 7 files: {truncated}: image file is truncated"
    assert checks[0].startswith("✓ model ") and all(check.startswith("✓ ") for check in checks)
    assert step.startswith("step 1/1  loss ")
    assert last == f"Done after step 1; the model is in {tmp_path / 'run'}."
