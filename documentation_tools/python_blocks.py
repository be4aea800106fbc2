"""Runs the Python of a page from top to bottom, as a reader would who tries it out."""

from __future__ import annotations

from typing import Any

from documentation_tools.pages import Page


def run_python(page: Page, namespace: dict[str, Any]) -> int:
    """Runs the `python` blocks of a page in one namespace, which they change; returns how many there are.

    What they raise is raised, with a note of the page and the block's line.
    """
    blocks = [code for code in page.code if code.info == "python"]
    for code in blocks:
        # Line numbers of a traceback are those of the page.
        source = "\n" * code.line + code.text
        try:
            exec(compile(source, str(page.path), "exec"), namespace)
        except Exception as error:
            error.add_note(f"in {page.path.name}, in the block at line {code.line}")
            raise
    return len(blocks)
