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
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simpletuner.configuration import Config
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
    if arguments.samples is not None and not arguments.dry_run:
        print("error: --samples is for --dry-run, which estimates and encodes nothing.", file=sys.stderr)
        return CONFIGURATION_ERROR
    config = _valid_config(arguments, options)
    if config is None:
        return CONFIGURATION_ERROR
    from simpletuner.helpers.training.run import run_caching, run_estimate

    if arguments.dry_run:
        return leave(run_estimate(config, samples=arguments.samples))
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
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--rebuild", action="store_true", help="replace the cached teacher features by new ones")
    modes.add_argument("--dry-run", action="store_true", help="print the disk that is needed, and encode nothing")
    parser.add_argument(
        "--samples", type=_whole_number(1, 10**9), metavar="N", help="with --dry-run: what so many samples would take"
    )


def imagenet(arguments: argparse.Namespace, options: list[str]) -> int:
    """Make what a data set of ImageNet needs: a list of sampled images, and the names of its classes."""
    from simpletuner.helpers.data.imagenet import run_class_names, run_sample

    try:
        if arguments.what == "sample":
            run_sample(
                arguments.root,
                arguments.output,
                per_class=arguments.per_class,
                seed=arguments.seed,
                class_names=arguments.class_names,
                workers=arguments.workers,
            )
        else:
            run_class_names(arguments.output, root=arguments.root, names=arguments.names)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR
    return 0


def _add_imagenet_arguments(parser: argparse.ArgumentParser) -> None:
    makes = parser.add_subparsers(dest="what", required=True, metavar="what")
    sample = makes.add_parser(
        "sample",
        help="list images drawn from every class",
        description="Draw images of every class and list them in a CSV. Its paths are relative to "
        "DIR/Data/CLS-LOC/train, the instance_data_dir of the data set.",
        allow_abbrev=False,
    )
    sample.add_argument("--root", type=Path, metavar="DIR", required=True, help="folder with Data/CLS-LOC/train")
    sample.add_argument("--output", type=Path, metavar="FILE", required=True, help="the CSV that is written")
    sample.add_argument(
        "--per-class", type=_whole_number(1, 10**6), default=200, metavar="N", help="images of each (%(default)s)"
    )
    sample.add_argument("--seed", type=_whole_number(0, MOST_SEED), default=0, help="(%(default)s)")
    sample.add_argument(
        "--class-names", type=Path, metavar="FILE", help="JSON of all classes, by which they are numbered"
    )
    sample.add_argument(
        "--workers", type=_whole_number(0, 256), default=8, metavar="N", help="images read at once (%(default)s)"
    )
    classes = makes.add_parser(
        "classes",
        help="write the names of the classes",
        description="Write the name of every class as JSON: torchvision's 1000 names of ImageNet, or those of a file.",
        allow_abbrev=False,
    )
    classes.add_argument("--output", type=Path, metavar="FILE", required=True, help="the JSON file that is written")
    classes.add_argument("--root", type=Path, metavar="DIR", help="folder with Data/CLS-LOC/train, for the synsets")
    classes.add_argument("--names", type=Path, metavar="FILE", help="JSON of names instead of torchvision's")


def evaluate(arguments: argparse.Namespace, options: list[str]) -> int:
    """Compare samples of a trained model with real images: FID and others, or a distance in an encoder's features.

    Samples that are there already are kept: the same command goes on where it was stopped. `accelerate launch` splits
    the sampling over processes.
    """
    config = _valid_config(arguments, options)
    if config is None:
        return CONFIGURATION_ERROR
    from simpletuner.helpers.training.run import run_evaluation

    return leave(run_evaluation(config, arguments.checkpoint))


def _add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="latest, the number of a step, a checkpoint's folder, or none for the untrained model (%(default)s)",
    )


def ablate(arguments: argparse.Namespace, options: list[str]) -> int:
    """Train and evaluate a declared set of runs that differ in a few options, and compare them.

    What is there already is kept: the same command goes on where it was stopped.
    """
    from simpletuner.evaluation.ablation import run_ablation

    try:
        return run_ablation(arguments.config, only=arguments.only or ())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR


def _add_ablate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", required=True, help="JSON with base, output_dir, runs")
    parser.add_argument(
        "--only", nargs="+", metavar="RUN", help="these runs alone, so that machines can share the work"
    )


