"""Trains a real model with TRL's GRPOTrainer, one step per line of standard input.

python -m benchmarks.trl_real WORK.json --kind "like for like"
`benchmarks.real_model` starts it and explains the kinds. JAX is imported only for
rljax's verifier; it adds about 0.1 GiB to the process.
"""

import argparse
import decimal
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time
import warnings

START = time.perf_counter()
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402

from rljax.verify import read_last_number  # noqa: E402


class Trainer(trl.GRPOTrainer):
    """GRPOTrainer with a learning rate per step, `rates`; None: TRL's schedule."""

    rates = None

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.rates is None:
            return super().create_scheduler(num_training_steps, optimizer)
        peak, rates = self.args.learning_rate, self.rates
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: rates[min(step, len(rates) - 1)] / peak,
        )
        return self.lr_scheduler


class Steps(transformers.TrainerCallback):
    """Starts each step on request, and prints its measurements.

    `reward` is TRL's reward function: 1 if the last number is the answer.
    """

    def __init__(self, out):
        self.out, self.found, self.entropies, self.ends = out, {}, [], ()

    def on_step_begin(self, args, state, control, **kwargs):
        if not sys.stdin.readline():
            sys.exit()  # the other end was closed
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        found = {
            "seconds": time.perf_counter() - self.start,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "ready_s": self.start - START,
            "entropy": statistics.mean(self.entropies),
            **self.found,
        }
        self.entropies.clear()
        print(json.dumps(found), file=self.out, flush=True)

    def reward(self, completions, answer, completion_ids, **columns):
        texts = [messages[0]["content"] for messages in completions]
        ended = [ids[-1] in self.ends for ids in completion_ids]
        rewards = [
            float(read_last_number(text.encode(), end) == decimal.Decimal(right))
            for text, right, end in zip(texts, answer, ended, strict=True)
        ]
        self.found = {
            "reward": statistics.mean(rewards),
            "tokens": sum(map(len, completion_ids)),
            "finished": statistics.mean(ended),
        }
        return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--kind", required=True)
    args = parser.parse_args()
    work = json.loads(args.work.read_text())
    out, sys.stdout = sys.stdout, sys.stderr  # keep other output out of the results
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(work["config"]["seed"])
    like = args.kind == "like for like"
    Trainer.rates = work["rates"] if like else None
    steps = Steps(out)
    rows = [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "answer": row["answer"],
        }
        for row in work["questions"]
    ]
    trainer = Trainer(
        model=work["folder"],
        reward_funcs=steps.reward,
        args=configuration(work, like),
        train_dataset=Dataset.from_list(rows),
        callbacks=[steps],
    )
    steps.ends = trainer.eos_token_ids
    steps.entropies = trainer._metrics["train"]["entropy"]
    trainer.train()


def configuration(work: dict, like: bool) -> trl.GRPOConfig:
    """TRL's configuration for the work.

    Args:
      work: read from WORK.json.
      like: whether to set all numbers as in rljax, not only the sizes.
    """
    c, pieces = work["config"], work["trl_pieces"]
    same = {
        "bf16": False,
        "gradient_checkpointing": False,
        "loss_type": "grpo",
        "adam_beta2": 0.99,
        "max_grad_norm": c["gradient_clip"],
        "model_init_kwargs": {"dtype": "float32"},
    }
    return trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        per_device_train_batch_size=c["num_prompts"] * c["num_samples"] // pieces,
        gradient_accumulation_steps=pieces,
        num_generations=c["num_samples"],
        max_completion_length=c["max_tokens"],
        temperature=c["temperature"],
        learning_rate=c["learning_rate"],
        max_steps=c["num_steps"],
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=c["seed"],
        **(same if like else {}),
    )


if __name__ == "__main__":
    main()
