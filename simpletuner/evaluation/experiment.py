"""The experiment behind the demo and the convergence benchmark: a small DiT on small images, with and without REPA.

Everything that the arms share is made here once: images by class, the judging classifier, the model's configuration.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

from simpletuner.evaluation.arms import CLASSIFIER_FILE, PLAIN_CLASSIFIER_FILE, TEACHER_SCALE, Arm
from simpletuner.evaluation.classifier import save_classifier, train_classifier
from simpletuner.evaluation.datasets import Splits, write_class_folders

PATCH = 4  # pixels a token
LISTING_FILE = "multidatabackend.json"


def prepare(splits: Splits, folder: Path, *, classifier_epochs: int, plain_classifier: bool = False) -> float:
    """Writes images, classifiers and the model's configuration below `folder`; returns the first one's accuracy.

    What an earlier comparison has written there is removed first.

    Raises:
        ValueError: `folder` holds data that no comparison has written.
    """
    data = folder / "data"
    _remove_earlier(folder)
    data.mkdir(parents=True, exist_ok=True)
    # The classifier first: by it a later run knows these folders as its own to remove.
    classifier = train_classifier(splits.classifier, epochs=classifier_epochs)
    save_classifier(classifier, data / CLASSIFIER_FILE)
    if plain_classifier:
        plain = train_classifier(splits.classifier, epochs=classifier_epochs, shift=0, noise=0.0)
        save_classifier(plain, data / PLAIN_CLASSIFIER_FILE)
    write_class_folders(splits.train, data / "train")
    write_class_folders(splits.held_out, data / "held_out")
    _write_model(folder / "model", splits)
    entry = {
        "id": "images",
        "dataset_type": "image",
        "instance_data_dir": str(data / "train"),
        "caption_strategy": "folder",
        "crop_aspect": "square",
    }
    (folder / LISTING_FILE).write_text(json.dumps([entry], indent=2), encoding="utf-8")
    return classifier.accuracy(splits.held_out)


def _remove_earlier(folder: Path) -> None:
    """Images that stayed from an earlier comparison would be trained on, and measured with, too."""
    data, listing = folder / "data", folder / LISTING_FILE
    parts = [part for part in (data / "train", data / "held_out") if part.exists()]
    if not (data / CLASSIFIER_FILE).is_file() and (parts or listing.exists()):
        raise ValueError(f"{folder} holds data that no comparison has written there; name another folder")
    for part in parts:
        shutil.rmtree(part)
    for path in (listing, data / PLAIN_CLASSIFIER_FILE, data / CLASSIFIER_FILE):  # the one that tells whose it is last
        path.unlink(missing_ok=True)


def _write_model(folder: Path, splits: Splits) -> None:
    """A DiT of 4.6 M parameters that works on pixels: configuration only, to be trained from scratch."""
    channels, size = splits.train.images.shape[1:3]
    with torch.device("meta"):
        model: Any = DiTTransformer2DModel(
            num_attention_heads=3,
            attention_head_dim=64,
            num_layers=6,
            in_channels=channels,
            out_channels=channels,
            sample_size=size,
            patch_size=PATCH,
            num_embeds_ada_norm=len(splits.train.names),
        )
    model.save_config(folder / "transformer")
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    scheduler.save_pretrained(folder / "scheduler")


def make_arm(
    folder: Path, name: str, splits: Splits, options: dict[str, Any], *, conditional: bool = True, **measuring: Any
) -> Arm:
    """An arm of the comparison in `folder`, which `prepare` has filled.

    Args:
        name: of the arm and of its subfolder.
        conditional: whether the model is told the classes; if not, every caption is dropped.
        options: what this arm adds to the options that all share; at least `max_train_steps` and `seed`.
        measuring: further fields of `Arm`.
    """
    channels, size = splits.train.images.shape[1:3]
    shared: dict[str, Any] = {
        "model_family": "dit",
        "model_type": "full",
        "train_from_scratch": True,
        "pretrained_model_name_or_path": str(folder / "model"),
        "data_backend_config": str(folder / LISTING_FILE),
        "cache_dir": str(folder / name / "cache"),  # its own: arms run side by side
        "output_dir": str(folder / name),
        "prediction_type": "flow_matching",
        "resolution": size,
        "aspect_bucket_alignment": PATCH,
        "caption_dropout_probability": 0.1 if conditional else 1.0,
        "train_batch_size": 32,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 50,
        "use_ema": True,
        "ema_decay": 0.995,
        "mixed_precision": fast_precision(),
        "max_workers": 0,
        "checkpoint_step_interval": 0,
    }
    if options.get("crepa_enabled"):
        shared["crepa_encoder_image_size"] = size * TEACHER_SCALE
    return Arm(
        name=name,
        options=shared | options,
        data=str(folder / "data"),
        size=size,
        channels=channels,
        conditional=conditional,
        **measuring,
    )


def fast_precision() -> str:
    """bf16 where the processor has instructions for it, for then a step takes little more than half the time."""
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else "no"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
