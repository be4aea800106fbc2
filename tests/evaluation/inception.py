"""The Inception network of FID with random weights, in a file as its library reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from simpletuner.evaluation.distribution import fidelity_module


def write_inception(file: Path) -> Path:
    """Random weights whose batch norms fit random pictures, so that features differ; 95 MB."""
    kind: Any = fidelity_module("feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    class Untrained(kind):
        def load_state_dict(self, state: object) -> None:
            """Keeps what was drawn."""

    torch.save({}, file)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Untrained("random", ["2048"], str(file)).train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            network(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    torch.save(network.state_dict(), file)
    return file
