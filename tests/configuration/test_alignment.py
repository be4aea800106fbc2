from __future__ import annotations

from types import SimpleNamespace

import pytest

from simpletuner.configuration import Config, CrepaOptions, IrepaOptions, LayersyncOptions, UrepaOptions, read_options


def test_defaults_are_simpletuners() -> None:
    crepa, urepa = read_options(CrepaOptions, object()), read_options(UrepaOptions, object())
    assert (crepa.enabled, crepa.lambda_, crepa.encoder, crepa.encoder_image_size) == (False, 0.5, "dinov2_vitg14", 518)
    assert (crepa.adjacent_distance, crepa.adjacent_tau, crepa.normalize_by_frames) == (1, 1.0, True)
    assert (crepa.token_resample, urepa.token_resample) == ("smaller", "teacher")
    assert (urepa.lambda_, urepa.manifold_weight, urepa.align_layers) == (0.5, 3.0, ["mid"])
    assert read_options(LayersyncOptions, object()).lambda_ == 0.2
    assert read_options(IrepaOptions, object()).spatial_norm_alpha == 0.6


def test_any_object_will_do_and_none_is_the_default() -> None:
    source = SimpleNamespace(crepa_enabled=True, crepa_warmup_steps=None, crepa_lambda=0, urepa_lambda=9.0, other=1)
    options = read_options(CrepaOptions, source)
    assert (options.enabled, options.warmup_steps, options.lambda_) == (True, 0, 0)


def test_class_attributes_count_too() -> None:
    class Source:
        urepa_model = "efficientnet_lite0"

    assert read_options(UrepaOptions, Source()).encoder == "efficientnet_lite0"


def test_aliases() -> None:
    """Mistake 4: an alias always crashed against the default of the option itself."""
    source = SimpleNamespace(crepa_model="dinov2_vitb14", crepa_encoder=None, crepa_use_backbone_features=True)
    options = read_options(CrepaOptions, source)
    assert (options.encoder, options.feature_source) == ("dinov2_vitb14", "backbone")


def test_errors_name_every_option() -> None:
    source = SimpleNamespace(crepa_lambda=-1, crepa_lamda=0.3, crepa_projector="mpl", crepa_self_flow=True)
    with pytest.raises(ValueError) as raised:
        read_options(CrepaOptions, source)
    message = str(raised.value)
    assert "crepa_lambda: -1 is not a number of at least 0" in message
    assert 'crepa_lamda: is no option. Did you mean "crepa_lambda"?' in message
    assert 'Did you mean "mlp"?' in message
    assert "crepa_self_flow" not in message


def test_config_has_the_groups() -> None:
    config = Config(crepa_encoder="timm/vit_base_patch16_224", urepa_model="efficientnet_lite0", irepa_enabled=True)
    assert config.crepa.encoder == "timm/vit_base_patch16_224"
    assert config.urepa.encoder == "efficientnet_lite0"
    assert config.irepa.enabled and config.layersync.student_block is None
