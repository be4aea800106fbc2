"""Rules for the options of the alignment losses. Each takes the configuration and, if known, the model's family."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.configuration.alignment import AlignmentOptions
from simpletuner.configuration.coefficient import FAST_SPAN
from simpletuner.configuration.config import Config
from simpletuner.configuration.encoders import encoder_patch, encoder_width, unknown_encoder
from simpletuner.configuration.family import Family
from simpletuner.configuration.problems import Problem, Severity, warning

Problems = Iterator[Problem]

# Cosines between a projected student and its teacher saturate near 0.60-0.63 (arXiv 2503.18414).
REACHABLE_SIMILARITY = 0.8
# In shorter runs the faster average of the plateau rule covers less than five steps.
SHORTEST_FOR_A_PLATEAU = round(5 / FAST_SPAN)


def wrong_prefix(config: Config, family: Family | None) -> Problems:
    """CREPA belongs to transformers, U-REPA to UNets; the other one would do nothing."""
    if family is None:
        return
    wrong, right = ("crepa", "urepa") if family.model_type == "unet" else ("urepa", "crepa")
    if getattr(config, f"{wrong}_enabled"):
        yield Problem(
            f"{wrong}_enabled",
            f"is on, but {family.name} is a {'UNet' if family.model_type == 'unet' else 'transformer'}",
            f"Use {right}_enabled and the other {right}_* options.",
        )


def crepa_blocks(config: Config, family: Family | None) -> Problems:
    """The student's block, and with the backbone as teacher the teacher's, exist and differ."""
    options = config.crepa
    if not options.enabled or (family is not None and family.model_type == "unet"):
        return
    tap = options.block_index
    if tap is None and family is not None and family.default_block is None:
        yield Problem("crepa_block_index", f"is not set, and {family.name} has no default", "Name a block.")
    yield from _in_depth("crepa_block_index", tap, family)
    if not options.teacher_is_backbone:
        return
    teacher = options.teacher_block_index
    if teacher is None:
        yield Problem("crepa_teacher_block_index", "is not set, but crepa_feature_source is backbone", "Name a block.")
    yield from _in_depth("crepa_teacher_block_index", teacher, family)
    if tap is None and family is not None:
        certain = "depth" in family.stated
        yield from _teacher_is_deeper("crepa_teacher_block_index", family.default_block, teacher, certain=certain)
    else:
        yield from _teacher_is_deeper("crepa_teacher_block_index", tap, teacher)


def layersync_blocks(config: Config, family: Family | None) -> Problems:
    """LayerSync needs a transformer and two of its blocks, the teacher deeper than the student."""
    options = config.layersync
    if not options.enabled:
        return
    if family is not None and family.model_type == "unet":
        yield Problem("layersync_enabled", f"is on, but {family.name} is a UNet", "Turn it off, or use urepa_enabled.")
        return
    blocks = {
        "layersync_student_block": options.student_block,
        "layersync_teacher_block": options.teacher_block,
    }
    for name, block in blocks.items():
        if block is None:
            yield Problem(name, "is not set, but layersync_enabled is on", "Name a block.")
        yield from _in_depth(name, block, family)
    yield from _teacher_is_deeper("layersync_teacher_block", options.student_block, options.teacher_block)
    if options.lambda_ == 0:
        yield _zero_weight("layersync")


def encoder(config: Config, family: Family | None) -> Problems:
    """The encoder's name is known, and its image size a multiple of its patch."""
    for options in _enabled(config):
        if options.teacher_is_backbone:
            continue
        name, size = options.encoder, options.encoder_image_size
        problem = unknown_encoder(name)
        if problem is not None:
            yield Problem(options.key("encoder"), *problem)
        patch = encoder_patch(name)
        if patch is not None and size != "auto" and size % patch != 0:
            lower = size // patch * patch
            yield Problem(
                options.key("encoder_image_size"),
                f"{size} is not a multiple of {patch}, the patch of {name}",
                f'Use {max(lower, patch)}, {lower + patch} or "auto".',
            )


