"""The command line: ``simpletuner <command>``.

A command is one function ``(arguments, options) -> exit code`` and one entry of ``COMMANDS``; it imports what it needs
when it runs, so that ``simpletuner --help`` is instant. ``options`` are the flags that the command's own parser
does not know: the configuration's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simpletuner.configuration import Config
    from simpletuner.configuration.fields import OptionInfo
    from simpletuner.configuration.problems import Problem

CONFIGURATION_ERROR, INTERRUPTED = 2, 130
MOST_SEED = 2**32 - 2**16  # as the option `seed`, without an import


@dataclass(frozen=True)
class Command:
    """A subcommand; ``takes_options`` lets any option of the configuration follow as ``--name value``."""

    help: str
    run: Callable[[argparse.Namespace, list[str]], int]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    takes_options: bool = False


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """``--config FILE``, for every command that works on a configuration."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.json; any option may follow as a flag")


def check(arguments: argparse.Namespace, options: list[str]) -> int:
    """Say all that is wrong with a configuration, without loading weights."""
    if _valid_config(arguments, options) is None:
        return CONFIGURATION_ERROR
    print("The configuration is valid.")
    return 0


def train(arguments: argparse.Namespace, options: list[str]) -> int:
    """Train a model as the configuration says; `accelerate launch` starts it on several devices."""
    config = _valid_config(arguments, options)
    if config is None:
        return CONFIGURATION_ERROR
    from simpletuner.helpers.training.run import run_training

    return leave(run_training(config))


def cache(arguments: argparse.Namespace, options: list[str]) -> int:
    """Encode the data of a configuration before training; `accelerate launch` splits the work over processes.

    Reads what is there already and makes only what is missing or damaged.
    """
    config = _valid_config(arguments, options)
    if config is None:
        return CONFIGURATION_ERROR
    from simpletuner.helpers.training.run import run_caching

    return leave(run_caching(config, rebuild=arguments.rebuild))


def leave(code: int) -> int:
    """The exit code; a process of a distributed run, in which all is written by now, ends with it at once.

    While the interpreter shuts down, what is left of torch's process groups now and then aborts the process, and the
    launcher takes the run for failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--rebuild", action="store_true", help="replace the cached teacher features by new ones")


def demo(arguments: argparse.Namespace, options: list[str]) -> int:
    """Train a small model with and without REPA, in a few minutes on a CPU."""
    from simpletuner.demo import run_demo

    return run_demo(arguments.output, arguments.dataset, steps=arguments.steps, seed=arguments.seed)


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number from `least` to `most`, for argparse."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return value

    return read


def _add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="images in one folder a class, instead of digits")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("output/demo"), help="(%(default)s)")
    parser.add_argument("--steps", type=_whole_number(3, 10**6), default=600, help="steps of each run (%(default)s)")
    parser.add_argument("--seed", type=_whole_number(0, MOST_SEED), default=0, help="(%(default)s)")


def _valid_config(arguments: argparse.Namespace, options: list[str]) -> Config | None:
    """The configuration if it is valid; its problems are printed."""
    from simpletuner.configuration import check_config_file
    from simpletuner.helpers.models.registry import FAMILIES

    config, problems = check_config_file(arguments.config, options, FAMILIES)
    print_problems(problems)
    return config


def list_options(arguments: argparse.Namespace, options: list[str]) -> int:
    """Print every option of the configuration."""
    from simpletuner.configuration import Config, describe_all

    known = describe_all(Config)
    if arguments.json:
        print(json.dumps([asdict(option) for option in known], indent=2))
    else:
        _print_tables(known)
    return 0


def list_families(arguments: argparse.Namespace, options: list[str]) -> int:
    """Print the model families that can be trained, as published; other sizes of the same class work too.

    Tap is the block, counted from 0, that is aligned where `crepa_block_index` isn't set.
    """
    from simpletuner.helpers.models.registry import FAMILIES

    known = [family.described() for family in FAMILIES.values()]
    if arguments.json:
        print(json.dumps(known, indent=2))
    else:
        _print_families(known)
    return 0


def _add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a list for programs instead of tables")


COMMANDS = {
    "train": Command("train a model", train, add_config_argument, takes_options=True),
    "cache": Command("encode the data before training", cache, _add_cache_arguments, takes_options=True),
    "demo": Command("see what REPA does, in a few minutes on a CPU", demo, _add_demo_arguments),
    "check": Command("check a configuration without loading weights", check, add_config_argument, takes_options=True),
    "families": Command("list the model families that can be trained", list_families, _add_json_argument),
    "options": Command("list every option of the configuration", list_options, _add_json_argument),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2 for a wrong configuration or command line)."""
    parser = argparse.ArgumentParser(
        prog="simpletuner",
        description="Train image and video diffusion models with representation alignment.",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        added = subparsers.add_parser(name, help=command.help, description=command.run.__doc__, allow_abbrev=False)
        command.add_arguments(added)
    arguments, options = parser.parse_known_args(argv)
    chosen = COMMANDS[arguments.command]
    if options and not chosen.takes_options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    try:
        return chosen.run(arguments, options)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED


def print_problems(problems: Iterable[Problem]) -> None:
    """List problems on stderr, a line each, errors first."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    colours = {"error": "bold red", "warning": "yellow"}
    for problem in sorted(problems, key=lambda problem: problem.severity):
        line = Text.assemble(
            (problem.severity, colours[problem.severity]),
            ": ",
            (problem.option, "bold"),
            f": {problem.message}. {problem.mend}",
        )
        console.print(line)


def _print_families(families: Iterable[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

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


def _print_tables(options: Iterable[OptionInfo]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for heading, members in groupby(options, key=lambda option: (option.tab, option.section, option.group)):
        title = " / ".join(part for part in heading if part)
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, expand=True)
        table.add_column("Option", no_wrap=True, min_width=30)
        table.add_column("Values", ratio=2)
        table.add_column("Meaning", ratio=3)
        for option in members:
            default = "" if option.default is None else f"\ndefault {json.dumps(option.default)}"
            table.add_row(Text(option.name), Text(option.expectation() + default), Text(option.help))
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
