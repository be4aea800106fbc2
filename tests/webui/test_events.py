"""A run's events: nothing is lost and nothing doubled, wherever a stream breaks off and whoever takes it up."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.helpers.utils.run_folder import sample_path
from simpletuner.webui import events as module
from simpletuner.webui.events import Cursor, Event, Look, events, pending, read_cursor, take_look
from simpletuner.webui.keeper import LOG_FILE, exit_file
from simpletuner.webui.runs import RunNotFound
from simpletuner.webui.site import Site
from simpletuner.webui.table import TableReader
from tests.webui.small_runs import ID, make_record, put_processes, write_checkpoint, write_rows


@dataclass
class Reader:
    """What somebody knows of a run who follows its events."""

    last_id: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[int, str]] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    log: str = ""
    statuses: list[dict[str, Any]] = field(default_factory=list)

    def take(self, event: Event) -> None:
        self.last_id = event.id
        data = event.data
        match event.kind:
            case "rewind":
                self.rows = [row for row in self.rows if row["step"] <= data["step"]]
            case "metrics":
                assert 0 < len(data["rows"]) <= module.MOST_ROWS
                self.rows += data["rows"]
            case "sample":
                self.samples.append((data["step"], data["version"]))
            case "checkpoint":
                self.checkpoints.append(data["step"])
            case "log":
                self.log += data["text"]
            case "status":
                self.statuses.append(data)


@dataclass
class Trainer:
    """Writes the files of a run as the trainer does, resuming too."""

    folder: Path
    lines: list[str] = field(default_factory=list)
    kept_log: str = ""
    torn: str = ""
    samples: dict[int, str] = field(default_factory=dict)
    drawn: list[tuple[int, str]] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    starts: int = 1
    active: bool = True
    clock: int = 0

    @property
    def step(self) -> int:
        return json.loads(self.lines[-1])["step"] if self.lines else 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def train(self, count: int) -> None:
        for _ in range(count):
            self.lines.append(
                json.dumps({"step": self.step + 1, "loss": 0.5, "step_seconds": float(self.tick())}) + "\n"
            )
        self._append()

    def evaluate(self, count: int) -> None:
        self.lines.append(json.dumps({"step": self.step, "eval_fid": 2.5}) + "\n")  # the same when trained again
        self._append()

    def tear(self, count: int) -> None:
        """The next row is there in part."""
        line = json.dumps({"step": self.step + 1, "loss": 0.5, "step_seconds": float(self.clock + 1)}) + "\n"
        self.torn = line[: count + 1]
        self._append()

    def resume(self, count: int) -> None:
        """From a checkpoint some rows ago: the file is replaced, as `Report.start` does it."""
        cut = max(0, self.step - count)
        self.lines = [line for line in self.lines if json.loads(line)["step"] <= cut]
        self.torn = ""
        beside = self.folder / "metrics.partial"
        beside.write_text("".join(self.lines))
        beside.replace(self.folder / "metrics.jsonl")
        self.starts, self.active = self.starts + 1, True

    def draw(self, count: int) -> None:
        self.drawn.append((self.step, str(self.tick())))

    def save(self, count: int) -> None:
        self.checkpoints.append(self.step)
        self.tick()

    def say(self, count: int) -> None:
        self.kept_log += "words\n" * count + "torn"[:count]

    def end(self, count: int) -> None:
        self.active = False

    def _append(self) -> None:
        (self.folder / "metrics.jsonl").write_text("".join(self.lines) + self.torn)
        if self.torn and len(self.torn) > 2:  # whatever is written next ends it
            self.torn = ""

    def look(self, reader: TableReader) -> Look:
        (self.folder / "log.txt").write_text(self.kept_log)
        samples = [((int(version), step, 0), f"{step}.png") for step, version in self.drawn]
        status = {"state": "running" if self.active else "killed", "starts": self.starts, "step": self.step}
        return Look(
            status,
            reader.read(),
            samples,
            [(number + 1, step) for number, step in enumerate(self.checkpoints)],
            self.folder / "log.txt",
            len(self.kept_log),
            self.active,
            not self.active,
        )


deeds = st.sampled_from(["train", "train", "train", "evaluate", "tear", "resume", "draw", "save", "say", "end"])
# What the trainer does, how much; how many events arrive before the stream breaks (None: all); whether the server is
# another one then.
moments = st.lists(st.tuples(deeds, st.integers(1, 7), st.none() | st.integers(0, 6), st.booleans()), max_size=25)


@settings(max_examples=300, deadline=None)
@given(moments)
def test_whatever_happens_a_reader_has_all_of_it_once(moments: list[tuple[str, int, int | None, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer, reader = Trainer(Path(folder)), Reader()
        table = TableReader(Path(folder) / "metrics.jsonl")
        trainer.train(0)
        for deed, amount, arrive, restarted in [*moments, ("end", 1, None, False)]:
            getattr(trainer, deed)(amount)
            if restarted:
                table = TableReader(Path(folder) / "metrics.jsonl")
            for number, (event, cursor) in enumerate(pending(trainer.look(table), read_cursor(reader.last_id))):
                assert str(cursor) == event.id and read_cursor(event.id) == cursor
                if number == arrive:
                    break
                reader.take(event)
        assert reader.rows == [json.loads(line) for line in trainer.lines]
        assert reader.samples == trainer.drawn
        assert reader.checkpoints == trainer.checkpoints
        assert reader.log == trainer.kept_log
        assert all(one != other for one, other in pairwise(reader.statuses))
        assert reader.statuses[-1]["state"] == "killed"
        assert list(pending(trainer.look(table), read_cursor(reader.last_id))) == []


def test_every_cut_of_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each place where a stream can break, what follows is what would have followed."""
    monkeypatch.setattr(module, "MOST_ROWS", 3)
    trainer = Trainer(tmp_path)
    for deed, amount in (("train", 7), ("draw", 1), ("save", 1), ("say", 3), ("train", 4), ("evaluate", 1), ("end", 1)):
        getattr(trainer, deed)(amount)
    table = TableReader(tmp_path / "metrics.jsonl")
    whole = [event for event, _ in pending(trainer.look(table), Cursor())]
    assert [event.kind for event in whole] == ["metrics"] * 4 + ["sample", "checkpoint", "log", "status"]
    for number, event in enumerate(whole):
        again = TableReader(tmp_path / "metrics.jsonl")
        assert [event for event, _ in pending(trainer.look(again), read_cursor(event.id))] == whole[number + 1 :]


