"""The list of data sets (``multidatabackend.json``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from simpletuner.configuration.config import Config
from simpletuner.configuration.dependencies import without_effect
from simpletuner.configuration.family import Family
from simpletuner.configuration.fields import OptionGroup, option
from simpletuner.configuration.general_checks import image_size_problems, odd_frame_count
from simpletuner.configuration.loading import plain_names, read_json
from simpletuner.configuration.paths import kind_of, local_path, not_a_folder
from simpletuner.configuration.problems import Problem, has_errors, warning
from simpletuner.configuration.simpletuner_names import DATASET_NAMES, SIMPLETUNER_NAMES
from simpletuner.configuration.validation import build

# SimpleTuner keeps an entry for the cache of text embeddings; here that cache needs none.
NOT_NEEDED = ("text_embeds", "image_embeds")

MOST_MEGAPIXELS = 64

CLASS_FIELD = "{class}"
"""Where `caption_template` has the name of the class."""

_entry = partial(option, tab="Data", section="Data set")
_clip = partial(option, tab="Data", section="Clips")


class VideoOptions(OptionGroup):
    """How clips are cut from the files of a video data set."""

    num_frames: int = _clip(
        49,
        ge=1,
        label="Frames",
        help="Frames of a training clip: a multiple of the VAE's frame ratio plus 1, such as 49 or 81.",
    )
    min_frames: int | None = _clip(
        None, ge=1, label="Fewest frames", help="Shorter files are left out. None means num_frames."
    )
    frame_stride: int = _clip(1, ge=1, help="Takes every n-th frame of the file.")


class DatasetEntry(OptionGroup):
    """One data set: a local folder of images or clips with their captions."""

    id: str = _entry("", required=True, label="Name", help="A name of your choice, different for each data set.")
    type: Literal["local"] = _entry("local", label="Where", help="Where the files are: in a local folder.")
    dataset_type: Literal["image", "video"] = _entry(
        "image", label="Kind", help="Whether the files are images or clips."
    )
    disabled: bool = _entry(False, help="Leaves this data set out.")
    instance_data_dir: str = _entry(
        "", required=True, label="Folder", help="The folder with the files; subfolders are searched too."
    )
    caption_strategy: Literal["textfile", "filename", "instanceprompt", "metadata", "folder", "class"] = _entry(
        "textfile",
        label="Captions from",
        help="Where captions come from: a .txt file beside each image, the file's name, instance_prompt for all, "
        "metadata_file, the name of the folder, or (class) the name of the class that metadata_file, a CSV, gives.",
    )
    instance_prompt: str | None = _entry(
        None, depends_on="caption_strategy=instanceprompt", label="Caption", help="The caption of every file."
    )
    metadata_file: str = _entry(
        "metadata.jsonl",
        depends_on="caption_strategy=metadata|class",
        label="Caption file",
        help='File of JSON lines with "file_name" and "text", relative to instance_data_dir. For class: the CSV of '
        "`simpletuner imagenet sample`, there or in the working directory; only the files that it lists are used.",
    )
    class_names: str | None = _entry(
        None,
        depends_on="caption_strategy=class",
        label="Class names",
        help='JSON file {"synset": "name", ...} of `simpletuner imagenet classes`, in instance_data_dir or in the '
        "working directory.",
    )
    caption_template: str = _entry(
        "a photo of a {class}",
        depends_on="caption_strategy=class",
        help="The caption, in which {class} is the name of the class.",
    )
    resolution: float | None = _entry(
        None, gt=0, help="Size of the images, in the unit of resolution_type. None takes the global resolution."
    )
    resolution_type: Literal["pixel", "area"] = _entry(
        "pixel",
        depends_on="resolution",
        label="Unit of the resolution",
        help="Unit of resolution: pixel (side of the square with the same area) or area (megapixels).",
    )
    crop: bool = _entry(True, help="Cuts images to the exact size of their bucket, at the centre.")
    crop_aspect: Literal["square", "preserve"] = _entry(
        "preserve",
        depends_on="crop",
        label="Shape",
        help="preserve keeps the aspect ratio (in buckets); square cuts to squares.",
    )
    crop_style: Literal["center"] = _entry(
        "center",
        depends_on="crop",
        label="Part kept",
        help="Which part of an image is kept: its centre. What is cached is one cut of each image, so there is no "
        "random one.",
    )
    crop_pct: float = _entry(
        1.0,
        gt=0,
        le=1,
        depends_on="crop",
        label="Share kept",
        help="Share of the side that is kept: images are resized to size / crop_pct and cut at the centre. 0.875 is "
        "the usual Resize(256) and CenterCrop(224).",
    )
    horizontal_flip: bool = _entry(
        False,
        label="Mirrored too",
        help="Shows every file mirrored too, as a sample of its own with latents and features of its own.",
    )
    repeats: int = _entry(0, ge=0, help="How many more times an epoch shows each file. 0 shows it once, 1 twice.")
    video: VideoOptions = _entry(
        VideoOptions(), depends_on="dataset_type=video", label="Clips", help="How clips are cut."
    )
    cache_dir_vae: str | None = _entry(
        None, label="Folder of the latents", help="Folder of this data set's latents. None uses cache_dir."
    )


def load_dataset_config(path: Path) -> tuple[list[DatasetEntry], list[Problem]]:
    """Read the list of data sets; disabled ones are left out.

    Returns the entries, none of them if a problem is an error, and all problems. A problem's ``option`` is
    "file: id.key".
    """
    content, problems = read_json(path)
    return ([], problems) if problems else entries_of(content, path)


def entries_of(content: Any, path: Path) -> tuple[list[DatasetEntry], list[Problem]]:
    """Like :func:`load_dataset_config`, of what the file holds, or would hold once an edited list is saved."""
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        return [], [Problem(str(path), "holds no list of data sets", 'Write [{"id": ..., "instance_data_dir": ...}].')]
    entries, problems = [], list[Problem]()
    for number, item in enumerate(content):
        entry, found = _read_entry(plain_names(item))
        name = item.get("id") or f"entry {number + 1}"
        problems += [_in_file(problem, path, str(name)) for problem in found]
        if entry is not None and not entry.disabled:
            entries.append(entry)
    for name, count in Counter(entry.id for entry in entries).items():
        if count > 1 and name:
            problems.append(Problem(f"{path.name}: {name}.id", f"is used {count} times", "Give each its own id."))
    if not entries:
        problems.append(Problem(str(path), "has no data set that is on", "Add an entry, or enable one."))
    return ([] if has_errors(problems) else entries), problems


def check_entries(entries: list[DatasetEntry], config: Config, family: Family | None) -> list[Problem]:
    """What is wrong with data sets for this configuration's model."""
    if family is None:
        return []
    name = Path(config.data_backend_config)
    return [
        _in_file(problem, name, entry.id) for entry in entries for problem in _family_problems(entry, config, family)
    ]


