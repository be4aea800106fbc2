"""Writes what of the documentation is made from the code: `python -m documentation_tools.generate [--check]`.

OPTIONS and FAMILIES come whole from the declarations of the options and the registry of families, in every language;
in all other pages and the README the figures quoted from `benchmarks/RESULTS.md` are filled in. `--check` changes
nothing and fails if anything would change.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from documentation_tools.pages import DOCUMENTATION, GENERATED, LANGUAGES, ROOT, page_files, translation_of
from documentation_tools.results import Results
from documentation_tools.words import words_of
from simpletuner.configuration import Config, Family, OptionInfo, describe_all
from simpletuner.configuration.dataset import DatasetEntry, VideoOptions
from simpletuner.configuration.fields import by_place
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.translation import sentences, translator

Say = Callable[[str], str]

NOTICE = "<!-- Written by `python -m documentation_tools.generate`; changes here are lost. -->"
EXAMPLES = "config/examples"


def generated_pages(root: Path = ROOT) -> dict[Path, str]:
    """Every page that is wholly or partly made from the code, with what must stand in it.

    ValueError for a quoted figure that RESULTS.md doesn't have.
    """
    pages: dict[Path, str] = {}
    for language in LANGUAGES:
        for name, write in zip(GENERATED, (options_page, families_page), strict=True):
            pages[translation_of(root / DOCUMENTATION / f"{name}.md", language)] = write(language)
    results = Results.read(root / "benchmarks" / "RESULTS.md")
    for file in page_files(root):
        if file not in pages:
            try:
                pages[file] = results.fill_in(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file.relative_to(root)}: {error}") from error
    return pages


# Options


def options_page(language: str) -> str:
    """The page of all options."""
    say, texts = words_of(language), translator(language)
    lines = [f"# {say('Options')}", "", NOTICE, ""]
    lines += [
        say(
            "Every option of `config.json`. On the command line each is a flag, `--name value`; in the WebUI each is a "
            "field under the same headings."
        ),
        "",
        say(
            "An option that depends on another one has no effect unless that one is on or has a value named here; "
            "`simpletuner check` warns of it."
        ),
        "",
    ]
    tab = ""
    for place, options in by_place(describe_all(Config)).items():
        if place[0] != tab:
            tab = place[0]
            lines += [f"## {texts(tab)}", ""]
        lines += [f"### {texts(place[2] or place[1])}", "", *_options_table(options, "", language), ""]
    lines += [f"## {say('Keys of a data set')}", ""]
    entries: list[tuple[type[BaseModel], str]] = [
        (DatasetEntry, "Each entry of the file that `data_backend_config` names has these keys."),
        (VideoOptions, "The keys of the object `video`."),
    ]
    for model, about in entries:
        for place, options in by_place(describe_all(model)).items():
            lines += [f"### {texts(place[1])}", "", say(about), "", *_options_table(options, "data-", language), ""]
    return "\n".join(lines).rstrip() + "\n"


def _options_table(options: Iterable[OptionInfo], prefix: str, language: str) -> list[str]:
    say, texts = words_of(language), translator(language)
    rows = []
    for info in options:
        default = say("required") if info.required else _default(info, say)
        anchor = f'<a id="{prefix}{info.name}"></a>'
        name = f"{anchor}`{info.name}`<br>{texts(info.label)}"
        rows.append((name, _values(info, say), default, _meaning(info, language)))
    return table([say(heading) for heading in ("Option", "Values", "Default", "Meaning")], rows)


def _default(info: OptionInfo, say: Say) -> str:
    if info.default is None or info.default == "" or info.type == "object":
        return say("none") if info.type != "object" else ""
    return f"`{json.dumps(info.default, ensure_ascii=False)}`"


def _values(info: OptionInfo, say: Say) -> str:
    """What a value must be: `OptionInfo.expectation` in few words and signs."""
    if info.choices is not None:
        choices = say(", ").join(f"`{choice}`" for choice in info.choices)
        return say("list of {choices}").format(choices=choices) if info.type == "list" else choices
    if info.example is not None:
        kind = "list such as {example}" if info.type == "list" else "text such as {example}"
        return say(kind).format(example=f"`{info.example}`")
    if info.type == "boolean":
        return say(", ").join(("`true`", "`false`"))
    kinds = {"integer": "whole number", "number": "number", "string": "text", "list": "list of texts"}
    told, bounds = say(kinds.get(info.type, "object")), []
    if info.minimum is not None:
        bounds.append(f"{'>' if info.exclusive_minimum else '≥'} {info.minimum:g}")
    if info.maximum is not None:
        shown = str(info.maximum) if isinstance(info.maximum, int) else f"{info.maximum:g}"
        bounds.append(f"{'<' if info.exclusive_maximum else '≤'} {shown}")
    for bound in bounds:
        told = say("{kind}, {bound}").format(kind=told, bound=bound)
    return told + "".join(f'{say(" or ")}`"{word}"`' for word in info.keywords)


def _meaning(info: OptionInfo, language: str) -> str:
    say, texts = words_of(language), translator(language)
    parts = [prose(texts(info.help))]
    if info.depends_on is not None:
        condition = say(" or ").join(_condition(name, say) for name in info.depends_on.split(" or "))
        parts.append(say("Depends on {condition}.").format(condition=condition))
    for alias in info.aliases:
        name, _, meaning = alias.partition("=")
        if meaning:
            told = say("{name}: true stands for {meaning}.")
            parts.append(told.format(name=f"`{name}`", meaning=f"`{meaning}`"))
        else:
            parts.append(say("Also called {names}.").format(names=f"`{name}`"))
    return sentences(parts, language)


def _condition(alternative: str, say: Say) -> str:
    name, _, allowed = alternative.partition("=")
    values = say(", ").join(f"`{value}`" for value in allowed.split("|"))
    return f"`{name}` = {values}" if allowed else f"`{name}`"


@cache
def _names() -> re.Pattern[str]:
    """The names with an underscore of all options and keys."""
    known = {name for model in (Config, DatasetEntry, VideoOptions) for name in model.model_fields if "_" in name}
    longest_first = sorted(known, key=len, reverse=True)
    return re.compile(rf"(?<![A-Za-z0-9_.`/])(?:{'|'.join(longest_first)})(?![A-Za-z0-9_`/]|\.\w)")


def prose(text: str) -> str:
    """A help text as Markdown: names of options as code, and nothing taken for HTML."""
    pieces = re.split(r"(`[^`]*`)", text)
    for index in range(0, len(pieces), 2):
        marked = _names().sub(lambda found: f"`{found[0]}`", pieces[index])
        pieces[index] = marked.replace("<", "&lt;").replace("*", "\\*")
    return "".join(pieces)


# Families


def families_page(language: str) -> str:
    """The page of all model families."""
    say = words_of(language)
    lines = [f"# {say('Model families')}", "", NOTICE, ""]
    lines += [
        say(
            "The families that can be trained, as published; other sizes of the same class work too. The tap is the "
            "block, counted from 0, that is aligned where `crepa_block_index` isn't set."
        ),
        "",
    ]
    kinds = (("Image transformers", "REPA"), ("UNets", "U-REPA"), ("Video transformers", "CREPA"))
    for heading, method in kinds:
        families = [family for family in FAMILIES.values() if family.alignment == method]
        switch = "`urepa_enabled`" if method == "U-REPA" else "`crepa_enabled`"
        lines += [f"## {say(heading)}", "", say("Aligned by {method}: {switch}.").format(method=method, switch=switch)]
        lines += ["", *_families_table(families, say), ""]
    return "\n".join(lines).rstrip() + "\n"


def _families_table(families: Sequence[Family], say: Say) -> list[str]:
    is_unet, is_video = families[0].model_type == "unet", families[0].media == "video"
    headings = ["Family, diffusers class"] + ([] if is_unet else ["Blocks"]) + ["Width", "Tap", "Tokens"]
    headings += ["Frames of a clip"] if is_video else ["Prediction"]
    headings += ["Sides of images are multiples of"]
    rows = []
    for family in families:
        side, pixels = family.native_tokens, family.native_resolution
        cells = [f'<a id="{family.name}"></a>`{family.name}`<br>`{family.model_class}`<br>{_example(family, say)}']
        cells += [] if is_unet else [str(family.depth)]
        cells += [str(family.hidden_size), say("middle") if is_unet else str(family.default_block)]
        cells += [say("{grid} at {pixels}").format(grid=f"{side}×{side}", pixels=f"{pixels}²")]
        cells += (
            [say("multiple of {ratio}, plus 1").format(ratio=family.frame_ratio)]
            if is_video
            else [say(", ").join(f"`{kind}`" for kind in family.prediction_types)]
        )
        cells += [str(family.pixels_per_token)]
        rows.append(cells)
    return table([say(heading) for heading in headings], rows)


def _example(family: Family, say: Say) -> str:
    names = sorted(path.name for path in (ROOT / EXAMPLES).glob(f"{family.name}-*.json"))
    return ", ".join(f"[{say('Example')}](../{EXAMPLES}/{name})" for name in names)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; pipes in cells are escaped."""
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines: Iterator[str] = (f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *escaped])
    return list(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m documentation_tools.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page isn't up to date")
    chosen = parser.parse_args(arguments)
    try:
        pages = generated_pages()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'out of date' if chosen.check else 'written'}: {path.relative_to(ROOT)}")
        if not chosen.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages[path], encoding="utf-8", newline="\n")
    return int(chosen.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
