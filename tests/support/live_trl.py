"""One training step of TRL's trainers on our rollouts, without a model.

TRL's own methods score the samples and compute the loss. What a stub replaces is the
model, a table of log-probabilities and entropies, and the generation. Settings are the
defaults of TRL's configuration, read from the installed release, unless changed. Where
TRL is not installed, importing this skips the importing module.
"""

import collections
import dataclasses
import types
import warnings

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("trl", minversion="1.16")

import torch
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from rljax.types import Rollout, TokenStats

with warnings.catch_warnings(action="ignore"):  # that it is experimental
    from trl.experimental.gmpo import GMPOTrainer

EOS = 50


class Model:
    """What a trainer asks of a model: a table [B, T] in the place of a forward pass."""

    training = True
    is_gradient_checkpointing = False

    def __init__(self, stats: TokenStats):
        self.logp = _rows(stats.logp).requires_grad_()
        self.entropy = _rows(stats.entropy).requires_grad_()

    def __call__(self, *, labels, **_):
        """As TRL's fused head: zeros where there is no label."""
        mask = labels >= 0
        return types.SimpleNamespace(
            log_probs=self.logp.where(mask, 0.0),
            entropy=self.entropy.where(mask, 0.0),
            label_mask=mask,
            is_top1=mask,
        )


class Accelerator:
    """A single process."""

    device = torch.device("cpu")
    is_main_process = sync_gradients = True
    num_processes, process_index = 1, 0
    parallelism_config = None

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction):
        return x

    def pad_across_processes(self, x, dim, pad_index):
        return x


class _Stub:
    """A trainer that was never constructed: its attributes and its data."""

    rollout: Rollout
    reward: torch.Tensor  # [B, 1]; NaN where the reward function had no answer

    def __getattr__(self, name):  # only what is found nowhere else
        if name.startswith("__") or name not in self.settings:
            raise AttributeError(name)
        return self.settings[name]

    def _get_per_token_logps_and_entropies(self, model, *_, **__):
        table = model.logp, model.entropy
        if not torch.is_grad_enabled():
            table = tuple(x.detach() for x in table)
        return *table, None

    def _calculate_rewards(self, *_):
        return self.reward

    def _generate(self, prompts):
        samples = self.rollout.samples
        mask = _rows(samples.mask)
        ends = [int(m.nonzero().max()) + 1 for m in mask]  # holes lie before

        def lists(x):
            return [row[:end].tolist() for row, end in zip(_rows(x), ends, strict=True)]

        ids, text = lists(samples.tokens), [""] * len(ends)
        for row, finished in zip(ids, samples.finished.ravel().tolist(), strict=True):
            row[-1] = EOS if finished else EOS + 1
        if isinstance(self, RLOOTrainer):  # knows no holes and no other sampler
            return [[0]] * len(ends), ids, text
        tool_mask, drawn = lists(samples.mask), lists(samples.behaviour.logp)
        return [[0]] * len(ends), ids, tool_mask, text, drawn, {}, None, None


