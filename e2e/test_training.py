"""A user trains in the browser: from an example to a finished run, in English and in Chinese."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from e2e.browser import (
    all_marked,
    click,
    faults,
    fill,
    marked,
    page_text,
    until,
    wait_for_text,
    wait_for_words_of,
)
from e2e.conftest import Server
from e2e.steps import chart, create_project, fill_in, open_tab, save, saved, steps_done

PATIENCE = 120


def loaded_picture(browser: Chrome, mark: str) -> bool:
    """Whether an image with this mark is there and could be decoded."""
    pictures = all_marked(browser, mark)
    return bool(pictures) and browser.execute_script("return arguments[0].naturalWidth", pictures[0]) == 64


@pytest.mark.parametrize(
    ("family", "language", "words"),
    [
        pytest.param(
            "sd3",
            "en",
            {"title": "REPA", "running": "Training…", "stopped": "Stopped", "finished": "Finished"},
            id="CREPA in English",
        ),
        pytest.param(
            "sd1x",
            "zh",
            {"title": "U-REPA", "running": "训练中…", "stopped": "已停止", "finished": "已完成"},
            id="U-REPA in Chinese",
        ),
    ],
)
def test_from_an_example_to_a_finished_run(
    browser: Chrome, server: Server, workplace: Path, family: str, language: str, words: dict[str, str]
) -> None:
    prefix = "crepa" if family == "sd3" else "urepa"
    encoder = {"crepa": "crepa_encoder", "urepa": "urepa_model"}[prefix]
    name = f"lighthouse-{family}"
    if language != "en":
        browser.get(server.url)
        click(browser, "language_menu")
        click(browser, f"language_{language}")
        wait_for_text(browser, "项目")

    create_project(browser, server.url, family, name)
    fill_in(browser, family)

    # Loss functions: off and on again, then block (or manifold), weight and teacher
    open_tab(browser, "training", "losses")
    card = marked(browser, f"card_{prefix}")
    assert words["title"] in card.text
    other = "card_urepa" if prefix == "crepa" else "card_crepa"
    assert not all_marked(browser, other)
    click(browser, f"{prefix}_enabled")
    until(browser, lambda: not all_marked(browser, f"{prefix}_lambda"), "the fields' end")
    click(browser, f"{prefix}_enabled")
    before = until(browser, lambda: chart(browser, f"plot_{prefix}"), "the plot of the coefficient")
    fill(browser, f"{prefix}_lambda", "0.8")
    until(browser, lambda: chart(browser, f"plot_{prefix}") != before, "another plot")
    assert max(value for _, value in chart(browser, f"plot_{prefix}")[0]) == pytest.approx(0.8)
    if prefix == "crepa":
        assert "8" in page_text(browser)
        fill(browser, "crepa_block_index", "7")
        wait_for_words_of(browser, "field_crepa_block_index", "7")
        fill(browser, "crepa_block_index", "1")
    else:
        fill(browser, "urepa_manifold_weight", "2")
        fill(browser, "urepa_cutoff_step", "500")
    fill(browser, encoder, "teachers/teacher")
    fill(browser, f"{prefix}_encoder_image_size", "56")
    save(browser)
    values = saved(workplace, name)
    assert values[f"{prefix}_lambda"] == 0.8 and values[encoder] == "teachers/teacher"

    # Run: a real training, seen as it goes
    open_tab(browser, "run")
    click(browser, "run_start")
    wait_for_words_of(browser, "run_state", words["running"], PATIENCE)
    first = until(browser, lambda: steps_done(browser), "the first steps on the chart", PATIENCE)
    until(browser, lambda: steps_done(browser) > first, "more steps on the chart", PATIENCE)
    until(browser, lambda: loaded_picture(browser, "sample"), "the first validation image", PATIENCE)
    browser.refresh()
    until(browser, lambda: steps_done(browser) > first, "the run after a reload", PATIENCE)
    click(browser, "run_stop")
    wait_for_words_of(browser, "run_state", words["stopped"], PATIENCE)
    at = steps_done(browser)
    click(browser, "run_resume")
    until(browser, lambda: steps_done(browser) > at, "steps after the stop", PATIENCE)
    wait_for_words_of(browser, "run_state", words["finished"], PATIENCE)
    assert steps_done(browser) == 600
    assert all_marked(browser, "export_600")
    assert (workplace / "output" / name / "pytorch_lora_weights.safetensors").is_file()
    assert faults(browser) == []
