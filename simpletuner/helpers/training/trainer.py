"""The trainer: sets a run up, and one loop that reads from top to bottom."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration, set_seed
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor, nn

from simpletuner.configuration import Config
from simpletuner.configuration.dataset import load_dataset_config
from simpletuner.helpers.data.build import Caches, build_caches
from simpletuner.helpers.data.dataset import TrainingDataset, collate, training_batches
from simpletuner.helpers.data.progress import CacheProgress
from simpletuner.helpers.data.sampler import BucketBatchSampler
from simpletuner.helpers.data.samples import Sample, spread_evenly
from simpletuner.helpers.data.scan import find_samples
from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.models.registry import foundation_class
from simpletuner.helpers.training.checklist import require_checklist
from simpletuner.helpers.training.checkpoints import (
    find_resumable,
    require_same_shape,
    save_checkpoint,
    shaping_options,
)
from simpletuner.helpers.training.ema import averaged_weights, make_ema
from simpletuner.helpers.training.optimization import (
    average_gradients,
    clip_gradients,
    forget,
    make_lr_scheduler,
    make_optimizer,
    optimizer_options,
    set_learning_rate,
    without_group,
)
from simpletuner.helpers.training.reporting import Report, StepMetrics, start_trackers
from simpletuner.helpers.training.signals import stop_on_signals
from simpletuner.helpers.training.validation import validate, validation_prompts
from simpletuner.helpers.training.weights import load_trained_weights, save_trained_weights

PROJECTOR_OPTIMIZER_FILE = "projector_optimizer.pt"
# How long ranks wait for each other: one may scan, cache or sample alone meanwhile.
PATIENCE = timedelta(hours=6)


def make_accelerator(config: Config) -> Accelerator:
    """accelerate, as configured; devices and processes come from `accelerate launch`."""
    output_dir = Path(config.output_dir)
    return Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=None if config.report_to == "none" else config.report_to,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
    )


def prepare_data(
    config: Config, foundation: ModelFoundation, *, live: bool, verify: bool = False, rebuild: bool = False
) -> tuple[list[Sample], Caches]:
    """Finds the samples of a run and caches what it reads; what was loaded for that is freed again.

    Args:
        live: whether the main process shows progress. verify, rebuild: as of `build_caches`.
    """
    accelerator = foundation.accelerator
    entries, _ = load_dataset_config(Path(config.data_backend_config))
    samples = find_samples(entries, config, foundation.family, accelerator)
    with CacheProgress(enabled=live and accelerator.is_main_process) as progress:
        caches = build_caches(
            samples,
            foundation,
            config,
            progress,
            more_prompts=validation_prompts(config),
            verify=verify,
            rebuild=rebuild,
        )
    return samples, caches


class Trainer:
    """One training run.

    `setup` does everything up to the first step, `run` the steps. Between the two a caller may look at, or replace,
    the parts: `foundation`, `samples`, `optimizer` and the rest.

    Args:
        config: the run's configuration; it is taken as checked.
        live: whether the main process shows progress.
    """

    def __init__(self, config: Config, *, live: bool = True) -> None:
        self.config = config
        self.live = live
        self.output_dir = Path(config.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.accelerator = make_accelerator(config)
        self.foundation = foundation_class(config.model_family)(config, self.accelerator)
        self.step = 0
        self.stop_requested = False
        self._last_saved: int | None = None

    # Setting up

    def setup(self) -> None:
        """Scans and caches the data, loads the model, makes what trains it, and resumes."""
        set_seed(self.config.seed)
        self.foundation.verify()
        if self.config.eval_steps_interval > 0:
            from simpletuner.evaluation.evaluate import require_evaluation  # only where it is asked for

            require_evaluation(self)
        self._setup_data()
        self._setup_model()
        self._setup_optimization()
        self._register_state()
        self._resume()

    def _setup_data(self) -> None:
        config, accelerator = self.config, self.accelerator
        self.samples, caches = prepare_data(config, self.foundation, live=self.live)
        self.foundation.features = caches.features
        self.sampler = BucketBatchSampler(
            self.samples,
            config.train_batch_size,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        self.validation_text = [caches.records.prompt(prompt).read() for prompt in validation_prompts(config)]
        self.total_steps = self._count_steps()

    def _count_steps(self) -> int:
        """Optimizer steps of the run: the shorter of `max_train_steps` and `num_train_epochs` where both are set."""
        config = self.config
        epoch = len(self.sampler) / config.gradient_accumulation_steps
        lengths = (config.max_train_steps, math.ceil(config.num_train_epochs * epoch))
        return min(length for length in lengths if length > 0)

    def _setup_model(self) -> None:
        """Loads the model and its regularizers; the model's own parameters and the projector's are kept apart."""
        foundation = self.foundation
        if self.accelerator.distributed_type is DistributedType.DEEPSPEED:
            raise ValueError(
                "accelerate is configured for DeepSpeed, which isn't supported yet: choose DDP or FSDP2 with "
                "`accelerate config`."
            )
        if self.config.use_ema and self.accelerator.distributed_type is DistributedType.FSDP:
            raise ValueError(
                "use_ema is true, but under FSDP the averaged weights aren't kept yet: turn it off, or use DDP."
            )
        set_seed(self.config.seed)  # the same weights whatever the data needed before
        model = foundation.load_model(self.total_steps)
        regularizer = foundation.alignment
        self.parameters = foundation.trainable_parameters()
        self.projector_parameters: list[nn.Parameter] = []
        if regularizer is not None and regularizer.projector is not None:
            self.projector_parameters = list(regularizer.projector.parameters())
            encodes = foundation.features is None and not foundation.teacher_is_backbone and not regularizer.finished
            if encodes and regularizer.teacher.needs_statistics:
                regularizer.teacher.standardise(self.statistics_batches())
        # After the hooks of the capture, which a compiled model would not see later.
        if self.config.compile_model:
            model.compile()  # in place, so that names and exports stay those of the model

    def statistics_batches(self) -> Iterator[Tensor]:
        """Pixels `(1, T, 3, H, W)` of samples spread evenly over the data; the same on every rank."""
        for sample in spread_evenly(self.samples):
            yield sample.pixels(self.foundation.frame_indices(sample.latent_frames))[None]

    def _setup_optimization(self) -> None:
        config, accelerator = self.config, self.accelerator
        optimizer = make_optimizer(config, self.parameters)
        self.model, self.optimizer = accelerator.prepare(self.foundation.model, optimizer)
        self.foundation.model = self.model
        self.parameters = self.foundation.trainable_parameters()  # FSDP puts sharded ones in their place
        if self.projector_parameters:
            self.optimizer.add_param_group({"params": self.projector_parameters})
        self.lr_scheduler = make_lr_scheduler(config, self.optimizer.optimizer, self.total_steps)
        self.ema: EMAModel | None = make_ema(config, self.parameters)
        set_seed(config.seed, device_specific=True)  # dropout differs between ranks, not between runs

    def _register_state(self) -> None:
        """Tells accelerate what a checkpoint holds besides optimizer and random states."""
        accelerator = self.accelerator
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)
        for part in (self.lr_scheduler, self.sampler, self.ema, self.foundation.alignment):
            if part is not None:
                accelerator.register_for_checkpointing(part)

    # Training

    def run(self, on_step: Callable[[Trainer], None] | None = None) -> None:
        """Trains to the end, or until SIGTERM or SIGINT; then saves a checkpoint and the trained model.

        Args:
            on_step: called after every optimizer step.

        Raises:
            ValueError: the run isn't as it must be (see `checklist`); nothing was trained.
            NonFiniteLossError: the loss became NaN or infinite; checkpoints are untouched.
        """
        config, accelerator, foundation = self.config, self.accelerator, self.foundation
        require_checklist(self)
        start_trackers(accelerator, config)
        batches, aligning = self.batches(), foundation.is_aligning
        metrics = StepMetrics(accelerator)
        micro_step, started = 0, time.perf_counter()
        with (
            Report(accelerator, self.output_dir, self.total_steps, live=self.live) as report,
            stop_on_signals(self.request_stop),
        ):
            report.start(self.step)
            while self.step < self.total_steps and not metrics.stop_agreed:
                if aligning and not foundation.is_aligning:  # off for good: nothing is read or held for it any more
                    batches.close()
                    batches, aligning = self.batches(), False
                    forget(self.optimizer, self.projector_parameters)
                with accelerator.accumulate(self.model):
                    metrics.add(self._forward_backward(next(batches), micro_step))
                    if accelerator.sync_gradients:
                        metrics.add(self._finish_gradients())
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                micro_step += 1
                if not accelerator.sync_gradients:
                    continue

                learning_rate = float(self.optimizer.param_groups[0]["lr"])
                if not self.optimizer.step_was_skipped:  # as fp16's scaler does when a gradient overflows
                    self.lr_scheduler.step()
                if self.ema is not None and (self.step + 1) % config.ema_update_interval == 0:
                    self.ema.step(self.parameters)
                self.step += 1
                micro_step = 0
                now = time.perf_counter()
                host_values = {"learning_rate": learning_rate, "step_seconds": now - started}
                report.log(metrics.close(self.step, host_values, stop=self.stop_requested))
                started = now
                if on_step is not None:
                    on_step(self)
                if self._due(config.checkpoint_step_interval):
                    report.log(metrics.flush())  # raises rather than save weights that a bad loss has spoilt
                    self.save()
                if self._due(config.validation_step_interval):
                    self.validate()
                if self._due(config.eval_steps_interval):
                    report.log(metrics.flush())  # first what was trained until here
                    self.evaluate(report)
                    started = time.perf_counter()  # the next step takes no hour
            report.log(metrics.flush())
            self._finish()
            if config.eval_steps_interval > 0 and self.step >= self.total_steps:
                self.evaluate(report)
        self.accelerator.end_training()

    def _forward_backward(self, batch: dict[str, Any], micro_step: int) -> dict[str, Tensor]:
        """One micro-batch's loss and its gradients; returns what to log. Nothing of it outlives the call."""
        foundation = self.foundation
        prepared = foundation.prepare_batch(batch, step=self.step, rows=self._rows(micro_step))
        output = foundation.model_predict(prepared)
        base_loss = foundation.loss(output, prepared)
        loss, logs = foundation.auxiliary_loss(output, prepared, base_loss)
        self.accelerator.backward(loss)
        return {"loss": loss.detach(), "base_loss": base_loss.detach()} | logs

    def batches(self) -> Generator[dict[str, Any]]:
        """Batches without end from where the sampler stands, with what a teacher gives or needs as long as it does."""
        return training_batches(
            self._dataset(),
            self.sampler,
            self.foundation.collate_text,
            max_workers=self.config.max_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def coming_batch(self) -> dict[str, Any]:
        """The batch that `batches` gives first, for a look at it: it isn't consumed."""
        dataset = self._dataset()
        batch = collate([dataset[draw] for draw in next(iter(self.sampler))])
        return batch | {"text": self.foundation.collate_text(batch["text"])}

    def _dataset(self) -> TrainingDataset:
        foundation = self.foundation
        return TrainingDataset(
            self.samples,
            self.config,
            frame_indices=foundation.frame_indices if foundation.needs_pixels else None,
            features=foundation.features if foundation.needs_features else None,
        )

    def _rows(self, micro_step: int) -> list[int]:
        """The rows of this rank's samples in the step's global batch, on which their noise depends."""
        batch_size, accelerator = self.config.train_batch_size, self.accelerator
        first = (micro_step * accelerator.num_processes + accelerator.process_index) * batch_size
        return list(range(first, first + batch_size))

    def _finish_gradients(self) -> dict[str, Tensor]:
        """Averages the projector's gradients over the ranks and clips; returns what to log."""
        average_gradients(self.projector_parameters, self.accelerator)
        return clip_gradients(self.accelerator, self.parameters, self.projector_parameters, self.config.max_grad_norm)

    def _due(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0 and self.step < self.total_steps

    def _finish(self) -> None:
        if self._last_saved != self.step:
            self.save()
        if self.step >= self.total_steps:
            self.validate()
            self.export(self.output_dir)
        self.accelerator.wait_for_everyone()  # the main process still writes while the others are done

    def request_stop(self) -> None:
        """Ends the run after the current step, with a checkpoint; every rank learns of it."""
        self.stop_requested = True

    def validate(self) -> list[Path]:
        """Draws the validation samples from the averaged weights if there are any; none without a prompt."""
        if not self.validation_text:
            return []
        frames = max(sample.bucket.frames for sample in self.samples)
        with averaged_weights(self.ema, self.parameters):
            files = validate(self.config, self.foundation, self.accelerator, self.validation_text, self.step, frames)
        self.foundation.unload_vae()  # training needs its memory
        self.accelerator.wait_for_everyone()
        return files

    def evaluate(self, report: Report) -> None:
        """Compares samples from the averaged weights with real images, and reports the result; gives way to a stop."""
        from simpletuner.evaluation.evaluate import KEPT_IN_TRAINING, evaluate

        result = evaluate(self, report, keep=KEPT_IN_TRAINING, is_stopping=lambda: self.stop_requested)
        if result is not None:
            report.log_evaluation(self.step, result["metrics"])

    # State

    def save(self) -> Path:
        """Writes a checkpoint of the run as it is now."""
        folder = save_checkpoint(
            self.accelerator,
            self.output_dir,
            {"step": self.step, "options": shaping_options(self.config)},
            self._write_state,
            self.config.checkpoints_total_limit,
        )
        self._last_saved = self.step
        return folder

    def _write_state(self, folder: Path) -> None:
        is_sharded = self.accelerator.distributed_type is DistributedType.FSDP
        with without_group(self.optimizer, self.projector_parameters if is_sharded else []) as projector_state:
            self.accelerator.save_state(str(folder))
        if is_sharded and self.accelerator.is_main_process:
            torch.save(projector_state, folder / PROJECTOR_OPTIMIZER_FILE)
        if self.config.model_type == "lora":
            self.export(folder)

    def export(self, folder: Path) -> Path | None:
        """Writes the trained model, with the averaged weights if there are any, for diffusers (main process only)."""
        with averaged_weights(self.ema, self.parameters):
            state = None
            if self.accelerator.distributed_type is DistributedType.FSDP:
                state = self.accelerator.get_state_dict(self.model)
            if not self.accelerator.is_main_process:
                return None
            if self.config.model_type == "lora":
                return self.foundation.save_lora(folder, state)
            return self.foundation.save_model(folder, state)

    def _save_weights(self, models: list[nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
        """Of the model, only what is trained; accelerate would write a frozen base model too."""
        if not weights:
            return  # sharded: accelerate has written it
        weights.clear()
        if self.accelerator.is_main_process:
            save_trained_weights(self.foundation.unwrap_model(), Path(folder))

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        if not models:
            return
        models.clear()
        load_trained_weights(self.foundation.unwrap_model(), Path(folder))

    def _resume(self) -> None:
        found = find_resumable(self.config.resume_from_checkpoint, self.output_dir)
        if found is None:
            return
        folder, state = found
        require_same_shape(folder, state["options"], shaping_options(self.config))
        try:
            self._read_state(folder)
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"resume_from_checkpoint: {folder} can't be read ({type(error).__name__}: {reason}). Remove it, or "
                "name another one by its path."
            ) from error
        self.step = self._last_saved = state["step"]
        # The state brought the options with which it was saved along; those of this run count.
        set_learning_rate(self.lr_scheduler, self.config.learning_rate)
        for group in self.optimizer.param_groups:
            group.update(optimizer_options(self.config))
        if self.ema is not None:
            self.ema.decay = self.config.ema_decay

    def _read_state(self, folder: Path) -> None:
        is_sharded = self.accelerator.distributed_type is DistributedType.FSDP
        with without_group(self.optimizer, self.projector_parameters if is_sharded else []):
            self.accelerator.load_state(str(folder))
        if is_sharded and self.projector_parameters:
            saved = torch.load(folder / PROJECTOR_OPTIMIZER_FILE, weights_only=True, map_location="cpu")
            for index, entry in saved.items():
                parameter = self.projector_parameters[int(index)]
                self.optimizer.optimizer.state[parameter] = {
                    name: value.to(parameter.device) if value.shape == parameter.shape else value
                    for name, value in entry.items()
                }
        if self.ema is not None:
            self.ema.to(self.accelerator.device)


def train(config: Config, *, live: bool = True) -> Trainer:
    """Sets a run up and runs it to its end."""
    trainer = Trainer(config, live=live)
    trainer.setup()
    trainer.run()
    return trainer
