"""Times TRL's GRPOTrainer on a workload, with its fastest settings; has its own venv.

python benchmarks/trl_step.py W1 [--steps 20] [--defaults]
The fastest settings are no gradient checkpointing and no logging; `--defaults` leaves
both at TRL's defaults.
"""

import argparse
import itertools
import os
import resource
import statistics
import tempfile
import time
import warnings

START = time.perf_counter()
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
import workload  # noqa: E402
from datasets import Dataset  # noqa: E402


class Clock(transformers.TrainerCallback):
    """Records when each step ended."""

    def __init__(self):
        self.times = []

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workload.WORKLOADS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--defaults", action="store_true")
    args = parser.parse_args()
    work = workload.WORKLOADS[args.workload]
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    rows = [{"prompt": q, "answer": a} for q, a in workload.problems(4096)]
    clock, lengths, parts = Clock(), [], {}

    def reward(completions, answer, completion_ids, **columns):
        lengths.append(sum(map(len, completion_ids)))
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    trainer = trl.GRPOTrainer(
        model=model(work),
        reward_funcs=reward,
        args=settings(work, args.steps, defaults=args.defaults),
        train_dataset=Dataset.from_list(rows),
        processing_class=workload.hugging_face_tokenizer(),
        callbacks=[clock],
    )
    timed(trainer, "_generate_single_turn", "sample", parts)
    timed(trainer, "compute_loss", "measure and weigh", parts)
    trainer.train()
    gaps = [b - a for a, b in itertools.pairwise(clock.times[2:])]
    assert set(lengths) == {work.tokens}, lengths  # all implementations do equal work
    workload.report(
        "trl defaults" if args.defaults else "trl best",
        ms=[1e3 * gap for gap in gaps],
        first_step_s=clock.times[0] - START,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        parts_ms={k: 1e3 * statistics.median(v) for k, v in parts.items()},
        versions={"trl": trl.__version__, "torch": torch.__version__},
    )


def model(work: workload.Workload):
    """A Qwen2 model of the workload's sizes."""
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=workload.VOCAB,
            hidden_size=work.d_model,
            intermediate_size=work.d_ff,
            num_hidden_layers=work.num_layers,
            num_attention_heads=work.num_heads,
            num_key_value_heads=work.num_heads,
            max_position_embeddings=workload.PROMPT_TOKENS + work.new_tokens,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def settings(work: workload.Workload, steps: int, *, defaults: bool):
    """GRPO without a KL term, one step per batch; every completion has full length."""
    fastest = {"gradient_checkpointing": False, "logging_strategy": "no"}
    return trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=work.num_prompts * work.num_samples,
        num_generations=work.num_samples,
        max_completion_length=work.new_tokens,
        generation_kwargs={"min_new_tokens": work.new_tokens},
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-3,
        max_steps=steps,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
        lr_scheduler_type="constant",
        **({} if defaults else fastest),
    )


def timed(owner, name: str, part: str, parts: dict) -> None:
    """Wraps a method to record its seconds under `part`."""
    method = getattr(owner, name)

    def call(*args, **kwargs):
        start = time.perf_counter()
        out = method(*args, **kwargs)
        parts.setdefault(part, []).append(time.perf_counter() - start)
        return out

    setattr(owner, name, call)


if __name__ == "__main__":
    main()
