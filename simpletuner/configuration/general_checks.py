"""Rules for the options of a run. Each takes the configuration and, if known, the model's family."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from simpletuner.configuration.config import Config
from simpletuner.configuration.family import Family
from simpletuner.configuration.fields import describe_all
from simpletuner.configuration.paths import kind_of, local_path, looks_like_path, missing_path, not_a_folder
from simpletuner.configuration.problems import Problem, warning

Problems = Iterator[Problem]


def required_options(config: Config, family: Family | None) -> Problems:
    """A run needs a model and data."""
    for info in describe_all(Config):
        if info.required and not getattr(config, info.name):
            yield Problem(info.name, "is not set", info.help)


def paths(config: Config, family: Family | None) -> Problems:
    """What looks like a local path exists."""
    model = config.pretrained_model_name_or_path
    checked = {"data_backend_config": config.data_backend_config}
    if looks_like_path(model):
        checked["pretrained_model_name_or_path"] = model
    if config.resume_from_checkpoint not in (None, "latest"):
        checked["resume_from_checkpoint"] = config.resume_from_checkpoint or ""
    for name, value in checked.items():
        problem = missing_path(value) if value else None
        if problem is not None:
            yield Problem(name, *problem)
    if kind_of(local_path(config.data_backend_config)) == "folder" and config.data_backend_config:
        yield Problem("data_backend_config", f"{config.data_backend_config!r} is a folder", "Name the JSON file in it.")
    for name in ("output_dir", "cache_dir"):
        problem = not_a_folder(getattr(config, name))
        if problem is not None:
            yield Problem(name, *problem)
    resume = local_path(config.resume_from_checkpoint or "latest")
    if str(resume) != "latest" and kind_of(resume) and not kind_of(resume / "manifest.json"):
        message = f"{str(resume)!r} is no checkpoint: it has no manifest.json"
        yield Problem("resume_from_checkpoint", message, "Name a folder such as output_dir/checkpoint-500, or latest.")


def length_of_run(config: Config, family: Family | None) -> Problems:
    """The run has an end, and what is counted in steps happens before it."""
    steps, epochs = config.max_train_steps, config.num_train_epochs
    if steps == 0 and epochs == 0:
        yield Problem("max_train_steps", "is 0, and so is num_train_epochs: the run has no end", "Set one of them.")
    if steps > 0 and epochs > 0:
        yield warning("num_train_epochs", "is set beside max_train_steps", "Whichever is shorter ends the run.")
    if steps == 0:
        return
    if config.lr_scheduler != "constant" and config.lr_warmup_steps >= steps:
        message = f"{config.lr_warmup_steps} is not below max_train_steps ({steps}): learning_rate is never reached"
        yield Problem("lr_warmup_steps", message, "Shorten the warm-up.")
    intervals = ["checkpoint_step_interval", *(["validation_step_interval"] if config.validation_prompt else [])]
    for name in intervals:
        if name in config.model_fields_set and getattr(config, name) > steps:
            message = f"{getattr(config, name)} is above max_train_steps ({steps})"
            yield warning(name, message, "It only happens at the end; lower it for more.")


def sizes(config: Config, family: Family | None) -> Problems:
    """Images divide into whole tokens."""
    yield from image_size_problems(config.resolution, config.aspect_bucket_alignment, family)
    if family is None:
        return
    yield from _token_problems("aspect_bucket_alignment", config.aspect_bucket_alignment, family)
    if config.validation_resolution is not None:
        sides = [int(side) for side in config.validation_resolution.split("x")]
        for side in sides:
            yield from _token_problems("validation_resolution", side, family)
        if family.square_only and sides[0] != sides[-1]:
            message = f"{config.validation_resolution} is not square, but {family.name} makes square images only"
            yield Problem("validation_resolution", message, f"Use {max(sides)}.")


def image_size_problems(resolution: float, alignment: int, family: Family | None) -> Problems:
    """A resolution in pixels divides into tokens, and into the steps in which the sides of buckets grow."""
    in_tokens = list(_token_problems("resolution", resolution, family)) if family is not None else []
    if resolution < alignment:
        message = f"{resolution:g} is smaller than aspect_bucket_alignment ({alignment})"
        yield Problem("resolution", message, "Raise it, or lower aspect_bucket_alignment.")
    elif in_tokens:
        yield from in_tokens
    elif resolution % alignment != 0:
        message = f"{resolution:g} is not a multiple of aspect_bucket_alignment ({alignment})"
        yield warning("resolution", message, "The sides of buckets are rounded to such multiples.")


def _token_problems(name: str, side: float, family: Family) -> Problems:
    token = family.pixels_per_token
    if side % token != 0:
        lower = int(side // token * token)
        # A model on the hub may have other patches than the published one, though few do.
        model = family.name if family.token_is_stated else f"published {family.name}"
        message = f"{side:g} is not a multiple of {token}, the pixels of a {model} token"
        mend = f"Use {f'{lower} or ' if lower > 0 else ''}{lower + token}."
        yield Problem(name, message, mend, "error" if family.token_is_stated else "warning")
    elif family.max_tokens is not None and side > family.max_tokens * token:
        message = (
            f"{side:g} is more than this {family.name} has positions for: {family.max_tokens * token} pixels a side"
        )
        yield Problem(name, message, "Lower it.")


def model_type(config: Config, family: Family | None) -> Problems:
    """Adapters need a model that has learned something."""
    if config.train_from_scratch and config.model_type == "lora":
        message = "is on, but model_type is lora: adapters would train beside frozen random weights"
        yield Problem("train_from_scratch", message, "Set model_type to full.")
    elif config.train_from_scratch and config.trainable_prefixes is not None:
        message = "is set, but train_from_scratch is on: the rest of the model would stay at its random weights"
        yield Problem("trainable_prefixes", message, "Remove one of them.")


def objective(config: Config, family: Family | None) -> Problems:
    """The family can be trained so, and options of one objective do nothing for the other."""
    known = family.prediction_types if family is not None else ()
    wanted = config.prediction_type or (known[0] if len(known) == 1 else None)
    if family is not None and wanted is not None and wanted not in known:
        message = f"{wanted} is not what {family.name} can be trained for"
        yield Problem("prediction_type", message, f"Use {' or '.join(known)}, or remove it.")
    if wanted == "flow_matching" and config.snr_gamma is not None:
        yield warning("snr_gamma", "has no effect: prediction_type is flow_matching", "Remove it.")
    if wanted in ("epsilon", "v_prediction") and config.flow_schedule_shift is not None:
        yield warning("flow_schedule_shift", f"has no effect: prediction_type is {wanted}", "Remove it.")


def tracker(config: Config, family: Family | None) -> Problems:
    """What the run reports to is installed; accelerate would go on without it."""
    name = config.report_to
    if name != "none" and find_spec(name) is None:
        yield Problem("report_to", f"{name} is not installed", f"Run `pip install {name}`, or use tensorboard or none.")


def validation_frames(config: Config, family: Family | None) -> Problems:
    """Clips have a length that the VAE can divide."""
    frames = config.validation_num_video_frames
    if frames is not None and family is not None and family.media == "video" and (frames - 1) % family.frame_ratio != 0:
        yield Problem("validation_num_video_frames", *odd_frame_count(frames, family))


def only_for_video(config: Config, family: Family | None) -> Problems:
    """Options about frames do nothing for images."""
    if family is None or family.media == "video":
        return
    defaults = Config()
    for info in describe_all(Config):
        if info.only_for == "video" and getattr(config, info.name) != getattr(defaults, info.name):
            message = f"has no effect: {family.name} makes images, which have one frame"
            yield warning(info.name, message, "Remove it.")


def odd_frame_count(frames: int, family: Family) -> tuple[str, str]:
    """Message and mend for a clip length that is not a whole number of latent frames."""
    lower = (frames - 1) // family.frame_ratio * family.frame_ratio + 1
    message = f"{frames} is not a multiple of {family.frame_ratio} plus 1, as {family.name} needs"
    return message, f"Use {lower} or {lower + family.frame_ratio}."


GENERAL_RULES = (
    required_options,
    paths,
    length_of_run,
    sizes,
    model_type,
    objective,
    tracker,
    validation_frames,
    only_for_video,
)
