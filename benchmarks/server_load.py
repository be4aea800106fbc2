"""What twenty clients of the WebUI cost the training that they watch, and how long they wait.

    python benchmarks/server_load.py [--record]

Each client streams events, breaking off now and then, and asks once a second for the run, its newest metrics and its
samples. Training, server and clients share two cores. Blocks with and without server and clients take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
from figures import Figure, interval, median, median_ratio, run_alone
from runs import make_images, pixel_dit_config, write_pixel_dit

from simpletuner.helpers.utils.run_folder import METRICS_FILE, read_metrics, sample_path
from simpletuner.webui.runs import Run, is_active, read_run, start_run, stop_run
from simpletuner.webui.site import Site, make_site

CLIENTS, CORES = 20, 2
PAIRS, BLOCK_SECONDS, SETTLE_SECONDS = 8, 6.0, 1.0
WAIT_SECONDS = 120.0
SAMPLES = 50
SIDE, PATCH, LAYERS, HEADS, BATCH = 32, 4, 4, 3, 8


def measure(device: torch.device) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, _two_cores():
        site = _prepare(Path(folder).resolve())
        run = start_run(site, "load")
        try:
            _wait(lambda: read_run(site, run.id).state == "running" and len(_rows(run)) > 20)
            _draw_samples(run)
            clients = [_Client(number, run.id) for number in range(CLIENTS)]
            seconds = _blocks(site, run, clients)
        finally:
            if is_active(read_run(site, run.id)):
                stop_run(site, run.id)
            _wait(lambda: not is_active(read_run(site, run.id)))
        with _server(site) as address:
            asyncio.run(_catch_up(clients, address))
        return _figures(run, clients, seconds)


@contextmanager
def _two_cores() -> Iterator[None]:
    """This process and those that it starts share two cores, and one thread each for sums."""
    before, cores = os.environ.get("OMP_NUM_THREADS"), os.sched_getaffinity(0)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, sorted(cores)[:CORES])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _prepare(root: Path) -> Site:
    """A project "load" whose training ends when it is stopped."""
    write_pixel_dit(root / "model", side=SIDE, patch=PATCH, layers=LAYERS, heads=HEADS)
    listing = make_images(root / "images", 64, SIDE)
    config = pixel_dit_config(root, listing, SIDE, train_batch_size=BATCH, max_train_steps=10**7, max_workers=0)
    site = make_site(root / "config", [root])
    site.configs.mkdir()
    (site.configs / "load.json").write_text(config.model_dump_json(exclude_unset=True), encoding="utf-8")
    return site


def _rows(run: Run) -> list[dict[str, float]]:
    return read_metrics(run.output_dir / METRICS_FILE)


def _draw_samples(run: Run) -> None:
    for step in range(1, SAMPLES + 1):
        path = sample_path(run.output_dir, step, 0, ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def _wait(condition: object) -> None:
    """Until the condition holds; raises `TimeoutError` after two minutes."""
    assert callable(condition)
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("The training doesn't do what is waited for.")
        time.sleep(0.1)


@contextmanager
def _server(site: Site) -> Iterator[str]:
    """A server in a process of its own; gives its address."""
    flags = ["--port", "0", "--configs", str(site.configs), "--root", str(site.roots[0])]
    process = subprocess.Popen(
        [sys.executable, "-m", "simpletuner.cli", "server", *flags], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            raise RuntimeError("The server doesn't start.")
        yield f"http://{line.partition('http://')[2].partition('/')[0]}"
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _blocks(site: Site, run: Run, clients: list[_Client]) -> dict[str, list[float]]:
    """Median seconds of a step in each block: alone, watched, watched, alone, and so on."""
    seconds: dict[str, list[float]] = {"alone": [], "watched": []}

    def watched(address: str) -> None:
        async def watch() -> float:
            tasks = [asyncio.create_task(client.watch(address)) for client in clients]
            await asyncio.sleep(SETTLE_SECONDS)
            first = len(_rows(run))
            await asyncio.sleep(BLOCK_SECONDS)
            step = _step_seconds(run, first)
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(outcome, asyncio.CancelledError):
                    raise RuntimeError(f"A client broke off: {outcome!r}")
            return step

        seconds["watched"].append(asyncio.run(watch()))

    def alone() -> None:
        time.sleep(SETTLE_SECONDS)
        first = len(_rows(run))
        time.sleep(BLOCK_SECONDS)
        seconds["alone"].append(_step_seconds(run, first))

    for _ in range(PAIRS // 2):
        alone()
        with _server(site) as address:
            watched(address)
            watched(address)
        alone()
    return seconds


def _step_seconds(run: Run, first: int) -> float:
    return median(row["step_seconds"] for row in _rows(run)[first:])


@dataclass
class _Client:
    """Somebody with the page of a run open, over server after server."""

    number: int
    run_id: str
    last_id: str | None = None
    steps: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    connections: int = 0

    async def watch(self, address: str) -> None:
        """Streams and asks until it is cancelled."""
        page = f"{address}/api/v1/runs/{self.run_id}"
        async with httpx.AsyncClient(timeout=30) as http, asyncio.TaskGroup() as group:
            group.create_task(self._ask(http, page))
            group.create_task(self._follow_in_parts(http, page))

    async def _ask(self, http: httpx.AsyncClient, page: str) -> None:
        await asyncio.sleep(self.number / CLIENTS)
        while True:
            began = time.perf_counter()
            after = self.steps[-1] if self.steps else 0
            for path in ("", f"/metrics?after={after}&most=400", "/samples"):
                started = time.perf_counter()
                answer = await http.get(page + path)
                self.milliseconds.append(1000 * (time.perf_counter() - started))
                answer.raise_for_status()
            await asyncio.sleep(max(0.0, 1 - (time.perf_counter() - began)))

    async def _follow_in_parts(self, http: httpx.AsyncClient, page: str) -> None:
        draw = random.Random(f"{self.number} {self.last_id}")
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(draw.uniform(0.5, 4)):
                    await self.follow(http, page)

    async def follow(self, http: httpx.AsyncClient, page: str) -> bool:
        """Takes in events until the stream ends; returns whether there was one."""
        headers = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        self.connections += 1
        fields: dict[str, str] = {}
        async with http.stream("GET", f"{page}/events", headers=headers) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if line and name:
                    fields[name] = value
                elif "data" in fields:
                    self._take(fields)
                    fields = {}
            return answer.status_code == httpx.codes.OK

    def _take(self, event: dict[str, str]) -> None:
        self.last_id, data = event["id"], json.loads(event["data"])
        if event["event"] == "metrics":
            self.steps += [row["step"] for row in data["rows"]]
        elif event["event"] == "sample":
            self.samples.append(data["step"])
        elif event["event"] == "rewind":
            self.steps = [step for step in self.steps if step <= data["step"]]


async def _catch_up(clients: list[_Client], address: str) -> None:
    """Every client takes in what it lacks of a run that has ended."""

    async def rest(client: _Client) -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            while await client.follow(http, f"{address}/api/v1/runs/{client.run_id}"):
                pass

    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(*map(rest, clients))


def _figures(run: Run, clients: list[_Client], seconds: dict[str, list[float]]) -> list[Figure]:
    expected = [int(row["step"]) for row in _rows(run)]
    wrong = sum(_differences(client.steps, expected) for client in clients)
    wrong += sum(_differences(client.samples, list(range(1, SAMPLES + 1))) for client in clients)
    calls = sorted(one for client in clients for one in client.milliseconds)
    watched = PAIRS * (BLOCK_SECONDS + SETTLE_SECONDS)
    rate = f"{len(calls)} calls, {len(calls) / watched:.0f} a second, beside {len(clients)} streams"
    times = ", ".join(f"{name} {1000 * median(values):.1f} ms" for name, values in seconds.items())
    reconnects = sum(client.connections for client in clients) - len(clients)
    return [
        Figure(
            f"a step while {CLIENTS} clients watch / alone, on {CORES} cores",
            median_ratio(seconds, "watched", "alone"),
            at_most=1.05,
            floor=1.0,
            note=f"{interval(seconds, 'watched', 'alone')}; {times}",
        ),
        Figure("an API call meanwhile, median", statistics.median(calls), "ms", note=rate),
        Figure("an API call meanwhile, 99th percentile", _percentile(calls, 0.99), "ms", at_most=250),
        Figure(
            "events lost or doubled",
            wrong,
            "",
            at_most=0,
            floor=0,
            note=f"{reconnects} reconnects, also to {PAIRS // 2} other servers; {len(expected)} steps",
        ),
    ]


def _differences(had: list[int], expected: list[int]) -> int:
    """How many are missing, and how many came more than once or out of order."""
    missing = len(set(expected) - set(had))
    return missing + len(had) - len(set(had)) + (0 if had == sorted(had) else 1)


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    run_alone(measure, __doc__, section="the WebUI under load")
