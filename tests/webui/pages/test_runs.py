"""The list of runs, and the page of one, on recorded runs."""

from __future__ import annotations

import os
import shutil

from nicegui import ui
from nicegui.testing import User

from simpletuner.webui.runs import list_runs
from simpletuner.webui.site import Site
from tests.webui.pages.looking import PATIENT, choose, element
from tests.webui.pages.recorded import (
    append_row,
    draw_sample,
    plain_row,
    record_run,
    row,
    save_checkpoint,
)


def names(user: User, marker: str) -> set[str]:
    """The charts that are shown."""
    return {
        mark.removeprefix("chart_")
        for chart in user.find(kind=ui.echart).elements
        for mark in chart._markers
        if mark.startswith("chart_")
    }


async def test_the_list_says_of_each_run_what_it_was(user: User, site: Site) -> None:
    record_run(site, 1, rows=[plain_row(step) for step in range(1, 11)], project="sky")
    aligned = {"crepa_enabled": True, "layersync_enabled": True}
    record_run(site, 2, rows=[row(4)], code=2, project="sea", config=aligned)
    record_run(site, 3, command="cache", project="sea")
    await user.open("/runs")
    await user.should_see("Failed (exit code 2)", retries=PATIENT)
    await user.should_see("REPA + LayerSync")
    await user.should_see("10 / 10")
    await user.should_see("4 / 10")
    await user.should_see("0.25")
    await user.should_see("2 min 5 sec")
    await user.should_see("Building caches")
    links = [link.props["href"] for link in user.find(kind=ui.link).elements if "/runs/" in link.props["href"]]
    assert sorted(links) == [f"/runs/{run.id}" for run in sorted(list_runs(site), key=lambda run: run.id)]


async def test_without_runs_the_list_says_how_to_begin(user: User, site: Site) -> None:
    await user.open("/runs")
    await user.should_see("No runs yet", retries=PATIENT)
    assert not element(user, "compare").enabled


async def test_the_list_of_one_project(user: User, site: Site) -> None:
    first, second = record_run(site, 1, project="sky"), record_run(site, 2, project="sea")
    await user.open("/runs?project=sea")
    await user.should_see(f"open_{second.id}", retries=PATIENT)
    await user.should_not_see(f"open_{first.id}")
    await choose(user, "run_filter", "")
    await user.should_see(f"open_{first.id}", retries=PATIENT)


async def test_ticked_runs_are_compared(user: User, site: Site) -> None:
    first, second = record_run(site, 1, rows=[row(1)]), record_run(site, 2, rows=[row(1)])
    await user.open("/runs")
    await user.should_see(f"tick_{first.id}", retries=PATIENT)
    user.find(marker=f"tick_{second.id}").click()
    assert not element(user, "compare").enabled
    user.find(marker=f"tick_{first.id}").click()
    user.find(marker="compare").click()
    await user.should_see("compared_runs", retries=PATIENT)
    assert user.back_history[-1] == f"/compare?runs={second.id},{first.id}"


async def test_a_run_is_forgotten_after_a_question_and_its_outputs_stay(user: User, site: Site) -> None:
    run = record_run(site, rows=[row(1)])
    await user.open("/runs")
    await user.should_see(f"forget_{run.id}", retries=PATIENT)
    user.find(marker=f"forget_{run.id}").click()
    await user.should_see(f"Its outputs stay in {run.output_dir}", retries=PATIENT)
    user.find(marker="forget_cancel").click()
    await user.should_not_see("forget_confirm", retries=PATIENT)
    assert list_runs(site) != []
    user.find(marker=f"forget_{run.id}").click()
    await user.should_see("forget_confirm", retries=PATIENT)
    user.find(marker="forget_confirm").click()
    await user.should_see("No runs yet", retries=PATIENT)
    assert list_runs(site) == []
    assert (run.output_dir / "metrics.jsonl").is_file()


async def test_the_page_of_a_finished_run(user: User, site: Site) -> None:
    rows = [row(step) for step in range(1, 11)]
    run = record_run(site, rows=[*rows, {"step": 10, "eval_fid": 12.5}], log="step 10/10\n")
    draw_sample(run, 5)
    draw_sample(run, 10)
    draw_sample(run, 10, 1, ".mp4")
    save_checkpoint(run, 5, torn=True)
    save_checkpoint(run, 10)
    await user.open(f"/runs/{run.id}")
    await user.should_see("Finished", retries=PATIENT)
    await user.should_see("Step 10 of 10 · 0.5 sec a step")
    title = element(user, "run_project").parent_slot.parent
    assert (title.props["role"], title.props["aria-level"]) == ("heading", "1")
    assert names(user, "chart") == {
        "base_loss", "alignment_loss", "similarity", "coefficient", "learning_rate", "step_time", "gradient"
    }  # fmt: skip
    loss = element(user, "chart_base_loss")
    assert loss.options["series"][-1]["data"][0] == [1, 1.0]
    assert len(loss.options["series"][-1]["data"]) == 10
    await user.should_see("12.5")
    await user.should_see("2.08 kB")
    await user.should_see("Incomplete")
    assert element(user, "export_10").props["href"] == f"/api/v1/runs/{run.id}/checkpoints/10/export"
    await user.should_not_see("export_5")
    await user.should_see("step 10/10")
    await user.should_see("CPU")
    await user.should_not_see("failure")
    await user.should_not_see("run_stop")
    # The samples of the newest step, and those of another one.
    drawn = {shown.tag: shown.props for shown in user.find(marker="sample").elements}
    assert drawn["img"]["alt"] == "Sample 1 of step 10"
    assert drawn["video"]["aria-label"] == "Sample 2 of step 10"
    await choose(user, "sample_slider", 0)
    await user.should_see("Step 5")
    assert element(user, "sample").props["alt"] == "Sample 1 of step 5"


