"""A training run that writes, for each rank, the steps after which no hidden states are wanted any more.

With `--fsdp2` it is sharded: accelerate turns FSDP on for accelerators only, but torch shards on the CPU just as well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType

from simpletuner.cli import leave
from simpletuner.configuration import load_config
from simpletuner.helpers.training.trainer import Trainer


def watched_run(path: Path, flags: list[str], *, fsdp2: bool) -> None:
    config, problems = load_config(path, flags)
    assert config is not None, problems
    trainer = Trainer(config)
    if fsdp2:
        state = trainer.accelerator.state
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["JointTransformerBlock"],
            cpu_ram_efficient_loading=False,
            state_dict_type="SHARDED_STATE_DICT",
        )
    off: list[int] = []

    def watch(trainer: Trainer) -> None:
        if not trainer.foundation.wants_hidden_states():
            off.append(trainer.step)

    trainer.setup()
    trainer.run(on_step=watch)
    (trainer.output_dir / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(off))


if __name__ == "__main__":
    flags = sys.argv[2:]
    watched_run(Path(sys.argv[1]), [flag for flag in flags if flag != "--fsdp2"], fsdp2="--fsdp2" in flags)
    leave(0)
