"""Runs over HTTP, under `/api/v1`: start, watch, stop; their events as a stream; the machine."""

from __future__ import annotations

import json
import mimetypes
import re
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Header, HTTPException, Query, Response, status
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from simpletuner.helpers.utils.run_folder import VALIDATION_FOLDER
from simpletuner.webui import runs, watch
from simpletuner.webui.confinement import Refused, inside
from simpletuner.webui.events import Event, events_and_silences, pending, read_cursor, take_look
from simpletuner.webui.machine import machine_state
from simpletuner.webui.secrets import hide, redact
from simpletuner.webui.site import Site

RETRY_MILLISECONDS = 2000
_SAMPLE = re.compile(r"step-\d{1,12}-\d{1,6}\.(?:png|mp4)", re.ASCII)
_CHUNK = 2**20
_Entry = tuple[str, BinaryIO, int]  # name, open file, bytes


class NewRun(BaseModel):
    """What is to be started; see `start_run`."""

    model_config = ConfigDict(extra="forbid")

    project: str
    command: Literal["train", "cache"] = "train"
    resume: bool = False


class Stop(BaseModel):
    """How a run is to be stopped; `at_once` kills it, some time after it was asked to stop."""

    model_config = ConfigDict(extra="forbid")

    at_once: bool = False


class ProgressAnswer(BaseModel):
    """Optimizer steps and seconds."""

    step: int
    total: int | None
    step_seconds: float | None
    seconds_left: float | None


class RunAnswer(BaseModel):
    """A run as it is now; times are Unix times."""

    id: str
    project: str
    command: Literal["train", "cache"]
    output_dir: str
    started: float
    ended: float | None
    pid: int | None
    exit_code: int | None
    state: runs.State
    starts: int
    can_resume: bool
    progress: ProgressAnswer


class SampleAnswer(BaseModel):
    """A validation sample; `name` is that of the file."""

    step: int
    number: int
    name: str


class CheckpointAnswer(BaseModel):
    """A checkpoint; `files` are what its export holds."""

    step: int
    bytes: int
    intact: bool
    files: list[str]


class LogAnswer(BaseModel):
    """The last lines that a run printed."""

    text: str


class ConfigAnswer(BaseModel):
    """The configuration of a run, without its secrets."""

    values: dict[str, Any]


def router(site: Site) -> APIRouter:
    """The endpoints, to be put under `/api/v1`."""
    made = APIRouter(tags=["runs"])
    _add_runs(made, site)
    _add_outputs(made, site)
    _add_events(made, site)
    return made


@contextmanager
def _told() -> Iterator[None]:
    """What can't be done as an answer: 404, 409 or 422, with `detail`."""
    try:
        yield
    except runs.RunNotFound as error:
        raise HTTPException(status.HTTP_404_NOT_FOUND, redact(str(error))) from error
    except runs.RunConflict as error:
        raise HTTPException(status.HTTP_409_CONFLICT, redact(str(error))) from error
    except (runs.RunError, Refused, OSError) as error:
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, redact(str(error))) from error


def _add_runs(router: APIRouter, site: Site) -> None:
    @router.get("/runs")
    def list_runs() -> list[RunAnswer]:
        """All runs, newest first."""
        with _told():
            return [_answer(run) for run in runs.list_runs(site)]

    @router.post("/runs", status_code=status.HTTP_201_CREATED)
    def start_run(wanted: NewRun) -> RunAnswer:
        """Start a training, or fill its caches; 422 says what is wrong, 409 which run is active in the folder."""
        with _told():
            return _answer(runs.start_run(site, wanted.project, wanted.command, resume=wanted.resume))

    @router.get("/runs/{run_id}")
    def read_run(run_id: str) -> RunAnswer:
        """A run as it is now."""
        with _told():
            return _answer(runs.read_run(site, run_id))

    @router.delete("/runs/{run_id}", status_code=status.HTTP_204_NO_CONTENT)
    def forget_run(run_id: str) -> None:
        """Forget a run that has ended; what it wrote stays."""
        with _told():
            runs.forget_run(site, run_id)

    @router.post("/runs/{run_id}/stop")
    def stop_run(run_id: str, how: Stop | None = None) -> RunAnswer:
        """Ask a run to save and stop."""
        with _told():
            return _answer(runs.stop_run(site, run_id, at_once=how is not None and how.at_once))

    @router.post("/runs/{run_id}/resume")
    def resume_run(run_id: str) -> RunAnswer:
        """Go on with a run from its newest checkpoint."""
        with _told():
            return _answer(runs.resume_run(site, run_id))

    @router.get("/machine", tags=["machine"])
    def machine() -> dict[str, Any]:
        """Processors, memory in bytes, GPUs."""
        return machine_state()


def _answer(run: runs.Run) -> RunAnswer:
    return RunAnswer(**watch.describe(run))