def entry_file(entry: DatasetEntry, name: str) -> Path:
    """Where a file that an entry names lies: in its ``instance_data_dir``, or else where the name itself says."""
    inside = local_path(entry.instance_data_dir) / local_path(name)
    return inside if kind_of(inside) == "file" else local_path(name)


def squares_mend(entry: DatasetEntry) -> str:
    """How a data set gives square images only."""
    return f"Set {'' if entry.crop else 'crop to true and '}crop_aspect to 'square'."


def _read_entry(values: dict[str, Any]) -> tuple[DatasetEntry | None, list[Problem]]:
    if values.get("dataset_type") in NOT_NEEDED:
        return None, [warning("dataset_type", f"{values['dataset_type']} needs no entry here", "It is ignored.")]
    entry, problems = build(DatasetEntry, values, SIMPLETUNER_NAMES | DATASET_NAMES)
    named = {problem.option for problem in problems}
    if not entry.disabled:
        problems += [problem for problem in _entry_problems(entry) if problem.option not in named]
    return entry, problems


def _entry_problems(entry: DatasetEntry) -> Iterator[Problem]:
    if not entry.id:
        yield Problem("id", "is not set", "Give the data set a name of its own.")
    folder = local_path(entry.instance_data_dir)
    if not entry.instance_data_dir:
        yield Problem("instance_data_dir", "is not set", "Name the folder with the files.")
    elif kind_of(folder) != "folder":
        yield Problem("instance_data_dir", f"no such folder: {entry.instance_data_dir!r}", "Check the path.")
    elif entry.caption_strategy == "metadata" and kind_of(folder / entry.metadata_file) != "file":
        message = f"no such file in {entry.instance_data_dir!r}: {entry.metadata_file!r}"
        yield Problem("metadata_file", message, "Check the name, or choose another caption_strategy.")
    if entry.caption_strategy == "class":
        yield from _class_problems(entry)
    if entry.caption_strategy == "instanceprompt" and not entry.instance_prompt:
        yield Problem("instance_prompt", "is not set, but caption_strategy is instanceprompt", "Write the caption.")
    shortest, longest = entry.video.min_frames, entry.video.num_frames
    if entry.dataset_type == "video" and shortest is not None and shortest > longest:
        message = f"{shortest} is more than num_frames ({longest}): every clip would be left out"
        yield Problem("video.min_frames", message, "Lower it, or remove it.")
    if entry.resolution is not None and entry.resolution_type == "area" and entry.resolution > MOST_MEGAPIXELS:
        message = f"{entry.resolution:g} megapixels, the unit of resolution_type area, are too many"
        yield Problem("resolution", message, "Write 1 for images of about 1024x1024, or set resolution_type to pixel.")
    cache = None if entry.cache_dir_vae is None else not_a_folder(entry.cache_dir_vae)
    if cache is not None:
        yield Problem("cache_dir_vae", *cache)
    yield from without_effect(entry)


