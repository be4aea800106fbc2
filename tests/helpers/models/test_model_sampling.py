"""Prompts to embeddings, and samples from them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from simpletuner.helpers.models import noising
from simpletuner.helpers.models.dit import DitFoundation
from simpletuner.helpers.models.sampling import SampleSettings
from tests.conftest import MakeFoundation
from tests.helpers.models.cases import PROMPTS

SIZES = {"dit": (64, 64, 1), "dit_pixels": (8, 8, 1), "sd1x": (64, 128, 1), "sd3": (64, 96, 1), "wan": (32, 48, 5)}
KEYS = {"sd1x": {"prompt_embeds"}, "sd3": {"prompt_embeds", "pooled_prompt_embeds"}, "wan": {"prompt_embeds"}}


@pytest.mark.parametrize("name", KEYS)
def test_prompts_are_encoded_one_by_one_for_the_cache(name: str, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation(name)
    cat, nothing = foundation.encode_prompts(["a photo of cat", ""])
    (alone,) = foundation.encode_prompts([""])
    assert set(cat) == KEYS[name]
    assert cat["prompt_embeds"].ndim == 2
    assert not torch.allclose(cat["prompt_embeds"], nothing["prompt_embeds"])
    torch.testing.assert_close(nothing["prompt_embeds"], alone["prompt_embeds"])
    assert foundation.collate_text([cat, nothing])["prompt_embeds"].shape == (2, *cat["prompt_embeds"].shape)


@pytest.mark.parametrize("name", SIZES)
def test_samples_come_from_cached_embeddings(name: str, make_foundation: MakeFoundation) -> None:
    """No text encoder is in memory while sampling; the model is left in training mode."""
    foundation = make_foundation(name)
    model = foundation.load_model()
    foundation.observe_captions(["cat", "dog"])
    prompt, negative = foundation.encode_prompts([PROMPTS[name], ""])
    foundation.unload_text_encoders()
    height, width, frames = SIZES[name]
    settings = SampleSettings(height, width, steps=2, guidance=3.0, seed=5, frames=frames)
    samples = foundation.validation_samples([prompt, prompt], negative, **asdict(settings))
    assert len(samples) == 2
    clip = samples[0] if isinstance(samples[0], list) else [samples[0]]
    assert len(clip) == frames
    assert isinstance(clip[0], Image.Image)
    assert clip[0].size == (width, height)
    assert model.training

    alone = foundation.generate([prompt], negative, settings)
    assert alone.shape == (1, frames, 3, height, width)
    together = foundation.generate([prompt, prompt], negative, settings)
    torch.testing.assert_close(alone, together[:1], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(together[:1], together[1:], atol=1e-3)
    unguided = foundation.generate([prompt], negative, replace(settings, guidance=1.0))
    assert not torch.allclose(alone, unguided)


@pytest.mark.parametrize("name", ["sd1x", "sd3", "wan"])
def test_forward_calls_the_model_as_the_pipeline_does(name: str, make_foundation: MakeFoundation) -> None:
    """The timestep's scale and sign, the text and the layout are those that the model is sampled with."""
    foundation = make_foundation(name)
    model = foundation.load_model().eval()
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"], output[0]))

    height, width, frames = SIZES[name]
    text = foundation.encode_prompts([PROMPTS[name]])
    with model.register_forward_hook(note, with_kwargs=True):
        foundation.generate(text, text[0], SampleSettings(height, width, steps=3, guidance=1.0, seed=0, frames=frames))
    scheduler = noising.sampling_scheduler(foundation.prediction_type, foundation.scheduler_facts)
    scheduler.set_timesteps(3)
    assert len(seen) == 3
    for timestep, (latents, predicted) in zip(scheduler.timesteps, seen, strict=True):
        batch = {
            "noisy_latents": latents,
            "timesteps": timestep.expand(1),
            "text": foundation.collate_text(text),
        }
        with torch.no_grad():
            torch.testing.assert_close(foundation.forward(batch), predicted)


@pytest.mark.parametrize("name", ["dit", "sd1x", "sd3", "wan"])
def test_sampling_leaves_the_dtypes_of_model_and_adapter_alone(name: str, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation(name, model_type="lora", mixed_precision="bf16")
    model = foundation.load_model()
    dtypes = [parameter.dtype for parameter in model.parameters()]
    foundation.observe_captions(["cat"])
    text = foundation.encode_prompts([PROMPTS[name]])
    height, width, frames = SIZES[name]
    settings = SampleSettings(height, width, steps=1, guidance=2.0, seed=0, frames=frames)
    assert foundation.generate(text, text[0], settings).isfinite().all()
    assert [parameter.dtype for parameter in model.parameters()] == dtypes


def test_class_names_come_from_the_captions_or_the_model(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("dit")
    assert isinstance(foundation, DitFoundation)
    foundation.observe_captions(["dog", "cat", "dog", ""])
    dog, cat, nothing = (item["class_labels"].item() for item in foundation.encode_prompts(["dog", "cat", ""]))
    assert (cat, dog, nothing) == (0, 1, foundation.null_class) == (0, 1, 10)
    with pytest.raises(ValueError, match="'cow' isn't a class of this dit; it knows cat, dog"):
        foundation.encode_prompts(["cow"])
    with pytest.raises(ValueError, match="11 different captions, but this dit has 10 classes"):
        foundation.observe_captions(str(number) for number in range(11))


def test_training_drops_no_class_by_itself(make_foundation: MakeFoundation) -> None:
    """Two forwards in training mode agree: diffusers' random class dropout is off, ours is reproducible."""
    foundation = make_foundation("dit")
    foundation.load_model()
    batch = {
        "noisy_latents": torch.zeros(64, 4, 8, 8),
        "timesteps": torch.full((64,), 10.0),
        "text": {"class_labels": torch.ones(64, dtype=torch.long)},
    }
    with torch.no_grad():
        prediction = foundation.forward(batch)
    torch.testing.assert_close(prediction, prediction[:1].expand_as(prediction))
