"""The table: what lies where, of parameters and of all that mirrors them."""

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as Spec

from rljax import mesh
from rljax.learn import master_weights
from rljax.mesh.rules import partition

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}


def specs(tree, layout=mesh.PLAIN):
    shardings = mesh.state_shardings(tree, mesh.make(**SIZES), layout)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in jax.tree.leaves_with_path(shardings)
    }


def parameters(dtype=jnp.float32):
    policy = fakes.decoder(num_layers=2, tie_embeddings=False, qkv_bias=True)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(lambda x: x.update(dtype=dtype), params)


def test_a_decoder_lies_as_the_table_says():
    found = specs(parameters())
    assert found["layers/q/kernel"] == Spec(None, "fsdp", "tensor")
    assert found["layers/q/bias"] == Spec(None, "tensor")
    assert found["layers/o/kernel"] == Spec(None, "tensor", "fsdp")
    assert found["layers/down/kernel"] == Spec(None, "tensor", "fsdp")
    assert found["embed/embedding"] == Spec("tensor", "fsdp")
    assert found["head/kernel"] == Spec("fsdp", "tensor")
    assert found["layers/norm_mlp/scale"] == Spec(None, None)


def test_every_matrix_of_a_decoder_has_a_place_in_the_table():
    copied = [name for name, spec in specs(parameters()).items() if not any(spec)]
    assert {name.rpartition("/")[2] for name in copied} == {"scale"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_moments_masters_and_references_lie_as_their_parameters(dtype):
    params = parameters(dtype)
    optimizer = master_weights.master_weights(optax.adam(1e-3))
    state = {"reference": params, "moments": jax.eval_shape(optimizer.init, params)}
    want, found = specs(params), specs(state)
    mirrors = [n for n in found if any(n.endswith(f"/{name}") for name in want)]
    per_leaf = 3 if dtype == jnp.float32 else 4  # and the masters
    assert len(mirrors) == per_leaf * len(want)
    for name in mirrors:
        assert found[name] == next(s for n, s in want.items() if name.endswith(f"/{n}"))


def test_what_has_another_rank_than_its_parameter_is_copied():
    # Factored moments end in the same keys: split as the kernel, they would be wrong.
    assert specs({"layers": {"q": {"kernel": jnp.ones((2, 8))}}}) == {
        "layers/q/kernel": Spec(None, None)
    }


def test_a_mesh_axis_splits_one_axis_of_an_array():
    # Experts come first, so the axis they take is not used for d_model again.
    found = partition(mesh.Rules(), ("experts", "embed", "mlp"), SIZES | {"expert": 2})
    assert found == Spec("expert", "fsdp", "tensor")


def test_an_axis_is_split_as_far_as_it_divides():
    rules = mesh.Rules(embed=("fsdp", "tensor"), vocab=())
    split = [partition(rules, ("vocab", "embed"), SIZES, (5, n)) for n in (8, 6, 5)]
    assert split == [
        Spec(None, ("fsdp", "tensor")),
        Spec(None, "fsdp"),
        Spec(None, None),
    ]


def test_a_user_replaces_the_table():
    mine = dataclasses.replace(mesh.Rules(), mlp=("tensor", "data"), embed=())
    found = specs(parameters(), mesh.Layout(update=mine))
    assert found["layers/gate/kernel"] == Spec(None, None, ("tensor", "data"))


def test_rules_that_are_no_tuples_are_refused():
    # "fsdp" would be read letter by letter, and split nothing.
    with pytest.raises(ValueError, match=r"embed must be a tuple.*got 'fsdp'"):
        mesh.Rules(embed="fsdp")


def test_large_leaves_that_are_copied_are_told():
    tree = {"mine": jnp.ones((2**9, 2**9)), "embed": {"embedding": jnp.ones((8, 8))}}
    found = mesh.copied(tree, mesh.make(**SIZES))
    assert found == {"['mine']": 2**20}


def test_rules_are_a_part_of_what_is_compiled():
    # One function under two layouts: kept for the first, it would ignore the second.
    tree = {"embed": {"embedding": jnp.ones((8, 8))}}
    stored = jax.jit(mesh.keep_state)
    found = []
    for layout in (mesh.PLAIN, mesh.Layout(update=mesh.ONLY_PROMPTS)):
        with mesh.using(mesh.make(tensor=8), layout):
            found.append(stored(tree)["embed"]["embedding"].sharding.spec)
    assert found == [Spec("tensor"), Spec(None, "tensor")]


def test_one_layer_of_experts_is_not_taken_for_many_dense_layers():
    # Both have three axes; their paths tell them apart.
    def axes(*path, of_one_layer):
        path = tuple(map(jax.tree_util.DictKey, path))
        return mesh.logical_axes(path, 3, of_one_layer=of_one_layer)

    dense, experts = ("layers", "embed", "mlp"), ("experts", "embed", "mlp")
    assert axes("layers", "gate", "kernel", of_one_layer=True) == dense
    assert axes("experts", "gate", "kernel", of_one_layer=True) == experts
    shared = ("layers", "experts", "shared", "gate", "kernel")
    assert axes(*shared, of_one_layer=False) == dense
