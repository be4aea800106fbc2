"""Finds the samples of a data set: files, measures, captions and buckets, in an order that never varies."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator

from simpletuner.configuration.config import Config
from simpletuner.configuration.dataset import DatasetEntry, squares_mend
from simpletuner.configuration.family import Family, with_local_facts
from simpletuner.configuration.paths import kind_of, local_path
from simpletuner.helpers.data.buckets import Bucket, area_side, bucket_size, clip_length
from simpletuner.helpers.data.captions import Captioner, caption_source, captioner, class_captions
from simpletuner.helpers.data.errors import DatasetError, MediaError
from simpletuner.helpers.data.measures import Measure, measure_files
from simpletuner.helpers.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from simpletuner.helpers.data.samples import Sample

logger = logging.getLogger(__name__)

_NAMES_SHOWN = 10
_OTHER_IMAGES = frozenset({".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tga"})
_OTHER_VIDEOS = frozenset({".3gp", ".flv", ".m2ts", ".mpeg", ".mpg", ".ogv", ".wmv"})


def find_samples(
    entries: Sequence[DatasetEntry], config: Config, family: Family, accelerator: Accelerator | None = None
) -> list[Sample]:
    """All usable samples of all entries, sorted by entry and path.

    Unreadable and truncated files, clips that are too short, and shapes that the model has no positions for are left
    out with a warning that names and counts them. With an ``accelerator`` the main process measures the files first
    and the others read what it found.

    Raises:
        DatasetError: a folder is missing, holds no usable sample or no caption, or a resolution is too small.
    """
    model = local_path(config.pretrained_model_name_or_path)
    if kind_of(model / family.model_subfolder / "config.json") == "file":
        family = with_local_facts(family, model)
    samples: list[Sample] = []
    with nullcontext() if accelerator is None else accelerator.main_process_first():
        for entry in entries:
            scan = _EntryScan(entry, config, family)
            scan.run()
            if accelerator is None or accelerator.is_main_process:
                scan.warn()
            samples += scan.samples
    return samples


@dataclass
class _EntryScan:
    """One data set: its samples, and what was wrong with its other files."""

    entry: DatasetEntry
    config: Config
    family: Family
    samples: list[Sample] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    no_caption: list[str] = field(default_factory=list)
    empty_caption: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Fills the lists. Raises ``DatasetError`` where nothing can be trained on."""
        side = self._target_side()
        self._require_folder()
        # Where the files are listed nothing else is looked at: there may be a million more.
        listed = class_captions(self.entry, self._folder) if self._is_listed else None
        caption_of: Captioner = captioner(self.entry, self._folder) if listed is None else listed.get
        paths = self._files(_visible_files(self._folder) if listed is None else listed)
        index = local_path(self.config.cache_dir) / "files.jsonl"
        for path, found in measure_files(paths, self._file_frames, index, workers=self.config.max_workers):
            try:
                if isinstance(found, MediaError):
                    raise found
                bucket = self._bucket(path, found, side)
                self._require_square(path, found, bucket)
                caption = caption_of(path)
            except MediaError as error:
                absent = self._is_listed and not path.exists()
                (self.missing if absent else self.skipped).append(str(path) if absent else str(error))
            else:
                self._add(path, found, bucket, caption)
        self._require_something()

    def warn(self) -> None:
        """Logs one line for each kind of fault."""
        total = self._kept + len(self.skipped)
        kinds = (
            (
                f"{len(self.missing)} files that {self.entry.metadata_file} lists are missing and are left out",
                self.missing,
            ),
            (f"skipped {len(self.skipped)} of {total} files", self.skipped),
            (f"ignored {len(self.ignored)} files of formats that are not read; convert them", self.ignored),
            (f"{len(self.no_caption)} captions are missing and count as the empty prompt", self.no_caption),
            (f"{len(self.empty_caption)} captions are empty and count as the empty prompt", self.empty_caption),
        )
        for fault, names in kinds:
            if names:
                logger.warning(f"{self.entry.id}: {fault}: {_shorten(names)}")

    @property
    def _folder(self) -> Path:
        return local_path(self.entry.instance_data_dir)

    @property
    def _kept(self) -> int:
        """How many files gave samples."""
        return sum(not sample.mirrored for sample in self.samples)

    @property
    def _where(self) -> str:
        return f"instance_data_dir of {self.entry.id!r}"

    @property
    def _is_listed(self) -> bool:
        """Whether `metadata_file` says which files there are."""
        return self.entry.caption_strategy == "class"

    @property
    def _is_video(self) -> bool:
        return self.entry.dataset_type == "video"

    @property
    def _file_frames(self) -> int:
        """How many frames of a file a clip of full length spans."""
        video = self.entry.video
        return 1 + (video.num_frames - 1) * video.frame_stride if self._is_video else 1

    def _require_folder(self) -> None:
        if not self._folder.is_dir():
            raise DatasetError(f"{self._where}: there is no folder {self._folder}. Make it or set another.")

    def _files(self, candidates: Iterable[Path]) -> list[Path]:
        """Those that may be images or clips, sorted; others of such formats are noted."""
        suffixes = VIDEO_SUFFIXES if self._is_video else IMAGE_SUFFIXES
        found = sorted(candidates, key=lambda path: path.relative_to(self._folder).as_posix())
        media = [path for path in found if path.suffix.lower() in suffixes]
        self.ignored = [str(path) for path in found if path.suffix.lower() in _OTHER_IMAGES | _OTHER_VIDEOS]
        if not media:
            kinds, entry = ", ".join(sorted(suffixes)), self.entry
            if self._is_listed:
                raise DatasetError(
                    f"metadata_file of {entry.id!r}: {entry.metadata_file} lists no {entry.dataset_type} ({kinds}). "
                    "List some, or set another."
                )
            raise DatasetError(
                f"{self._where}: {self._folder} holds no {entry.dataset_type} ({kinds}). Put files there or set "
                "another."
            )
        return media

    def _target_side(self) -> float:
        entry, config = self.entry, self.config
        if entry.resolution is None:
            side = float(config.resolution)
        else:
            side = area_side(entry.resolution) if entry.resolution_type == "area" else entry.resolution
        if side < config.aspect_bucket_alignment:
            raise DatasetError(
                f"resolution of {entry.id!r}: {side:g} pixels are less than aspect_bucket_alignment "
                f"({config.aspect_bucket_alignment}). Raise the one or lower the other."
            )
        return side

    def _bucket(self, path: Path, found: Measure, side: float) -> Bucket:
        square = self.entry.crop and self.entry.crop_aspect == "square"
        alignment = self.config.aspect_bucket_alignment
        width, height = bucket_size(found.width, found.height, side, alignment, square=square)
        most, token = self.family.max_tokens, self.family.pixels_per_token
        if most is not None and max(width, height) > most * token:
            where = f"the model has positions for {most * token} a side: lower resolution, or crop to squares"
            raise MediaError(path, f"would be {width}×{height} pixels, and {where}")
        return Bucket(width, height, self._clip_length(path, found.frames) if self._is_video else 1)

    def _require_square(self, path: Path, found: Measure, bucket: Bucket) -> None:
        if self.family.square_only and bucket.width != bucket.height:
            entry = self.entry
            fault = (
                f"crop_aspect of {entry.id!r} is {entry.crop_aspect!r}"
                if entry.crop
                else f"crop of {entry.id!r} is false"
            )
            raise DatasetError(
                f"{fault}, but {self.family.name} takes square images only, and {path} has "
                f"{found.width}×{found.height} pixels. {squares_mend(entry)}"
            )

    def _clip_length(self, path: Path, frames_in_file: int) -> int:
        video, ratio = self.entry.video, self.family.frame_ratio
        available = 1 + (frames_in_file - 1) // video.frame_stride
        length = clip_length(available, video.num_frames, ratio)
        # Without min_frames clips have full length, which is less than num_frames if the VAE can't encode so many.
        full = clip_length(video.num_frames, video.num_frames, ratio)
        shortest = full if video.min_frames is None else video.min_frames
        if length < shortest:
            raise MediaError(path, f"gives {length} frames at frame_stride {video.frame_stride}, {shortest} are needed")
        return length

    def _add(self, path: Path, found: Measure, bucket: Bucket, caption: str | None) -> None:
        if not caption:
            faults = self.no_caption if caption is None else self.empty_caption
            faults.append(str(caption_source(self.entry, path)))
        entry = self.entry
        own = entry.cache_dir_vae
        sample = Sample(
            id=f"{entry.id}/{path.relative_to(self._folder).as_posix()}",
            entry_id=entry.id,
            path=path,
            digest=found.digest,
            caption="" if caption is None else caption,
            width=found.width,
            height=found.height,
            bucket=bucket,
            latent_frames=1 + (bucket.frames - 1) // self.family.frame_ratio,
            latent_folder=local_path(self.config.cache_dir) / "vae" if own is None else local_path(own),
            frame_stride=entry.video.frame_stride if self._is_video else 1,
            crop=entry.crop,
            crop_pct=entry.crop_pct,
            repeats=entry.repeats,
        )
        self.samples.append(sample)
        if entry.horizontal_flip:
            self.samples.append(replace(sample, id=f"{sample.id} (mirrored)", mirrored=True))

    def _require_something(self) -> None:
        entry = self.entry
        if not self.samples and self.missing and not self.skipped:
            raise DatasetError(
                f"{self._where}: none of the {len(self.missing)} files that {entry.metadata_file} lists is below "
                f"{self._folder}: {_shorten(self.missing)}. Set the folder to which its img_path is relative: "
                "Data/CLS-LOC/train of ILSVRC."
            )
        if not self.samples:
            raise DatasetError(
                f"{self._where}: none of the {len(self.skipped)} files in {self._folder} is "
                f"usable: {_shorten(self.skipped)}. Mend them or set 'disabled' to true."
            )
        if len(self.no_caption) == self._kept:
            raise DatasetError(
                f"caption_strategy {entry.caption_strategy!r} of {entry.id!r} finds no caption: "
                f"{_shorten(self.no_caption)}. Write captions or choose another caption_strategy."
            )


def _visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links too, save for those that begin with a dot or lie in such a folder."""
    # Of each folder the real ones that lead to it: a link to one of them is a circle.
    leading = {folder: frozenset({folder.resolve()})}
    for root, folders, names in os.walk(folder, followlinks=True):
        above, inside = leading.pop(Path(root)), []
        for name in folders:
            path = Path(root, name)
            if not name.startswith(".") and path.resolve() not in above:
                leading[path] = above | {path.resolve()}
                inside.append(name)
        folders[:] = inside
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _shorten(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return "; ".join(names[:_NAMES_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
