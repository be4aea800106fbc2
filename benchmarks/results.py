"""`RESULTS.md`, of which every benchmark rewrites its own section."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = "# Results\n\nEach section is written by the command that it names.\n"


def write_section(name: str, text: str, path: Path = RESULTS) -> None:
    """Puts `text` between the marks of section `name`, which is added at the end if it isn't there."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = path.read_text(encoding="utf-8") if path.is_file() else HEAD
    before, found, rest = whole.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    lead = before if found else before.rstrip("\n") + "\n\n"
    path.write_text(f"{lead}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
