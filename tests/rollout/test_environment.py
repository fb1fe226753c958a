"""Environments: the sampler's loop does what a plain Python loop would do.

The toy is a calculator. It adds up the digits that a sample has said, starting from a
random digit, and answers "=" with the total, two digits. Above a limit it ends the
sample. A stop token that is said too early it answers with a question mark.
"""

import functools

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xla

from rljax import keys, mesh
from rljax.rollout.environment import FREE, Environment
from rljax.rollout.sample import greedy, sample_keys, sampler

QUESTION, STOP = 13, 3
LIMIT, EARLY = 40, 8
EQUAL_SIGNS = (11, 12)  # two of them, so that there are enough
PROMPTS = fakes.prompts(num_prompts=8)
POLICY = fakes.decoder(num_layers=2)
PARAMS = jax.jit(POLICY.init)(jax.random.key(0))
KEY = jax.random.key(5)
G, T = 4, 18


def begin(prompt, key):
    del prompt
    total = jax.random.randint(key, (), 0, 10)
    state = {"total": total, "queue": jnp.full(3, FREE), "said": 0, "key": key}
    return state, FREE


def step(state, token):
    """The queue holds the tokens still to be forced, FREE where there are none."""
    answering = state["queue"][0] >= 0
    total = state["total"] + jnp.where(answering | (token > 9), 0, token)
    asked = jnp.isin(token, jnp.array(EQUAL_SIGNS)) & ~answering
    early = (token == STOP) & ~answering & (state["said"] < EARLY)
    last = jnp.where(total > LIMIT, STOP, FREE)
    answer = jnp.stack([total // 10, total % 10, last])
    queue = jnp.append(state["queue"][1:], FREE)
    queue = jnp.where(asked, answer, queue)
    queue = jnp.where(early, jnp.array([QUESTION, FREE, FREE]), queue)
    # What is being answered stands first until the next token comes.
    state = state | {"total": total, "said": state["said"] + 1, "queue": queue}
    return state, queue[0]


CALCULATOR = Environment(begin, step)


class PlainCalculator:
    """The same in plain Python, written another way."""

    def __init__(self, first_total):
        self.total, self.said, self.answer, self.answered = first_total, 0, [], False

    def next_forced(self):
        return self.answer[0] if self.answer else None

    def hear(self, token):
        self.said += 1
        if self.answer:
            self.answer.pop(0)
            return
        if token <= 9:
            self.total += token
        if token in EQUAL_SIGNS:
            self.answer = [self.total // 10, self.total % 10]
            if self.total > LIMIT:
                self.answer.append(STOP)
        if token == STOP and self.said <= EARLY:
            self.answer = [QUESTION]


@jax.jit
def all_logits(samples):
    """f32[P, G, T, V] from whole completions; the first t tokens decide those at t."""
    return POLICY.logits(PARAMS, POLICY.hidden(PARAMS, PROMPTS, samples))


@functools.cache
def by_a_plain_loop():
    """Tokens, mask, finished and totals [P, G, ...], one sample after the other."""
    P = len(PROMPTS.id)
    own_keys = sample_keys(KEY, PROMPTS.id, G)
    noise = jax.vmap(
        jax.vmap(lambda k: jax.vmap(lambda t: keys.at(k, t))(jnp.arange(T)))
    )(own_keys)
    draw = jax.vmap(jax.vmap(jax.vmap(lambda k: jax.random.gumbel(k, (16,)))))
    noise = np.asarray(draw(noise))
    samples = fakes.rollout(P, G, T).samples
    tokens, mask = np.zeros((P, G, T), np.int32), np.zeros((P, G, T), bool)
    finished, over = np.zeros((P, G), bool), np.zeros((P, G), bool)
    calculators = {}
    for p, g in np.ndindex(P, G):
        own = keys.stream(KEY, keys.Stream.ENVIRONMENT, PROMPTS.id[p], g)
        calculators[p, g] = PlainCalculator(int(jax.random.randint(own, (), 0, 10)))
    for t in range(T):
        logits = np.asarray(all_logits(samples.replace(tokens=jnp.asarray(tokens))))
        for p, g in np.ndindex(P, G):
            if over[p, g]:
                continue
            forced = calculators[p, g].next_forced()
            drawn = np.argmax(logits[p, g, t] + noise[p, g, t])
            token = tokens[p, g, t] = drawn if forced is None else forced
            mask[p, g, t] = forced is None
            calculators[p, g].hear(token)
            if token == STOP and calculators[p, g].next_forced() is None:
                over[p, g] = finished[p, g] = True
    total = np.array([[calculators[p, g].total for g in range(G)] for p in range(P)])
    return tokens, mask, finished, total


def drawing(num_slots=None, environment=CALCULATOR):
    options = {"num_samples": G, "max_tokens": T, "stop_tokens": (STOP,)}
    return sampler(POLICY, **options, environment=environment, num_slots=num_slots)


@functools.cache
def jitted(num_slots=None):
    return jax.jit(drawing(num_slots))


def assert_same_as_the_plain_loop(samples):
    tokens, mask, finished, total = by_a_plain_loop()
    np.testing.assert_array_equal(samples.tokens, tokens)
    np.testing.assert_array_equal(samples.mask, mask)
    np.testing.assert_array_equal(samples.finished, finished)
    np.testing.assert_array_equal(samples.environment["total"], total)


def test_the_plain_loop_meets_every_case():
    tokens, mask, finished, _ = by_a_plain_loop()
    length = np.sum(np.cumsum(mask[..., ::-1], -1) > 0, -1)
    holes = ~mask & (np.arange(T) < length[..., None])
    assert holes.sum() > 20  # answers that the sample goes on after
    assert (holes & (tokens == QUESTION)).sum() > 2  # stop tokens that end nothing
    by_force = ~mask & (tokens == STOP)
    assert by_force.sum() > 2 and (mask & (tokens == STOP)).any(-1).sum() > 2
    assert 0.2 < finished.mean() < 0.9


@pytest.mark.parametrize("num_slots", [None, 1, 3, 32])
def test_the_sampler_does_what_a_plain_loop_does(num_slots):
    # A state that stayed in its slot would go on with the predecessor's total.
    samples, _ = jitted(num_slots)(PARAMS, PROMPTS, KEY)
    assert_same_as_the_plain_loop(samples)


@pytest.mark.parametrize("num_slots", [None, 16])
def test_on_eight_devices_as_on_one(num_slots):
    devices = mesh.make()
    with jax.set_mesh(devices):
        params = mesh.replicate(PARAMS, devices)
        prompts = mesh.shard_prompts(PROMPTS, devices)
        samples, _ = jax.device_get(jitted(num_slots)(params, prompts, KEY))
    assert_same_as_the_plain_loop(samples)


def test_forced_tokens_are_read_by_the_policy_and_not_trained_on():
    samples, old = jitted()(PARAMS, PROMPTS, KEY)
    mask = samples.mask
    want = jax.jit(POLICY.measure)(PARAMS, PROMPTS, samples)
    own = jax.tree.map(lambda x: jnp.where(mask, x, 0), want)
    # Statistics of what nobody chose are 0. The others agree only if sampler and
    # learner both read the forced tokens.
    chex.assert_trees_all_close(old, own, atol=3e-5, rtol=0)
    chex.assert_trees_all_equal(samples.behaviour.logp, old.logp)
    kept = samples.behaviour.extra["kept_mass"]
    chex.assert_trees_all_equal(kept, mask.astype(jnp.float32))
    other = jnp.where(mask, samples.tokens, (samples.tokens + 1) % 16)
    got = jax.jit(POLICY.measure)(PARAMS, PROMPTS, samples.replace(tokens=other))
    assert float(jnp.max(jnp.where(mask, jnp.abs(got.logp - want.logp), 0))) > 1e-3


def test_an_environment_that_forces_nothing_changes_no_sample():
    silent = Environment(
        lambda prompt, key: ((), FREE), lambda state, token: ((), FREE)
    )
    compiled = functools.partial(jax.jit, compiler_options=xla.AS_USERS)
    plain, old = compiled(drawing(environment=None))(PARAMS, PROMPTS, KEY)
    samples, silent_old = compiled(drawing(environment=silent))(PARAMS, PROMPTS, KEY)
    chex.assert_trees_all_equal(samples.without("environment"), plain)
    chex.assert_trees_all_equal(silent_old, old)


def test_the_first_token_may_be_forced_and_differ_by_prompt():
    # The prompt's last token is repeated, then the policy goes on.
    def init(prompt, key):
        return (), prompt.tokens[prompt.length - 1]

    echo = Environment(init, lambda state, token: (state, FREE))
    sample = greedy(POLICY, max_tokens=3, stop_tokens=(), environment=echo)
    samples, _ = jax.jit(sample)(PARAMS, PROMPTS, KEY)
    last = PROMPTS.tokens[jnp.arange(8), PROMPTS.length - 1]
    assert samples.tokens[:, 0, 0].tolist() == last.tolist()
    assert samples.mask.tolist() == [[[False, True, True]]] * 8


@pytest.mark.parametrize(
    ("init", "step", "message"),
    [
        (lambda p, k: 0, step, "init of an environment must return .state, forced."),
        (lambda p, k: ((), jnp.zeros(2, int)), step, r"i32\[\], got int32\[2\]"),
        (lambda p, k: ((), 1.5), step, r"i32\[\], got float32\[\]"),
        (lambda p, k: (0, FREE), lambda s, t: (s + 0.5, FREE), "the structure"),
        (lambda p, k: (0, FREE), lambda s, t: ((s, s), FREE), "the structure"),
    ],
)
def test_what_an_environment_returns_is_checked_when_traced(init, step, message):
    sample = sampler(
        POLICY,
        num_samples=2,
        max_tokens=3,
        stop_tokens=(STOP,),
        environment=Environment(init, step),
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(sample, PARAMS, PROMPTS, KEY)


def test_reading_the_state_of_no_environment_says_who_supplies_it():
    samples, _ = jax.eval_shape(drawing(environment=None), PARAMS, PROMPTS, KEY)
    with pytest.raises(ValueError, match=r"sampler\(environment=...\)"):
        samples.environment["total"]
