"""The words of a report on trained runs: markdown from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simpletuner.evaluation.similarity import GROUPS, MEASURES
from simpletuner.evaluation.verdict import CERTAINTY

FIGURES: Mapping[str, str] = {
    "training.png": "Training: the base loss, and the similarity that each run aligns by itself (each with its own "
    "projector).",
    "blocks.png": "Similarity of hidden states to the teacher's features after every block, at noise level {level}. "
    "Dotted: with the images shuffled, which is what chance gives.",
    "levels.png": "The same after {block}, by noise level (0 is clean, 1 is noise), and the projected tokens' cosine.",
    "tsne.png": "t-SNE of tokens after {block} and of the teacher's at the same places. Each map is made by itself: "
    "neighbourhoods count, distances and directions don't.",
    "umap.png": "UMAP of the same tokens.",
    "samples.png": "Samples of the same prompts from the same noise, {steps} steps, guidance {guidance:g}.",
}


def markdown(numbers: Mapping[str, Any]) -> str:
    """`report.md` from the content of `report.json`."""
    lines = ["# Alignment against the baseline", ""]
    if numbers["notice"]:
        lines += [f"> **{numbers['notice']}**", ""]
    for name, sentence in numbers["verdicts"].items():
        lines += [f"**{name}:** {sentence}", ""]
    lines += [
        "One training of each run is one seed: these numbers don't tell what another seed would give. "
        "A similarity to the teacher is what alignment trains, and is no measure of how samples look.",
        "",
    ]
    lines += _similarities(numbers) + _evaluation(numbers) + _options(numbers) + _figures(numbers) + _method(numbers)
    return "\n".join(lines).rstrip() + "\n"


def _similarities(numbers: Mapping[str, Any]) -> list[str]:
    block, runs = numbers["block"], numbers["runs"]
    headings = ["", *MEASURES.values()]
    rows = [["*shuffled images*", *(_shown(numbers["chance"][measure]) for measure in MEASURES)]]
    for name, run in runs.items():
        rows.append([name, *(_shown(run["blocks"][measure][block]) for measure in MEASURES)])
    for name, run in runs.items():
        if "errors" in run:
            base = runs[numbers["baseline"]]["blocks"]
            changes = [
                f"{run['blocks'][measure][block] - base[measure][block]:+.3f} ± {run['errors'][measure]:.3f}"
                for measure in MEASURES
            ]
            rows.append([f"{name} − {numbers['baseline']}", *changes])
    note = (
        f"± is one standard error over the choice of images, a jackknife over {GROUPS} groups of them; a difference "
        f"counts beyond {CERTAINTY:g} of these. Shuffled images show what chance gives. SVCCA is shown and not judged: "
        "it keeps the directions that hold 99 % of the variance, other numbers of them in other runs."
    )
    return [f"## Similarity to the teacher after {plain(block)}", "", *_table(headings, rows), "", note, ""]


def _evaluation(numbers: Mapping[str, Any]) -> list[str]:
    evaluated = {name: run["evaluation"] for name, run in numbers["runs"].items() if run["evaluation"]}
    if not evaluated:
        return ["## Samples", "", "No evaluation of these checkpoints was found; `simpletuner evaluate` makes one.", ""]
    measures = list(dict.fromkeys(measure for found in evaluated.values() for measure in found["metrics"]))
    rows = [
        [name, str(found["samples"]), found["features"], *(_shown(found["metrics"].get(m)) for m in measures)]
        for name, found in evaluated.items()
    ]
    notes = [f"{note}\n" for note in numbers["notes"] if note.startswith("Evaluation")]
    return ["## Samples", "", *_table(["", "samples", "features", *measures], rows), "", *notes]


def _options(numbers: Mapping[str, Any]) -> list[str]:
    trained = {name: run for name, run in numbers["runs"].items() if run["options"] is not None}
    names = list(dict.fromkeys(option for run in trained.values() for option in run["options"]))
    rows = [["step", *(str(run["step"]) for run in trained.values())]]
    rows += [[f"`{option}`", *(_option(run["options"][option]) for run in trained.values())] for option in names]
    return ["## Where the runs differ", "", *_table(["", *trained], rows), ""]


def _figures(numbers: Mapping[str, Any]) -> list[str]:
    settings, lines = numbers["settings"], ["## Figures", ""]
    for figure in numbers["figures"]:
        caption = FIGURES[figure].format(
            level=settings["level"],
            block=plain(numbers["block"]),
            steps=settings["sample_steps"],
            guidance=settings["guidance"],
        )
        lines += [f"![{Path(figure).stem}]({figure})", "", caption, ""]
    return lines


def _method(numbers: Mapping[str, Any]) -> list[str]:
    settings = numbers["settings"]
    lines = [
        f"- {settings['images']} images, spread evenly over those trained on; none were held out.",
        f"- Teacher: {settings['teacher']}, its tokens averaged over each image.",
        "- Students: hidden states averaged over tokens, averaged (EMA) weights where a run keeps them, the empty "
        f"prompt, the same noise for every run (seed {settings['seed']}).",
        f"- CKNNA with {settings['neighbours']} neighbours (arXiv 2405.07987), CKA by the unbiased estimator (arXiv "
        f"1905.00414), CCA and SVCCA (arXiv 1706.05806) over at most {settings['components']} components a side.",
    ]
    notes = [f"- {note}" for note in numbers["notes"] if not note.startswith("Evaluation")]
    return ["## How it was measured", "", *lines, *notes, ""]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = "|---|" + "---:|" * (len(headings) - 1)
    return [f"| {' | '.join(headings)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)]


def plain(block: str) -> str:
    """A block's name in a text: `block 3`."""
    return block.replace("_", " ")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _option(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
