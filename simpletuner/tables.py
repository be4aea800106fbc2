"""The lists of options and families, as tables on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simpletuner.configuration.fields import OptionInfo, by_place


def print_families(families: Iterable[dict[str, Any]]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("Family", "Type", "diffusers class", "Blocks", "Width", "Tap", "Method", "Tokens"):
        table.add_column(heading, justify="right" if heading in ("Blocks", "Width", "Tap") else "left", no_wrap=True)
    for family in families:
        *cells, resolution, (rows, columns) = family.values()
        shown = ("–" if cell is None else str(cell).replace("transformer", "DiT") for cell in cells)
        table.add_row(*shown, f"{rows}×{columns} at {resolution}²")
    console = Console()
    console.width = max(console.width, table.__rich_measure__(console, console.options).maximum)  # wide, but whole
    console.print(table)


def print_options(options: Sequence[OptionInfo]) -> None:
    console = Console()
    for heading, members in by_place(options).items():
        title = " / ".join(part for part in heading if part)
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, expand=True)
        table.add_column("Option", no_wrap=True, min_width=30)
        table.add_column("Values", ratio=2)
        table.add_column("Meaning", ratio=3)
        for option in members:
            default = "" if option.default is None else f"\ndefault {json.dumps(option.default)}"
            table.add_row(Text(option.name), Text(option.expectation() + default), Text(option.help))
        console.print(table)
