"""The cards of the loss functions."""

from __future__ import annotations

import json
from typing import Any

from nicegui.testing import User

from simpletuner.configuration import Config
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.translation import translator
from simpletuner.webui.estimates import CacheEstimate
from simpletuner.webui.pages.layout import LANGUAGE_COOKIE, Look
from simpletuner.webui.pages.losses import cache_note, plan_notes, plan_options
from simpletuner.webui.site import Site
from tests.webui.pages.looking import element, until
from tests.webui.pages.person import content, fill, open_project, problems_beside, seen

LOOK = Look("en", True, translator("en"))
CARDS = ("crepa", "urepa", "irepa", "layersync")


def cards(user: User) -> list[str]:
    return [prefix for prefix in CARDS if seen(user, f"card_{prefix}")]


def drawn(user: User, prefix: str = "crepa") -> list[list[float]]:
    return element(user, f"plot_{prefix}").options["series"][0]["data"]  # type: ignore[no-any-return]


async def test_a_card_has_fields_only_when_it_is_on(user: User, site: Site) -> None:
    path = await open_project(user, site, None, tab="losses")
    assert cards(user) == list(CARDS)  # of an unknown family anything may be
    fill(user, "model_family", "sd3")
    await until(lambda: cards(user) == ["crepa", "irepa", "layersync"])
    assert seen(user, "crepa_enabled") and not seen(user, "field_crepa_lambda") and not seen(user, "plot_crepa")
    fill(user, "crepa_enabled", True)
    await until(lambda: seen(user, "field_crepa_lambda"))
    assert seen(user, "part_crepa_teacher") and not seen(user, "part_crepa_neighbouring_frames")
    assert not seen(user, "field_crepa_decay_steps") and not seen(user, "field_crepa_teacher_block_index")
    fill(user, "crepa_feature_source", "backbone")
    await until(lambda: seen(user, "field_crepa_teacher_block_index"))
    assert not seen(user, "field_crepa_encoder") and not seen(user, "part_crepa_feature_cache")
    user.find(marker="save").click()
    await until(lambda: not seen(user, "unsaved"))
    saved = content(path)
    assert saved["crepa_enabled"] is True and saved["crepa_feature_source"] == "backbone"


async def test_what_fits_the_family_is_offered(user: User, site: Site) -> None:
    await open_project(user, site, "wan-crepa-lora", tab="losses")
    assert cards(user) == ["crepa", "irepa", "layersync"]
    assert seen(user, "part_crepa_neighbouring_frames")
    with user.scope(marker="card_crepa"):
        await user.should_see("CREPA")
    fill(user, "model_family", "sd3")
    await until(lambda: not seen(user, "part_crepa_neighbouring_frames"))
    with user.scope(marker="card_crepa"):
        await user.should_see("crepa_* options; CREPA for video.")


async def test_a_card_that_does_not_fit_is_there_to_be_turned_off(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="losses")
    fill(user, "model_family", "sdxl")
    await until(lambda: seen(user, "card_urepa"))
    assert cards(user) == ["crepa", "urepa", "irepa"]
    (told,) = problems_beside(user, "crepa_enabled")
    assert "sdxl is a UNet" in told and "urepa_enabled" in told
    assert not seen(user, "field_crepa_lambda") and not seen(user, "plot_crepa")
    fill(user, "crepa_enabled", False)
    await until(lambda: cards(user) == ["urepa", "irepa"])


async def test_the_recommended_block_is_set_by_a_click(user: User, site: Site) -> None:
    path = await open_project(user, site, "wan-crepa-lora", tab="losses")
    fill(user, "crepa_block_index", "29")
    assert element(user, "crepa_block_index").props["max"] == "29"
    assert element(user, "recommended_crepa_block_index").text == "recommended: 8 of 30"
    user.find(marker="recommended_crepa_block_index").click()
    assert element(user, "crepa_block_index").value == "8"
    fill(user, "model_family", "sana")
    await until(lambda: element(user, "recommended_crepa_block_index").text == "recommended: 10 of 20")
    fill(user, "layersync_enabled", True)
    await until(lambda: seen(user, "recommended_layersync_teacher_block"))
    user.find(marker="recommended_layersync_student_block").click()
    user.find(marker="recommended_layersync_teacher_block").click()
    user.find(marker="save").click()
    await until(lambda: not seen(user, "unsaved"))
    saved = content(path)
    assert (saved["layersync_student_block"], saved["layersync_teacher_block"]) == (10, 13)
    assert saved["crepa_block_index"] == 8


