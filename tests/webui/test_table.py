"""Rows of a file that grows, tears and is replaced."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.webui.table import Table, TableReader, newest_rows, read_table


def line(step: int, value: float = 0.0) -> str:
    return json.dumps({"step": step, "loss": value}) + "\n"


def steps(table: Table) -> list[int]:
    return [row["step"] for row in table.rows[: table.count]]


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + '{"step": 2, "lo')
    reader = TableReader(path)
    assert steps(reader.read()) == [1]
    with path.open("a") as file:
        file.write('ss": 0.5}\n')
    assert steps(reader.read()) == [1, 2]
    assert steps(TableReader(path).read()) == [1, 2]


def test_what_is_no_row_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1).encode() + b'\xff\n[1]\n{"loss": 1}\n{"step": "x"}\n' + b"[" * 99999 + b"\n")
    reader = TableReader(path)
    before = reader.read()
    with path.open("a") as file:
        file.write(line(2))
    assert steps(before) == [1] and steps(reader.read()) == [1, 2]
    end, checksum = reader.read().position(2)
    assert end == path.stat().st_size
    assert TableReader(path).read().find(end, checksum) == (2, False)


def test_numbers_that_are_not_finite_are_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN, "grad_norm": Infinity, "lr": -Infinity}\n')
    assert read_table(path).rows == [{"step": 1, "loss": None, "grad_norm": None, "lr": None}]


def test_a_missing_file_is_empty_and_so_is_one_that_went(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = TableReader(path)
    assert reader.read().count == 0 and newest_rows(path) == [] and newest_rows(None) == []
    path.write_text(line(1))
    position = reader.read().position(1)
    path.unlink()
    assert reader.read().count == 0
    assert reader.read().find(*position) == (0, True)


def test_a_replaced_file_is_noticed_though_it_ends_alike(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + line(2, 0.25) + line(3))
    reader = TableReader(path)
    position = reader.read().position(3)
    beside = tmp_path / "beside"
    beside.write_text(line(1) + line(2, 0.75) + line(3))
    beside.replace(path)
    assert reader.read().find(*position) == (1, True)
    assert reader.read().rows[1]["loss"] == 0.75


def test_the_newest_rows_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step) for step in range(1, 5001)) + '{"step": 5001')
    newest = [row["step"] for row in newest_rows(path)]
    assert newest == list(range(newest[0], 5001)) and len(newest) > 100


def test_the_steps_of_a_row_that_was_void_are_void_as_a_whole(tmp_path: Path) -> None:
    """An evaluation's row has the step of the row before it."""
    path = tmp_path / "metrics.jsonl"
    evaluated = '{"step": 2, "eval_fid": 3.0}\n'
    path.write_text(line(1) + line(2) + evaluated + line(3))
    reader = TableReader(path)
    position = reader.read().position(4)
    path.unlink()
    path.write_text(line(1) + line(2) + line(3))
    assert reader.read().find(*position) == (1, True)


contents = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 6), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(contents)
def test_positions_are_found_again_in_any_later_file(changes: list[tuple[int, int, bool]]) -> None:
    """Each change keeps rows up to a step and trains some more; a reader that looked now and then agrees with one that
    is new, and with the files themselves on what a position's reader still has."""
    with tempfile.TemporaryDirectory() as folder:
        path, reader = Path(folder) / "metrics.jsonl", TableReader(Path(folder) / "metrics.jsonl")
        known: list[tuple[tuple[int, int], list[str]]] = [((0, 0), [])]
        lines: list[str] = []
        for number, (keep, more, looks) in enumerate(changes):
            kept = lines[: min(keep, len(lines))]
            lines = kept + [line(len(kept) + 1 + i, float(number)) for i in range(more)]
            beside = Path(folder) / "beside"
            beside.write_text("".join(lines))
            beside.replace(path)
            if looks:
                table = reader.read()
                known += [(table.position(i), lines[:i]) for i in range(len(lines) + 1)]
        table, fresh = reader.read(), TableReader(path).read()
        assert table.rows[: table.count] == fresh.rows == [json.loads(row) for row in lines]
        for position, had in known:
            is_same = lines[: len(had)] == had
            assert fresh.find(*position) == ((len(had), False) if is_same else (0, True))
            index, is_void = table.find(*position)
            assert is_void is not is_same and lines[:index] == had[:index]
