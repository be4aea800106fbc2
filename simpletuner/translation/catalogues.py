"""Collects the texts to translate and updates the catalogues: ``python -m simpletuner.translation.catalogues``.

The texts are those of the options (labels, help, and the headings under which they stand) and those that the WebUI's
sources hand to ``_()``, ``words()`` or ``marked()``. Translations of texts that changed a little are kept but marked
fuzzy, which means English until somebody looks at them. ``--check`` changes nothing and lists what is missing.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import generate_po, read_po

from simpletuner.configuration.config import Config
from simpletuner.configuration.dataset import DatasetEntry, VideoOptions
from simpletuner.configuration.fields import by_place, describe_all
from simpletuner.translation import FOLDER, LANGUAGES, catalogue_file

PACKAGE = FOLDER.parent
KEYWORDS = {"_", "words", "marked"}
# A text as like to a removed one as this is taken for the same text, changed.
LIKENESS = 0.7
WIDTH = 120

HEADER = """\
# {name}: the words of the WebUI. Updated by `python -m simpletuner.translation.catalogues`.
msgid ""
msgstr ""
"Language: {language}\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""


def option_texts() -> Iterator[tuple[str, str]]:
    """Every text of the options, each with what it is: its option's name, or "heading"."""
    for model in (Config, DatasetEntry, VideoOptions):
        for (tab, section, group), options in by_place(describe_all(model)).items():
            for heading in (tab, section, group):
                if heading:
                    yield heading, "heading"
            for info in options:
                if info.part:
                    yield info.part, "heading"
                yield info.label, f"{info.name}: label"
                yield info.help, f"{info.name}: help"


def translating_calls(file: Path) -> list[ast.Call]:
    """The calls of ``_()``, ``words()`` and ``marked()`` in a Python file, as functions or methods, in its order."""
    calls = [
        node
        for node in ast.walk(ast.parse(file.read_bytes(), str(file)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) in KEYWORDS
    ]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))


def literal_texts(argument: ast.expr) -> list[str]:
    """The texts an argument can be: a literal's one, both of ``a if c else b``, none of a variable."""
    if isinstance(argument, ast.IfExp):
        return literal_texts(argument.body) + literal_texts(argument.orelse)
    return [argument.value] if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else []


def source_texts(package: Path = PACKAGE) -> Iterator[tuple[str, str]]:
    """Every text marked in the WebUI's sources, each with its file as seen from the folder of the package."""
    for file in sorted((package / "webui").rglob("*.py")):
        for call in translating_calls(file):
            for text in (text for argument in call.args for text in literal_texts(argument) if text):
                yield text, file.relative_to(package.parent).as_posix()


def collect() -> Catalog:
    """All texts to translate: first those of the options in their order, then those of the sources."""
    template = Catalog()
    for text, comment in option_texts():
        template.add(text, auto_comments=[comment])
    for text, file in source_texts():
        template.add(text, locations=[(file, 0)])
    return template


def read_catalogue(file: Path) -> Catalog:
    """The catalogue in a file, an empty one where there is none yet. Raises ``PoFileError`` for a broken one."""
    if not file.exists():
        return Catalog()
    with file.open("rb") as opened:
        return read_po(opened, abort_invalid=True)


def messages(catalogue: Catalog) -> dict[str, Message]:
    """The texts of a catalogue, less its header, each with its translation."""
    return {message.id: message for message in catalogue if isinstance(message.id, str) and message.id}


def update(catalogue: Catalog, template: Catalog) -> None:
    """Give ``catalogue`` the texts of ``template``, and keep what is translated.

    A text that is gone becomes obsolete; its translation is found again when it comes back, and offered as a fuzzy
    one to a new text much like it.
    """
    before, wanted = messages(catalogue), messages(template)
    for text in wanted.keys() & catalogue.obsolete.keys():
        old = catalogue.obsolete.pop(text)
        catalogue.add(text, old.string, flags=old.flags, user_comments=old.user_comments)
    catalogue.update(template, no_fuzzy_matching=True)
    removed = {text for text, message in before.items() if text not in wanted and message.string}
    for text, message in messages(catalogue).items():
        if not message.string:
            for likely in get_close_matches(text, sorted(removed), n=1, cutoff=LIKENESS):
                message.string = catalogue.obsolete.pop(likely).string
                message.flags.add("fuzzy")
                removed.remove(likely)


def written(catalogue: Catalog, language: str) -> str:
    """The catalogue as it is written to its file: no dates, no line numbers."""
    header = HEADER.format(name=LANGUAGES[language], language=language)
    return header + "".join(generate_po(catalogue, omit_header=True, width=WIDTH)).rstrip("\n") + "\n"


def update_files(folder: Path = FOLDER, *, tidy: bool = False) -> None:
    """Update (or make) the catalogue of every language in ``folder``; ``tidy`` drops what is obsolete."""
    template = collect()
    for language in translations():
        file = catalogue_file(language, folder)
        catalogue = read_catalogue(file)
        update(catalogue, deepcopy(template))  # Babel puts the template's own messages into the catalogue
        if tidy:
            catalogue.obsolete.clear()
        file.write_text(written(catalogue, language), encoding="utf-8", newline="\n")


def translations() -> list[str]:
    """The languages that have a catalogue."""
    return [language for language in LANGUAGES if language != "en"]


def shortcomings(language: str, template: Catalog, folder: Path = FOLDER) -> list[str]:
    """What the catalogue of a language lacks, a line each: texts not translated, fuzzy ones, and superfluous ones."""
    catalogue = messages(read_catalogue(catalogue_file(language, folder)))
    lines = []
    for text in messages(template):
        message = catalogue.pop(text, None)
        if message is None or not message.string:
            lines.append(f"missing: {text}")
        elif message.fuzzy:
            lines.append(f"fuzzy: {text}")
    return lines + [f"superfluous: {text}" for text in catalogue]


def main(arguments: Sequence[str] | None = None) -> int:
    """Update the catalogues, or with ``--check`` list what they lack; 1 if they lack anything."""
    parser = argparse.ArgumentParser(prog="python -m simpletuner.translation.catalogues", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; list what each language lacks")
    parser.add_argument("--tidy", action="store_true", help="drop translations of texts that are gone")
    chosen = parser.parse_args(arguments)
    if not chosen.check:
        update_files(tidy=chosen.tidy)
    template = collect()
    found = {language: shortcomings(language, template) for language in translations()}
    for language, lines in found.items():
        print(f"{language}: {len(lines)} of {len(template)} to do" if lines else f"{language}: complete")
        if chosen.check:
            print("".join(f"  {line}\n" for line in lines), end="")
    return int(chosen.check and any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
