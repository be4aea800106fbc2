"""Runs over HTTP."""

from __future__ import annotations

import io
import json
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from simpletuner.helpers.utils.run_folder import METRICS_FILE, read_metrics, sample_path
from simpletuner.webui import api_runs
from simpletuner.webui.events import Event
from simpletuner.webui.keeper import LOG_FILE, exit_file
from simpletuner.webui.secrets import MASK
from simpletuner.webui.site import Site
from tests.runs import write_config
from tests.webui.servers import Served, command
from tests.webui.small_runs import ID, make_record, put_processes, until, write_checkpoint, write_rows
from tests.webui.test_events import Reader

RUN = f"/api/v1/runs/{ID}"


@pytest.fixture
def client(site: Site) -> TestClient:
    app = FastAPI()
    app.include_router(api_runs.router(site), prefix="/api/v1")
    return TestClient(app)


def events_of(lines: Iterator[str]) -> Iterator[Event]:
    """The events of a stream, as a browser reads them."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            fields[name] = value
        elif not line and "data" in fields:
            yield Event(fields["id"], fields["event"], json.loads(fields["data"]))  # type: ignore[arg-type]
            fields = {}


def test_a_run_as_it_is(client: TestClient, site: Site, output: Path) -> None:
    assert client.get("/api/v1/runs").json() == []
    folder = make_record(site, started=5.0)
    put_processes(folder)
    write_rows(output, [1, 2], total=4)
    (run,) = client.get("/api/v1/runs").json()
    assert run == client.get(RUN).json()
    expected = {"id": ID, "project": "small", "command": "train", "started": 5.0, "state": "running", "starts": 1}
    assert run.items() >= expected.items() and run["output_dir"] == str(output)
    assert run["progress"] == {"step": 2, "total": 4, "step_seconds": 0.5, "seconds_left": 1.0}
    assert not run["can_resume"] and run["ended"] is None and run["exit_code"] is None


@pytest.mark.parametrize("name", [ID[:-1] + "b", "x", "..%2f..", "%2e%2e", "%00", "é"])
def test_what_is_not_there(client: TestClient, site: Site, name: str) -> None:
    make_record(site)
    for path in ("", "/config", "/metrics", "/log", "/samples", "/samples/x", "/checkpoints", "/events"):
        assert client.get(f"/api/v1/runs/{name}{path}").status_code == 404
    for path in ("/stop", "/resume"):
        assert client.post(f"/api/v1/runs/{name}{path}").status_code == 404
    assert client.delete(f"/api/v1/runs/{name}").status_code == 404


def test_what_cannot_be_done_now(client: TestClient, site: Site) -> None:
    folder = make_record(site)
    assert "Stop it first" in client.delete(RUN).json()["detail"]
    assert client.delete(RUN).status_code == 409
    assert client.post(f"{RUN}/stop", json={"at_once": True}).status_code == 200  # asked first
    assert client.post(f"{RUN}/stop", json={"at_once": True}).status_code == 409
    exit_file(folder, 1).write_text('{"code": 0, "ended": 9.0}')
    assert client.post(f"{RUN}/stop").status_code == 409
    assert client.delete(RUN).status_code == 204 and client.get(RUN).status_code == 404


def test_what_cannot_be_started(client: TestClient, site: Site) -> None:
    (site.configs / "bad.json").write_text('{"model_family": "sd3", "train_batch_size": 0, "hub_token": "hf_secret"}')
    refused = client.post("/api/v1/runs", json={"project": "bad"})
    assert refused.status_code == 422 and "error: train_batch_size: " in refused.json()["detail"]
    assert "hf_secret" not in refused.text
    assert client.post("/api/v1/runs", json={"project": "../bad"}).status_code == 422
    for body in ({}, {"project": "bad", "command": "rm"}, {"project": "bad", "resumes": True}, {"project": 3}):
        assert client.post("/api/v1/runs", json=body).status_code == 422
    assert client.get("/api/v1/runs").json() == []


def test_metrics(client: TestClient, site: Site, output: Path) -> None:
    make_record(site)
    write_rows(output, range(1, 101), grad_norm=float("nan"))
    rows = client.get(f"{RUN}/metrics", params={"after": 90, "most": 4}).json()
    assert [row["step"] for row in rows] == [91, 94, 97, 100] and rows[0]["grad_norm"] is None
    assert len(client.get(f"{RUN}/metrics").json()) == 100
    assert client.get(f"{RUN}/metrics", params={"most": 0}).status_code == 422


def test_secrets_are_hidden(client: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    folder = make_record(site, config={"--seed": 3, "hub_token": "abcdefgh"})
    (folder / LOG_FILE).write_text("first\nkey 0123456789abcdef\n")
    assert client.get(f"{RUN}/config").json() == {"values": {"seed": 3, "hub_token": MASK}}
    assert client.get(f"{RUN}/log", params={"lines": 1}).json() == {"text": f"key {MASK}\n"}


def test_samples_are_files_of_this_run_alone(client: TestClient, site: Site, output: Path, tmp_path: Path) -> None:
    make_record(site, started=5.0)
    paths = [sample_path(output, step, number, suffix) for step, number, suffix in ((2, 0, ".png"), (2, 1, ".mp4"))]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(path.name.encode())
    (tmp_path / "secret.png").write_bytes(b"secret")
    (paths[0].parent / "step-000009-0.png").symlink_to(tmp_path / "secret.png")
    (paths[0].parent / "notes.txt").write_text("secret")
    listed = client.get(f"{RUN}/samples").json()
    assert listed[:2] == [{"step": 2, "number": n, "name": path.name} for n, path in enumerate(paths)]
    for path, kind in zip(paths, ("image/png", "video/mp4"), strict=True):
        answer = client.get(f"{RUN}/samples/{path.name}")
        assert answer.content == path.name.encode() and answer.headers["content-type"] == kind
        assert answer.headers["cache-control"] == "no-cache"
    for name in ("step-000003-0.png", "notes.txt", "..%2f..%2fsecret.png", "%2e%2e", "step-000002-0.png%00"):
        assert client.get(f"{RUN}/samples/{name}").status_code == 404
    outside = client.get(f"{RUN}/samples/step-000009-0.png")
    assert outside.status_code == 422 and "secret" not in outside.content.decode().replace("secret.png", "")


def test_exports(client: TestClient, site: Site, output: Path) -> None:
    make_record(site, project="my 项目")
    scheduler = {"scheduler/scheduler_config.json": b"{}" * 999}
    write_checkpoint(output, 5)
    write_checkpoint(output, 10, {"pytorch_lora_weights.safetensors": b"lora" * 200} | scheduler)
    (write_checkpoint(output, 15) / "pytorch_lora_weights.safetensors").write_bytes(b"torn off")
    listed = client.get(f"{RUN}/checkpoints").json()
    assert [(one["step"], one["intact"], len(one["files"])) for one in listed] == [
        (5, True, 1),
        (10, True, 2),
        (15, False, 1),
    ]
    single = client.get(f"{RUN}/checkpoints/5/export")
    assert single.content == b"lora" and 'filename="my-5.safetensors"' in single.headers["content-disposition"]
    several = client.get(f"{RUN}/checkpoints/10/export")
    assert 'filename="my-10.tar"' in several.headers["content-disposition"]
    with tarfile.open(fileobj=io.BytesIO(several.content)) as tar:
        found = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    assert found == {"pytorch_lora_weights.safetensors": b"lora" * 200} | scheduler
    for step in (15, 99, -1):
        assert client.get(f"{RUN}/checkpoints/{step}/export").status_code == 404


def test_the_machine(client: TestClient) -> None:
    assert client.get("/api/v1/machine").json().keys() == {"cpu_percent", "memory", "gpus"}


def test_the_stream_of_a_run_that_ended(client: TestClient, site: Site, output: Path) -> None:
    """It ends, and tells a client that comes back that there is no more."""
    folder = make_record(site)
    write_rows(output, [1, 2])
    exit_file(folder, 1).write_text(json.dumps({"code": 1, "ended": time.time() - 60}))
    answer = client.get(f"{RUN}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache" and answer.text.startswith("retry: ")
    found = list(events_of(iter(answer.text.split("\n"))))
    assert [event.kind for event in found] == ["metrics", "status"]
    again = client.get(f"{RUN}/events", headers={"Last-Event-ID": found[0].id})
    assert list(events_of(iter(again.text.split("\n")))) == found[1:]
    assert client.get(f"{RUN}/events", headers={"Last-Event-ID": found[1].id}).status_code == 204


@pytest.fixture
def project(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """A working directory with a project "tiny"."""
    (tmp_path / "config").mkdir()
    options = {"max_train_steps": 10**6, "checkpoint_step_interval": 10}
    config = write_config(tmp_path, tiny_folder("sd3"), name="written", output_dir="output", **options)
    config.replace(tmp_path / "config" / "tiny.json")
    return tmp_path


def test_a_training_goes_on_when_its_server_is_killed(project: Path) -> None:
    """Another server finds it, and its streams go on where those of the first broke off."""
    reader = Reader()

    def follow(served: Served, enough: Callable[[], bool]) -> None:
        headers = {} if reader.last_id is None else {"Last-Event-ID": reader.last_id}
        with httpx.stream("GET", f"{served.url}{run}/events", headers=headers, timeout=90) as answer:
            for event in events_of(answer.iter_lines()):
                reader.take(event)
                if enough():
                    return

    with command(project) as first:
        assert first.process is not None
        caching = httpx.post(f"{first.url}/api/v1/runs", json={"project": "tiny", "command": "cache"}, timeout=60)
        assert caching.status_code == 201
        cached = f"{first.url}/api/v1/runs/{caching.json()['id']}"
        refused = httpx.post(f"{first.url}/api/v1/runs", json={"project": "tiny"}, timeout=60)
        assert refused.status_code == 409
        until(lambda: httpx.get(cached).json()["state"] == "finished")
        assert "Cached 7 latents" in httpx.get(f"{cached}/log").json()["text"]
        started = httpx.post(f"{first.url}/api/v1/runs", json={"project": "tiny"}, timeout=60)
        assert started.status_code == 201
        run = f"/api/v1/runs/{started.json()['id']}"
        follow(first, lambda: len(reader.rows) > 5)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(timeout=60)
    seen = reader.rows[-1]["step"]
    path = project / "output" / METRICS_FILE
    until(lambda: read_metrics(path)[-1]["step"] > seen + 5)
    with command(project) as second:
        assert httpx.get(f"{second.url}{run}").json()["state"] == "running"
        follow(second, lambda: reader.rows[-1]["step"] > seen + 20)
        assert httpx.post(f"{second.url}{run}/stop").status_code == 200
        follow(second, lambda: reader.statuses[-1]["state"] == "stopped")
        follow(second, lambda: False)
    assert reader.rows == read_metrics(path)
    assert reader.checkpoints[-1] == reader.rows[-1]["step"] and len(set(reader.checkpoints)) == len(reader.checkpoints)
    assert reader.log.count("Stopped after step") == 1
