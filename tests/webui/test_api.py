"""The HTTP API: options, families and configurations, as other programs meet them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from simpletuner.configuration import Config, describe_all
from simpletuner.configuration.checks import check_config_file
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.translation import translator
from simpletuner.webui.api import add_api
from simpletuner.webui.secrets import MASK
from simpletuner.webui.site import Site


@pytest.fixture
def api(site: Site) -> Iterator[TestClient]:
    """The API of a site, without the guard."""
    app = FastAPI(openapi_url="/api/v1/openapi.json")
    add_api(app, site)
    with TestClient(app, base_url="http://localhost/api/v1", raise_server_exceptions=True) as client:
        yield client


def test_options_are_those_of_the_configuration(api: TestClient) -> None:
    options = api.get("/options").json()
    assert [option["name"] for option in options] == [info.name for info in describe_all(Config)]
    weight = next(option for option in options if option["name"] == "crepa_lambda")
    assert weight["default"] == 0.5 and weight["depends_on"] == "crepa_enabled" and weight["type"] == "number"


def test_options_are_described_in_the_readers_language(api: TestClient) -> None:
    english, chinese = (api.get("/options", params={"language": language}).json() for language in ("xx", "zh"))
    words = translator("zh")
    assert english == api.get("/options").json()
    assert [option["help"] for option in chinese] == [words(option["help"]) for option in english]
    assert [option["name"] for option in chinese] == [option["name"] for option in english]


def test_families_and_examples(api: TestClient) -> None:
    families = {family["family"]: family for family in api.get("/families").json()}
    assert set(families) == set(FAMILIES)
    assert families["sd1x"]["alignment"] == "U-REPA" and families["sd3"]["class"] == "SD3Transformer2DModel"
    assert {example["family"] for example in api.get("/examples").json()} == set(FAMILIES)


def test_a_configuration_from_beginning_to_end(api: TestClient, site: Site) -> None:
    made = api.post("/configs", json={"name": "über 1", "example": "sd3-repa-lora"})
    assert made.status_code == 201 and made.json()["values"]["output_dir"] == "output/über 1"
    assert [(line["name"], line["method"]) for line in api.get("/configs").json()] == [("über 1", "REPA")]
    read = api.get("/configs/über 1").json()
    assert read == made.json()
    saved = api.put("/configs/über 1", json={"values": read["values"] | {"seed": 7}, "version": read["version"]})
    assert saved.status_code == 200 and saved.json()["values"]["seed"] == 7
    late = api.put("/configs/über 1", json={"values": {}, "version": read["version"]})
    assert late.status_code == 409 and late.json()["version"] == saved.json()["version"]
    assert api.post("/configs", json={"name": "copy", "from": "über 1"}).json()["values"]["seed"] == 7
    renamed = api.post("/configs/copy/rename", json={"name": "b"})
    assert renamed.status_code == 200 and api.get("/configs/copy").status_code == 404
    assert api.delete("/configs/b").status_code == 204 and api.delete("/configs/b").status_code == 404
    assert sorted(path.name for path in site.configs.iterdir()) == ["über 1-data.json", "über 1.json"]


def test_checks_say_what_the_command_says(api: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"model_family": "sd1x", "crepa_enabled": True, "crepa_lambda": "0.3", "sed": 1, "vae_batch_size": 0}
    path = site.configs / "a.json"
    path.write_text(json.dumps(values))
    expected = [vars(problem) for problem in check_config_file(path, [], FAMILIES)[1]]
    for answer in (api.post("/validate", json={"values": values}), api.post("/configs/a/validate")):
        assert answer.status_code == 200 and answer.json() == {"problems": expected, "valid": False}


def test_checks_do_not_look_outside_of_the_roots(api: TestClient, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "list.json").write_text('[{"id": "s3cr3t", "dataset_type": "s3cr3t"}]')
    (outside / "transformer").mkdir()
    (outside / "transformer" / "config.json").write_text('{"_class_name": "s3cr3t", "num_layers": "s3cr3t"')
    values = {
        "model_family": "sd3",
        "data_backend_config": str(outside / "list.json"),
        "--pretrained_model_name_or_path": str(outside),
        "output_dir": "../elsewhere",
        "crepa_enabled": True,
        "crepa_model": f"{outside}/x",
    }
    answer = api.post("/validate", json={"values": values})
    found = {problem["option"]: problem for problem in answer.json()["problems"]}
    assert "s3cr3t" not in answer.text
    for name in ("data_backend_config", "output_dir"):
        assert found[name]["severity"] == "error" and "outside of the folders" in found[name]["message"]
    for name in ("pretrained_model_name_or_path", "crepa_model"):
        assert found[name]["severity"] == "warning" and "--root" in found[name]["mend"]


def test_checks_of_data_sets_do_not_tell_what_lies_outside(api: TestClient, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "there.json").touch()
    told = set()
    for folder, file in (("", "there.json"), ("", "gone.json"), ("gone", "there.json")):
        metadata = {"caption_strategy": "metadata", "metadata_file": file}
        classes = {"caption_strategy": "class", "metadata_file": "a", "class_names": str(outside / file)}
        entries = [
            {"id": "a", "instance_data_dir": str(outside / folder), **metadata},
            {"id": "b", "instance_data_dir": "config", **classes},
            {"id": "c", "instance_data_dir": str(outside / folder), "cache_dir_vae": "..", "disabled": True},
        ]
        Path("list.json").write_text(json.dumps(entries))
        answer = api.post("/validate", json={"values": {"model_family": "sd3", "data_backend_config": "list.json"}})
        told.add(answer.text.replace("gone", "there").replace("there.json", "").replace("/there", ""))
        found = {problem["option"]: problem for problem in answer.json()["problems"]}
        assert not any(": c." in option for option in found)
        for name in ("a.instance_data_dir", "b.class_names"):
            problem = found[f"list.json: {name}"]
            assert problem["severity"] == "warning" and "outside of the folders" in problem["message"]
        assert "no such file" in found["list.json: b.metadata_file"]["message"]
    assert len(told) == 1, told


def test_no_secret_is_in_a_problem(api: TestClient, site: Site) -> None:
    """Such as one that was put into the wrong option."""
    values = {"report_to": "hf_" + "x" * 20, "model_family": "https://user:pass-word@host"}
    (site.configs / "a.json").write_text(json.dumps(values))
    for answer in (api.post("/validate", json={"values": values}), api.post("/configs/a/validate")):
        assert "xxx" not in answer.text and "pass-word" not in answer.text and answer.text.count(MASK) == 2


def test_names_on_a_hub_are_no_paths(api: TestClient) -> None:
    values = {"pretrained_model_name_or_path": "org/name", "model_family": "sd3"}
    options = [problem["option"] for problem in api.post("/validate", json={"values": values}).json()["problems"]]
    assert "pretrained_model_name_or_path" not in options


def test_secrets_are_hidden(api: TestClient, site: Site) -> None:
    values = {"hub_token": "verysecret", "report_to": "wandb", "x": [{"api_key": "verysecret"}]}
    (site.configs / "a.json").write_text(json.dumps(values))
    read = api.get("/configs/a")
    assert "verysecret" not in read.text and read.json()["values"]["hub_token"] == MASK
    answers = [
        api.put("/configs/a", json={"values": read.json()["values"], "version": read.json()["version"]}),
        api.post("/configs/a/validate"),
        api.post("/configs", json={"name": "b", "from": "a"}),
        api.put("/configs/a", json={"values": "verysecret", "version": None}),
        api.post("/validate", json={"values": values | {"seed": "x"}}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 201, 422, 200]
    assert not [answer.text for answer in answers if "verysecret" in answer.text]
    assert json.loads((site.configs / "a.json").read_text())["hub_token"] == "verysecret"
    assert json.loads((site.configs / "b.json").read_text())["hub_token"] == "verysecret"


@pytest.mark.parametrize(
    "method, path, body, status, words",
    [
        ("GET", "/configs/none", None, 404, "There is no"),
        ("GET", "/configs/a@b", None, 422, "can't be the name"),
        ("GET", "/configs/..%2Fsecret", None, 404, "There is no /api"),
        ("GET", "/configs/%2e%2e", None, 422, "can't be the name"),
        ("POST", "/configs", {"name": "here"}, 409, "is there already"),
        ("POST", "/configs", {"name": "../x"}, 422, "can't be the name"),
        ("POST", "/configs", {"name": "x", "example": "../../secret"}, 404, "no example"),
        ("POST", "/configs", {"name": "x", "example": "a", "values": {}}, 422, "give one of"),
        ("POST", "/configs", {"name": "x", "form": "a"}, 422, "body.form"),
        ("POST", "/configs", {}, 422, "body.name"),
        ("PUT", "/configs/here", {"values": {}}, 422, "body.version"),
        ("PUT", "/configs/here", {"values": [], "version": None}, 422, "body.values"),
        ("POST", "/configs/here/rename", {"name": ".hidden"}, 422, "can't be the name"),
        ("POST", "/configs/none/validate", None, 404, "There is no"),
        ("GET", "/nothing", None, 404, "There is no /api/v1/nothing"),
        ("PATCH", "/configs/here", {}, 404, "There is no"),
    ],
)
def test_errors_are_told_in_words(
    api: TestClient, site: Site, method: str, path: str, body: Any, status: int, words: str
) -> None:
    (site.configs / "here.json").write_text("{}")
    answer = api.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert (site.configs / "here.json").read_text() == "{}"


@pytest.mark.parametrize("body", ["{", "[" * 100_000, '{"values": ' + '{"a":' * 500 + "1" + "}" * 501, "", "\xff"])
def test_bodies_that_are_no_values(api: TestClient, site: Site, body: str) -> None:
    for method, path in (("POST", "/validate"), ("PUT", "/configs/a"), ("POST", "/configs")):
        answer = api.request(method, path, content=body.encode("latin-1"), headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422) or (path == "/validate" and answer.status_code == 200), answer.text
        assert answer.json()
    assert list(site.configs.iterdir()) == []


def test_numbers_and_texts_that_no_file_can_hold(api: TestClient, site: Site) -> None:
    for value in ("NaN", "1e999", '"\\ud800"'):
        body = f'{{"values": {{"new": {value}}}, "version": null}}'
        answer = api.put("/configs/a", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422 and isinstance(answer.json()["detail"], str)
        checked = api.post("/validate", content=f'{{"values": {{"seed": {value}}}}}')
        assert checked.status_code in (200, 422) and (checked.status_code == 422 or not checked.json()["valid"])
    assert list(site.configs.iterdir()) == []


def test_the_api_is_described(api: TestClient) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    for path in ("options", "families", "examples", "configs", "configs/{name}", "configs/{name}/validate", "runs"):
        assert f"/api/v1/{path}" in paths


def test_examples_folder_outside_of_the_working_directory_is_no_matter(api: TestClient, site: Site) -> None:
    assert not (Path.cwd() / "config" / "examples").exists()
    assert api.post("/configs", json={"name": "a", "example": "wan-crepa-lora"}).status_code == 201
    assert json.loads((site.configs / "a-data.json").read_text())[0]["dataset_type"] == "video"
