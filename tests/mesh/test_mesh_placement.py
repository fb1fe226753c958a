"""States that begin in shards, from a key, from files and from checkpoints."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as Spec

from rljax import mesh
from rljax.model import DecoderConfig, decoder_policy, hugging_face
from rljax.run import checkpoint

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}
CONFIG = DecoderConfig(
    **{"vocab_size": 16, "num_layers": 2, "d_model": 16, "num_heads": 2},
    **{"num_kv_heads": 2, "head_dim": 8, "d_ff": 32},
)
POLICY = decoder_policy(CONFIG)


def params():
    return jax.jit(POLICY.init)(jax.random.key(0))


def kernel(params):
    return params["layers"]["gate"]["kernel"]


def test_prompts_are_split_along_the_given_axis_and_other_arrays_copied():
    place = mesh.make(**SIZES)
    prompts = np.zeros((3, 16, 2))
    split = mesh.shard_prompts(prompts, place, axis=1)
    assert split.sharding.shard_shape(split.shape) == (3, 4, 2)
    everywhere = mesh.Layout(update=mesh.ONLY_PROMPTS)
    split = mesh.shard_prompts(prompts, place, axis=1, layout=everywhere)
    assert split.sharding.shard_shape(split.shape) == (3, 2, 2)
    assert mesh.replicate(jnp.zeros((16, 2)), place).sharding.is_fully_replicated


def test_without_a_mesh_nothing_is_moved():
    tree = {"x": np.ones((3, 2))}
    assert mesh.place(tree, None) is tree
    assert mesh.shard_prompts(tree, None) is tree
    assert mesh.stored(tree) == [None]


def test_the_weights_of_files_go_straight_to_their_shards(tmp_path):
    want = params()
    hugging_face.save(tmp_path / "model", CONFIG, want)
    with mesh.using(mesh.make(**SIZES), mesh.Layout(update=mesh.ONLY_PROMPTS)):
        _, got = hugging_face.load(tmp_path / "model")
    assert kernel(got).sharding.spec == Spec(None, ("tensor", "fsdp"), None)
    chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(want))


def test_a_checkpoint_is_restored_to_shards_of_another_mesh(tmp_path):
    def placed(**sizes):
        own = params()
        state = {"params": own, "moments": optax.adam(1e-3).init(own)}
        return mesh.place(state, mesh.make(**sizes))

    saved = placed(fsdp=8)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1, report=print)
    checkpoints.save(1, saved, {})
    checkpoints.wait()
    checkpoints.close()
    like = checkpoint.template(placed(**SIZES))
    found = checkpoint.newest(tmp_path)
    assert found is not None
    got = checkpoint.restore(found.path, like)
    assert kernel(got["params"]).sharding.spec == Spec(None, "fsdp", "tensor")
    assert kernel(got["moments"][0].mu).sharding.spec == Spec(None, "fsdp", "tensor")
    chex.assert_trees_all_equal(jax.device_get(got), jax.device_get(saved))
