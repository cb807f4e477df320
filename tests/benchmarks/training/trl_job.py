"""One small job as a cold TRL process does it: `python -m tests.benchmarks.training.trl_job BASE JOBS NUMBER OUT`.

Its examples come tokenised and masked, which spares it that work. The last line is JSON: the times on the clock of the
first optimizer step and of the saved adapter, which the caller holds against the time it started the process.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tests.benchmarks.training.jobs import FILE, SmallJob


class FirstStep(TrainerCallback):
    def __init__(self) -> None:
        self.at = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at = self.at or time.time()


def trainer_of(base: Path, job: SmallJob, out: Path, first: FirstStep) -> SFTTrainer:
    settings = job.hyperparameters
    return SFTTrainer(
        model=str(base),
        args=SFTConfig(
            output_dir=str(out),
            per_device_train_batch_size=settings.batch_size,
            num_train_epochs=settings.n_epochs,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.lr_scheduler,
            warmup_steps=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            max_length=settings.max_seq_length,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=job.seed,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"input_ids": job.input_ids, "labels": job.labels}),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType]
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[first],
    )


def main() -> None:
    base, jobs, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[4])
    torch.set_num_threads(1)
    job, first = FILE.validate_json(jobs.read_bytes())[int(sys.argv[3])], FirstStep()
    trainer = trainer_of(base, job, out, first)
    trainer.train()
    trainer.save_model(str(out))
    print(json.dumps({"first_step_at": first.at, "saved_at": time.time()}))


if __name__ == "__main__":
    main()
