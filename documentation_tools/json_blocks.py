"""Whether the JSON of a page passes `simpletuner check`, in the working directory's folders.

An object with "model_family" is a whole configuration, one with "runs" an ablation, one with "instance_data_dir" or a
list a file of data sets; any other is a fragment, laid over a base configuration of the family that the nearest comment
`<!-- context: FAMILY -->` names, in which alignment is on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from documentation_tools.pages import ROOT, Code, Page
from simpletuner.configuration import Problem, check_config_file
from simpletuner.configuration.loading import plain_names
from simpletuner.evaluation.ablation import read_ablation, write_configs
from simpletuner.helpers.models.registry import FAMILIES

DEFAULT_FAMILY = "sd3"
EXAMPLES = Path("config/examples")


def json_problems(page: Page) -> list[str]:
    """What is wrong, also as a warning, with the JSON blocks of a page, a line each.

    The working directory is one that `prepare` made.
    """
    return [
        f"{page.path.name}, line {code.line}: {problem}"
        for code in page.code
        if code.info == "json"
        for problem in block_problems(code)
    ]


def prepare(folder: Path) -> None:
    """Puts into a folder what examples and pages take for granted: the example configurations and their data."""
    shutil.copytree(ROOT / EXAMPLES, folder / EXAMPLES)
    for listing in (folder / EXAMPLES).glob("multidatabackend-*.json"):
        _make_data(json.loads(listing.read_text(encoding="utf-8")), folder)


def block_problems(code: Code) -> Iterable[object]:
    try:
        content = json.loads(code.text)
    except json.JSONDecodeError as error:
        return [f"no JSON: {error}"]
    entries = [content] if isinstance(content, dict) and "instance_data_dir" in content else content
    if isinstance(entries, list):
        _make_data(entries, Path())
        data = Path("checked-multidatabackend.json")
        data.write_text(json.dumps(entries), encoding="utf-8")
        return _checked(base(code.context, {}) | {"data_backend_config": str(data)})
    if "runs" in content:
        return _ablation_problems(content)
    if "model_family" in content:
        return _checked(content)
    return _checked(base(code.context, content) | content)


def base(context: str, fragment: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a fragment is laid over."""
    family = FAMILIES[context or DEFAULT_FAMILY]
    data = "video" if family.media == "video" else "classes" if family.square_only else "image"
    enabled = "urepa_enabled" if family.model_type == "unet" else "crepa_enabled"
    values = {
        "model_family": family.name,
        "pretrained_model_name_or_path": "organisation/model",
        "data_backend_config": str(EXAMPLES / f"multidatabackend-{data}.json"),
        "output_dir": "output/run",
        "resolution": round(family.native_resolution / 64) * 64,  # the sides of buckets are multiples of 64
        "max_train_steps": 10_000,
        enabled: True,
    }
    given = plain_names(fragment)
    return {name: value for name, value in values.items() if name not in given}


def _checked(values: Mapping[str, Any]) -> list[Problem]:
    file = Path("checked-config.json")
    file.write_text(json.dumps(values), encoding="utf-8")
    return check_config_file(file, [], FAMILIES)[1]


def _ablation_problems(content: Mapping[str, Any]) -> Iterable[object]:
    file = Path("checked-ablation.json")
    file.write_text(json.dumps(content), encoding="utf-8")
    try:
        _, runs = read_ablation(file)
        return write_configs(runs)
    except ValueError as error:
        return [error]


def _make_data(entries: Iterable[Mapping[str, Any]], root: Path) -> None:
    """The folders and files that data sets name, empty."""
    for entry in entries:
        named = Path(entry.get("instance_data_dir", "data"))
        folder = root / named
        if not named.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
            for key in entry.keys() & {"metadata_file", "class_names"}:
                (folder / entry[key]).touch()
