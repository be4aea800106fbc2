"""Whether the commands of a page's `bash` blocks are commands of ours, with arguments that these take."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from documentation_tools.pages import ROOT, Code, Page
from simpletuner.cli import COMMANDS
from simpletuner.configuration.loading import valid_part

Arguments = list[str]
LAUNCHED = "simpletuner.cli"


def shell_problems(page: Page) -> list[str]:
    """What is wrong with the shell blocks of a page, a line each."""
    return [
        f"{page.path.name}, line {code.line}: {command}: {problem}"
        for code in page.code
        if code.info == "bash"
        for command in commands(code)
        for problem in command_problems(command)
    ]


def commands(code: Code) -> list[str]:
    """The lines of a block, those joined that end in a backslash."""
    lines = code.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def command_problems(command: str) -> Iterator[str]:
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        yield f"no command line: {error}"
        return
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = words or [""]
    checker = CHECKERS.get(program.removeprefix(".venv/bin/"))
    if checker is None:
        yield f"{program!r} is none of {', '.join(CHECKERS)}"
    else:
        yield from checker(arguments)


@cache
def parser_of_commands() -> argparse.ArgumentParser:
    """The command line of `simpletuner`, as `cli.main` makes it."""
    parser = argparse.ArgumentParser(prog="simpletuner", allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, allow_abbrev=False))
    return parser


def parse_known(
    parser: argparse.ArgumentParser, arguments: Arguments
) -> tuple[argparse.Namespace | None, str, Arguments]:
    """What a parser makes of arguments, None and its message if it refuses them, and what it doesn't know."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            known, rest = parser.parse_known_args(arguments)
    except SystemExit as stopped:
        lines = said.getvalue().strip().splitlines()
        return None, "" if stopped.code == 0 else lines[-1], []  # --help is fine
    return known, "", rest


def _simpletuner(arguments: Arguments) -> Iterator[str]:
    known, refusal, options = parse_known(parser_of_commands(), arguments)
    if known is None:
        if refusal:
            yield refusal
        return
    if options and not COMMANDS[known.command].takes_options:
        yield f"{known.command} doesn't know {' '.join(options)}"
        return
    yield from map(str, valid_part({}, options)[1])
    files = known.config if isinstance(getattr(known, "config", None), list) else [getattr(known, "config", None)]
    for file in (*files, getattr(known, "baseline", None)):
        if file is not None and file.parts[:2] == ("config", "examples") and not (ROOT / file).is_file():
            yield f"{file} isn't there"


def _make(arguments: Arguments) -> Iterator[str]:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    yield from (f"no target {name!r}" for name in arguments if "=" not in name and name not in targets)


def _pip(arguments: Arguments) -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if arguments[:1] != ["install"]:
        yield "only `pip install` is expected"
    for argument in arguments[1:]:
        ours = re.fullmatch(r"(?:\.|[\w-]+)\[([\w,-]+)\].*", argument)
        if ours is not None and argument.startswith((".", project["name"])):
            extras = project["optional-dependencies"]
            yield from (f"no extra {name!r}" for name in ours[1].split(",") if name not in extras)


def _accelerate(arguments: Arguments) -> Iterator[str]:
    if arguments[:1] == ["config"]:
        return
    from accelerate.commands.launch import launch_command_parser

    if LAUNCHED not in arguments:
        yield f"starts no {LAUNCHED}"
        return
    split = arguments.index(LAUNCHED)
    known, refusal, rest = parse_known(launch_command_parser(), arguments[1 : split + 1])
    if arguments[0] != "launch" or known is None or rest or not known.module:
        yield refusal or f"accelerate doesn't take it so: {' '.join(rest or arguments[: split + 1])}"
    yield from _simpletuner(arguments[split + 1 :])


def _python(arguments: Arguments) -> Iterator[str]:
    if arguments[:2] == ["-m", LAUNCHED]:
        yield from _simpletuner(arguments[2:])
    elif arguments[:1] == ["-m"]:
        module = arguments[1]
        if importlib.util.find_spec(module.partition(".")[0]) is None or importlib.util.find_spec(module) is None:
            yield f"no module {module}"
    elif not arguments or not (ROOT / arguments[0]).is_file():
        yield f"no script {' '.join(arguments[:1])}"


def _anything(arguments: Sequence[str]) -> Iterator[str]:
    if not arguments:
        yield "lacks its argument"


def _git(arguments: Arguments) -> Iterator[str]:
    if arguments[:1] != ["clone"]:
        yield "only `git clone` is expected"


CHECKERS: dict[str, Callable[[Arguments], Iterator[str]]] = {
    "simpletuner": _simpletuner,
    "make": _make,
    "pip": _pip,
    "accelerate": _accelerate,
    "python": _python,
    "git": _git,
    "cd": _anything,
    "export": _anything,
}


def known_flags() -> set[str]:
    """Every flag of our own commands and of `accelerate launch`, with its dashes."""
    from accelerate.commands.launch import launch_command_parser

    subparsers = next(action for action in parser_of_commands()._actions if isinstance(action.choices, dict))
    parsers = [launch_command_parser(), *dict(subparsers.choices or {}).values()]
    nested = [
        parser
        for outer in parsers
        for action in outer._actions
        if isinstance(action, argparse._SubParsersAction)
        for parser in action.choices.values()
    ]
    return {flag for parser in (*parsers, *nested) for action in parser._actions for flag in action.option_strings}
