"""DiT with an autoencoder, and on pixels."""

from __future__ import annotations

from diffusers import DDIMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

from tests.families.cases import Case, Components
from tests.families.parts import DDIM, image_vae


def with_autoencoder() -> Components:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    return {"transformer": transformer, "vae": image_vae(4), "scheduler": DDIMScheduler(**DDIM)}


def on_pixels() -> Components:
    """No VAE: grey pixels of 8×8 are the latents, and there is no learned variance."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    return {"transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler()}


CASES = {
    "dit": Case("dit", "DiTPipeline", with_autoencoder, latents=(4, 8, 8), prompts=("cat", "dog")),
    "dit_pixels": Case("dit", "DiTPipeline", on_pixels, latents=(1, 8, 8), prompts=("cat", "dog"), latent_ratio=1),
}