def trainer(kind, config, rollout: Rollout, reward=None, **changes):
    """A trainer about to take `rollout` apart; `changes` of TRL's default settings."""
    args = {f.name: f.default for f in dataclasses.fields(config)}
    assert not changes.keys() - args.keys(), "TRL has no such setting"
    # Two iterations: of a batch used once TRL does not measure the old policy.
    args |= {"steps_per_generation": 1, "report_to": [], "num_iterations": 2} | changes
    self = object.__new__(type("Stub", (_Stub, kind), {}))
    reward = rollout.verdict.reward if reward is None else reward
    low, high = args.get("epsilon"), args.get("epsilon_high")
    self.settings = args | {
        "args": types.SimpleNamespace(**args),
        "state": types.SimpleNamespace(global_step=0),
        "accelerator": Accelerator(),
        "model": Model(rollout.old),  # while sampling; the loss is given its own
        "ref_model": Model(rollout.reference),
        "_tokenizer": types.SimpleNamespace(pad_token_id=0),
        "eos_token_ids": [EOS],
        "pad_to_multiple_of": None,
        "num_generations": reward.shape[1],
        "reward_weights": torch.ones(1),
        "reward_func_names": ["reward"],
        "epsilon_low": low,
        "epsilon_high": low if high is None else high,
        "current_gradient_accumulation_steps": 1,
        "tools": None,
        "environments": None,
        "environment_factories": None,
        "aux_loss_enabled": False,
        "compute_loss_func": None,
        "label_smoother": None,
        "is_deepspeed_enabled": False,
        "_tp_size": 1,
        "_entropy_bonus_enabled": bool(args.get("entropy_coef"))
        or args.get("use_adaptive_entropy"),
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "_logs": collections.defaultdict(lambda: _Log()),
    }
    self.rollout, self.reward = rollout, _rows(reward)[:, None]
    self._metrics = {"train": collections.defaultdict(list)}
    self._total_train_tokens = 0
    self._last_world_entropy, self._entropy_window_stats = float("inf"), None
    return self


class _Log(list):
    """A list, and lists by name."""

    def __getitem__(self, name):
        return []


def grpo(rollout, reward=None, **changes):
    """A GRPOTrainer."""
    return trainer(GRPOTrainer, GRPOConfig, rollout, reward, **changes)


def gmpo(rollout, reward=None, **changes):
    """A GMPOTrainer; its default bounds are another configuration's."""
    return trainer(GMPOTrainer, GRPOConfig, rollout, reward, **changes)


def rloo(rollout, reward=None, **changes):
    """An RLOOTrainer."""
    return trainer(RLOOTrainer, RLOOConfig, rollout, reward, **changes)


def scored(trainer) -> dict:
    """TRL's batch: advantages, importance weights, reference log-probabilities."""
    rows = trainer.rollout.verdict.reward.size
    return trainer._generate_and_score_completions([{"prompt": ""}] * rows)


def step(trainer):
    """(loss, d/dlogp [B, T], d/dentropy [B, T]) at `rollout.current`."""
    now = Model(trainer.rollout.current)
    loss = trainer._compute_loss(now, scored(trainer))
    return _pulled(loss, now)


def supervised(rollout, loss_type):
    """`step` of an SFTTrainer that learns all tokens of the mask."""
    sft = trainer(SFTTrainer, SFTConfig, rollout, loss_type=loss_type)
    now, mask = Model(rollout.current), _rows(rollout.samples.mask)
    inputs = {"labels": torch.where(mask, 1, -100), "attention_mask": mask}
    return _pulled(sft.compute_loss(now, inputs, num_items_in_batch=mask.sum()), now)


def _pulled(loss, now):
    loss.backward()
    grads = [
        np.zeros(x.shape, np.float32) if x.grad is None else x.grad.numpy()
        for x in (now.logp, now.entropy)
    ]
    return loss.item(), *grads


def ours(algorithm, rows: Rollout):
    """(loss, d/dlogp [B, T], d/dentropy [B, T]) of an algorithm at `rows.current`."""

    @jax.jit
    def run(now):
        credits, state, _ = algorithm.credit(rows, algorithm.init())
        credits, _, _ = algorithm.weigh(credits, rows.replace(current=now), state)
        return jax.value_and_grad(algorithm.loss)(now, credits, rows)

    value, grads = run(rows.current)
    flat = (np.reshape(g, (-1, g.shape[-1])) for g in (grads.logp, grads.entropy))
    return float(value), *flat


def same(got, want, rtol=2e-5):
    """Compares losses and gradients; these by the largest of them."""
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * np.abs(w).max())


def _rows(x) -> torch.Tensor:
    """[P, G, ...] as [B, ...]."""
    x = np.array(x)
    return torch.from_numpy(x.reshape(-1, *x.shape[2:]))
