"""Prompts to embeddings, and samples from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from simpletuner.helpers.models import noising
from simpletuner.helpers.models.dit import DitFoundation
from simpletuner.helpers.models.registry import foundation_class
from simpletuner.helpers.models.sampling import SampleSettings
from tests.conftest import MakeFoundation
from tests.families import CASES
from tests.families.batches import make_batch, prepared

WITH_TEXT = [name for name, case in CASES.items() if case.name != "dit"]


def settings_of(name: str, **changes: Any) -> SampleSettings:
    frames, height, width = CASES[name].pixels
    return replace(SampleSettings(height, width, steps=2, guidance=3.0, seed=5, frames=frames), **changes)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_prompts_are_encoded_one_by_one_for_the_cache(name: str, make_foundation: MakeFoundation) -> None:
    """What a prompt is encoded with makes no difference, and a batch of them keeps each as it is."""
    foundation = make_foundation(name)
    prompts = [*CASES[name].prompts, ""]
    together = foundation.encode_prompts(prompts)
    for prompt, embeds in zip(prompts, together, strict=True):
        (alone,) = foundation.encode_prompts([prompt])
        assert alone.keys() == embeds.keys()
        for key, tensor in alone.items():
            torch.testing.assert_close(embeds[key], tensor)
    assert any(
        one.shape != other.shape or not torch.allclose(one, other)
        for one, other in zip(together[0].values(), together[1].values(), strict=True)
    )
    for key, batched in foundation.collate_text(together).items():
        assert len(batched) == len(prompts), key


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if foundation_class(case.name).TEXT_MASKS])
def test_padding_is_masked(name: str, make_foundation: MakeFoundation) -> None:
    """A prompt's prediction doesn't depend on how much longer the others in its batch are."""
    foundation = make_foundation(name)
    foundation.load_model().eval()
    batch = prepared(foundation, name)
    longer = dict(batch["text"])
    for embeds, mask in foundation.TEXT_MASKS.items():
        assert not longer[mask].all()
        longer[embeds] = pad(longer[embeds], (0, 0, 0, 5))
        longer[mask] = pad(longer[mask], (0, 5))
    with torch.no_grad():
        expected, ours = foundation.forward(batch), foundation.forward(batch | {"text": longer})
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_samples_come_from_cached_embeddings(name: str, make_foundation: MakeFoundation) -> None:
    """No text encoder is in memory while sampling; the model is left in training mode."""
    foundation = make_foundation(name)
    model = foundation.load_model()
    foundation.observe_captions(["cat", "dog"])
    prompt, negative = foundation.encode_prompts([CASES[name].prompts[0], ""])
    foundation.unload_text_encoders()
    settings = settings_of(name)
    samples = foundation.validation_samples([prompt, prompt], negative, settings)
    assert len(samples) == 2
    clip = samples[0] if isinstance(samples[0], list) else [samples[0]]
    assert len(clip) == settings.frames
    assert isinstance(clip[0], Image.Image)
    assert clip[0].size == (settings.width, settings.height)
    assert model.training

    alone = foundation.generate([prompt], negative, settings)
    assert alone.shape == (1, settings.frames, 3, settings.height, settings.width)
    together = foundation.generate([prompt, prompt], negative, settings)
    torch.testing.assert_close(alone, together[:1], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(together[:1], together[1:], atol=1e-3)
    unguided = foundation.generate([prompt], negative, replace(settings, guidance=1.0))
    assert not torch.allclose(alone, unguided)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if foundation_class(case.name).GUIDES_IN_INTERVALS]
)
def test_guidance_is_only_within_its_interval(name: str, make_foundation: MakeFoundation) -> None:
    """Over all levels it is plain guidance, over none it is none, and between the two it is neither."""
    foundation = make_foundation(name)
    foundation.load_model()
    foundation.observe_captions(["cat", "dog"])
    text, settings = foundation.encode_prompts(list(CASES[name].prompts)), settings_of(name, steps=3)
    (negative,) = foundation.encode_prompts([""])

    def sampled(**changes: Any) -> Tensor:
        return foundation.generate(text, negative, replace(settings, **changes))

    guided, unguided = sampled(), sampled(guidance=1.0)
    torch.testing.assert_close(sampled(guidance_interval=(0.0, 1.0)), guided, atol=0, rtol=0)
    nowhere = sampled(guidance_interval=(0.0, 0.0))
    torch.testing.assert_close(nowhere, unguided, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sampled(guidance=1.0, guidance_interval=(0.0, 1.0)), unguided, atol=0, rtol=0)
    first_step = 0.9 if foundation.prediction_type == "flow_matching" else 0.5  # alone is above
    early = sampled(guidance_interval=(first_step, 1.0))
    assert not torch.equal(early, guided) and not torch.equal(early, nowhere)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_samples_are_those_of_the_familys_pipeline(name: str, make_foundation: MakeFoundation) -> None:
    """The pipeline's own unpacking, denormalisation and decoding make the same pixels as ours."""
    foundation = make_foundation(name)
    foundation.load_model().eval()
    text = foundation.encode_prompts([CASES[name].prompts[0]])
    (negative,) = foundation.encode_prompts([""])
    ours = foundation.generate(text, negative, settings_of(name))
    batches = foundation.collate_text(text), foundation.collate_text([negative])
    arguments = foundation.pipeline_arguments(*batches, settings_of(name))
    theirs = foundation.sampling_pipeline()(**arguments, output_type="pt", return_dict=False)[0]
    torch.testing.assert_close(torch.as_tensor(theirs).reshape(ours.shape).float(), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_forward_predicts_what_the_pipeline_tells_its_scheduler(
    name: str, make_foundation: MakeFoundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scale and sign of the timestep and the prediction, text, packing and ids are those of sampling."""
    foundation = make_foundation(name)
    foundation.load_model().eval()
    text = foundation.encode_prompts([CASES[name].prompts[0]])
    settings = settings_of(name, guidance=1.0, steps=3)
    kind = type(noising.sampling_scheduler(foundation.prediction_type, foundation.scheduler_facts))
    step, told = kind.step, []

    def noting(self: Any, predicted: Tensor, timestep: Tensor, noisy: Tensor, *more: Any, **named: Any) -> Any:
        told.append((predicted.clone(), timestep.clone(), noisy.clone()))
        return step(self, predicted, timestep, noisy, *more, **named)

    monkeypatch.setattr(kind, "step", noting)
    foundation.generate(text, text[0], settings)
    assert len(told) == 3
    batch = make_batch(foundation, name, 1) | {"text": foundation.collate_text(text)}
    for predicted, timestep, noisy in told:
        batch |= {"noisy_latents": foundation.unpack_latents(noisy, settings), "timesteps": timestep.expand(1)}
        with torch.no_grad():
            ours = foundation.forward(batch)
        expected = foundation.unpack_latents(predicted, settings)
        torch.testing.assert_close(ours, expected.to(ours.dtype), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if name != "dit_pixels"])
def test_sampling_leaves_the_dtypes_of_model_and_adapter_alone(name: str, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation(name, model_type="lora", mixed_precision="bf16")
    model = foundation.load_model()
    dtypes = [parameter.dtype for parameter in model.parameters()]
    foundation.observe_captions(["cat"])
    text = foundation.encode_prompts([CASES[name].prompts[0]])
    assert foundation.generate(text, text[0], settings_of(name)).isfinite().all()
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
