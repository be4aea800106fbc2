"""Every command of a shell block is one of ours, or one that a reader has, with arguments that it takes."""

from __future__ import annotations

import pytest

from documentation_tools.pages import Page
from documentation_tools.shell_blocks import known_flags, shell_problems
from tests.documentation.conftest import EVERY_PAGE, WritePage


@EVERY_PAGE
def test_commands_are_valid(page: Page) -> None:
    assert shell_problems(page) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("simpletuner trian", "invalid choice"),
        ("simpletuner cache --rebuilt", "rebuilt"),
        ("simpletuner options --crepa_lambda 1", "doesn't know"),
        ("simpletuner train --config c.json --crepa_lamda 0.3", "crepa_lamda"),
        ("simpletuner train --config c.json --crepa_lambda high", "crepa_lambda"),
        ("simpletuner check --config config/examples/none.json", "isn't there"),
        ("simpletuner imagenet sample --root R", "--output"),
        ("make teste", "no target"),
        ('pip install ".[wbui]"', "no extra"),
        ("accelerate launch -m simpletuner.trainer train", "starts no"),
        ("accelerate launch --num_process 2 -m simpletuner.cli train --config c.json", "num_process"),
        ("accelerate launch --num_processes 2 -m simpletuner.cli trian --config c.json", "invalid choice"),
        ("accelerate launch simpletuner.cli train", "doesn't take it so"),
        ("python examples/none.py", "no script"),
        ("python -m simpletuner.none", "no module"),
        ("git push", "git clone"),
        ("cd", "lacks"),
        ("$ simpletuner train", "'$' is none of"),
        ("simpletuner 'check", "no command line"),
        ("curl http://127.0.0.1:7860", "'curl' is none of"),
    ],
)
def test_what_is_wrong_is_found(command: str, words: str, write_page: WritePage) -> None:
    problems = shell_problems(write_page(f"# A\n\n```bash\n{command}\n```\n"))
    assert any("line 3" in problem and words in problem for problem in problems), problems


def test_what_is_right_passes(write_page: WritePage) -> None:
    block = """\
# a comment
HF_HUB_OFFLINE=1 simpletuner train --config config.json --crepa_lambda 0.3 --use_ema
simpletuner cache --config config/examples/sd3-repa-lora.json \\
  --dry-run --samples 1000   # and another
simpletuner train --help
make bench JSON=figures.json
pip install "simpletuner-repa[eval,webui]"
accelerate launch --num_processes 2 -m simpletuner.cli train --config config.json --train_batch_size 2
accelerate launch --multi_gpu --module simpletuner.cli cache --config config.json
.venv/bin/python -m pytest tests -k sd3
python examples/own_loop.py
git clone <address> simpletuner
cd simpletuner
export SIMPLETUNER_TOKEN=secret
"""
    assert shell_problems(write_page(f"# A\n\n```bash\n{block}```\n")) == []


def test_flags_are_those_of_all_commands() -> None:
    assert {"--dry-run", "--per-class", "--allowed-host", "--num_processes"} <= known_flags()
