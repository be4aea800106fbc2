"""The options of a run that have nothing to do with alignment, a mixin for each tab."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import BeforeValidator

from simpletuner.configuration.fields import OptionGroup, option
from simpletuner.configuration.paths import PathText

PredictionType = Literal["flow_matching", "epsilon", "v_prediction"]
OptimizerName = Literal["adamw", "adam", "nadam", "radam", "adafactor", "sgd"]
LearningRateSchedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]
Tracker = Literal[
    "none", "tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"
]

# NumPy takes 32 bits, and every process adds its number.
MAX_SEED = 2**32 - 2**16

SIDE_OR_SIDES = r"^[1-9]\d{0,5}(x[1-9]\d{0,5})?$"


def _text_of_number(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_basic = partial(option, tab="Basic", section="Project")
_length = partial(option, tab="Basic", section="Length")
_model = partial(option, tab="Model", section="Model")
_memory = partial(option, tab="Model", section="Speed and memory")
_lora = partial(option, tab="Model", section="LoRA", depends_on="model_type=lora")


class ModelOptions(OptionGroup):
    """What is trained."""

    model_family: str = _basic("", required=True, help="The model family, such as dit, sd1x, sd3 or wan.")
    model_type: Literal["lora", "full"] = _basic(
        "lora", help="lora trains small adapters beside a frozen model; full trains all its weights."
    )
    pretrained_model_name_or_path: str = _basic(
        "",
        required=True,
        label="Model folder or hub name",
        help="A local folder in the diffusers layout, or a model on the Hugging Face hub (org/name).",
    )
    train_from_scratch: bool = _model(
        False,
        depends_on="model_type=full",
        label="Train from scratch",
        help="Builds the model from its config.json with random weights instead of loading them.",
    )
    prediction_type: PredictionType | None = _model(
        None, label="Prediction", help="What the model predicts. None takes what the model itself was made for."
    )
    lora_rank: int = _lora(
        16, ge=1, help="Rank of the LoRA matrices. 4 to 16 for a style or a subject, 64 and more for larger changes."
    )
    lora_alpha: float | None = _lora(
        None, gt=0, help="Scale of the LoRA: the update is multiplied by alpha / rank. None means the rank."
    )
    peft_lora_target_modules: list[str] | None = _lora(
        None,
        min_length=1,
        label="LoRA target modules",
        help="Ends of the names of the linear layers and convolutions that get an adapter, such as to_q, to_out.0 or "
        "conv1. None takes the family's: the attention.",
    )
    trainable_prefixes: list[str] | None = _model(
        None,
        min_length=1,
        label="Trained parts",
        help="The only parts of the model that are trained, by the prefixes of their names, such as mid_block. or "
        "up_blocks.0.: adapters are added there alone, and with model_type full the rest is frozen. None trains the "
        "whole model.",
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = _memory(
        "bf16", help="Number format of the forward pass; bf16 on recent GPUs, no on the CPU."
    )
    gradient_checkpointing: bool = _memory(
        False, help="Computes activations again in the backward pass: much less memory, about a third slower."
    )
    compile_model: bool = _memory(
        False,
        label="Compile the model",
        help="Compiles the model with torch.compile: slow first steps, faster ones after them.",
    )


_dataset = partial(option, tab="Data", section="Data sets")
_image = partial(option, tab="Data", section="Images")
_cache = partial(option, tab="Data", section="Caches")


class DataOptions(OptionGroup):
    """What it is trained on."""

    data_backend_config: PathText = _dataset(
        "",
        required=True,
        label="Data sets file",
        help="Path of the JSON file that lists the data sets (multidatabackend.json).",
    )
    caption_dropout_probability: float = _dataset(
        0.1,
        ge=0,
        le=1,
        label="Caption dropout",
        help="Share of samples trained with an empty caption, so that guidance works. 0.05 to 0.1.",
    )
    resolution: int = _image(
        1024,
        ge=1,
        help="Size of training images unless a data set has its own: the side in pixels of the square with the same "
        "area.",
    )
    aspect_bucket_alignment: int = _image(
        64,
        ge=1,
        label="Bucket alignment",
        help="Sides of aspect buckets are multiples of this many pixels: 64 suits most models, 32 a resolution of 480.",
    )
    cache_dir: PathText = _cache(
        "cache",
        min_length=1,
        label="Cache folder",
        help="Folder of the caches: latents, prompts and the teacher's features.",
    )
    vae_cache_dtype: Literal["fp32", "fp16", "bf16"] = _cache(
        "fp32",
        label="Latent format",
        help="Number format of cached latents: fp16 and bf16 take half the disk space. Training widens them again.",
    )
    vae_batch_size: int = _cache(4, ge=1, help="Images that the VAE encodes at once while the cache is built.")
    max_workers: int = _cache(
        2,
        ge=0,
        label="Loader processes",
        help="Processes that load samples in the background. 0 loads in the main one.",
    )


_optimizer = partial(option, tab="Training", section="Optimizer")
_rate = partial(option, tab="Training", section="Learning rate")
_objective = partial(option, tab="Training", section="Objective")
_ema = partial(option, tab="Training", section="EMA")


class OptimisationOptions(OptionGroup):
    """How it is trained."""

    max_train_steps: int = _length(
        0, ge=0, label="Training steps", help="Length of the run in optimizer steps. 0 leaves it to num_train_epochs."
    )
    num_train_epochs: int = _length(
        0, ge=0, label="Epochs", help="Length of the run in passes over the data. 0 leaves it to max_train_steps."
    )
    train_batch_size: int = _length(1, ge=1, label="Batch size", help="Samples in a batch on each device.")
    gradient_accumulation_steps: int = _length(
        1, ge=1, label="Gradient accumulation", help="Batches whose gradients are averaged for one optimizer step."
    )
    optimizer: OptimizerName = _optimizer("adamw", help="The optimizer. adamw is the papers' choice.")
    adam_beta1: float = _optimizer(
        0.9, ge=0, lt=1, depends_on="optimizer=adamw|adam|nadam|radam", label="Adam beta 1", help="Adam's beta 1."
    )
    adam_beta2: float = _optimizer(
        0.999, ge=0, lt=1, depends_on="optimizer=adamw|adam|nadam|radam", label="Adam beta 2", help="Adam's beta 2."
    )
    adam_epsilon: float = _optimizer(
        1e-8,
        gt=0,
        depends_on="optimizer=adamw|adam|nadam|radam",
        label="Adam epsilon",
        help="Adam's epsilon, for numerical stability.",
    )
    adam_weight_decay: float = _optimizer(
        0.0, ge=0, label="Weight decay", help="Weight decay. REPA trains with 0; 0.01 is usual for a LoRA."
    )
    max_grad_norm: float = _optimizer(
        1.0, ge=0, label="Largest gradient norm", help="Clips the gradient to this norm. 0 turns clipping off."
    )
    learning_rate: float = _rate(
        1e-4, gt=0, help="Learning rate after the warm-up: about 1e-4 for a LoRA or from scratch, 1e-5 for full tuning."
    )
    lr_scheduler: LearningRateSchedule = _rate(
        "constant", label="Learning rate schedule", help="How the learning rate moves over the run."
    )
    lr_warmup_steps: int = _rate(
        0,
        ge=0,
        depends_on="lr_scheduler=constant_with_warmup|linear|cosine|cosine_with_restarts|polynomial",
        label="Warm-up steps",
        help="Optimizer steps over which the learning rate rises from 0.",
    )
    lr_num_cycles: int = _rate(
        1,
        ge=1,
        depends_on="lr_scheduler=cosine_with_restarts",
        label="Restarts",
        help="Number of hard restarts of the cosine.",
    )
    lr_power: float = _rate(
        1.0,
        gt=0,
        depends_on="lr_scheduler=polynomial",
        label="Decay exponent",
        help="Exponent of the polynomial decay.",
    )
    snr_gamma: float | None = _objective(
        None,
        gt=0,
        label="Min-SNR gamma",
        help="Min-SNR weighting for epsilon and v prediction; 5 is the paper's value. None turns it off.",
    )
    flow_schedule_shift: float | None = _objective(
        None,
        gt=0,
        label="Timestep shift",
        help="Moves the timesteps of flow matching toward noise: 1 not at all, 3 for SD3 at 1024 pixels. None takes "
        "the shift of the model's own scheduler.",
    )
    use_ema: bool = _ema(
        False, label="Keep an EMA", help="Keeps a moving average of the weights, and validates and exports that."
    )
    ema_decay: float = _ema(
        0.9999,
        ge=0,
        lt=1,
        depends_on="use_ema",
        help="Decay of the average; 0.9999 for long runs, 0.99 for short ones.",
    )
    ema_update_interval: int = _ema(
        1, ge=1, depends_on="use_ema", label="EMA update interval", help="Optimizer steps between two updates."
    )


_checkpoint = partial(option, tab="Run", section="Checkpoints")


class CheckpointOptions(OptionGroup):
    """What is kept."""

    output_dir: PathText = _basic(
        "output", min_length=1, label="Output folder", help="Folder of checkpoints, logs and the trained model."
    )
    checkpoint_step_interval: int = _checkpoint(
        500,
        ge=0,
        label="Steps between checkpoints",
        help="Optimizer steps between two checkpoints. 0 saves only at the end.",
    )
    checkpoints_total_limit: int = _checkpoint(
        5, ge=0, label="Checkpoints kept", help="Number of checkpoints kept; the oldest go first. 0 keeps all."
    )
    resume_from_checkpoint: PathText | None = _checkpoint(
        None,
        label="Resume from",
        help="latest continues from the newest intact checkpoint in output_dir; a path from that one.",
    )


_validation = partial(option, tab="Validation", section="Validation")
_when_validating = partial(_validation, depends_on="validation_prompt")


class ValidationOptions(OptionGroup):
    """What is looked at meanwhile."""

    validation_prompt: str | None = _validation(
        None,
        label="Prompt",
        help="Prompt (for a class-conditional model the class) to sample from while training. None: no samples.",
    )
    validation_negative_prompt: str = _when_validating(
        "", label="Negative prompt", help="Negative prompt of the samples."
    )
    validation_step_interval: int = _when_validating(
        500,
        ge=0,
        label="Steps between validations",
        help="Optimizer steps between two validations. 0 validates only at the end.",
    )
    num_validation_images: int = _when_validating(1, ge=1, label="Samples", help="Samples made at each validation.")
    validation_guidance: float = _when_validating(
        5.0, ge=0, label="Guidance scale", help="Guidance scale of the samples. 1 samples without guidance."
    )
    validation_num_inference_steps: int = _when_validating(
        30, ge=1, label="Denoising steps", help="Denoising steps of a sample."
    )
    validation_resolution: Annotated[str, BeforeValidator(_text_of_number)] | None = _when_validating(
        None,
        pattern=SIDE_OR_SIDES,
        example="1344x768",
        label="Size",
        help="Size of the samples in pixels: 1024, or 1344x768 (width x height). None takes resolution, "
        "whatever the data sets have.",
    )
    validation_seed: int | None = _when_validating(
        None,
        ge=0,
        le=2**63 - 1,
        label="Seed of the samples",
        help="Seed of the samples, the same at every validation. None takes seed.",
    )
    validation_num_video_frames: int | None = _when_validating(
        None,
        ge=1,
        label="Frames",
        only_for="video",
        help="Frames of a sampled clip (video families). None takes as many as the data set has.",
    )


def _numbers_of_texts(value: object) -> object:
    """The numbers of a list as the command line gives it, `0,0.7` or `[0, 0.7]`; what is none stays, to be refused."""
    if not isinstance(value, list):
        return value
    try:
        return [float(item.strip("[] ")) if isinstance(item, str) else item for item in value]
    except ValueError:
        return value


_evaluation = partial(option, tab="Validation", section="Evaluation")


class EvaluationOptions(OptionGroup):
    """How samples of the model are compared with real images, by `simpletuner evaluate` and while it trains."""

    eval_steps_interval: int = _evaluation(
        0,
        ge=0,
        label="Steps between evaluations",
        help="Optimizer steps between two evaluations while training, and one at the end. 0: none; `simpletuner "
        "evaluate` makes them afterwards.",
    )
    num_eval_images: int = _evaluation(
        5000,
        ge=2,
        label="Samples evaluated",
        help="Samples made at each evaluation. Papers compare FID of 50000; fewer give higher values.",
    )
    evaluation_num_inference_steps: int = _evaluation(
        50, ge=1, label="Denoising steps", help="Denoising steps of a sample."
    )
    evaluation_guidance: float = _evaluation(
        1.0,
        ge=0,
        label="Guidance scale",
        help="Guidance scale of the samples. 1 samples without guidance, as papers first compare.",
    )
    evaluation_guidance_interval: Annotated[list[float], BeforeValidator(_numbers_of_texts)] | None = _evaluation(
        None,
        example="[0, 0.7]",
        label="Guidance interval",
        help="Lowest and highest noise level, of 0 (data) to 1 (noise), between which there is guidance. None is "
        "everywhere.",
    )
    evaluation_seed: int | None = _evaluation(
        None,
        ge=0,
        le=2**63 - 1,
        label="Seed of the samples",
        help="Seed of the samples; with its number it decides each. None takes seed.",
    )
    evaluation_batch_size: int = _evaluation(
        16, ge=1, label="Samples at once", help="Samples made at once on each device."
    )
    evaluation_features: str = _evaluation(
        "inception",
        min_length=1,
        label="Features",
        help="Features in which samples and images are compared: inception for FID, or an encoder (timm/<name>, "
        "dinov2_vitl14, efficientnet_lite0, a local folder) for a Fréchet distance of another name.",
    )
    evaluation_inception_weights: PathText | None = _evaluation(
        None,
        label="Inception weights",
        help="File of torch-fidelity's Inception weights. None takes the library's own download.",
    )
    evaluation_reference: PathText | None = _evaluation(
        None,
        label="Reference images",
        help="Folder of images that samples are compared with; their centres are brought to the samples' size. None "
        "takes the training's own images, cut as they are trained.",
    )


_tracking = partial(option, tab="Run", section="Tracking")


class RunOptions(OptionGroup):
    """How the run presents itself."""

    seed: int = _basic(42, ge=0, le=MAX_SEED, help="Seed of weights, noise and data order.")
    report_to: Tracker = _tracking(
        "tensorboard",
        label="Tracker",
        help="Where losses and samples are logged; TensorBoard writes to output_dir/logs.",
    )
    tracker_project_name: str = _tracking(
        "simpletuner", min_length=1, label="Tracker project", help="Project under which runs are grouped."
    )
    tracker_run_name: str | None = _tracking(
        None, label="Name of the run", help="Name of this run. None lets the tracker choose."
    )
