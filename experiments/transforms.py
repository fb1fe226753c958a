"""Applies the flags that change a policy.

These are LoRA, a value head, a moving reference, routing replay and int8 rollouts.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from experiments import ranges, recipes
from experiments.flags import Config
from rljax.advantage import Algorithm, importance
from rljax.learn import Learner, reference
from rljax.model import Model
from rljax.model.hugging_face import adapter
from rljax.policy import Policy, frozen, int8_decoding, lora, with_value_head
from rljax.policy.lora import Lora
from rljax.types import TrainState


def check(c: Config) -> None:
    """Raises ValueError for flags that contradict each other."""
    if c.adapters is not None and (c.lora_rank is not None or c.model is None):
        raise ValueError(
            "--adapters must go with the --model that they belong to and without"
            f" --lora-rank, which the folder says, got --model {c.model} and"
            f" --lora-rank {c.lora_rank}; change these."
        )
    of_lora = ("lora_alpha", "lora_targets")
    ranges.together(c, of_lora, "--lora-rank", c.lora_rank is not None)
    moves = c.reference_every is not None
    ranges.together(c, ("reference_ema",), "--reference-every", moves)
    lora_of(c)
    stored = c.algorithm in recipes.STORED + recipes.MIXED
    if stored and c.replay_routes:
        raise ValueError(
            "--replay-routes must go with a recipe that learns from samples only, got"
            f" --algorithm {c.algorithm}, which learns from stored answers without"
            " recorded routes; leave the flag out."
        )
    if stored and rolls_in_int8(c):
        raise ValueError(
            "--rollout-weights int8 must go with a recipe that learns from samples"
            f" only, got --algorithm {c.algorithm}, which learns from stored answers"
            " without recorded log-probabilities; leave the flag out."
        )


def rolls_in_int8(c: Config) -> bool:
    """Whether the sampler reads int8 weights and so differs from the policy."""
    return c.rollout_weights == "int8"


def sampled(c: Config, policy: Policy) -> Policy:
    """The policy that the sampler uses, for the policy that is trained."""
    return int8_decoding(policy) if rolls_in_int8(c) else policy


def corrected(c: Config, algorithm: Algorithm) -> Algorithm:
    """The recipe, with importance weights if the sampler reads int8 weights.

    Recipes that have such weights already stay as they are.
    """
    if rolls_in_int8(c) and c.algorithm not in recipes.CORRECTING:
        return importance.corrected(algorithm)
    return algorithm


def lora_of(c: Config) -> Lora | None:
    """The adapters that the flags ask for, or None."""
    if c.adapters is not None:
        with _naming("--adapters"):
            return adapter.described(c.adapters)
    if c.lora_rank is None:
        return None
    with _naming("--lora-targets"):
        return Lora(
            rank=c.lora_rank,
            alpha=c.lora_alpha,
            targets=tuple(c.lora_targets.split(",")),
        )


@contextlib.contextmanager
def _naming(flag: str) -> Iterator[None]:
    """Puts the flag in front of the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def with_stored_adapters(c: Config, model: Model) -> Model:
    """The model, whose parameters include the adapters of --adapters.

    Raises:
      ValueError: if they do not belong to the model.
    """
    spec, base = lora_of(c), model.init
    if spec is None or c.adapters is None:
        return model

    def read() -> dict[str, Any]:
        with _naming("--adapters"):
            return adapter.load(c.adapters, model.config)[1]

    policy, key = lora.adapted(model.policy(), spec), jax.random.key(0)
    wanted, _ = frozen.split(jax.eval_shape(policy.init, key), lora.is_adapter)
    got, want = _sizes(read()), _sizes(wanted)
    if differ := sorted(got.items() ^ want.items()):
        raise ValueError(
            f"--adapters must belong to --model {c.model}, but these are only in one of"
            f" them: {differ[:4]}; pass the model that they were trained on."
        )
    return model._replace(init=lambda key: frozen.joined(read(), base(key)))


def _sizes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


def around(
    c: Config, model: Model, *, value_head: bool
) -> tuple[Policy, dict[str, Any]]:
    """The policy to train, with adapters and value head.

    Args:
      c: the configuration.
      model: to train.
      value_head: whether the recipe reads values.

    Returns:
      The policy, and fields of `Experiment` that convert the model's parameters to the
      policy's and back.
    """
    require_experts(c, model)
    policy = model.policy(c.temperature, replay_routes=c.replay_routes)
    spec = lora_of(c)
    require_whole(c, spec, model)
    if spec is not None:
        policy = lora.adapted(policy, spec)
    if value_head:
        policy = with_value_head(policy, d_model=model.config.d_model)

    def enter(params, key):
        if spec is not None:
            params = lora.with_adapters(params, spec, key)
        return policy.init(key) | {"policy": params} if value_head else params

    def export(params):
        return params["policy"] if value_head else params

    parts: dict[str, Any] = {"enter_fn": enter, "export_fn": export, "adapters": spec}
    if spec is not None:
        parts["trains"] = _trains
        parts["save_also"] = lambda folder, state: _save(c, spec, model, folder, state)
    return policy, parts


def asked(c: Config, model: Model) -> Policy:
    """The policy that is evaluated; it reads the adapters if there are any."""
    policy, spec = model.policy(c.evaluation_temperature), lora_of(c)
    return policy if spec is None else lora.adapted(policy, spec)


def require_experts(c: Config, model: Model) -> None:
    """Raises ValueError if --replay-routes is given for a model without experts."""
    if c.replay_routes and model.config.experts is None:
        raise ValueError(
            "--replay-routes must have a --model with a mixture of experts, got a dense"
            " one; leave the flag out."
        )


def require_whole(c: Config, spec: Lora | None, model: Model) -> None:
    """Raises ValueError for adapters that PEFT's format cannot hold."""
    if spec is not None and model.metadata is not None:
        with _naming("--lora-targets" if c.adapters is None else "--adapters"):
            adapter.require_whole(spec, model.metadata.config["model_type"])


def without_replay(c: Config) -> Config:
    """The configuration for reference and teacher, which choose experts themselves."""
    return dataclasses.replace(c, replay_routes=False)


def _trains(path: tuple[str, ...]) -> bool:
    """Whether the parameter at a path is trained with LoRA."""
    return lora.is_adapter(path) or path[0] == "value"


def _save(
    c, spec: Lora, model: Model, run_dir: pathlib.Path, state: TrainState
) -> None:
    """Saves the adapters; the saved policy has them merged in."""
    folder = run_dir / "adapters"
    if not folder.exists():  # it exists if a finished run is resumed
        base = None if c.model is None else str(c.model)
        adapters = state.params.get("policy", state.params)
        named = {} if model.metadata is None else model.metadata.config
        kind = named.get("model_type", "llama")
        adapter.save(folder, adapters, spec, base_model=base, model_type=kind)


def with_reference(c: Config, learner: Learner) -> Learner:
    """The learner, with updates of the reference if the flags ask for them."""
    if c.reference_every is None:
        return learner
    if c.reference_ema is None:
        update = reference.renewed(every=c.reference_every)
    else:
        update = reference.averaged(decay=c.reference_ema, every=c.reference_every)
    return reference.following(learner, update)


def require_reference(c: Config, there: bool) -> None:
    """Raises ValueError if the flags move a reference that the recipe never reads."""
    if c.reference_every is not None and not there:
        raise ValueError(
            f"{ranges.flag('reference_every')} needs a recipe that reads a reference,"
            f" but --algorithm {c.algorithm} reads none; leave the flag out, or give"
            " the recipe a KL coefficient above 0 where it has one."
        )
