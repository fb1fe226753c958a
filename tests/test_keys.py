"""Random streams: no two draws of a run share a key, and only one file folds keys."""

import ast
import pathlib

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax

import rljax
from rljax import advantage as adv
from rljax import keys, loss
from rljax.keys import Stream
from rljax.learn import update
from rljax.policy import lora
from rljax.rollout.sample import sample_keys

RUN = jax.random.key(0)


def words(key):
    """u64[...] of keys: threefry's have two words."""
    data = np.asarray(jax.random.key_data(key), np.uint64)
    return (data[..., 0] << np.uint64(32) | data[..., 1]).ravel()


def below(key, name, *numbers):
    """All nodes from below `key` down to the draws, one array per depth.

    Args:
      *numbers: arrays of values, one for each number that follows the name.
    """
    nodes = [keys.stream(key, name)]
    for values in numbers:
        flat = nodes[-1].reshape(-1)
        nodes.append(
            jax.vmap(lambda k, v=values: jax.vmap(keys.at, (None, 0))(k, v))(flat)
        )
    return nodes


IDS = jnp.concatenate([jnp.arange(20_000), 2**31 - 1 - jnp.arange(500)])
FEW = jnp.arange(3)
MATRICES = jnp.arange(len(lora.TARGETS))


def of_a_step(key, joined=2):
    """(nodes with keys below them, keys that are drawn with) of a training step."""
    *inner, drawn = below(key, Stream.SAMPLE, IDS, FEW, FEW)
    inner, drawn = [key, *inner], [drawn]
    *above, hints = below(key, Stream.HINT, IDS)
    *more, shuffles = below(key, Stream.SHUFFLE, jnp.arange(100))
    *yet_more, answers = below(key, Stream.ENVIRONMENT, IDS, FEW)
    inner, drawn = inner + above + more + yet_more, [*drawn, hints, shuffles, answers]
    for i in range(1, joined):
        there = of_a_step(keys.stream(key, Stream.SOURCE, i), joined=0)
        inner, drawn = inner + there[0], drawn + there[1]
    return inner, drawn


def test_no_two_draws_of_a_run_share_a_key():
    # Steps, ids, samples, passes and names all are small numbers: what was folded at
    # one depth without a name was once the key of prompt 1 and of the shuffle, too.
    inner, drawn = [RUN], [keys.stream(RUN, Stream.PARAMETERS)]
    for phase in range(2):
        key = keys.stream(RUN, Stream.PHASE, phase)
        inner, drawn = [*inner, key], [*drawn, keys.stream(key, Stream.STEERING)]
        further = keys.stream(key, Stream.PARAMETERS)
        *above, adapters = below(further, Stream.ADAPTER, MATRICES)
        inner, drawn = inner + above, [*drawn, adapters]
        for step in (0, 1) if phase == 0 else (0,):
            there = of_a_step(keys.of_step(key, step))
            inner, drawn = inner + there[0], drawn + there[1]
    # A seed of 0 in an algorithm is the run's own key, and so is an evaluation's if the
    # run's seed is that of `evaluate`: the names keep them apart.
    *above, filtered = below(RUN, Stream.TOKEN_FILTER, FEW, IDS[:1000], FEW)
    *more, asked = below(RUN, Stream.SAMPLE, IDS[:1000], FEW, FEW)
    drawn = np.concatenate([words(k) for k in [*drawn, filtered, asked]])
    inner = np.concatenate([words(k) for k in inner + above + more])
    assert len(drawn) > 1_000_000
    assert len(np.unique(drawn)) == len(drawn)
    # Bits drawn at a node repeat the keys below it, so no draw may be such a node.
    assert len(np.intersect1d(inner, drawn)) == 0


def test_the_samplers_keys_are_those_of_the_stream_of_samples():
    got = sample_keys(RUN, jnp.array([7, 3]), 2)
    want = keys.stream(RUN, Stream.SAMPLE, 3, 1)
    assert words(got[1, 1]) == words(want)
    assert words(keys.at(want, 5)) == words(keys.stream(RUN, Stream.SAMPLE, 3, 1, 5))


def test_the_shuffle_is_that_of_its_stream():
    policy, seen = fakes.bandit(8, 4, 16), []

    def record(credit, rollout):
        jax.debug.callback(lambda ids: seen.append(ids), rollout.prompts.id)
        return credit

    term = adv.Term(
        weighting=adv.chain(adv.stateless(record), adv.token_mean()),
        loss_fn=loss.ppo_clip(),
    )
    made = update.learner(
        policy.measure, adv.algorithm(policy=term), optax.sgd(1.0), num_minibatches=8
    )
    rows = fakes.rollout(8, 2, 4).replace(prompts=fakes.prompts(8))
    state = made.init(policy.init(None), RUN)
    jax.jit(made.learn)(state.replace(step=state.step + 2), rows)
    jax.effects_barrier()
    key = keys.stream(keys.of_step(RUN, 2), Stream.SHUFFLE, 0)
    want = rows.prompts.id[jax.random.permutation(key, 8)]
    np.testing.assert_array_equal(np.concatenate(seen), want)


def test_only_one_file_folds_or_splits_keys():
    library = pathlib.Path(rljax.__file__).parent
    folders = (library, *(library.parent / name for name in ("experiments", "tpu")))
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        tree = ast.walk(ast.parse(path.read_text()))
        calls = [
            f"{path}:{node.lineno}"
            for node in tree
            if isinstance(node, ast.Attribute)
            and node.attr in ("fold_in", "split", "clone")
            and ast.unparse(node.value) in ("jax.random", "random", "jr")
        ]
        assert path.name == "keys.py" or not calls, calls
