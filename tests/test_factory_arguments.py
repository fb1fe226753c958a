"""Every factory of the library refuses wrong arguments at once, by name, with advice.

A table says what fits an argument of a name; each argument of each factory in turn is
then replaced by values of other kinds. What comes must be a ValueError of the library,
not an error of Python or JAX, and not one of the trace in which the result is used.
"""

import collections.abc
import dataclasses
import importlib
import inspect
import itertools
import math
import pkgutil
import traceback
import typing

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import algorithms, loss, model, program, verify
from rljax.learn import gate, update
from rljax.policy import lora
from rljax.rollout import mixed
from rljax.types import Source

PACKAGES = (
    *("advantage", "algorithms", "learn", "loss", "model", "policy", "rollout"),
    *("verify", "verify.graph", "verify.host"),
)
MODULES = ("program", *PACKAGES)
# Reports and readers of files, whose arguments are not those of an algorithm, and
# parts of factories that check.
OTHERS = (
    "language_model",
    "draw",
    "hugging_face",
    "plot",
    "probe",
    "score",
    "pool",
    "worker",
    "attention",
)

CONFIG = model.DecoderConfig(
    vocab_size=8,
    num_layers=1,
    d_model=8,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    d_ff=8,
)
POLICY = model.decoder_policy(CONFIG)
LEARNER = update.learner(POLICY.measure, algorithms.grpo(), optax.sgd(0.1))

FITS = {
    "act": program.actor(POLICY, mixed.stored_answers()),
    "after": b"=",
    "algorithm": algorithms.grpo(),
    "bound_fn": adv.importance.truncate(2.0),
    "buffer": 0.5,
    "cap": 2.0,
    "clipped_fn": lambda credit, rollout: rollout.samples.mask,
    "config": CONFIG,
    "constant": 0.5,
    "controller": adv.ema(0.1),
    "decay": 0.5,
    "divergence_fn": adv.importance.k3,
    "fn": lambda *arguments: arguments[0],
    "gates": gate.all_of(),
    "high": 1.0,
    "learner": LEARNER,
    "log_ratio_fn": None,
    "loss_fn": loss.nll(),
    "low": 0.5,
    "make": lambda value: adv.scale_weight(1.0),
    "marker": b"#",
    "max_tokens": 8,
    "measure": POLICY.measure,
    "measure_fn": lambda *arguments: 1.0,
    "needle": b"x",
    "optimizer": optax.sgd(0.1),
    "policy": POLICY,
    "judge": lambda text, answer, finished: finished,
    "level": 0.5,
    "prompts": fakes.prompts(),
    "rate_fn": lambda names: 1.0,
    "penalty_fn": lambda params: 0.0,
    "rates": (1.0, 0.5),
    "reference_update": lambda step, reference, params: params,
    "row_weight_fn": lambda rollout: 1.0,
    "sample": mixed.stored_answers(),
    "samplers": mixed.stored_answers(),
    "select": adv.keep_top_entropy(),
    "select_fn": lambda value: value,
    "shape": (1, 8),
    "states_fn": lambda params, prompts, samples: None,
    "steer_fn": lambda vectors: None,
    "num_samples": 4,
    "scale_fn": lambda *arguments: arguments[0],
    "sources": Source.OWN,
    "spec": lora.Lora(rank=2, alpha=4),
    "statistic_fn": adv.importance.geometric,
    "weight_fn": loss.supervised.unit,
    "success_fn": lambda group: 1.0,
    "failure_fn": lambda group: -1.0,
    "share_fn": adv.by_token,
    "steps": adv.center_by_group(),
    "stop_tokens": (1,),
    "table": verify.TokenBytes((b"a", b"b")),
    "terms": adv.Term(weighting=adv.token_mean(), loss_fn=loss.nll()),
    "transforms": adv.center_by_group(),
    "vector_optimizer": optax.sgd(0.1),
    "verify": lambda prompts, samples: None,
}

WRONG = {
    "a string": "0.2",
    "None": None,
    "a bool": True,
    "NaN": math.nan,
    "a list": [1.0],
    "an object": object(),
    "a factory": adv.weigh_by_importance,
    "a loss's factory": loss.dual_clip,
    "another function": lambda: 1.0,
    "a class": dict,
    "complex": 1j,
    "an array of bools": np.array([True, False]),
    "a large integer": 10**400,
    "a transform": adv.token_mean(),
    "a module": adv.baseline,
}
NUMBERS = (-math.inf, -1e39, -1, -0.5, 0, 1e-50, 0.5, 1, 1.0, 7, 2**31, 1e39, math.inf)