async def test_smoothing_changes_the_lines(user: User, site: Site) -> None:
    run = record_run(site, rows=[row(step, base_loss=step % 2) for step in range(1, 11)])
    await user.open(f"/runs/{run.id}")
    await user.should_see("chart_base_loss", retries=PATIENT)
    chart = element(user, "chart_base_loss")
    assert len(chart.options["series"]) == 2
    await choose(user, "smoothing", 0)
    assert [series["data"][:2] for series in chart.options["series"]] == [[[1, 1], [2, 0]]]


async def test_a_failed_run_shows_the_end_of_its_log_and_can_be_resumed(user: User, site: Site) -> None:
    log = "".join(f"line {number}\n" for number in range(1, 31))
    run = record_run(site, rows=[row(1), row(2)], code=2, log=log)
    save_checkpoint(run, 2)
    await user.open(f"/runs/{run.id}")
    await user.should_see("The run ended before its time: Failed (exit code 2)", retries=PATIENT)
    assert element(user, "failure_log").text.splitlines() == [f"line {number}" for number in range(16, 31)]
    await user.should_see("failure_resume")
    user.find(marker="failure_resume").click()  # its configuration names no model
    await user.should_see("pretrained_model_name_or_path", retries=PATIENT)


async def test_a_killed_run_without_a_checkpoint_cannot_be_resumed(user: User, site: Site) -> None:
    run = record_run(site, rows=[row(1)], code=-9)
    await user.open(f"/runs/{run.id}")
    await user.should_see("The run ended before its time: Killed by signal 9", retries=PATIENT)
    await user.should_not_see("failure_resume")
    await user.should_not_see("run_resume")


async def test_a_run_that_goes_is_followed(user: User, site: Site, sleeper: int) -> None:
    run = record_run(site, rows=[row(1)], child=sleeper)
    draw_sample(run, 1)
    await user.open(f"/runs/{run.id}")
    await user.should_see("Training…", retries=PATIENT)
    await user.should_see("Step 1 of 10 · 4 sec left · 0.5 sec a step")
    await user.should_see("run_stop")
    append_row(run, row(2))
    draw_sample(run, 2)
    await user.should_see("Step 2 of 10 · 4 sec left · 0.5 sec a step", retries=PATIENT)
    assert [x for x, _ in element(user, "chart_base_loss").options["series"][-1]["data"]] == [1, 2]
    assert element(user, "sample").props["alt"] == "Sample 1 of step 2"
    # Who looks at an older step isn't torn away from it.
    await choose(user, "sample_slider", 0)
    draw_sample(run, 3)
    append_row(run, row(3))
    await user.should_see("Step 3 of 10", retries=PATIENT)
    assert element(user, "sample").props["alt"] == "Sample 1 of step 1"


async def test_a_run_that_stops_too_slowly_may_be_ended_at_once(user: User, site: Site, sleeper: int) -> None:
    run = record_run(site, rows=[row(1)], child=sleeper, stopping=20.0)
    await user.open(f"/runs/{run.id}")
    await user.should_see("Stopping: saving a checkpoint…", retries=PATIENT)
    await user.should_not_see("run_stop")
    user.find(marker="run_end").click()
    await user.should_see("What was trained since the last checkpoint is lost", retries=PATIENT)
    user.find(marker="end_confirm").click()
    await user.should_see("The run ended before its time: Killed", retries=PATIENT)


async def test_a_run_that_began_to_stop_is_given_time(user: User, site: Site, sleeper: int) -> None:
    run = record_run(site, rows=[row(1)], child=sleeper, stopping=1.0)
    await user.open(f"/runs/{run.id}")
    await user.should_see("Stopping: saving a checkpoint…", retries=PATIENT)
    await user.should_not_see("run_end")
    assert os.getpgid(sleeper) == sleeper, "it still lives"


async def test_a_run_that_is_forgotten_while_one_looks_at_it(user: User, site: Site, sleeper: int) -> None:
    run = record_run(site, rows=[row(1)], child=sleeper)
    await user.open(f"/runs/{run.id}")
    await user.should_see("Training…", retries=PATIENT)
    shutil.rmtree(run.folder)
    await user.should_see(f"There is no run '{run.id}'.", retries=PATIENT)


async def test_a_run_that_is_unknown(user: User, site: Site) -> None:
    await user.open("/runs/20260101-000009-00000009")
    await user.should_see("There is no such run.")
    await user.open("/runs/nonsense")
    await user.should_see("There is no such run.")


async def test_in_another_language(user: User, site: Site) -> None:
    """Numbers are written as its readers do, whatever is translated yet."""
    run = record_run(site, rows=[row(step) for step in range(1, 4)], total=3000)
    user.http_client.cookies.set("simpletuner_language", "es")
    await user.open(f"/runs/{run.id}")
    await user.should_see("0,5 s", retries=PATIENT)
    await user.should_see("3.000")
    assert 'toLocaleString("es"' in element(user, "chart_base_loss").options["tooltip"][":valueFormatter"]