async def test_the_plot_follows_schedule_length_and_cutoff(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="losses")
    assert drawn(user)[0] == [0, 0.3] and drawn(user)[-1] == [2999, 0.0]
    fill(user, "crepa_scheduler", "constant")
    fill(user, "crepa_decay_steps", "")
    fill(user, "crepa_lambda", "0.25")
    await until(lambda: drawn(user)[-1] == [2999, 0.25])
    fill(user, "max_train_steps", "1000")
    fill(user, "crepa_warmup_steps", "100")
    fill(user, "crepa_cutoff_step", "800")
    await until(lambda: drawn(user)[-1] == [999, 0.0])
    assert [0, 0.0] in drawn(user) and [100, 0.25] in drawn(user) and [799, 0.25] in drawn(user)
    series = element(user, "plot_crepa").options["series"][0]
    assert series["markLine"]["data"] == [{"xAxis": 800}]
    fill(user, "crepa_similarity_threshold", "0.55")
    fill(user, "crepa_plateau_stop", True)
    await until(lambda: seen(user, "plan_crepa"))
    told = element(user, "plan_crepa").text
    assert "reaches 0.55" in told and "stops improving" in told
    fill(user, "max_train_steps", "")
    fill(user, "num_train_epochs", "3")
    await until(lambda: not seen(user, "plot_crepa"))
    assert "set in epochs" in element(user, "plan_crepa").text


async def test_parts_with_something_set_are_unfolded(user: User, site: Site) -> None:
    await open_project(user, site, "sd3-repa-lora", tab="losses")
    unfolded = {part: element(user, f"part_crepa_{part}").value for part in ("teacher", "projector", "schedule")}
    assert unfolded == {"teacher": True, "projector": False, "schedule": True}


async def test_the_size_of_the_cache_counts_the_files(user: User, site: Site) -> None:
    pictures = site.roots[0] / "pictures"
    pictures.mkdir()
    for number in range(5):
        (pictures / f"{number}.png").touch()
    await open_project(user, site, "sd3-repa-lora", tab="losses")
    each = "2.11 MB"  # 37 x 37 tokens of width 768 in bf16
    await until(lambda: each in element(user, "cache_crepa").text)
    assert "for 1,000 samples" in element(user, "cache_crepa").text
    fill(user, "dataset_0_instance_data_dir", str(pictures))
    await until(lambda: "10.5 MB for 5 samples" in element(user, "cache_crepa").text)
    fill(user, "crepa_encoder", "timm/no_such_model")
    await until(lambda: "isn't known" in element(user, "cache_crepa").text)
    fill(user, "crepa_feature_cache", False)
    await until(lambda: not seen(user, "cache_crepa"))


async def test_u_repa_in_hindi(user: User, site: Site) -> None:
    user.http_client.cookies.set(LANGUAGE_COOKIE, "hi")
    await open_project(user, site, "sdxl-urepa-lora", tab="losses")
    assert cards(user) == ["urepa", "irepa"]
    assert element(user, "urepa_align_layers").props["display-value"] == "mid"
    fill(user, "urepa_align_layers", ["mid", "dec_first"])
    await until(lambda: '"dec_first"' in element(user, "json_editor").value)
    assert drawn(user, "urepa")


def options(**values: Any) -> tuple[Any, Config]:
    config = Config(model_family="sd3", crepa_enabled=True, **values)
    return config.crepa, config


def test_both_axes_have_names_and_the_run_its_whole_length() -> None:
    chart = plan_options(*options(max_train_steps=500), LOOK)
    assert chart is not None
    assert chart["xAxis"]["name"] == "Step" and chart["yAxis"]["name"] == "Weight of the loss"
    assert (chart["xAxis"]["min"], chart["xAxis"]["max"], chart["yAxis"]["min"]) == (0, 500, 0)
    assert "markLine" not in chart["series"][0]
    json.dumps(chart, allow_nan=False)


def test_why_there_is_no_plot() -> None:
    words = LOOK.words
    assert plan_options(*options(), LOOK) is None
    assert plan_notes(*options(), words) == ["Set the training steps to see the weight over the run."]
    late = options(max_train_steps=100, crepa_scheduler="linear", crepa_warmup_steps=100)
    assert plan_options(*late, LOOK) is None
    assert plan_notes(*late, words) == ["The warm-up leaves no steps for the decay."]
    assert plan_notes(*options(max_train_steps=100), words) == []


def test_sentences_about_the_cache() -> None:
    assert cache_note(CacheEstimate(None, None, "not cached"), LOOK) == ""
    assert cache_note(CacheEstimate(1500, None), LOOK).endswith("about 1.5 kB a sample, 1.5 MB for 1,000 samples.")
    assert cache_note(CacheEstimate(1500, 2), LOOK).endswith("3 kB for 2 samples.")


def test_every_method_of_the_families_has_a_card() -> None:
    assert {family.alignment for family in FAMILIES.values()} == {"REPA", "CREPA", "U-REPA"}
