"""Hidden states and teacher tokens of real, tiny, trained runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler

from simpletuner.configuration import Config
from simpletuner.evaluation.hidden_states import (
    aligned_blocks,
    block_features,
    block_names,
    block_tokens,
    forwards,
    noised,
    projected_similarity,
    teacher_tokens,
)
from simpletuner.evaluation.trained_runs import find_checkpoint, loaded_run, spread_samples
from simpletuner.helpers.training.objectives import DiscreteDiffusion, FlowMatching, sample_noise
from simpletuner.helpers.training.trainer import Trainer
from tests.evaluation.pairs import train_pair

Runs = tuple[Config, Config]


@pytest.fixture(autouse=True, scope="module")
def _own_precision() -> Iterator[None]:
    """accelerate keeps the precision of the first accelerator for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def unets(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path], tiny_teacher: Path) -> Runs:
    options = {"urepa_enabled": True, "urepa_model": str(tiny_teacher), "urepa_encoder_image_size": 56}
    return train_pair(tmp_path_factory.mktemp("unets"), tiny_folder("sd1x"), **options)


@pytest.fixture(scope="module")
def unet(unets: Runs) -> Iterator[Trainer]:
    """The aligned run, after its training."""
    with loaded_run(unets[1], "latest") as trainer:
        yield trainer


@pytest.fixture(scope="module")
def transformer(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path], tiny_teacher: Path
) -> Iterator[Trainer]:
    options = {"crepa_enabled": True, "crepa_encoder": str(tiny_teacher), "crepa_encoder_image_size": 56}
    _, config = train_pair(tmp_path_factory.mktemp("dits"), tiny_folder("sd3"), **options)
    with loaded_run(config, "latest") as trainer:
        yield trainer


# Runs


