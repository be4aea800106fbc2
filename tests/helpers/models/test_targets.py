"""What of a model is trained: adapters on named layers, or the parameters of named parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from simpletuner.helpers.models.targets import adapter_layers, train_within, within

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
PREFIXES = ["mid_block.", "down_blocks.3.", "up_blocks.0."]


@pytest.fixture(scope="module")
def unet() -> Any:
    """Stable Diffusion 1.5's, without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768, sample_size=64)


@pytest.mark.parametrize("dot", ["", "."])
def test_a_prefix_is_a_whole_name(dot: str) -> None:
    prefix = f"up_blocks.1{dot}"
    assert within("up_blocks.1.resnets.0.conv1.weight", [prefix])
    assert within("up_blocks.1", [prefix])
    assert not within("up_blocks.10.resnets.0.conv1.weight", [prefix])
    assert not within("down.up_blocks.1.conv", [prefix])
    assert within("anything", None) and not within("anything", [])


PARTS = st.lists(st.sampled_from(["up", "up1", "1", "10"]), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_a_prefix_holds_what_begins_with_its_parts(name: list[str], prefix: list[str]) -> None:
    assert within(".".join(name), [".".join(prefix)]) == (name[: len(prefix)] == prefix)


def test_the_recipes_layers_of_sd15(unet: nn.Module) -> None:
    """The lowest level has no attention: of the encoder's last block and the decoder's first, convolutions alone."""
    found = adapter_layers(unet, TARGETS, PREFIXES)
    expected = [
        *(f"down_blocks.3.resnets.{i}.conv{j}" for i in range(2) for j in (1, 2)),
        *(f"up_blocks.0.resnets.{i}.conv{j}" for i in range(3) for j in (1, 2)),
        *(f"mid_block.resnets.{i}.conv{j}" for i in range(2) for j in (1, 2)),
        *(
            f"mid_block.attentions.0.transformer_blocks.0.attn{i}.{layer}"
            for i in (1, 2)
            for layer in ("to_q", "to_k", "to_v", "to_out.0")
        ),
    ]
    assert sorted(found) == sorted(expected)
    assert len(adapter_layers(unet, [*TARGETS, "conv_shortcut"], PREFIXES)) == len(expected) + 3


def test_without_prefixes_every_layer_of_that_name(unet: nn.Module) -> None:
    assert len(adapter_layers(unet, ["to_q"])) == 2 * 16
    assert adapter_layers(unet, ["conv_in"]) == ["conv_in"]  # the whole name, no dot before it


@pytest.mark.parametrize(
    ("targets", "prefixes", "words"),
    [
        (["to_q", "to_w"], None, r"peft_lora_target_modules: 'to_w' is the end of no linear layer's .* in the model"),
        (["o_q"], None, "'o_q' is the end of no"),  # half a name
        (["attn1"], None, "'attn1' is the end of no linear"),  # a module, but none that takes an adapter
        (["conv3"], ["mid_block."], r"in mid_block, where there are conv1, conv2, net\.2, proj,"),
        (TARGETS, ["mid_block.", "middle."], r"trainable_prefixes: 'middle\.' is the start of no .* down_blocks\.0 to"),
        (TARGETS, [""], "trainable_prefixes: '' is the start of no"),
        (["to_q"], ["mid_block.", "up_blocks.0."], r"'up_blocks\.0\.' holds none of .*there are conv, conv1, conv2"),
    ],
)
def test_what_fits_nothing_is_refused(
    unet: nn.Module, targets: list[str], prefixes: list[str] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        adapter_layers(unet, targets, prefixes)


def test_a_familys_defaults_may_be_absent_but_not_all(unet: nn.Module) -> None:
    assert adapter_layers(unet, ["to_q", "add_q_proj"], ["mid_block"], all_needed=False)
    with pytest.raises(ValueError, match=r"has no layer whose name ends with add_q_proj; there are .*to_q"):
        adapter_layers(unet, ["add_q_proj"], all_needed=False)


@pytest.mark.parametrize("prefixes", [None, ["mid_block."], ["mid_block", "conv_out"]])
def test_parameters_outside_the_parts_are_frozen(unet: nn.Module, prefixes: Any) -> None:
    train_within(unet, prefixes)
    trained = {name.partition(".")[0] for name, p in unet.named_parameters() if p.requires_grad}
    everything = {name.partition(".")[0] for name, _ in unet.named_parameters()}
    assert trained == (everything if prefixes is None else {prefix.rstrip(".") for prefix in prefixes})
    with pytest.raises(ValueError, match=r"trainable_prefixes: 'up\.' is the start of no parameter's name in UNet2D"):
        train_within(unet, ["up."])
