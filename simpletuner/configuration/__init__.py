"""Every option, declared once: ``config.json``, the CLI, the WebUI and the documentation come from here.

Nothing in this package imports torch or diffusers.
"""

from simpletuner.configuration.alignment import (
    AlignmentOptions,
    CrepaOptions,
    IrepaOptions,
    LayersyncOptions,
    UrepaOptions,
    read_options,
)
from simpletuner.configuration.checks import check, check_config_file
from simpletuner.configuration.config import Config
from simpletuner.configuration.family import Family
from simpletuner.configuration.fields import OptionInfo, describe_all
from simpletuner.configuration.loading import load_config
from simpletuner.configuration.problems import Problem, has_errors

__all__ = [
    "AlignmentOptions",
    "Config",
    "CrepaOptions",
    "Family",
    "IrepaOptions",
    "LayersyncOptions",
    "OptionInfo",
    "Problem",
    "UrepaOptions",
    "check",
    "check_config_file",
    "describe_all",
    "has_errors",
    "load_config",
    "read_options",
]
