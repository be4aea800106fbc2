"""The whole configuration of a run: one flat set of options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import create_model

from simpletuner.configuration.alignment import (
    PREFIXED_GROUPS,
    CrepaOptions,
    IrepaOptions,
    LayersyncOptions,
    UrepaOptions,
    read_options,
)
from simpletuner.configuration.fields import OptionGroup
from simpletuner.configuration.general import (
    CheckpointOptions,
    DataOptions,
    EvaluationOptions,
    ModelOptions,
    OptimisationOptions,
    RunOptions,
    ValidationOptions,
)
from simpletuner.configuration.prefixed import keyed_model

if TYPE_CHECKING:

    class AlignmentKeys(OptionGroup):
        """The alignment options; type checkers see them through the typed groups (``config.crepa.warmup_steps``)."""
else:
    AlignmentKeys = create_model("AlignmentKeys", __base__=tuple(keyed_model(group) for group in PREFIXED_GROUPS[::-1]))


# pydantic lists the fields of the last base first: here the order of the options reads upwards.
class Config(
    AlignmentKeys,
    RunOptions,
    EvaluationOptions,
    ValidationOptions,
    CheckpointOptions,
    OptimisationOptions,
    DataOptions,
    ModelOptions,
):
    """Every option under its full name: ``Config(model_family="sd3", crepa_enabled=True)``.

    Values must have the right type and range (pydantic's ``ValidationError`` otherwise), ``None`` stands for the
    default, and unknown names are refused. :func:`~simpletuner.configuration.loading.load_config` makes one from a
    file and flags. The alignment options are also there as typed groups, in which they have short names.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    @property
    def crepa(self) -> CrepaOptions:
        """The CREPA/REPA options: ``config.crepa.block_index`` is ``crepa_block_index``."""
        return read_options(CrepaOptions, self)

    @property
    def urepa(self) -> UrepaOptions:
        """The U-REPA options: ``config.urepa.encoder`` is ``urepa_model``."""
        return read_options(UrepaOptions, self)

    @property
    def irepa(self) -> IrepaOptions:
        """The iREPA options."""
        return read_options(IrepaOptions, self)

    @property
    def layersync(self) -> LayersyncOptions:
        """The LayerSync options."""
        return read_options(LayersyncOptions, self)