def test_a_loaded_run_has_the_averaged_weights_and_writes_nothing(unets: Runs) -> None:
    _, config = unets
    folder = Path(config.output_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with loaded_run(config, None) as trainer:
        first = [parameter.detach().clone() for parameter in trainer.parameters]
        assert trainer.step == 0
    with loaded_run(config, "latest") as trainer:
        assert trainer.step == 3 and not trainer.foundation.unwrap_model().training
        assert trainer.ema is not None
        average = trainer.ema.shadow_params
        assert all(torch.equal(one, other) for one, other in zip(trainer.parameters, average, strict=True))
        assert not all(torch.equal(one, other) for one, other in zip(trainer.parameters, first, strict=True))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_checkpoints_are_found_or_named(unets: Runs, tmp_path: Path) -> None:
    config, _ = unets
    assert find_checkpoint(config, "latest") == find_checkpoint(config, "3") == Path(config.output_dir) / "checkpoint-3"
    with pytest.raises(ValueError, match=r"checkpoint: '7' is no checkpoint in .*there are those of steps 3\."):
        find_checkpoint(config, "7")
    with pytest.raises(ValueError, match=r"output_dir: .* holds no checkpoint\. Train this configuration first\."):
        find_checkpoint(config.model_copy(update={"output_dir": str(tmp_path)}), "latest")


def test_samples_are_spread_over_the_data(unet: Trainer) -> None:
    ids = [sample.id for sample in unet.samples]
    assert [sample.id for sample in spread_samples(unet.samples, 5)] == ids[::4]
    assert [sample.id for sample in spread_samples(unet.samples, 500)] == ids


# Noise


def test_noise_of_flow_matching() -> None:
    latents, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    batch = noised({"latents": latents, "noise": noise}, FlowMatching(shift=3.0), 0.3)
    torch.testing.assert_close(batch["noisy_latents"], 0.7 * latents + 0.3 * noise)
    assert batch["timesteps"].tolist() == pytest.approx([300, 300])
    assert batch["sigmas"].tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(("level", "timestep"), [(0.3, 300), (0.9999, 999)])
def test_noise_of_discrete_diffusion(level: float, timestep: int) -> None:
    scheduler = DDPMScheduler()
    latents, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    batch = noised({"latents": latents, "noise": noise}, DiscreteDiffusion(scheduler), level)
    kept = float(scheduler.alphas_cumprod[timestep])
    torch.testing.assert_close(batch["noisy_latents"], kept**0.5 * latents + (1 - kept) ** 0.5 * noise)
    assert batch["timesteps"].tolist() == [timestep, timestep]


# Hidden states


def test_every_level_of_a_unet_is_read(unet: Trainer) -> None:
    samples = spread_samples(unet.samples, 6)
    features = block_features(unet, samples, level=0.3)
    names = ["down_0", "down_1", "down_2", "down_3", "mid", "up_0", "up_1", "up_2", "up_3"]
    assert list(features) == names == block_names(unet.foundation)
    assert [rows.shape for rows in features.values()] == [(6, width) for width in (8, 8, 16, 16, 16, 16, 16, 8, 8)]
    assert aligned_blocks(unet.foundation) == {"mid": "mid"}


def test_features_are_those_of_one_forward_by_hand(unet: Trainer) -> None:
    """The empty prompt, the cached latents, noise by (seed, row): the UNet called as diffusers documents it."""
    foundation, samples = unet.foundation, spread_samples(unet.samples, 6)
    row = 3
    found = block_features(unet, samples, level=0.3, seed=7, blocks=["mid"])["mid"][row]
    latents = foundation.encode_pixels(samples[row].pixels()[None])
    noise = sample_noise(latents.shape[1:], seed=7, step=0, rows=[row], device="cpu")
    kept = float(DDPMScheduler.from_config(foundation.scheduler_facts).alphas_cumprod[300])
    noisy = kept**0.5 * latents + (1 - kept) ** 0.5 * noise
    text = foundation.encode_prompts([""])[0]["prompt_embeds"][None]
    seen: list[torch.Tensor] = []
    handle = foundation.unwrap_model().mid_block.register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    with torch.no_grad():
        foundation.unwrap_model()(noisy, torch.tensor([300]), encoder_hidden_states=text)
    handle.remove()
    torch.testing.assert_close(found, seen[0].mean((2, 3))[0], atol=1e-4, rtol=1e-4)


def test_rows_keep_their_order_whatever_they_are_batched_with(unet: Trainer) -> None:
    """Two shapes alternate, so that batches of one bucket take the rows out of order."""
    samples = spread_samples(unet.samples, 20)
    assert len({sample.bucket for sample in samples}) == 2
    together = block_features(unet, samples, level=0.5, blocks=["up_0"])["up_0"]
    one_by_one = Config.model_copy(unet.config, update={"train_batch_size": 1})
    unet.config, config = one_by_one, unet.config
    try:
        several = [len(rows) for rows, _, _ in forwards(unet, samples, ["mid"], level=0.5)]
        alone = block_features(unet, samples, level=0.5, blocks=["up_0"])["up_0"]
    finally:
        unet.config = config
    assert max(several) == 4 < max(len(rows) for rows, _, _ in forwards(unet, samples, ["mid"], level=0.5))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_hooks_are_gone_afterwards(unet: Trainer) -> None:
    model = unet.foundation.unwrap_model()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    block_features(unet, spread_samples(unet.samples, 2), level=0.3)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_every_block_of_a_transformer_is_read(transformer: Trainer) -> None:
    samples = spread_samples(transformer.samples, 4)
    names = block_names(transformer.foundation)
    features = block_features(transformer, samples, level=0.3)
    tap = f"block_{transformer.foundation.tap}"
    assert list(features) == names and list(aligned_blocks(transformer.foundation).values()) == [tap]
    tokens, grids = block_tokens(transformer, samples, tap, level=0.3)
    assert [one.shape[:2] for one in tokens] == [(1, grid.tokens) for grid in grids]
    pooled = torch.stack([one.flatten(0, 1).mean(0) for one in tokens])
    torch.testing.assert_close(pooled, features[tap], atol=1e-5, rtol=1e-5)


def test_unknown_blocks_are_named(unet: Trainer, transformer: Trainer) -> None:
    with pytest.raises(ValueError, match=r"has no block .block_0.; it has down_0, .* up_3"):
        block_features(unet, unet.samples[:2], level=0.3, blocks=["block_0"])
    with pytest.raises(ValueError, match="has no block 'mid'; it has block_0"):
        block_features(transformer, transformer.samples[:2], level=0.3, blocks=["mid"])


# The teacher


def test_teacher_tokens_are_cached_or_encoded_alike(unet: Trainer, unets: Runs) -> None:
    samples = spread_samples(unet.samples, 4)
    cached = teacher_tokens(unet, samples)
    assert unet.foundation.features is not None and cached.name == "teacher"
    uncached = unets[1].model_copy(update={"urepa_feature_cache": False})
    with loaded_run(uncached, None) as trainer:
        assert trainer.foundation.features is None
        encoded = teacher_tokens(trainer, samples)
    assert encoded.grids == cached.grids
    torch.testing.assert_close(encoded.pooled, cached.pooled, atol=0.02, rtol=0.02)  # bf16 in the cache


def test_a_run_without_an_encoder_has_no_teacher(unets: Runs) -> None:
    with (
        loaded_run(unets[0], "latest") as trainer,
        pytest.raises(ValueError, match=r"has no encoder to compare with.* urepa_enabled or crepa_enabled"),
    ):
        teacher_tokens(trainer, trainer.samples[:2])


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_projected_similarity_is_a_cosine_of_the_trained_projector(kind: str, request: pytest.FixtureRequest) -> None:
    trainer: Trainer = request.getfixturevalue(kind)
    samples = spread_samples(trainer.samples, 6)
    teacher = teacher_tokens(trainer, samples)
    value = projected_similarity(trainer, samples, teacher, level=0.3)
    assert value is not None and -1 <= value <= 1
    assert projected_similarity(trainer, samples, teacher, level=0.3) == value
    regularizer = trainer.foundation.alignment
    assert regularizer is not None and regularizer.projector is not None
    weights = {name: weight.clone() for name, weight in regularizer.projector.state_dict().items()}
    with torch.no_grad():
        for parameter in regularizer.projector.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert projected_similarity(trainer, samples, teacher, level=0.3) != value
    regularizer.projector.load_state_dict(weights)
