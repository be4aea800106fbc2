"""What a user does in the WebUI, in the order of the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome

from e2e.browser import all_marked, choose, click, fill, marked, until

# What suits the tiny models; the rest stays as the example has it.
FIELDS: dict[str, dict[str, object]] = {
    "basic": {"max_train_steps": 600, "train_batch_size": 2, "gradient_accumulation_steps": 1},
    "data": {"resolution": 64, "aspect_bucket_alignment": 64, "max_workers": 0},
    "validation": {
        "validation_prompt": "a lighthouse",
        "validation_step_interval": 40,
        "validation_num_inference_steps": 2,
        "validation_guidance": 1,
    },
}


def values_for(family: str, name: str) -> dict[str, Any]:
    """The configuration of such a training, for where the typing is not what is tried."""
    alignment = {"crepa_enabled": True, "crepa_encoder": "teachers/teacher", "crepa_encoder_image_size": 56}
    model = {"model_family": family, "pretrained_model_name_or_path": f"models/{family}", "mixed_precision": "no"}
    files = {"data_backend_config": "data.json", "output_dir": f"output/{name}"}
    fields = {option: value for of_tab in FIELDS.values() for option, value in of_tab.items()}
    return model | files | fields | alignment | {"crepa_block_index": 1, "crepa_scheduler": "cosine"}


def create_project(browser: Chrome, url: str, family: str, name: str) -> None:
    """From the list of projects, by the family's example; ends on the project's page."""
    browser.get(url)
    click(browser, "new_project")
    choose(browser, "new_family", f"{family} (", typed=family)
    until(browser, lambda: all_marked(browser, "new_example"), "the family's example")
    fill(browser, "new_name", name)
    click(browser, "new_create")
    marked(browser, "tab_basic")


def open_tab(browser: Chrome, *tabs: str) -> None:
    """Opens a tab, and a tab within it."""
    for tab in tabs:
        click(browser, f"tab_{tab}")


def fill_in(browser: Chrome, family: str) -> None:
    """All that a short training of a tiny model needs, on the tabs of the project's page."""
    open_tab(browser, "basic")
    fill(browser, "pretrained_model_name_or_path", f"models/{family}")
    for tab, fields in FIELDS.items():
        open_tab(browser, tab)
        for name, value in fields.items():
            fill(browser, name, value)
    open_tab(browser, "model")
    choose(browser, "mixed_precision", "no")
    open_tab(browser, "data")
    fill(browser, "dataset_0_instance_data_dir", "images/lighthouses")


def save(browser: Chrome) -> None:
    """Saves, and waits until there is nothing unsaved."""
    click(browser, "save")
    until(browser, lambda: not all_marked(browser, "unsaved"), "the end of saving")


def saved(workplace: Path, name: str) -> dict[str, Any]:
    """The project's file."""
    return dict(json.loads((workplace / "config" / f"{name}.json").read_text()))


def chart(browser: Chrome, mark: str) -> list[list[list[float]]]:
    """The points of a chart's lines, as ECharts has them."""
    element = marked(browser, mark)
    series = browser.execute_script(
        "return getHtmlElement ? getElement(parseInt(arguments[0].id.slice(1))).chart.getOption().series"
        ".map(line => line.data) : null",
        element,
    )
    return list(series)


def state(browser: Chrome) -> str:
    """The state of the run that is shown."""
    return marked(browser, "run_state").text


def steps_done(browser: Chrome) -> int:
    """The last step of the first chart that a run shows; 0 before there is one."""
    if not all_marked(browser, "chart_base_loss"):
        return 0
    points = chart(browser, "chart_base_loss")[0]
    return int(points[-1][0]) if points else 0