def _add_outputs(router: APIRouter, site: Site) -> None:
    @router.get("/runs/{run_id}/config")
    def config(run_id: str) -> ConfigAnswer:
        """The configuration that a run was last started with."""
        with _told():
            return ConfigAnswer(values=hide(runs.run_config(runs.read_run(site, run_id))))

    @router.get("/runs/{run_id}/metrics", response_model=list[dict[str, Any]])
    def metrics(
        run_id: str,
        after: int = 0,
        most: Annotated[int | None, Query(ge=1, le=10**6)] = None,
    ) -> Response:
        """The rows of the steps after `after`, thinned out evenly to `most`."""
        with _told():
            rows = watch.metrics(runs.read_run(site, run_id), after=after, most=most)
        return Response(json.dumps(rows), media_type="application/json")  # numbers alone: nothing to be checked

    @router.get("/runs/{run_id}/log")
    def log(run_id: str, lines: Annotated[int, Query(ge=1, le=5000)] = 200) -> LogAnswer:
        """The last lines that a run printed."""
        with _told():
            return LogAnswer(text=watch.log_tail(runs.read_run(site, run_id), lines))

    @router.get("/runs/{run_id}/samples")
    def samples(run_id: str) -> list[SampleAnswer]:
        """The validation samples of a run."""
        with _told():
            found = watch.samples(runs.read_run(site, run_id))
        return [SampleAnswer(step=one.step, number=one.number, name=one.path.name) for one in found]

    @router.get("/runs/{run_id}/samples/{name}", response_class=FileResponse)
    def sample(run_id: str, name: str) -> FileResponse:
        """The file of a validation sample."""
        with _told():
            run = runs.read_run(site, run_id)
            if not _SAMPLE.fullmatch(name):
                raise runs.RunNotFound(f"The run {run_id} has no sample {name!r}.")
            path = inside(run.output_dir / VALIDATION_FOLDER / name, (run.output_dir,))
            if not path.is_file():
                raise runs.RunNotFound(f"The run {run_id} has no sample {name!r}.")
        # One of the same name is drawn again where a run was resumed from before it.
        return FileResponse(path, media_type=mimetypes.guess_type(name)[0], headers={"Cache-Control": "no-cache"})

    @router.get("/runs/{run_id}/checkpoints")
    def checkpoints(run_id: str) -> list[CheckpointAnswer]:
        """The checkpoints of a run, oldest first."""
        with _told():
            found = watch.checkpoints(runs.read_run(site, run_id))
        return [
            CheckpointAnswer(step=one.step, bytes=one.bytes, intact=one.intact, files=list(one.files)) for one in found
        ]

    @router.get("/runs/{run_id}/checkpoints/{step}/export", response_class=Response)
    def export(run_id: str, step: int) -> Response:
        """What a checkpoint has trained: its file, or a tar of several."""
        with _told():
            run = runs.read_run(site, run_id)
            chosen = next((one for one in watch.checkpoints(run) if one.step == step and one.intact), None)
            if chosen is None or not chosen.files:
                raise runs.RunNotFound(f"The run {run_id} has no intact checkpoint of step {step} to export.")
            paths = {name: inside(chosen.folder / name, (run.output_dir,)) for name in chosen.files}
            title = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run.project).strip('-')}-{step}"
            if len(paths) == 1:
                (path,) = paths.values()
                return FileResponse(path, filename=f"{title}{path.suffix}", media_type="application/octet-stream")
            return _tar(paths, f"{title}.tar")


def _tar(paths: dict[str, Path], title: str) -> StreamingResponse:
    """Files as a tar that is made while it is sent; they are opened first, as a checkpoint may be removed meanwhile."""
    with ExitStack() as stack:
        files: list[_Entry] = [
            (inner, stack.enter_context(path.open("rb")), path.stat().st_size) for inner, path in paths.items()
        ]
        kept = stack.pop_all()
    headers = {"Content-Disposition": f'attachment; filename="{title}"'}
    return StreamingResponse(_tar_parts(files, kept), media_type="application/x-tar", headers=headers)


def _tar_parts(files: list[_Entry], kept: ExitStack) -> Iterator[bytes]:
    with kept:
        for name, file, size in files:
            entry = tarfile.TarInfo(name)
            entry.size = size
            yield entry.tobuf()
            while chunk := file.read(_CHUNK):
                yield chunk
            yield bytes(-size % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)


def _add_events(router: APIRouter, site: Site) -> None:
    @router.get("/runs/{run_id}/events", response_class=StreamingResponse)
    async def events(run_id: str, last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """What happens to a run, as server-sent events; `Last-Event-ID` takes a stream up again.

        204 where the run has ended and nothing of it is lacking.
        """
        with _told():
            is_known = await run_in_threadpool(_has_all, site, run_id, last_event_id)
        if is_known:
            return Response(status_code=status.HTTP_204_NO_CONTENT)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_lines(site, run_id, last_event_id), media_type="text/event-stream", headers=headers)


def _has_all(site: Site, run_id: str, last_id: str | None) -> bool:
    look = take_look(site, run_id)
    return last_id is not None and look.over and next(pending(look, read_cursor(last_id)), None) is None


async def _lines(site: Site, run_id: str, last_id: str | None) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    async for event in events_and_silences(site, run_id, last_id):
        yield ": alive\n\n" if event is None else _as_text(event)


def _as_text(event: Event) -> str:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {json.dumps(event.data)}\n\n"
