"""A process that trains small jobs one after the other over one warm base with PEFT and torch alone.

`python -m tests.benchmarks.training.peft_loop BASE JOBS OUT`: the last line is JSON. Times start with the base loaded.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from tests.benchmarks.training.jobs import FILE, IGNORED, SmallJob
from trainer.engine.examples import epoch_order
from trainer.engine.optimizer import learning_rate


def train(model: PeftModel, job: SmallJob) -> list[float]:
    """The losses of the last epoch."""
    settings, losses = job.hyperparameters, []
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for step in range(job.total_steps):
        epoch, place = divmod(step, job.steps_an_epoch)
        order = epoch_order(job.seed, epoch, len(job.input_ids)).tolist()
        chosen = order[place * settings.batch_size : (place + 1) * settings.batch_size]
        ids = pad_sequence([torch.tensor(job.input_ids[at]) for at in chosen], batch_first=True)
        labels = pad_sequence([torch.tensor(job.labels[at]) for at in chosen], batch_first=True, padding_value=IGNORED)
        optimizer.param_groups[0]["lr"] = learning_rate(
            settings.learning_rate, step, job.total_steps, settings.warmup_ratio, settings.lr_scheduler
        )
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[-job.steps_an_epoch :]


def main() -> None:
    base, jobs, out = (Path(argument) for argument in sys.argv[1:4])
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    losses: list[float] = []
    started = time.perf_counter()
    for number, job in enumerate(FILE.validate_json(jobs.read_bytes())):
        settings = job.hyperparameters
        torch.manual_seed(job.seed)
        wrapped = get_peft_model(
            model,
            LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType]
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        assert isinstance(wrapped, PeftModel)
        losses += train(wrapped, job)
        wrapped.save_pretrained(str(out / f"{number}"))
        model = wrapped.unload()
    print(json.dumps({"seconds": time.perf_counter() - started, "last_epoch_loss": sum(losses) / len(losses)}))


if __name__ == "__main__":
    main()