# Chooses the program, or is an integer.
STATIC = ("temperature", "seed")

# How an argument without a name of its own is called.
NAMED = {"terms": "one", "steps": "transforms"}

# What is right of the above: any value, a function of any arguments.
RIGHT = {
    ("constant", "value"): {"a list"},
    ("controlled", "make"): {"a factory", "a loss's factory"},
    ("controlled_algorithm", "make"): {"a factory", "a loss's factory"},
    ("scale_by_layer", "rates"): {"a list"},
    ("top_entropy", "divisor_fn"): {"a factory", "a loss's factory"},
}


def functions():
    """(module, name, function) of all public functions of the modules above."""
    for module in MODULES:
        found = importlib.import_module(f"rljax.{module}")
        inside = (
            pkgutil.iter_modules(found.__path__) if hasattr(found, "__path__") else ()
        )
        names = [f"rljax.{module}", *(f"rljax.{module}.{m.name}" for m in inside)]
        for name in names:
            if name.rpartition(".")[2] in OTHERS:
                continue
            for key, value in vars(importlib.import_module(name)).items():
                own = getattr(value, "__module__", "") == name
                if own and inspect.isfunction(value) and not key.startswith("_"):
                    yield name.removeprefix("rljax."), key, value


def is_factory(fn) -> bool:
    """Whether what it returns is itself a function, or a NamedTuple of some."""
    result = inspect.signature(fn).return_annotation
    origin = typing.get_origin(result)
    pair = isinstance(result, type) and hasattr(result, "_fields")
    return origin is collections.abc.Callable or (
        pair
        and isinstance(vars(result).get("__annotations__"), dict)
        and "init" in result._fields
    )


FACTORIES = {f"{m}.{k}": fn for m, k, fn in functions() if is_factory(fn)}


def fitting(fn) -> tuple[list, dict]:
    args, kwargs = [], {}
    for name, p in inspect.signature(fn).parameters.items():
        if p.kind is p.VAR_POSITIONAL:
            args.append(FITS[name])
        elif p.kind is p.VAR_KEYWORD:
            kwargs |= {"one": FITS[name]} if name == "terms" else {}
        elif p.default is p.empty:
            kwargs[name] = FITS.get(name, 1)
    return args, kwargs


def call(fn, name=None, value=None):
    args, kwargs = fitting(fn)
    if name is not None:
        p = inspect.signature(fn).parameters[name]
        if p.kind is p.VAR_POSITIONAL:
            args = [value]
        elif p.kind is p.VAR_KEYWORD:
            kwargs = {"one": value}
        else:
            kwargs[name] = value
    if args and any(
        p.kind is p.POSITIONAL_OR_KEYWORD
        for p in inspect.signature(fn).parameters.values()
    ):
        args = [
            kwargs.pop(n)
            for n in list(kwargs)
            if inspect.signature(fn).parameters[n].kind.name == "POSITIONAL_OR_KEYWORD"
        ] + args
    return fn(*args, **kwargs)


def arguments(fn):
    """The names of the arguments that are replaced."""
    return [
        name
        for name, p in inspect.signature(fn).parameters.items()
        if p.kind is not p.VAR_KEYWORD or name == "terms"
    ]


# By module, as a test of its own for each argument would cost more than what it does.
IN_MODULES = pytest.mark.parametrize(
    "factories",
    [
        pytest.param({k: FACTORIES[k] for k in keys}, id=module)
        for module, keys in itertools.groupby(
            FACTORIES, lambda key: key.rpartition(".")[0]
        )
    ],
)


@IN_MODULES
def test_every_factory_is_called_rightly_by_the_table(factories):
    for key, fn in factories.items():
        assert call(fn) is not None, key


def complaint(fn, name, value):
    """What is wrong with the refusal; None if there is none, and "taken" if it is."""
    try:
        call(fn, name, value)
    except ValueError as error:
        (*_, last) = traceback.extract_tb(error.__traceback__)
        message = str(error)
        if "rljax" not in last.filename or NAMED.get(name, name) not in message:
            return f"{last.filename}: {message}"
        parts = " got " in message and ";" in message
        return None if parts else f"not in three parts: {message}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