def _class_problems(entry: DatasetEntry) -> Iterator[Problem]:
    """What captions from classes need."""
    files = {"metadata_file": (entry.metadata_file, "sample"), "class_names": (entry.class_names, "classes")}
    for key, (name, command) in files.items():
        mend = f"`simpletuner imagenet {command}` writes such a file."
        if not name:
            yield Problem(key, "is not set, but caption_strategy is class", mend)
        elif kind_of(entry_file(entry, name)) != "file":
            message = f"no such file in {entry.instance_data_dir!r} or the working directory: {name!r}"
            yield Problem(key, message, f"Check the path; {mend}")
    if CLASS_FIELD not in entry.caption_template:
        message = f"{entry.caption_template!r} has no place for the name of the class"
        yield Problem("caption_template", message, f"Write {CLASS_FIELD} where the name goes.")


def _family_problems(entry: DatasetEntry, config: Config, family: Family) -> Iterator[Problem]:
    if entry.dataset_type == "video":
        if family.media == "image":
            yield Problem("dataset_type", f"is video, but {family.name} makes images", "Use a video family.")
        elif (entry.video.num_frames - 1) % family.frame_ratio != 0:
            yield Problem("video.num_frames", *odd_frame_count(entry.video.num_frames, family))
    if family.square_only and not (entry.crop and entry.crop_aspect == "square"):
        name, shown = ("crop_aspect", entry.crop_aspect) if entry.crop else ("crop", "false")
        message = f"is {shown}, but {family.name} takes square images only: another one ends the run"
        yield warning(name, message, squares_mend(entry))
    if entry.resolution is not None and entry.resolution_type == "pixel":
        yield from image_size_problems(entry.resolution, config.aspect_bucket_alignment, family)


def _in_file(problem: Problem, path: Path, entry: str) -> Problem:
    return Problem(f"{path.name}: {entry}.{problem.option}", problem.message, problem.mend, problem.severity)
