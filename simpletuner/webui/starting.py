"""Starting runs: the check before, the record, and the keeper that goes on without the server."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from simpletuner.configuration import Config, has_errors
from simpletuner.configuration.loading import plain_names
from simpletuner.helpers.utils.run_folder import FACTS_FILE, METRICS_FILE, find_checkpoints
from simpletuner.webui.checking import check_inside
from simpletuner.webui.confinement import Refused, inside
from simpletuner.webui.files import only_writer, read_small, replace_file
from simpletuner.webui.keeper import LOG_FILE, exit_file
from simpletuner.webui.known_runs import Run, RunConflict, RunError, is_active, list_runs, read_run, record_of
from simpletuner.webui.projects import ProjectError, read_project
from simpletuner.webui.records import (
    Command,
    Record,
    Start,
    config_file,
    current_facts,
    file_mark,
    metrics_path,
    read_exit,
    read_processes,
    read_record,
    write_record,
)
from simpletuner.webui.site import Site
from simpletuner.webui.stored import parsed

LATEST = "latest"
RESUME = ["--resume_from_checkpoint", LATEST]
# As the command `simpletuner`: a file of the working directory is no module, whatever its name.
PYTHON = [sys.executable, "-P", "-m"]
_TOKEN = "SIMPLETUNER_TOKEN"  # the server's own, which no trainer needs


def start_run(site: Site, project: str, command: Command = "train", *, resume: bool = False) -> Run:
    """Starts the trainer on a project's configuration as it is on disk now.

    With `resume`, or where the configuration says `resume_from_checkpoint`, the newest run of its `output_dir` goes on.

    Raises:
        RunError: a line for each thing that is wrong. RunConflict: another run is active in this `output_dir`.
    """
    try:
        path = read_project(site, project).path
        content = read_small(path)
    except (OSError, ProjectError) as error:
        raise RunError(str(error)) from error
    return _started(site, project, content, str(path), command, resume=resume)


def resume_run(site: Site, run_id: str) -> Run:
    """Goes on with a run from its newest checkpoint.

    The project's configuration counts as it is now, so that `max_train_steps` can be raised; where the project is gone,
    or trains in another folder now, that of the last start does.

    Raises:
        RunError: it can't be resumed; says why.
    """
    run = read_run(site, run_id)
    if run.command != "train":
        raise RunError("Caching isn't resumed. Start it again: what is cached is kept.")
    if record_of(run).archived is not None:
        raise RunError(f"Another run was begun in {str(run.output_dir)!r} since. Resume that one.")
    content, name = _config_for_resuming(site, run)
    return _started(site, run.project, content, name, "train", resume=True)


def _config_for_resuming(site: Site, run: Run) -> tuple[bytes, str]:
    own = config_file(run.folder, run.starts)
    try:
        project = read_project(site, run.project)
        where = project.values.get("output_dir", Config.model_fields["output_dir"].default)
        if inside(str(where), site.roots) == run.output_dir:
            return read_small(project.path), str(project.path)
    except (OSError, ValueError):  # ProjectError and Refused are ones
        pass
    try:
        return read_small(own), str(own)
    except (OSError, ValueError) as error:
        raise RunError(f"{str(own)!r} can't be read: {error}") from error


def _started(site: Site, project: str, content: bytes, name: str, command: Command, *, resume: bool) -> Run:
    try:
        site.runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = _checked(site, content, name, resume=resume)
        output_dir = _confined(site, config)
        with only_writer(site.runs):
            folder = _recorded(site, project, content, command, config, output_dir, resume=resume)
            _launch(folder)
    except OSError as error:
        raise RunError(f"{str(site.runs)!r} can't be used: {error}. Free some disk space, or mend it.") from error
    return read_run(site, folder.name)


def _checked(site: Site, content: bytes, name: str, *, resume: bool) -> Config:
    """The configuration, if nothing is wrong with it. Raises `RunError` with a line for each problem."""
    try:
        values = parsed(Path(name), content)
    except ProjectError as error:
        raise RunError(str(error)) from error
    if not isinstance(values, dict):
        raise RunError(f'{name}: holds no JSON object. Write {{"option": value, ...}}.')
    config, problems = check_inside(site, plain_names(values) | ({"resume_from_checkpoint": LATEST} if resume else {}))
    if has_errors(problems):
        raise RunError("\n".join(str(problem) for problem in problems if problem.severity == "error"))
    return config


def _confined(site: Site, config: Config) -> Path:
    """The `output_dir`, if that and `cache_dir` lie in the roots. Raises `RunError`."""
    for option in ("cache_dir", "output_dir"):
        try:
            folder = inside(getattr(config, option), site.roots)
        except Refused as error:
            raise RunError(f"error: {option}: {error}") from error
    return folder


def _recorded(
    site: Site, project: str, content: bytes, command: Command, config: Config, output_dir: Path, *, resume: bool
) -> Path:
    """Writes down a start, of a new run or of the one that goes on, and returns the folder of its record."""
    here = [run for run in list_runs(site) if run.output_dir == output_dir]
    for run in here:
        if is_active(run):
            raise RunConflict(f"The run {run.id} of {run.project!r} is active in {str(output_dir)!r}. Stop it first.")
    goes_on = command == "train" and _goes_on(config, output_dir, resume=resume)
    trained = [run for run in here if run.command == "train" and record_of(run).archived is None]
    if goes_on and trained:
        folder = trained[0].folder
        record = replace(read_record(folder), project=project)
    else:
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        folder = site.runs / name
        folder.mkdir(mode=0o700)
        record = Record(name, project, command, str(output_dir), [])
        for run in trained if command == "train" else []:
            _archive(run.folder)
    number = len(record.starts) + 1
    config_path = config_file(folder, number)
    replace_file(config_path, content)
    start = Start(
        time.time(),
        goes_on,
        # A checkpoint that the configuration names itself stays the one that is taken.
        [*PYTHON, "simpletuner.cli", command, "--config", str(config_path), *(RESUME if resume else [])],
        file_mark(output_dir / FACTS_FILE),
        file_mark(output_dir / METRICS_FILE),
    )
    if number > 1:
        _draw_line(folder / LOG_FILE, number)
    write_record(folder, replace(record, starts=[*record.starts, start]))
    return folder


def _goes_on(config: Config, output_dir: Path, *, resume: bool) -> bool:
    """Whether a training continues what lies in `output_dir`.

    Raises:
        RunError: that isn't meant, or there is nothing to continue.
    """
    checkpoints = find_checkpoints(output_dir)
    if resume and not checkpoints:
        raise RunError(
            f"output_dir: {str(output_dir)!r} holds no checkpoint to resume from yet. Start the run instead."
        )
    if not checkpoints:
        return False
    if config.resume_from_checkpoint is None:  # not set by `resume` either
        raise RunError(
            f"output_dir: {str(output_dir)!r} holds checkpoints of an earlier run, up to step {checkpoints[-1][0]}. "
            "Resume it, or set another output_dir to start anew."
        )
    return True


def _archive(folder: Path) -> None:
    """Keeps what the trainer wrote of a run before another one takes its place in `output_dir`."""
    record = read_record(folder)
    metrics, facts = metrics_path(folder, record), current_facts(folder, record)
    if metrics is not None and metrics.is_file():
        shutil.copyfile(metrics, folder / METRICS_FILE)
    if facts is not None:
        shutil.copyfile(Path(record.output_dir) / FACTS_FILE, folder / FACTS_FILE)
    write_record(folder, replace(record, archived=time.time()))


def _draw_line(log: Path, number: int) -> None:
    with log.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        torn = file.read(1) not in (b"", b"\n")
        lead = "\n" if torn else ""
        file.write(f"{lead}--- start {number}, {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n".encode())


def _launch(folder: Path) -> None:
    """Starts the keeper in a session of its own, and returns once it has started the trainer.

    Raises:
        RunError: it couldn't.
    """
    environment = {name: value for name, value in os.environ.items() if name != _TOKEN}
    environment |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}  # said at once, in lines as wide as this
    number = len(read_record(folder).starts)
    with (folder / LOG_FILE).open("ab") as log:
        keeper = subprocess.Popen(
            [*PYTHON, "simpletuner.webui.keeper", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
    assert keeper.stdout is not None
    with keeper.stdout as told:
        told.read()  # ends when the keeper has told of the trainer, or is gone
    threading.Thread(target=keeper.wait, name=f"keeper {folder.name}", daemon=True).start()  # lest it stay a zombie
    if read_processes(folder, number) is None and read_exit(folder, number) is None:
        replace_file(exit_file(folder, number), json.dumps({"code": 1, "ended": time.time()}).encode())
        raise RunError(f"The trainer couldn't be started; {str(folder / LOG_FILE)!r} says why.")