def schedule(config: Config, family: Family | None) -> Problems:
    """Warm-up, decay and cutoffs can take effect within the run."""
    for options in _enabled(config):
        if options.lambda_ == 0:
            yield _zero_weight(options.PREFIX)
        yield from _idle_decay(options)
        if config.max_train_steps > 0:
            yield from _beyond_the_run(options, config.max_train_steps)
        if 0 < options.cutoff_step <= options.warmup_steps:
            yield warning(
                options.key("cutoff_step"),
                f"{options.cutoff_step} cuts off within the warm-up of {options.warmup_steps} steps",
                f"Raise it, or lower {options.key('warmup_steps')}.",
            )
        if options.plateau_stop and 0 < config.max_train_steps < SHORTEST_FOR_A_PLATEAU:
            yield warning(
                options.key("plateau_stop"),
                f"averages over too few steps in a run of {config.max_train_steps}: chance may end the loss",
                f"Use {options.key('cutoff_step')} in runs of less than {SHORTEST_FOR_A_PLATEAU} steps.",
            )
        threshold = options.similarity_threshold
        if threshold is not None and threshold > REACHABLE_SIMILARITY and not options.teacher_is_backbone:
            yield warning(
                options.key("similarity_threshold"),
                f"{threshold:g} is hardly ever reached: similarities saturate near 0.6",
                "Use a lower one, or another cutoff.",
            )


def _idle_decay(options: AlignmentOptions) -> Problems:
    if options.scheduler == "constant":
        for name, value in (("decay_steps", options.decay_steps), ("lambda_end", options.lambda_end)):
            if value != 0:
                yield Problem(
                    options.key(name),
                    f"{value:g} can never take effect: {options.key('scheduler')} is constant",
                    f"Set {options.key('scheduler')} to linear, cosine or polynomial, or remove this.",
                )
    elif options.lambda_end == options.lambda_ > 0:
        message = f"{options.lambda_end:g} equals {options.key('lambda_')}: the weight stays as it is"
        yield warning(options.key("lambda_end"), message, f"Lower it, or set {options.key('scheduler')} to constant.")
    elif options.lambda_end > options.lambda_ > 0:
        message = f"{options.lambda_end:g} is above {options.key('lambda_')} {options.lambda_:g}: the weight would grow"
        yield warning(options.key("lambda_end"), message, "Alignment should fade; lower it.")


def _beyond_the_run(options: AlignmentOptions, steps: int) -> Problems:
    warmup, cutoff = options.warmup_steps, options.cutoff_step
    if warmup >= steps:
        message = f"{warmup} is not below max_train_steps ({steps}): the full weight is never reached"
        yield Problem(options.key("warmup_steps"), message, "Shorten the warm-up.")
    elif options.scheduler != "constant" and warmup + options.decay_steps > steps:
        message = f"the decay would end at step {warmup + options.decay_steps}, after max_train_steps ({steps})"
        yield warning(options.key("decay_steps"), message, f"Use at most {steps - warmup}, or 0 for the rest.")
    if cutoff >= steps:
        message = f"{cutoff} can never take effect: max_train_steps is {steps}"
        yield Problem(options.key("cutoff_step"), message, "Lower it, or remove it.")


def irepa(config: Config, family: Family | None) -> Problems:
    """iREPA modifies CREPA or U-REPA, and brings a projector of its own."""
    if config.irepa.projector_kernel_size % 2 == 0:
        message = f"{config.irepa.projector_kernel_size} is even: the tokens would shift by half a token"
        yield Problem("irepa_projector_kernel_size", message, "Use an odd number.")
    if not config.irepa.enabled:
        return
    enabled = list(_enabled(config))
    if not enabled:
        yield Problem(
            "irepa_enabled", "is on, but neither CREPA nor U-REPA is", "Turn on crepa_enabled or urepa_enabled."
        )
    for options in enabled:
        key = options.key("projector")
        if options.projector != "conv" and (options.projector != "linear" or key in config.model_fields_set):
            message = f"is {options.projector}, but iREPA uses a convolution"
            severity: Severity = "warning" if options.projector == "linear" else "error"
            yield Problem(key, message, "Use conv, or turn irepa_enabled off.", severity)
        if options.caches_features:
            yield from _changed_before_irepa(options)


