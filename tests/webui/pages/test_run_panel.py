"""The Run tab's controls: on recorded runs, and with one real tiny training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from nicegui import ui
from nicegui.testing import User

from simpletuner.webui.pages.layout import frame
from simpletuner.webui.pages.run_panel import latest, problems_of, run_panel
from simpletuner.webui.runs import is_active, list_runs, read_run, stop_run
from simpletuner.webui.site import Site
from tests.runs import write_config
from tests.webui.pages.looking import PATIENT, until
from tests.webui.pages.recorded import record_run, row, save_checkpoint

A_TRAINING = 600  # looks, a tenth of a second apart


class Draft:
    """What the panel saves before it acts: how often it did, and whether that succeeds."""

    def __init__(self) -> None:
        self.saved = 0
        self.succeeds = True

    async def save(self) -> bool:
        self.saved += 1
        return self.succeeds


@pytest.fixture
def draft(user: User, site: Site) -> Draft:
    """The draft of the project "sky", whose panel is the page `/panel`."""
    made = Draft()

    @ui.page("/panel")
    def panel(request: Request) -> None:
        with frame(site, request, "sky") as look:
            run_panel(site, look, "sky", made.save)

    return made


def write_project(site: Site, **values: Any) -> None:
    (site.configs / "sky.json").write_text(json.dumps(values))


async def sees_only(user: User, *buttons: str) -> None:
    """Waits until just these of the buttons are there."""
    await user.should_see(f"run_{buttons[0]}", retries=PATIENT)
    for name in ("check", "caches", "start", "resume", "stop", "end"):
        if name in buttons:
            await user.should_see(f"run_{name}", retries=PATIENT)
        else:
            await user.should_not_see(f"run_{name}", retries=PATIENT)


async def test_a_project_that_was_not_run_yet(user: User, site: Site, draft: Draft) -> None:
    await user.open("/panel")
    await user.should_see("This project has not been run yet.", retries=PATIENT)
    await sees_only(user, "check", "caches", "start")


async def test_check_saves_and_lists_problems(user: User, site: Site, draft: Draft) -> None:
    write_project(site, model_family="sd3", lora_rnk=4)
    await user.open("/panel")
    user.find(marker="run_check").click()
    await user.should_see("lora_rnk", retries=PATIENT)
    await user.should_see("pretrained_model_name_or_path")
    assert draft.saved == 1
    assert len(problems_of(site, "sky")) == len(user.find(marker="run_problem").elements)


async def test_what_cannot_be_started_says_why_a_line_a_problem(user: User, site: Site, draft: Draft) -> None:
    write_project(site, model_family="sd3", lora_rnk=4)
    await user.open("/panel")
    user.find(marker="run_start").click()
    await user.should_see("lora_rnk", retries=PATIENT)
    assert len(user.find(marker="run_problem").elements) > 1
    assert list_runs(site) == []


async def test_a_project_that_is_gone(user: User, site: Site, draft: Draft) -> None:
    await user.open("/panel")
    user.find(marker="run_check").click()
    await user.should_see("run_problem", retries=PATIENT)


async def test_nothing_is_started_that_could_not_be_saved(user: User, site: Site, draft: Draft) -> None:
    draft.succeeds = False
    write_project(site, model_family="sd3")
    await user.open("/panel")
    for number, button in enumerate(("run_start", "run_caches", "run_check"), start=1):
        user.find(marker=button).click()
        await until(lambda wanted=number: draft.saved == wanted)
    await user.should_not_see("run_problem")
    assert list_runs(site) == []


async def test_while_it_runs_one_can_only_stop_it(user: User, site: Site, draft: Draft, sleeper: int) -> None:
    record_run(site, rows=[row(1)], child=sleeper)
    await user.open("/panel")
    await sees_only(user, "check", "stop")
    await user.should_see("Training…")
    user.find(marker="run_stop").click()
    await user.should_see("What was trained so far is saved as a checkpoint", retries=PATIENT)
    # A training saves; what stands here in its place just ends.
    await sees_only(user, "check", "caches", "start")


async def test_a_stopped_run_can_be_resumed(user: User, site: Site, draft: Draft) -> None:
    run = record_run(site, rows=[row(1), row(2)])
    save_checkpoint(run, 2)
    await user.open("/panel")
    await sees_only(user, "check", "caches", "start", "resume")
    await user.should_see("Stopped", retries=PATIENT)


async def test_the_run_to_show(site: Site, sleeper: int) -> None:
    """One that goes, else the one that went last; and resuming is about trainings."""
    assert latest(site, "sky").run is None
    training = record_run(site, 1, rows=[row(1)])
    save_checkpoint(training, 1)
    caching = record_run(site, 2, command="cache")
    other = record_run(site, 3, project="sea")
    found = latest(site, "sky")
    assert found.run is not None
    assert (found.run.id, found.active, found.resumable) == (caching.id, False, True)
    assert latest(site, "sea").run == read_run(site, other.id)
    going = record_run(site, 0, child=sleeper)
    found = latest(site, "sky")
    assert found.run is not None
    assert (found.run.id, found.active, found.resumable) == (going.id, True, False)


async def test_a_run_that_is_started_elsewhere_appears(
    user: User, site: Site, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run_panel.__globals__, "LOOK_FOR_RUNS", 0.2)
    await user.open("/panel")
    await user.should_see("This project has not been run yet.", retries=PATIENT)
    record_run(site, rows=[row(1)], total=1)
    await user.should_see("Finished", retries=PATIENT)
    await user.should_not_see("This project has not been run yet.")


async def test_a_real_training_is_started_watched_stopped_and_resumed(
    user: User, site: Site, draft: Draft, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = site.roots[0]
    made = write_config(root, tiny_folder("sd3"), max_train_steps=100_000, validation_prompt="a square")
    values = json.loads(made.read_text()) | {
        "validation_step_interval": 2,
        "validation_num_inference_steps": 1,
        "num_validation_images": 1,
    }
    write_project(site, **values)
    await user.open("/panel")
    await user.should_see("run_start", retries=PATIENT)
    user.find(marker="run_start").click()
    await user.should_see("run_stop", retries=A_TRAINING)
    try:
        await user.should_see("chart_base_loss", retries=A_TRAINING)
        await user.should_see("sample", retries=A_TRAINING)
        await user.open("/panel")  # the page is loaded again
        await user.should_see("Training…", retries=PATIENT)
        user.find(marker="run_stop").click()
        await user.should_see("Stopped", retries=A_TRAINING)
        await user.should_see("checkpoint_table", retries=PATIENT)
        (stopped,) = list_runs(site)
        await user.should_see("run_resume", retries=PATIENT)
        user.find(marker="run_resume").click()
        await user.should_see("run_stop", retries=A_TRAINING)
        (resumed,) = list_runs(site)
        assert (resumed.id, resumed.starts) == (stopped.id, 2)
    finally:
        for run in list_runs(site):
            if is_active(run):
                stop_run(site, run.id)
    await user.should_see("Stopped", retries=A_TRAINING)