def report(arguments: argparse.Namespace, options: list[str]) -> int:
    """Compare trained runs with a baseline: did alignment help, by which measures and by how much?

    The runs share model, data and teacher. Numbers, figures and a text are written.
    """
    configs = [_checked_config(path) for path in (arguments.baseline, *arguments.config)]
    valid = [config for config in configs if config is not None]
    if len(valid) < len(configs):
        return CONFIGURATION_ERROR
    from simpletuner.evaluation.report import ReportSettings, write_report
    from simpletuner.helpers.training.run import run_task

    settings = ReportSettings(
        output=arguments.output,
        images=arguments.images,
        checkpoint=arguments.checkpoint,
        samples=arguments.samples,
        sample_steps=arguments.sample_steps,
        guidance=arguments.guidance,
        seed=arguments.seed,
        notice=arguments.notice,
    )
    return run_task(valid[0], lambda: print(f"Written: {write_report(valid[0], valid[1:], settings)}"))


def _guidance_scale(text: str) -> float:
    """Reads a number from 0 to 1000, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1000")
    return value


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baseline", type=Path, metavar="FILE", required=True, help="config.json of the baseline run")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        required=True,
        action="append",
        help="config.json of an aligned run; may be given several times",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder of the report")
    parser.add_argument(
        "--images", type=_whole_number(16, 10**5), default=256, metavar="N", help="images compared on (%(default)s)"
    )
    parser.add_argument(
        "--checkpoint", default="latest", metavar="STEP", help="of every run: latest, or a step (%(default)s)"
    )
    parser.add_argument(
        "--samples",
        type=_whole_number(0, 64),
        default=8,
        metavar="N",
        help="prompts sampled by every run (%(default)s)",
    )
    parser.add_argument(
        "--sample-steps", type=_whole_number(1, 1000), default=30, metavar="N", help="of these (%(default)s)"
    )
    parser.add_argument(
        "--guidance", type=_guidance_scale, default=5.0, metavar="SCALE", help="of these (%(default)s; 1: none)"
    )
    parser.add_argument("--seed", type=_whole_number(0, MOST_SEED), default=0, help="of all noise (%(default)s)")
    parser.add_argument("--notice", metavar="TEXT", help="is put at the top of the report")


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


def server(arguments: argparse.Namespace, options: list[str]) -> int:
    """Configure, start and watch trainings in the browser, until Ctrl-C; trainings go on without it.

    Only this machine can connect, unless --host says otherwise. Then a token is needed: that of the environment
    variable SIMPLETUNER_TOKEN, or one that is made and printed.
    """
    try:
        from simpletuner.webui.server import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("simpletuner"):
            raise
        print(f'error: the server needs {error.name}: pip install "simpletuner-repa[webui]"', file=sys.stderr)
        return CONFIGURATION_ERROR
    from simpletuner.webui.site import make_site

    try:
        site = make_site(arguments.configs, arguments.root or ())
        return serve(
            site,
            arguments.host,
            arguments.port,
            allowed_hosts=arguments.allowed_host or (),
            open_page=arguments.open,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR


def _add_server_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (%(default)s)")
    parser.add_argument("--port", type=_whole_number(0, 65535), default=7860, help="(%(default)s; 0: any free one)")
    parser.add_argument(
        "--configs", type=Path, default=Path("config"), metavar="DIR", help="folder of the projects (%(default)s)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder that the server may read and write; may be given several times (the working directory)",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="another name of the server, such as that of a proxy; may be given several times",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def _valid_config(arguments: argparse.Namespace, options: list[str]) -> Config | None:
    """The configuration if it is valid; its problems are printed."""
    return _checked_config(arguments.config, options)


def _checked_config(path: Path, options: Sequence[str] = ()) -> Config | None:
    from simpletuner.configuration import check_config_file
    from simpletuner.helpers.models.registry import FAMILIES

    config, problems = check_config_file(path, list(options), FAMILIES)
    print_problems(problems)
    return config


def list_options(arguments: argparse.Namespace, options: list[str]) -> int:
    """Print every option of the configuration."""
    from simpletuner.configuration import Config, describe_all

    known = describe_all(Config)
    if arguments.json:
        print(json.dumps([asdict(option) for option in known], indent=2))
    else:
        from simpletuner.tables import print_options

        print_options(known)
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
        from simpletuner.tables import print_families

        print_families(known)
    return 0


def _add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a list for programs instead of tables")


COMMANDS = {
    "train": Command("train a model", train, add_config_argument, takes_options=True),
    "cache": Command("encode the data before training", cache, _add_cache_arguments, takes_options=True),
    "imagenet": Command("sample ImageNet and name its classes", imagenet, _add_imagenet_arguments),
    "evaluate": Command("measure samples of a trained model", evaluate, _add_evaluate_arguments, takes_options=True),
    "ablate": Command("train, evaluate and compare runs that differ in a few options", ablate, _add_ablate_arguments),
    "report": Command("compare trained runs: did alignment help?", report, _add_report_arguments),
    "demo": Command("see what REPA does, in a few minutes on a CPU", demo, _add_demo_arguments),
    "server": Command("configure, start and watch trainings in the browser", server, _add_server_arguments),
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


if __name__ == "__main__":
    sys.exit(main())