def test_a_watched_resume_voids_only_what_is_trained_again(tmp_path: Path) -> None:
    """A server that saw the rows before knows where they part; another one sends all of them."""
    trainer, table = Trainer(tmp_path), TableReader(tmp_path / "metrics.jsonl")
    trainer.train(10)
    *_, (last, _) = pending(trainer.look(table), Cursor())
    trainer.resume(4)
    trainer.train(2)
    first, rows, *_ = (event for event, _ in pending(trainer.look(table), read_cursor(last.id)))
    assert (first.kind, first.data) == ("rewind", {"step": 6})
    assert [row["step"] for row in rows.data["rows"]] == [7, 8]
    anew = TableReader(tmp_path / "metrics.jsonl")
    first, rows, *_ = (event for event, _ in pending(trainer.look(anew), read_cursor(last.id)))
    assert (first.kind, first.data) == ("rewind", {"step": -1}) and len(rows.data["rows"]) == 8


@pytest.mark.parametrize(
    "text", ["", "x", "1-2", "-".join("1" * 10), "1-0-0-0-0-0-0--" + "9" * 21, "٣-0-0-0-0-0-0-0-0"]
)
def test_what_is_no_id_makes_all_come_anew(tmp_path: Path, text: str) -> None:
    trainer = Trainer(tmp_path)
    trainer.train(2)
    found = [event for event, _ in pending(trainer.look(TableReader(tmp_path / "metrics.jsonl")), read_cursor(text))]
    assert [event.kind for event in found] == ["rewind", "metrics", "status"]
    assert found[0].data == {"step": -1}


