"""The trainer outlives the server, and the page tells of a trainer that did not live."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from selenium.webdriver import Chrome

from e2e.browser import click, marked, until, wait_for_words_of
from e2e.conftest import Server
from e2e.steps import steps_done, values_for

PATIENCE = 120


def test_a_killed_server_and_a_killed_trainer(browser: Chrome, server: Server, workplace: Path) -> None:
    values = values_for("sd3", "long") | {"max_train_steps": 100_000, "checkpoint_step_interval": 50}
    server.ask("configs", {"name": "long", "values": values})
    browser.get(f"{server.url}/projects/long?tab=run")
    click(browser, "run_start")
    until(browser, lambda: steps_done(browser) > 0, "the first steps", PATIENCE)

    # The server dies; the training goes on; another server finds it.
    server.kill()
    metrics = workplace / "output" / "long" / "metrics.jsonl"
    size = metrics.stat().st_size
    until(browser, lambda: metrics.stat().st_size > size, "steps without a server", PATIENCE)
    server.start()
    browser.get(f"{server.url}/runs")
    (run,) = [run for run in server.ask("runs") if run["project"] == "long"]
    assert run["state"] == "running"
    wait_for_words_of(browser, f"state_{run['id']}", "Training…", PATIENCE)
    browser.get(f"{server.url}/projects/long?tab=run")
    done = until(browser, lambda: steps_done(browser), "its chart", PATIENCE)
    until(browser, lambda: steps_done(browser) > done, "more steps", PATIENCE)

    # The trainer dies; the page says so, with the end of its log and a way to go on.
    until(browser, lambda: list((workplace / "output" / "long").glob("checkpoint-*")), "a checkpoint", PATIENCE)
    os.kill(run["pid"], signal.SIGKILL)
    wait_for_words_of(browser, "run_state", "Killed", PATIENCE)
    assert "step" in marked(browser, "failure_log").text
    click(browser, "failure_resume")
    wait_for_words_of(browser, "run_state", "Training…", PATIENCE)
    click(browser, "run_stop")
    wait_for_words_of(browser, "run_state", "Stopped", PATIENCE)
