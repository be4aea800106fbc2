"""Whether the names that pages put in backticks exist: options, keys, families, flags, functions, classes."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from documentation_tools.pages import ROOT, Page
from documentation_tools.shell_blocks import known_flags
from simpletuner.configuration import Config, describe_all
from simpletuner.configuration.dataset import DatasetEntry, VideoOptions
from simpletuner.configuration.simpletuner_names import DATASET_NAMES, SIMPLETUNER_NAMES
from simpletuner.helpers.models.registry import FAMILIES

SOURCES = ("simpletuner", "documentation_tools", "benchmarks", "examples")
GROUPS = ("crepa", "urepa", "irepa", "layersync")
FOREIGN = {
    # Of other programs: accelerate's configuration, diffusers, PyTorch, ImageNet.
    "fsdp_config", "fsdp_version", "num_processes", "add_adapter", "load_lora_weights", "from_pretrained",
    # Encoders, whose names are put together.
    *(f"dinov2_{size}{registers}" for size in ("vits14", "vitb14", "vitl14", "vitg14") for registers in ("", "_reg")),
}  # fmt: skip

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+|[a-z]+[0-9][a-z0-9]*")
_LEADING = re.compile(r"\"?(--)?([A-Za-z][\w-]*)\"?(?:[ :=].*|\(.*|)", re.DOTALL)


def unknown_names(page: Page) -> list[str]:
    """Names in backticks that nothing has, the page's own blocks of code neither; one a line."""
    own = {name for code in page.code for name in _WORD.findall(code.text)}
    return [
        f"{page.path.name}, line {section.line}: {problem}"
        for section in page.sections
        for word in section.words
        if (problem := _unknown(word, own)) is not None
    ]


def _unknown(word: str, own: set[str]) -> str | None:
    found = _LEADING.fullmatch(word)
    if found is None:
        return None
    name = found[2]
    if found[1] and name != "name":  # as in `--name value`
        known = f"--{name}" in _flags() or name.replace("-", "_") in options()
        return None if known else f"`{word}`: no command has the flag --{name}"
    if name in options() or name in FOREIGN or not _NAME.fullmatch(name):
        return None
    if name.startswith(tuple(f"{group}_" for group in GROUPS)):
        return None if name in _in_alignment() else f"`{word}`: there is no option {name}"
    return None if name in own or name in _in_sources() else f"`{word}`: nothing is called {name}"


@cache
def options() -> frozenset[str]:
    """Names of options, keys of data sets, their aliases, families, and what SimpleTuner calls options."""
    infos = [info for model in (Config, DatasetEntry, VideoOptions) for info in describe_all(model)]
    aliases = {alias.partition("=")[0] for info in infos for alias in info.aliases}
    return frozenset({info.name for info in infos} | aliases | set(FAMILIES) | SIMPLETUNER_NAMES | set(DATASET_NAMES))


@cache
def _flags() -> frozenset[str]:
    return frozenset(known_flags())


@cache
def _in_sources() -> frozenset[str]:
    """Every word of the sources and of the example configurations."""
    files = [file for folder in SOURCES for file in (ROOT / folder).rglob("*.py")]
    files += [*(ROOT / "config").rglob("*.json"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    return frozenset(name for file in files for name in _words(file))


@cache
def _in_alignment() -> frozenset[str]:
    """Every word of the package, and what the regularizers log, whose names they put together."""
    training = ROOT / "simpletuner" / "helpers" / "training"
    parts = _words(training / "regularizer.py") | _words(training / "crepa.py")
    logged = {f"{group}_{part}" for group in GROUPS for part in parts}
    return frozenset(logged.union(*(_words(file) for file in (ROOT / "simpletuner").rglob("*.py"))))


def _words(file: Path) -> set[str]:
    return set(_WORD.findall(file.read_text(encoding="utf-8")))
