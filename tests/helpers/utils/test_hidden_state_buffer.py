"""Capture from unmodified diffusers models; which token is which is proven family by family in tests/helpers/models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simpletuner.helpers.utils.hidden_state_buffer import (
    ForwardCall,
    HiddenStateBuffer,
    TransformerBlockCapture,
    UNetMidBlockCapture,
)


def make_sd3(layers: int = 3) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
    ).train()


def call(model: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return model(
        torch.randn(2, 4, 8, 12, generator=g),
        encoder_hidden_states=torch.randn(2, 5, 16, generator=g),
        pooled_projections=torch.randn(2, 16, generator=g),
        timestep=torch.tensor([10.0, 500.0]),
        return_dict=False,
    )[0]


def image_tokens(output: Any, index: int, call: ForwardCall) -> Tensor:
    return output[1]


def make_capture(model: nn.Module, *layers: int) -> TransformerBlockCapture:
    return TransformerBlockCapture(model, list(model.transformer_blocks), image_tokens, HiddenStateBuffer(layers))


def features_and_gradients(model: nn.Module, run: nn.Module, capture: TransformerBlockCapture) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    with capture:
        prediction = call(run)
    hidden = capture.get_captured()["layer_1"]
    (hidden.square().mean() + prediction.square().mean()).backward()
    return hidden.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_only_the_tapped_layers_are_kept() -> None:
    """Mistake 16: not every block's output is kept alive; mistake 6: image tokens only, `(B, 4·6, D)`."""
    model = make_sd3()
    capture = make_capture(model, 0, 2)
    with capture as buffer:
        call(model)
    assert sorted(buffer) == ["layer_0", "layer_2"]
    assert buffer["layer_0"].shape == (2, 24, 16)
    buffer.clear()
    call(model)  # outside of the context nothing is captured
    assert not buffer


def test_gradient_checkpointing_keeps_the_first_capture_and_the_gradient() -> None:
    """Mistake 19: the loss is computed after the forward, so a recomputed block changes nothing."""
    model = make_sd3()
    capture = make_capture(model, 1)
    plain = features_and_gradients(model, model, capture)
    model.enable_gradient_checkpointing()
    again = features_and_gradients(model, model, capture)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_a_tap_inside_a_reentrant_checkpoint_is_refused() -> None:
    """There the captured tensor has no graph: silently nothing would be trained."""
    model = make_sd3()

    def reentrant(block: nn.Module, *arguments: Any) -> Any:
        # The block is called inside of the checkpointed function, and its output isn't what that function returns.
        return checkpoint(
            lambda *a: tuple(t if t is None else t * 1 for t in block(*a)), *arguments, use_reentrant=True
        )

    model.enable_gradient_checkpointing(reentrant)
    with pytest.raises(RuntimeError, match="use_reentrant=False"), make_capture(model, 1):
        call(model)


def test_a_reentrant_checkpoint_of_the_very_block_keeps_its_gradient() -> None:
    model = make_sd3()
    capture = make_capture(model, 1)
    plain = features_and_gradients(model, model, capture)
    model.enable_gradient_checkpointing(lambda *arguments: checkpoint(*arguments, use_reentrant=True))
    for one, other in zip(plain, features_and_gradients(model, model, capture), strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_blocks_before_the_tap_are_refused() -> None:
    """A tap that no trainable parameter reaches trains nothing."""
    model = make_sd3().requires_grad_(False)
    model.transformer_blocks[2].requires_grad_(True)
    with pytest.raises(RuntimeError, match="tap 1 carry no gradient"), make_capture(model, 1):
        call(model)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile_captures_the_same(backend: str) -> None:
    """Mistake 19: hooks exist before the first compiled call; features and gradients equal the uncompiled ones."""
    model = make_sd3(layers=2)
    capture = make_capture(model, 1)
    plain = features_and_gradients(model, model, capture)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):
        again = features_and_gradients(model, compiled, capture)
        for one, other in zip(plain, again, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    call(compiled)
    torch._dynamo.reset()


def test_hooks_after_the_first_compiled_call_are_noticed() -> None:
    """Mistake 19: they never fire, which is an error and not silence."""
    model = make_sd3(layers=2)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    call(compiled)
    with pytest.raises(RuntimeError, match="before the first compiled call"), make_capture(model, 1):
        call(compiled)
    torch._dynamo.reset()


def test_a_tap_that_never_fires_names_index_and_depth() -> None:
    """Mistake 6: a block that the forward skips (here by skip_layers) isn't captured silently."""
    model = make_sd3()
    with pytest.raises(RuntimeError, match=r"tap 1 never fired.*3 blocks, 0 to 2"), make_capture(model, 1):
        g = torch.Generator().manual_seed(1)
        model(
            torch.randn(2, 4, 8, 12, generator=g),
            encoder_hidden_states=torch.randn(2, 5, 16, generator=g),
            pooled_projections=torch.randn(2, 16, generator=g),
            timestep=torch.tensor([10.0, 500.0]),
            skip_layers=[1],
        )


@pytest.mark.parametrize("index", [3, -1])
def test_an_index_beyond_the_depth_is_refused_at_once(index: int) -> None:
    with pytest.raises(ValueError, match=rf"Block index {index} .* 3 blocks"):
        make_capture(make_sd3(), index)


def test_an_error_in_the_forward_is_not_hidden_by_the_capture() -> None:
    with pytest.raises(ZeroDivisionError), make_capture(make_sd3(), 1):
        raise ZeroDivisionError


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16, 24),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    ).train()


def test_unet_layers_are_maps_around_the_middle(unet: UNet2DConditionModel) -> None:
    capture = UNetMidBlockCapture(unet, layers=("mid", "enc_last", "dec_first"))
    outputs: dict[str, Tensor] = {}
    unet.mid_block.register_forward_hook(lambda module, inputs, output: outputs.update(mid=output))
    with capture as buffer:
        unet(torch.randn(1, 4, 16, 24), torch.tensor([5]), torch.randn(1, 3, 8))
    assert {name: tuple(value.shape) for name, value in buffer.items()} == {
        "layer_mid": (1, 24, 4, 6),
        "layer_enc_last": (1, 24, 4, 6),
        "layer_dec_first": (1, 24, 4, 6),
    }
    assert torch.equal(buffer["layer_mid"], outputs["mid"])
    assert buffer["layer_mid"].requires_grad


def test_an_unknown_unet_layer_is_refused(unet: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match=r"'middle'.*mid, enc_last, dec_first"):
        UNetMidBlockCapture(unet, layers=("middle",))


def test_a_given_buffer_is_filled(unet: UNet2DConditionModel) -> None:
    buffer = HiddenStateBuffer(["mid"])
    assert UNetMidBlockCapture(unet, buffer=buffer).buffer is buffer
