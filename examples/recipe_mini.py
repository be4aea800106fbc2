"""The SD 1.5 recipe on ImageNet in miniature, from a folder of images to a report, on two CPU cores.

    python examples/recipe_mini.py [--output output/recipe-mini] [--images DIR]

Every stage of `documentation/recipes/SD15_UREPA.md` runs through the commands that a user types, from the same example
configurations, only smaller: a few hundred real images, a tiny Stable Diffusion with random weights, and the teacher
that comes as a package. It shows that the stages work together and that alignment moves the middle of the UNet toward
the teacher; it says nothing of image quality.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mini_imagenet import CLASS_NAMES_FILE, RESOLUTION

from simpletuner.evaluation.ablation import run_command
from simpletuner.helpers.data.imagenet import TRAIN
from simpletuner.helpers.utils.run_folder import find_checkpoints

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "config" / "examples"
TIER_A, GRID, DATA = "sd15-urepa-tier-a.json", "sd15-urepa-ablation.json", "multidatabackend-imagenet.json"
PER_CLASS, SAMPLED = 40, 32
SEEDS = (0, 1, 2)
GRID_SHARE = 6  # the grid's runs have a sixth of the compared runs' steps
BASELINE, ALIGNED = "baseline", "mid"
MEASURES = {"cknna": "CKNNA", "cca": "CCA"}
NOTICE = (
    "This is a miniature: tiny random models, a few hundred images of 64 pixels, a minute of training. It shows that "
    "every stage of the recipe runs, and what alignment does to the hidden states. It claims nothing else: nothing of "
    "image quality, and nothing of Stable Diffusion 1.5."
)
# What differs from tier A besides the paths: sizes, lengths, and the teacher, whose channels are whitened to a number
# that the projector's GroupNorm divides.
SMALLER: dict[str, Any] = {
    "resolution": RESOLUTION,
    "aspect_bucket_alignment": 64,
    "vae_batch_size": 16,
    "max_workers": 1,
    "mixed_precision": "no",
    "train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_train_steps": 300,
    "learning_rate": 3e-3,
    "ema_decay": 0.95,
    "checkpoint_step_interval": 0,
    "validation_prompt": None,
    "report_to": "none",
    "urepa_model": "efficientnet_lite0",
    "urepa_encoder_image_size": 128,
    "urepa_feature_cache_normalized": False,
    "urepa_feature_cache_dim": 64,
    "num_eval_images": 64,
    "evaluation_features": "efficientnet_lite0",
    "evaluation_num_inference_steps": 8,
    "evaluation_guidance": 1.5,
    "evaluation_batch_size": 32,
}
# The base model is random, and SD 1.5 is not: first all of it learns to denoise, without alignment. It learns v at
# once, for adapters on three inner blocks can't turn epsilon into v in so few steps.
BASE: dict[str, Any] = {
    "model_type": "full",
    "learning_rate": 2e-3,
    "max_train_steps": 300,
    "lr_warmup_steps": 30,
    "urepa_enabled": False,
}
WITHOUT_EFFECT = ("validation_step_interval", "validation_guidance", "num_validation_images")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("output/recipe-mini"), help="(%(default)s)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of images a class, not Fashion-MNIST")
    parser.add_argument(
        "--steps", type=int, default=SMALLER["max_train_steps"], help="of the compared runs (%(default)s)"
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    output: Path = arguments.output
    try:
        make_data(output, arguments.images)
        write_configs(output, arguments.steps)
        train_base(output)
        simpletuner("check", "--config", output / TIER_A)
        simpletuner("cache", "--config", output / TIER_A, "--dry-run")
        simpletuner("cache", "--config", output / TIER_A)
        simpletuner("ablate", "--config", output / GRID)
        simpletuner("ablate", "--config", output / "seeds.json")
        for seed, runs in seeds(output).items():
            compare(output, seed, runs)
    except subprocess.CalledProcessError as error:
        print(f"error: that command ended with exit code {error.returncode}; the same call goes on from here.")
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same call goes on from here.")
        return 130
    (output / "report.md").write_text(summary(output), encoding="utf-8")
    print((output / "report.md").read_text(encoding="utf-8"))
    print(f"{output / 'report.md'}, after {(time.perf_counter() - started) / 60:.1f} minutes.")
    return 0


def simpletuner(*arguments: str | Path) -> None:
    """Runs a command as a user would, and says which. Raises ``CalledProcessError`` where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ simpletuner {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "simpletuner.cli", *words]
    code = run_command(command)
    if code != 0:
        raise subprocess.CalledProcessError(code, command)


def make_data(output: Path, images: Path | None) -> None:
    """Images in ILSVRC's layout, the tiny model, the sample and the names; kept where they are there already."""
    root, model = output / "ILSVRC", output / "random"
    if not (model / "model_index.json").is_file():
        own = [] if images is None else ["--images", str(images)]
        script = [str(ROOT / "examples" / "mini_imagenet.py"), "--output", str(root), "--models", str(model), *own]
        print(f"$ python {shlex.join(script)}", flush=True)
        subprocess.run([sys.executable, *script, "--per-class", str(PER_CLASS)], check=True)
    names = output / CLASS_NAMES_FILE
    simpletuner("imagenet", "classes", "--root", root, "--names", root / CLASS_NAMES_FILE, "--output", names)
    simpletuner("imagenet", "sample", "--root", root, "--per-class", str(SAMPLED), "--output", output / "train.csv")


