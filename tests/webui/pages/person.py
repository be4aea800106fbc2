"""What a person does with the forms of a project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nicegui.testing import User

from simpletuner.webui.projects import create_project
from simpletuner.webui.site import Site
from tests.webui.pages.looking import element


def fill(user: User, name: str, value: Any) -> None:
    """Puts a value into the field of an option, as if it was typed or chosen."""
    with user:
        element(user, name).set_value(value)


def seen(user: User, marker: str) -> bool:
    """Whether there is such an element, and it is visible."""
    return user._sees(marker=marker)


async def open_project(user: User, site: Site, example: str | None, *, tab: str = "basic", name: str = "one") -> Path:
    """Makes a project, opens it at a tab, and returns its file."""
    path = create_project(site, name, example).path
    await user.open(f"/projects/{name}?tab={tab}")
    return path


def content(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text())


def problems_beside(user: User, name: str) -> list[str]:
    """What is told beneath the field of an option, whether that is shown or not."""
    assert user.client is not None
    field = next(found for found in user.client.elements.values() if f"field_{name}" in found._markers)
    return [
        str(getattr(label, "text", ""))
        for label in field.descendants()
        if any(mark.startswith("problem_") for mark in label._markers)
    ]