def test_a_new_reader_gets_the_end_of_a_long_log(tmp_path: Path) -> None:
    trainer, table = Trainer(tmp_path), TableReader(tmp_path / "metrics.jsonl")
    trainer.kept_log = "".join(f"line {number}\n" for number in range(20000)) + "torn"
    reader = Reader()
    for event, _ in pending(trainer.look(table), Cursor()):
        reader.take(event)
    assert reader.log == "".join(f"line {number}\n" for number in range(19800, 20000))
    trainer.kept_log += " no more\n" + "x" * 2**17
    for event, _ in pending(trainer.look(table), read_cursor(reader.last_id)):
        reader.take(event)
    assert reader.log.endswith("line 19999\ntorn no more\n" + "x" * 2**17)


def test_the_files_of_a_run_are_looked_at(site: Site, tmp_path: Path) -> None:
    output = tmp_path / "output"
    folder = make_record(site, resumed=True)
    write_rows(output, range(1, 4))
    write_checkpoint(output, 2)
    sample = sample_path(output, 3, 1, ".mp4")
    sample.parent.mkdir()
    sample.write_bytes(b"mp4")
    (folder / LOG_FILE).write_text("one\ntwo")
    put_processes(folder)
    look = take_look(site, ID)
    found = {event.kind: event.data for event, _ in pending(look, Cursor())}
    assert [row["step"] for row in found["metrics"]["rows"]] == [1, 2, 3]
    version = str(sample.stat().st_mtime_ns)
    assert found["sample"] == {"step": 3, "number": 1, "name": "step-000003-1.mp4", "version": version}
    assert found["checkpoint"] == {"step": 2} and found["log"] == {"text": "one\n"}
    assert found["status"]["state"] == "running" and found["status"]["progress"]["step"] == 3
    exit_file(folder, 1).write_text(json.dumps({"code": 0, "ended": time.time()}))
    assert not take_look(site, ID).over  # some seconds, in which it may be resumed
    exit_file(folder, 1).write_text(json.dumps({"code": 0, "ended": time.time() - 6}))
    assert take_look(site, ID).over


def test_a_log_that_was_removed_ends_no_stream(site: Site, tmp_path: Path) -> None:
    folder = make_record(site, resumed=True)
    write_rows(tmp_path / "output", range(1, 4))
    put_processes(folder)
    (folder / LOG_FILE).unlink()
    kinds = [event.kind for event, _ in pending(take_look(site, ID), Cursor(log=9))]
    assert kinds == ["metrics", "status"]


async def test_many_streams_look_once_and_end_with_the_run(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    looks = 0

    def counted(site: Site, run_id: str) -> Look:
        nonlocal looks
        looks += 1
        return take_look(site, run_id)

    monkeypatch.setattr(module, "take_look", counted)
    output = tmp_path / "output"
    folder = make_record(site)
    readers = [Reader() for _ in range(20)]

    async def follow(reader: Reader) -> None:
        async for event in events(site, ID):
            reader.take(event)

    async def until(condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)

    streams = [asyncio.create_task(follow(reader)) for reader in readers]
    await until(lambda: all(reader.statuses for reader in readers))
    at_first = looks
    write_rows(output, [1, 2])
    await until(lambda: all(len(reader.rows) == 2 for reader in readers))
    assert looks - at_first < 10
    streams[0].cancel()
    exit_file(folder, 1).write_text(json.dumps({"code": -9, "ended": time.time() - 6}))
    await asyncio.wait_for(asyncio.gather(*streams[1:]), 60)
    assert {reader.statuses[-1]["state"] for reader in readers[1:]} == {"killed"}
    at_end = looks
    await asyncio.sleep(0.2)
    assert looks == at_end  # nobody looks any more


async def test_streams_of_what_is_not_there(site: Site) -> None:
    with pytest.raises(RunNotFound):
        await anext(events(site, ID))
    folder = make_record(site)
    stream = events(site, ID)
    assert (await anext(stream)).kind == "status"
    folder.rename(folder.with_name(".forgotten"))
    assert [event async for event in stream] == []


async def test_silences_are_told(site: Site) -> None:
    make_record(site)
    stream = module.events_and_silences(site, ID, quiet=0.01)
    assert (event := await anext(stream)) is not None and event.kind == "status"
    assert await anext(stream) is None and await anext(stream) is None
    await stream.aclose()
