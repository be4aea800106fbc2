"""A miniature of ImageNet in ILSVRC's folder layout, and a tiny Stable Diffusion that is at home in it.

For trying the ImageNet recipe from end to end on a CPU: `python examples/mini_imagenet.py --output output/mini`. Images
are Fashion-MNIST's, or those of any folder with a folder a class. The autoencoder is trained for half a minute, so that
latents keep the picture; text encoder and UNet have random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageOps
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from simpletuner.evaluation.datasets import FASHION_MNIST_FOLDER, load_fashion_mnist
from simpletuner.helpers.data.errors import MediaError
from simpletuner.helpers.data.imagenet import TRAIN, class_names_file, draw_order, write_whole
from simpletuner.helpers.data.media import IMAGE_SUFFIXES, read_image

RESOLUTION = 64
"""Pixels a side at which the tiny model is trained: latents of 32 x 32, and 4 x 4 tokens in the mid-block."""
CLASS_NAMES_FILE = "imagenet_classes.json"
EVERY_WIDE, EVERY_TALL = 4, 5  # one image in four is wider than high, one in five higher than wide
LONGER = 1.25


def write_images(
    root: Path,
    *,
    images: Path | None = None,
    fashion_mnist: Path = FASHION_MNIST_FOLDER,
    per_class: int = 40,
    size: int = 96,
    seed: int = 0,
) -> Path:
    """Writes `root/Data/CLS-LOC/train/n0000000K/*.JPEG` and the names of the classes; returns the names' file.

    Args:
        images: a folder with a folder of images a class; None takes Fashion-MNIST from `fashion_mnist`.
        size: of the shorter side, in pixels.
        seed: decides which images are drawn of a class.

    Raises:
        ValueError, OSError: there are no images, or they can't be read or written.
    """
    names = {}
    drawn = _fashion(fashion_mnist, per_class, seed) if images is None else _of_folder(images, per_class, seed)
    for number, (name, pictures) in enumerate(drawn, 1):
        synset = f"n{number:08}"
        names[synset] = name
        folder = root / TRAIN / synset
        folder.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pictures):
            if images is None:
                picture = _reshaped(picture, index)
            scale = size / min(picture.size)
            width, height = (max(size, round(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            picture.save(folder / f"{synset}_{index}.JPEG", quality=95)
    file = root / CLASS_NAMES_FILE
    write_whole(file, class_names_file(names))
    return file


def _fashion(folder: Path, per_class: int, seed: int) -> Iterator[tuple[str, list[Image.Image]]]:
    data = load_fashion_mnist(folder)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    for label, name in enumerate(data.names):
        chosen = order[data.labels[order] == label][:per_class]
        pixels = (data.images[chosen, 0] * 255).round().to(torch.uint8).numpy()
        yield name, [Image.fromarray(array).convert("RGB") for array in pixels]


def _reshaped(picture: Image.Image, index: int) -> Image.Image:
    """Some pictures get a black border at two sides, so that cropping has something to do."""
    border = round(picture.width * (LONGER - 1) / 2)
    if index % EVERY_WIDE == 1:
        return ImageOps.expand(picture, (border, 0))
    return ImageOps.expand(picture, (0, border)) if index % EVERY_TALL == 2 else picture


def _of_folder(folder: Path, per_class: int, seed: int) -> Iterator[tuple[str, list[Image.Image]]]:
    classes = sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    found = False
    for item in classes:
        names = [path.name for path in item.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        chosen = draw_order(names, item.name, seed)[:per_class]
        if chosen:
            found = True
            yield item.name.replace("_", " "), [read_image(item / name) for name in chosen]
    if not found:
        raise ValueError(f"--images: {folder} holds no folder with images. Name one with a folder a class.")


# The tiny model


def write_model(folder: Path, root: Path, *, vae_steps: int = 500, seed: int = 0) -> float:
    """Writes a tiny Stable Diffusion in diffusers' layout, its autoencoder trained on the images below `root`.

    Returns:
        The mean squared error of the autoencoder's pictures, pixels being in [0, 1].
    """
    files = sorted((root / TRAIN).rglob("*.JPEG"))
    images = torch.stack([_square(path) for path in files])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae, error = train_autoencoder(images, steps=vae_steps)
        tokenizer = _tokenizer()
        pipeline: Any = StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(_text_sizes(tokenizer)),
            tokenizer=tokenizer,
            unet=_unet(),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return error


def train_autoencoder(images: Tensor, *, steps: int, batch_size: int = 4) -> tuple[AutoencoderKL, float]:
    """A tiny autoencoder of ratio 2 with 4 channels, trained on images `(n, 3, h, w)` in [0, 1].

    Its `scaling_factor` gives latents of variance 1. Returns it and the mean squared error of the last steps.
    """
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=max(2, steps))
    errors = []
    for _ in range(steps):
        pixels = images[torch.randint(len(images), (batch_size,))] * 2 - 1
        posterior = vae.encode(pixels).latent_dist
        loss = (
            F.mse_loss(vae.decode(posterior.sample()).sample, pixels) + 1e-5 * posterior.kl().mean() / pixels[0].numel()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        errors.append(loss.detach() / 4)  # of pixels in [-1, 1]
    with torch.no_grad():
        latents = vae.encode(images[:64] * 2 - 1).latent_dist.mode()
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    return vae, float(torch.stack(errors[-20:]).mean())


def _unet() -> UNet2DConditionModel:
    """Four levels as Stable Diffusion's UNet has, the innermost the same: the outermost has no attention.

    Over 32 x 32 latents it would take most of the time.
    """
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def _tokenizer() -> CLIPTokenizer:
    """A token a byte; the end token has the largest id, as in CLIP's own vocabulary."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _text_sizes(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
    )


def _square(path: Path) -> Tensor:
    """`(3, RESOLUTION, RESOLUTION)` in [0, 1]: the centre."""
    picture = ImageOps.fit(read_image(path), (RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes images and names to `--output`, and with `--models` the model to that folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("output/mini_imagenet"), help="(%(default)s)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder with a folder of images a class")
    parser.add_argument("--fashion-mnist", type=Path, metavar="DIR", default=FASHION_MNIST_FOLDER, help="(%(default)s)")
    parser.add_argument("--per-class", type=int, default=40, help="images of each class (%(default)s)")
    parser.add_argument("--size", type=int, default=96, help="pixels of the shorter side (%(default)s)")
    parser.add_argument("--models", type=Path, metavar="DIR", help="write the tiny model to this folder")
    parser.add_argument("--vae-steps", type=int, default=500, help="training steps of its autoencoder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    chosen = parser.parse_args(arguments)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    try:
        names = write_images(
            chosen.output,
            images=chosen.images,
            fashion_mnist=chosen.fashion_mnist,
            per_class=chosen.per_class,
            size=chosen.size,
            seed=chosen.seed,
        )
        count = len(json.loads(names.read_text(encoding="utf-8")))
        print(f"{count} classes of up to {chosen.per_class} images are in {chosen.output / TRAIN}, named in {names}.")
        if chosen.models is not None:
            error = write_model(chosen.models, chosen.output, vae_steps=chosen.vae_steps, seed=chosen.seed)
            print(f"A tiny model is in {chosen.models}; its autoencoder is off by {error**0.5:.3f} (RMS, of 1).")
    except (OSError, ValueError, MediaError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