def right(fn, name) -> set[str]:
    """Which of the values of other kinds fit this argument."""
    parameter = inspect.signature(fn).parameters[name]
    found = set(RIGHT.get((fn.__name__, name), ()))
    if parameter.default is None:
        found.add("None")
    if "AdvantageTransform" in str(parameter.annotation):
        found.add("a transform")
    return found


@IN_MODULES
def test_values_of_other_kinds_are_refused_by_name(factories):
    bad = [
        f"{key}({name}={kind}): {why}"
        for key, fn in factories.items()
        for name in arguments(fn)
        for kind, value in WRONG.items()
        if kind not in right(fn, name)
        and (why := complaint(fn, name, value)) is not None
    ]
    assert not bad, "\n".join(bad)


@IN_MODULES
def test_any_number_is_taken_or_refused_by_name(factories):
    # Not an error of Python or JAX; what is taken is within the documented range.
    bad = [
        f"{key}({name}={x}): {why}"
        for key, fn in factories.items()
        for name in arguments(fn)
        for x in NUMBERS
        if (why := complaint(fn, name, x)) not in (None, "taken")
    ]
    assert not bad, "\n".join(bad)


a = algorithms
OUTSIDE = {
    "num_passes": lambda: update.learner(
        POLICY.measure, a.grpo(), optax.sgd(0.1), num_passes=0
    ),
    "num_minibatches": lambda: update.learner(
        POLICY.measure, a.grpo(), optax.sgd(0.1), num_minibatches=-1
    ),
    "coefficient": lambda: adv.scale_weight(-0.5),
    "beta": lambda: a.grpo_kl(beta=-1.0),
    "cap": lambda: a.tis(cap=0.0),
    "floor": lambda: a.icepop(floor=math.nan),
    "mu": lambda: a.mixture(2.0),
    "weight": lambda: a.w_reinforce(weight=-0.1),
    "entropy": lambda: a.luffy(max_tokens=4, entropy=math.nan),
    "anchor": lambda: a.asft(-0.1),
    "value_coefficient": lambda: a.ppo(value_coefficient=-0.1),
    "epsilon": lambda: adv.scale_by_group_std(epsilon=-1e-6),
    "factor": lambda: adv.scale_negative(-1.0),
    "target": lambda: adv.pid(math.nan),
    "exponent": lambda: adv.scale_by_focal_factor(math.inf),
    "constant": lambda: adv.center_by(math.nan),
    "scale": lambda: adv.rescale_reward(scale=math.inf, shift=0.0),
    "threshold": lambda: gate.gradient_gate(threshold=math.nan),
    "clip": lambda: a.grpo(clip=-0.2),
    "needle": lambda: verify.contains(FITS["table"], "1"),
    "after": lambda: verify.number(FITS["table"], after="="),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_numbers_that_would_silently_train_nothing_or_another_method_are_refused(name):
    # A weight that is not above 0 is left out of the loss: no term, and no word.
    with pytest.raises(ValueError, match=rf"^{name} must .* got .*; "):
        OUTSIDE[name]()


def test_hyper_parameters_may_be_traced():
    # A population is a vmap over them: a check that compared would raise.
    for fn in FACTORIES.values():
        for name, p in inspect.signature(fn).parameters.items():
            if (p.annotation is float or p.annotation == jax.typing.ArrayLike) and (
                name not in STATIC
            ):

                def build(x, fn=fn, name=name):
                    assert call(fn, name, x) is not None
                    return x

                assert jax.eval_shape(build, jnp.float32(0.5)).shape == ()


def test_a_decoder_has_sizes():
    sizes = (
        "vocab_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "d_ff",
    )
    for name in sizes:
        for wrong in (0, -2, 2.5, "2", None, True):
            with pytest.raises(ValueError, match=f"{name} must"):
                dataclasses.replace(CONFIG, **{name: wrong})


def test_a_pool_refuses_its_arguments_before_it_starts_a_process():
    right = {"fn": max, "decode": FITS["table"], "num_workers": 1, "timeout_s": 1.0}
    for name in right:
        with pytest.raises(ValueError, match=f"{name} must"):  # noqa: SIM117
            with verify.pooled(**right | {name: "1"}):
                pass