def _changed_before_irepa(options: AlignmentOptions) -> Problems:
    """iREPA normalises what the encoder gives (arXiv 2512.10794), not what a cache made of it."""
    for name, change in (
        ("feature_cache_dim", "whitens the tokens"),
        ("feature_cache_normalized", "scales the tokens"),
    ):
        if getattr(options, name):
            message = f"{change} before iREPA normalises them, which its authors don't"
            yield warning(options.key(name), message, "Remove it, or turn irepa_enabled off.")


def urepa_layers(config: Config, family: Family | None) -> Problems:
    """Each layer is aligned once."""
    layers = config.urepa.align_layers
    if len(set(layers)) < len(layers):
        yield Problem("urepa_align_layers", f"{', '.join(layers)} names a layer twice", "Name each layer once.")


def sample_manifold(config: Config, family: Family | None) -> Problems:
    """The manifold loss over samples compares the samples of a batch with each other."""
    options = config.urepa
    if options.enabled and options.manifold_scope == "sample" and config.train_batch_size == 1:
        message = "is sample, but a batch has one sample on each device: on a single device there is nothing to compare"
        yield warning("urepa_manifold_scope", message, "Raise train_batch_size, or use token.")


def feature_cache(config: Config, family: Family | None) -> Problems:
    """Features decoded from latents aren't cached, and a whitening lowers the teacher's width."""
    for options in _enabled(config):
        if options.teacher_is_backbone:
            continue
        if options.use_tae:
            for name in ("feature_cache_dtype", "feature_cache_dim", "feature_cache_normalized"):
                if getattr(options, name) != type(options).model_fields[name].default:
                    message = f"has no effect: with {options.key('use_tae')} features are made in the step"
                    yield warning(options.key(name), message, f"Remove it, or {options.key('use_tae')}.")
        dim, width = options.feature_cache_dim, encoder_width(options.encoder)
        if dim is not None and width is not None and dim > width:
            message = f"{dim} is more than the width of {options.encoder}, {width}"
            yield Problem(options.key("feature_cache_dim"), message, "Use 128, or remove it to keep the whole width.")
        if dim is not None and options.feature_cache_normalized:
            message = f"is on, but {options.key('feature_cache_dim')} whitens the tokens, which undoes it"
            yield Problem(options.key("feature_cache_normalized"), message, "Remove one of them.")


def _enabled(config: Config) -> Iterator[AlignmentOptions]:
    return (options for options in (config.crepa, config.urepa) if options.enabled)


def _in_depth(name: str, block: int | None, family: Family | None) -> Problems:
    if block is None or family is None or family.depth is None or block < family.depth:
        return
    if "depth" in family.stated:
        message = f"{block} is too high: the model has {family.depth} blocks"
        yield Problem(name, message, f"Use 0 to {family.depth - 1}.")
    else:
        message = f"{block} is too high for the published {family.name}, which has {family.depth} blocks"
        yield warning(name, message, f"Use 0 to {family.depth - 1}, unless this model is a larger one.")


def _teacher_is_deeper(name: str, student: int | None, teacher: int | None, *, certain: bool = True) -> Problems:
    """``certain``: the student's block is named, not the default of a published model that may be of another size."""
    if student is None or teacher is None:
        return
    if teacher == student:
        message = f"{teacher} is the student's block: the loss would be constant"
        yield Problem(name, message, "Name a deeper block.", "error" if certain else "warning")
    elif teacher < student:
        message = f"{teacher} is shallower than the student's block {student}"
        yield warning(name, message, "Deeper blocks make the better teachers.")


def _zero_weight(prefix: str) -> Problem:
    return warning(f"{prefix}_lambda", "is 0: the loss has no effect", f"Raise it, or set {prefix}_enabled to false.")


ALIGNMENT_RULES = (
    wrong_prefix,
    crepa_blocks,
    layersync_blocks,
    encoder,
    schedule,
    irepa,
    urepa_layers,
    sample_manifold,
    feature_cache,
)