def write_configs(output: Path, steps: int) -> None:
    """The example configurations of the recipe, made smaller."""
    data = read(EXAMPLES / DATA)
    data[0] |= {
        "instance_data_dir": str(output / "ILSVRC" / TRAIN),
        "metadata_file": str(output / "train.csv"),
        "class_names": str(output / CLASS_NAMES_FILE),
        "resolution": RESOLUTION,
    }
    write(output / DATA, data)
    config = read(EXAMPLES / TIER_A) | SMALLER
    config |= {
        "pretrained_model_name_or_path": str(output / "model"),
        "data_backend_config": str(output / DATA),
        "output_dir": str(output / "tier-a"),
        "cache_dir": str(output / "cache"),
        "max_train_steps": steps // GRID_SHARE,
        "lr_warmup_steps": steps // GRID_SHARE // 10,
    }
    config = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}
    base = config | BASE | {"pretrained_model_name_or_path": str(output / "random"), "output_dir": str(output / "base")}
    own_to_others = ("lora_", "peft_", "trainable_", "urepa_", "evaluation_", "num_eval_")
    write(output / "base.json", {name: value for name, value in base.items() if not name.startswith(own_to_others)})
    write(output / TIER_A, config)
    grid = read(EXAMPLES / GRID) | {"base": str(output / TIER_A), "output_dir": str(output / "ablation")}
    write(output / GRID, grid)
    longer = {"max_train_steps": steps, "lr_warmup_steps": steps // 10}
    arms = {name: grid["runs"][name] | longer for name in (BASELINE, ALIGNED)}
    compared = {"output_dir": str(output / "seeds"), "runs": arms, "seeds": list(SEEDS)}
    write(output / "seeds.json", grid | compared | {"evaluate": False})


def train_base(output: Path) -> None:
    """Trains the random model, and puts what came of it beside its autoencoder and text encoder."""
    if (output / "model").is_dir():
        return
    simpletuner(
        "train",
        "--config",
        output / "base.json",
        *(["--resume_from_checkpoint", "latest"] if find_checkpoints(output / "base") else []),
    )
    shutil.copytree(output / "random", output / "model.new", dirs_exist_ok=True)
    shutil.copytree(output / "base" / "unet", output / "model.new" / "unet", dirs_exist_ok=True)
    (output / "model.new").rename(output / "model")


def seeds(output: Path) -> dict[int, dict[str, Path]]:
    """The folders of the compared runs, by seed and arm."""
    return {seed: {arm: output / "seeds" / f"{arm}-seed-{seed}" for arm in (BASELINE, ALIGNED)} for seed in SEEDS}


def compare(output: Path, seed: int, runs: Mapping[str, Path]) -> None:
    """The report of one seed."""
    target = output / f"report-seed-{seed}"
    if not (target / "report.json").is_file():
        both = ("--baseline", runs[BASELINE] / "config.json", "--config", runs[ALIGNED] / "config.json")
        simpletuner("report", *both, "--output", target, "--sample-steps", "12", "--guidance", "2", "--notice", NOTICE)


def summary(output: Path) -> str:
    """The report: the notice, what alignment did for each seed, and where everything is."""
    lines = ["# The SD 1.5 recipe, in miniature", "", f"> {NOTICE}", ""]
    lines += ["## What alignment did to the middle of the UNet", ""]
    lines += [f"| seed | {' | '.join(f'{name}, λ = 0 | {name}, λ > 0' for name in MEASURES.values())} |"]
    lines += ["|---:|" + "---:|" * (2 * len(MEASURES))]
    higher = dict.fromkeys(MEASURES, 0)
    compared = seeds(output)
    for seed, runs in compared.items():
        found = similarities(read(output / f"report-seed-{seed}" / "report.json"), runs)
        cells = []
        for measure in MEASURES:
            without, aligned = found[BASELINE][measure], found[ALIGNED][measure]
            higher[measure] += aligned > without
            cells += [f"{without:.4f}", f"{aligned:.4f}"]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    counts = ", ".join(f"{MEASURES[measure]} for {count}" for measure, count in higher.items())
    lines += ["", f"Higher with alignment: {counts} of {len(compared)} seeds.", ""]
    lines += ["## Where everything is", ""]
    lines += [f"- `report-seed-{seed}/report.md`: the comparison of seed {seed}, with its figures" for seed in compared]
    lines += ["- `ablation/ablation.md` and `ablation/ablation.png`: the grid of the recipe, one seed, fewer steps", ""]
    lines += [
        "## The ablation",
        "",
        (output / "ablation" / "ablation.md").read_text(encoding="utf-8").partition("\n\n")[2],
    ]
    return "\n".join(lines)


def similarities(report: Mapping[str, Any], runs: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """CKNNA, CCA and the rest of the UNet's middle against the teacher, by arm."""
    blocks = {arm: report["runs"][folder.name]["blocks"] for arm, folder in runs.items()}
    return {arm: {name: values[report["block"]] for name, values in found.items()} for arm, found in blocks.items()}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
