"""Samples a policy that `experiments.real` saved, with rljax and with transformers.

python -m benchmarks.sample_with_transformers RUN/policy [--problems 217] [--samples 4]

Both answer the same held-out questions, with the chat template of the folder, in
float32. A table shows how often they are right, with errors. Exits with 1 if they
differ by more than 3 standard errors of the difference. Needs torch; all problems take
some minutes on two cores.
"""

import argparse
import decimal
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments import cli, real
from rljax import data, evaluate
from rljax.evaluate import ask
from rljax.layout import take
from rljax.model import language_model
from rljax.rollout.sample import sampler
from rljax.task import arithmetic
from rljax.verify import read_last_number

LARGEST = 3.0  # standard errors
BATCH = 32  # questions at a time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--problems", type=int, default=None, help="number to take")
    parser.add_argument("--samples", type=int, default=4)
    args = parser.parse_args()
    questions = arithmetic.splits().test[: args.problems]
    try:
        stages = {
            "rljax": by_rljax(args.folder, range(len(questions)), args.samples),
            "transformers": by_transformers(args.folder, questions, args.samples),
        }
    except (ValueError, OSError) as error:
        cli.fail(error)
    print(evaluate.compare(named(stages), (1, args.samples)))
    if abs(off := distance(stages)) > LARGEST:
        sys.exit(f"they differ by {off:.1f} standard errors; sampling is not the same.")


def named(stages: dict[str, np.ndarray]) -> dict[str, evaluate.Stage]:
    """Name -> verdicts bool[P, n], as stages of a table."""
    return {name: evaluate.Stage(correct) for name, correct in stages.items()}


def distance(stages: dict[str, np.ndarray]) -> float:
    """The difference of pass@1, in standard errors of the per-problem difference."""
    first, second = (np.mean(correct, -1) for correct in stages.values())
    apart = second - first
    error = np.std(apart, ddof=1) / np.sqrt(len(apart))
    return float(np.mean(apart) / error) if error else 0.0


def by_rljax(folder: pathlib.Path, rows: Sequence[int], num_samples: int) -> np.ndarray:
    """Verdicts bool[P, n] on some test questions, sampled by rljax."""
    c = real.Config()
    model = language_model.load(folder)
    chat = data.Chat()
    task = arithmetic.task(model, max_prompt_tokens=c.max_prompt_tokens, chat=chat)
    sample = sampler(
        model.policy(c.temperature),
        num_samples=num_samples,
        max_tokens=c.max_tokens,
        stop_tokens=model.stop_tokens,
    )
    answers = ask.in_batches(
        jax.jit(ask.ask(sample, task.verify)),
        take(task.test, np.array(rows)),
        BATCH,
        doing="rljax",
    )
    return answers(model.init(None)).correct


def by_transformers(
    folder: pathlib.Path, questions: list[arithmetic.Question], num_samples: int
) -> np.ndarray:
    """Verdicts bool[P, n], sampled by transformers from the policy's folder alone."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    c = real.Config()
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    rows: list[Any] = []
    for start in range(0, len(questions), BATCH):
        batch = [question.problem for question in questions[start : start + BATCH]]
        asked = tokenizer.apply_chat_template(
            [[{"role": "user", "content": problem.question}] for problem in batch],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )
        out = model.generate(
            **asked,
            do_sample=True,
            temperature=c.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=c.max_tokens,
            num_return_sequences=num_samples,
        )
        new = out[:, asked["input_ids"].shape[1] :].reshape(len(batch), num_samples, -1)
        for problem, samples in zip(batch, new.tolist(), strict=True):
            rows.append(
                [_right(tokenizer, ids, ends, problem.answer) for ids in samples]
            )
    return np.array(rows, bool)


def _right(tokenizer, ids: list[int], ends: list[int], answer: str) -> bool:
    """Whether the last number before the end token is the answer."""
    length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = tokenizer.decode(ids[:length], skip_special_tokens=False)
    found = read_last_number(text.encode(), finished=length < len(ids))
    return found == decimal.Decimal(answer)


if __name__ == "__main__":
    main()
