"""Every error message that TROUBLESHOOTING quotes is one of the sources', and those of the sources are there."""

from __future__ import annotations

import pytest

from documentation_tools.messages import is_message, unexplained_messages, unknown_messages
from documentation_tools.pages import Page
from tests.documentation.conftest import WritePage, all_pages, page_id

TROUBLESHOOTING = [page for page in all_pages() if page.path.name.startswith("TROUBLESHOOTING")]


@pytest.mark.parametrize("page", TROUBLESHOOTING, ids=page_id)
def test_messages_exist(page: Page) -> None:
    assert any(is_message(word) for section in page.sections for word in section.words)
    assert unknown_messages(page) == []


@pytest.mark.parametrize("page", TROUBLESHOOTING, ids=page_id)
def test_messages_are_explained(page: Page) -> None:
    """Those of the commands; what the evaluation's functions say of arrays is for programmers."""
    assert unexplained_messages(page, ["configuration", "helpers"]) == []


def test_messages_without_an_explanation_are_found(write_page: WritePage) -> None:
    page = write_page("# A\n\n`is not a multiple of …, the patch of …`\n")
    told = unexplained_messages(page, ["configuration"])
    assert any("can never take effect" in message for message in told)
    assert not any("the patch of" in message for message in told)


@pytest.mark.parametrize(
    "message",
    [
        "there is no projector here; call attach_to_model(model) first",
        "The tap … never fires",
        "a wholly invented message",
    ],
)
def test_unknown_messages_are_found(message: str, write_page: WritePage) -> None:
    problems = unknown_messages(write_page(f"# A\n\n## B\n\n`{message}`\n"))
    assert len(problems) == 1 and "line 3" in problems[0], problems


@pytest.mark.parametrize(
    "message",
    [
        "there is no projector yet; call attach_to_model(model) first.",
        "The tap … never fired: the last forward didn't run it",
        "Block index 30 is out of range: SD3Transformer2DModel has 24 blocks, 0 to 23.",
        "Block index <number> is out of range",
        "simpletuner check --config config.json",
        "crepa_lambda",
    ],
)
def test_known_messages_pass(message: str, write_page: WritePage) -> None:
    assert unknown_messages(write_page(f"# A\n\n`{message}`\n")) == []
