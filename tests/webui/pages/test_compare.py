"""Runs beside each other, on recorded runs: baseline against aligned."""

from __future__ import annotations

from typing import Any

import pytest
from nicegui import ui
from nicegui.testing import User

from simpletuner.translation import translator
from simpletuner.webui.pages.compare import Compared, common_steps, compare, compared_lines, names_of
from simpletuner.webui.pages.layout import Look
from simpletuner.webui.runs import Run
from simpletuner.webui.site import Site
from tests.webui.pages.looking import PATIENT, choose, element, until
from tests.webui.pages.recorded import draw_sample, plain_row, record_run, row

LOOK = Look("en", False, translator("en"))


@pytest.fixture
def runs(site: Site) -> tuple[Run, Run]:
    """A baseline and an aligned run, with samples of one common step."""
    plain = record_run(site, 1, rows=[plain_row(step) for step in range(1, 5)], config={"seed": 1})
    config = {"crepa_enabled": True, "seed": 2}
    aligned = record_run(site, 2, rows=[row(step, layersync_loss=-0.3) for step in range(1, 4)], config=config)
    for run, steps in ((plain, (1, 2, 4)), (aligned, (1, 2, 3))):
        for step in steps:
            draw_sample(run, step)
    return plain, aligned


def lines_of(user: User, chart: str) -> list[dict[str, Any]]:
    return element(user, f"chart_{chart}").options["series"]


def test_what_is_read(site: Site, runs: tuple[Run, Run]) -> None:
    plain, aligned = runs
    found = compare(site, [aligned.id, plain.id, aligned.id, "20260101-000009-00000009"])
    assert [compared.run.id for compared in found.runs] == [aligned.id, plain.id]
    assert found.missing == ("20260101-000009-00000009",)
    differing = {difference.option: difference.values for difference in found.differences}
    assert differing["crepa_enabled"] == (True, False)
    assert differing["seed"] == (2, 1)
    assert "learning_rate" not in differing
    assert [values["minutes"] for values in found.runs[0].rows] == pytest.approx([0.5 / 60, 1 / 60, 1.5 / 60])
    assert common_steps(found.runs) == [1, 2]


def test_each_run_has_its_colour_in_every_chart(site: Site, runs: tuple[Run, Run]) -> None:
    compared = compare(site, [run.id for run in runs]).runs

    def shown(group: str) -> list[tuple[str, int, int]]:
        lines = compared_lines(compared, ["A", "B"], group, across="step", smoothing=0.0, look=LOOK)
        return [(line.name, line.colour, line.dash) for line in lines]

    assert shown("base_loss") == [("A", 0, 0), ("B", 1, 0)]
    # The baseline has none: it is absent, and the other keeps its colour.
    assert shown("alignment_loss") == [("B · CREPA", 1, 0), ("B · LayerSync", 1, 1)]
    assert shown("similarity") == [("B", 1, 0)]
    assert shown("manifold_loss") == []


def test_names_tell_runs_apart(runs: tuple[Run, Run]) -> None:
    plain, aligned = runs
    first, second, third = names_of([plain, aligned, plain], "en")
    assert first.startswith("sky · ")
    assert len({first, second, third}) == 3
    assert third.removesuffix(" (2)") == first.removesuffix(" (1)")


def test_runs_without_samples_leave_the_others_theirs(site: Site, runs: tuple[Run, Run]) -> None:
    bare = record_run(site, 3)
    assert common_steps(compare(site, [run.id for run in (*runs, bare)]).runs) == [1, 2]
    assert common_steps([Compared(bare, False, [], ())]) == []


async def test_the_page(user: User, site: Site, runs: tuple[Run, Run]) -> None:
    plain, aligned = runs
    await user.open(f"/compare?runs={plain.id},{aligned.id}")
    await user.should_see("chart_base_loss", retries=PATIENT)
    assert [line["name"] for line in lines_of(user, "base_loss")] == names_of(list(runs), "en")
    assert len(lines_of(user, "coefficient")) == 1
    assert element(user, "chart_base_loss").options["xAxis"]["name"] == "Step"
    await choose(user, "compare_axis", "minutes")
    await until(lambda: element(user, "chart_base_loss").options["xAxis"]["name"] == "Minutes")
    assert lines_of(user, "base_loss")[0]["data"][-1][0] == pytest.approx(2 / 60, abs=1e-5)
    # Options that differ, by label and by name.
    await user.should_see("crepa_enabled")
    await user.should_not_see("learning_rate")
    # Samples of the newest common step, and of another.
    images = [element(user, f"sample_{run.id}").props["alt"] for run in runs]
    assert images == ["Sample 1 of step 2"] * 2
    await choose(user, "sample_slider", 0)
    assert element(user, f"sample_{plain.id}").props["alt"] == "Sample 1 of step 1"


async def test_smoothing(user: User, site: Site, runs: tuple[Run, Run]) -> None:
    await user.open(f"/compare?runs={runs[0].id}")
    await user.should_see("chart_base_loss", retries=PATIENT)
    calm = lines_of(user, "base_loss")[0]["data"]
    await choose(user, "smoothing", 0)
    await until(lambda: lines_of(user, "base_loss")[0]["data"] != calm)
    measured = lines_of(user, "base_loss")[0]["data"]
    assert [y for _, y in measured] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4], rel=1e-5)
    assert calm[-1][1] > measured[-1][1]


async def test_runs_that_are_gone_are_named(user: User, site: Site, runs: tuple[Run, Run]) -> None:
    await user.open(f"/compare?runs={runs[0].id},20260101-000009-00000009")
    await user.should_see("These runs are gone: 20260101-000009-00000009", retries=PATIENT)
    assert len(user.find(kind=ui.echart).elements) > 0


async def test_runs_beyond_the_most_that_are_shown_are_told_of(user: User, site: Site) -> None:
    chosen = [record_run(site, number, rows=[row(1)]).id for number in range(1, 15)]
    await user.open(f"/compare?runs={','.join([*chosen, chosen[0]])}")
    await user.should_see("Only the first 12 of 14 runs are shown.")
    await user.open(f"/compare?runs={','.join([*chosen[:12], chosen[0]])}")
    await user.should_not_see("Only the first")


async def test_without_samples_of_a_common_step(user: User, site: Site) -> None:
    first, second = record_run(site, 1, rows=[row(1)]), record_run(site, 2, rows=[row(1)])
    draw_sample(first, 1)
    draw_sample(second, 2)
    await user.open(f"/compare?runs={first.id},{second.id}")
    await user.should_see("The runs have no samples of a common step.", retries=PATIENT)


async def test_without_runs_the_page_leads_to_their_list(user: User, site: Site) -> None:
    await user.open("/compare")
    await user.should_see("Choose the runs to compare in the list of runs.")
