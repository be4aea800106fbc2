"""Killed builds go on where they were, several processes share the work, and a full disk or Ctrl-C loses nothing."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from simpletuner.cli import main
from simpletuner.configuration.config import Config
from simpletuner.helpers.data.store import TensorStore
from simpletuner.helpers.models.registry import foundation_class
from simpletuner.helpers.training.alignment.teachers import Teacher
from tests.helpers.data.apart import Say, apart
from tests.helpers.data.build_alone import build
from tests.helpers.data.caches import damage, everything
from tests.helpers.data.files import tiny_options, write_images
from tests.runs import write_config

COUNT = 7  # images, in batches of 2
TinyFolder = Callable[[str], Path]
Contents = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), [(32, 32)] * COUNT)


@pytest.fixture(scope="module")
def options(tiny_folder: TinyFolder, tiny_teacher: Path) -> dict[str, Any]:
    return {
        "model_family": "sd3",
        "pretrained_model_name_or_path": str(tiny_folder("sd3")),
        "mixed_precision": "no",
        "crepa_enabled": True,
        "crepa_encoder": str(tiny_teacher),
        "crepa_encoder_image_size": 28,
        "crepa_feature_cache_dim": 4,
        "crepa_feature_cache_dtype": "fp32",
    }


def options_in(root: Path, options: dict[str, Any]) -> dict[str, Any]:
    return options | tiny_options(root, resolution=32)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, options: dict[str, Any]) -> Contents:
    """All records of a build that nothing disturbs: latents, prompts, features and their whitening."""
    samples, caches, watch = build(Config(**options_in(tmp_path_factory.mktemp("undisturbed"), options)), data)
    assert (watch.images, watch.prompts) == (COUNT, COUNT + 1)
    records = everything(caches, samples)
    assert len(records) == COUNT + (COUNT + 1) + COUNT
    return records


def assert_same(records: Contents, expected: Contents) -> None:
    assert records.keys() == expected.keys()
    for key, record in expected.items():
        torch.testing.assert_close(records[key], record, atol=1e-4, rtol=1e-4)


# Kills


def build_until(say: Say, options: dict[str, Any], data: Path, end: int | str) -> None:
    build(Config(**options), data, end)


@pytest.mark.parametrize("end", [0, 1, 3, "last"])
def test_a_kill_loses_at_most_what_is_in_flight(
    tmp_path: Path,
    data: Path,
    options: dict[str, Any],
    undisturbed: Contents,
    monkeypatch: pytest.MonkeyPatch,
    end: int | str,
) -> None:
    """The batch that is encoded, and the one before it, which is written meanwhile."""
    options = options_in(tmp_path, options)
    with apart(build_until, options, data, end) as killed:
        assert killed.exit_code() == -signal.SIGKILL

    encoded: list[int] = []
    really_encode = Teacher.encode

    def counted(teacher: Teacher, pixels: Tensor, **how: Any) -> Any:
        encoded.append(len(pixels))
        return really_encode(teacher, pixels, **how)

    monkeypatch.setattr(Teacher, "encode", counted)
    samples, caches, watch = build(Config(**options), data)
    begun, written = (COUNT, COUNT) if end == "last" else (2 * int(end), 2 * max(0, int(end) - 1))
    assert COUNT - begun <= watch.images <= COUNT - written
    assert COUNT - begun <= sum(encoded) <= COUNT - written
    assert watch.prompts == (0 if end == "last" else COUNT + 1)
    assert_same(everything(caches, samples), undisturbed)
    assert [store.manifest()["records"] for store in caches.stores(samples)] == [COUNT, COUNT + 1, COUNT]


# Several processes


def build_damage_build(say: Say, options: dict[str, Any], data: Path) -> None:
    """Builds, damages a few records, and builds again with a look at each."""
    config = Config(**options)
    samples, caches, watch = build(config, data)
    say((watch.images, watch.prompts))
    accelerator = Accelerator(cpu=True)
    if accelerator.is_main_process:
        assert caches.features is not None
        for sample in samples[:2]:
            damage(caches.records.latents(sample))
        damage(caches.features.record(samples[2]))
        damage(caches.records.prompt(""))
    accelerator.wait_for_everyone()
    samples, caches, watch = build(config, data, verify=True)
    say((watch.images, watch.prompts))
    say({key: {name: part.tolist() for name, part in r.items()} for key, r in everything(caches, samples).items()})


def test_processes_build_each_a_slice(
    tmp_path: Path, data: Path, options: dict[str, Any], undisturbed: Contents
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    options = options_in(tmp_path, options)
    with ExitStack() as running:
        ranks = [
            running.enter_context(
                apart(build_damage_build, options, data, RANK=rank, LOCAL_RANK=rank, **world, output=tmp_path / rank)
            )
            for rank in ("0", "1")
        ]
        assert [rank.hear() for rank in ranks] == [(4, 4), (3, 4)]
        assert [rank.hear() for rank in ranks] == [(1, 1), (1, 0)]
        for rank in ranks:
            records = rank.hear()
            assert_same({key: {n: torch.tensor(v) for n, v in r.items()} for key, r in records.items()}, undisturbed)
        assert [rank.exit_code() for rank in ranks] == [0, 0]
    assert (tmp_path / "0").read_text().count("4 cached records were damaged") == 1
    assert "damaged" not in (tmp_path / "1").read_text()
    for store in (tmp_path / "caches" / "features", *(tmp_path / "caches" / "vae").iterdir()):
        assert {shard.name[:4] for shard in TensorStore(store).shards()} == {"0000", "0001"}


# The command line


@pytest.fixture
def config(tmp_path: Path, options: dict[str, Any]) -> Path:
    model = Path(options["pretrained_model_name_or_path"])
    return write_config(tmp_path, model, **options | {"resolution": 32, "vae_batch_size": 2})


def cache(say: Say, config: Path, interrupt_at: int | None, limit: int | None) -> None:
    """`simpletuner cache`, with Ctrl-C from a certain batch on, or where no file can grow beyond a limit.

    Python drops a KeyboardInterrupt that comes while a finalizer runs; a person presses again.
    """
    torch.set_num_threads(1)
    batches, kind = 0, foundation_class("sd3")
    encode_pixels = kind.encode_pixels

    def interrupted(foundation: Any, pixels: Tensor) -> Tensor:
        nonlocal batches
        if interrupt_at is not None and batches >= interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        batches += 1
        return encode_pixels(foundation, pixels)

    kind.encode_pixels = interrupted
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    raise SystemExit(main(["cache", "--config", str(config)]))


def run_cache(config: Path, *, interrupt_at: int | None = None, limit: int | None = None) -> tuple[int, str]:
    """Exit code and all that is printed."""
    output = config.with_name("output")
    with apart(cache, config, interrupt_at, limit, output=output) as running:
        return running.exit_code(), output.read_text()


def records_in(root: Path) -> dict[str, int]:
    """How many intact records there are, by the kind of store."""
    counts: dict[str, int] = {}
    for manifest in (root / "caches").rglob("manifest.json"):
        store = TensorStore(manifest.parent)
        counts[store.manifest()["kind"]] = sum(map(store.intact, store.keys()))
    return counts


def assert_completes(config: Path) -> None:
    code, output = run_cache(config)
    assert code == 0, output
    assert records_in(config.parent) == {"latents": COUNT, "text": 8, "features": COUNT}
    assert [line.split()[:3] for line in output.splitlines() if line.startswith("Cached")] == [
        ["Cached", "7", "latents"],
        ["Cached", "8", "prompts"],
        ["Cached", "7", "features"],
    ]


def test_ctrl_c_keeps_what_is_made(config: Path) -> None:
    code, output = run_cache(config, interrupt_at=2)
    assert code == 130
    last = output.splitlines()[-1]
    assert last.startswith("Stopped ") and last.endswith("What is cached so far is kept; start again to go on.")
    assert "Traceback" not in output
    there = records_in(config.parent)
    assert there["text"] == 0 and COUNT > there["latents"] >= 4 and COUNT > there["features"] >= 4
    assert_completes(config)


@pytest.mark.parametrize("limit", [12_000, 20_000, 40_000])
def test_a_full_disk_is_one_error_and_leaves_a_usable_cache(config: Path, limit: int) -> None:
    """Where the first shards begin, where they grow, and where prompts need more room than pictures."""
    code, output = run_cache(config, limit=limit)
    assert code == 2
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in output
    assert errors[0].startswith("error: cache_dir: can't write to ")
    assert "Free space or set another folder; what is cached so far is kept." in errors[0]
    assert_completes(config)
