"""Every Python block runs, after those above it on its page."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from documentation_tools.pages import Page
from documentation_tools.python_blocks import run_python
from tests.documentation.conftest import EVERY_ENGLISH_PAGE, WritePage

PRELUDES = Path(__file__).with_name("preludes")


@EVERY_ENGLISH_PAGE
def test_blocks_run(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Translations have the same blocks (`test_translations`)."""
    namespace: dict[str, Any] = {"__name__": "page"}
    if (PRELUDES / f"{page.path.stem}.py").exists():
        own = import_module(f"tests.documentation.preludes.{page.path.stem}")
        namespace |= own.prelude(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    run_python(page, namespace)


def test_blocks_share_their_names(write_page: WritePage) -> None:
    page = write_page("# A\n\n```python\na = 1\n```\n\ntext\n\n```text\nno Python\n```\n\n```python\nb = a + 1\n```\n")
    namespace: dict[str, Any] = {}
    assert run_python(page, namespace) == 2
    assert namespace["b"] == 2


def test_a_block_that_breaks_is_named(write_page: WritePage) -> None:
    page = write_page("# A\n\n```python\nprint(missing)\n```\n")
    with pytest.raises(NameError, match="missing") as raised:
        run_python(page, {})
    assert raised.value.__notes__ == ["in PAGE.md, in the block at line 3"]
