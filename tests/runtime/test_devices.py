"""The mesh, and where arrays lie on it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from configs import cifar10
from diffusion_jax.data import sources
from diffusion_jax.experiment.setup import make_plan
from diffusion_jax.runtime import devices
from diffusion_jax.training import first_state, train
from diffusion_jax.training.train_state import shardings


def eight(fsdp):
    sizes = (8 // fsdp, fsdp)
    return AbstractMesh(sizes, devices.AXES, axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    "data, fsdp, said",
    [
        (0, 3, r"parallel.fsdp \(3\) must divide the number of devices, 4; take 2"),
        (0, 8, r"parallel.fsdp \(8\) must divide the number of devices, 4; take 4"),
        (3, 2, r"parallel.data \(3\) times parallel.fsdp \(2\) must be .* 4; take data 2"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(data, fsdp, said):
    with pytest.raises(ValueError, match=said):
        devices.make_mesh(data, fsdp)


def test_a_mesh_has_all_devices_once():
    for fsdp in (1, 2, 4):
        mesh = devices.make_mesh(0, fsdp)
        assert dict(mesh.shape) == {"data": 4 // fsdp, "fsdp": fsdp}
        assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}


def test_an_array_is_split_along_its_largest_axis_that_can_be_divided():
    shapes = {
        "last of equals": ((3, 3, 16, 16), PartitionSpec(None, None, None, "fsdp")),
        "largest": ((3, 3, 32, 16), PartitionSpec(None, None, "fsdp")),
        "the largest cannot": ((33, 8), PartitionSpec(None, "fsdp")),
        "none": ((3, 3, 5), PartitionSpec()),
        "a number": ((), PartitionSpec()),
    }
    tree = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, (shape, _) in shapes.items()
    }
    found = devices.split_largest(eight(8), tree)
    assert {k: s.spec for k, s in found.items()} == {k: v for k, (_, v) in shapes.items()}
    whole = devices.split_largest(eight(1), tree)
    assert {s.spec for s in whole.values()} == {PartitionSpec()}


@pytest.fixture(scope="module")
def cifar():
    """The plan of CIFAR-10, with two examples of its shape."""
    config = cifar10.get_config()
    config.data.batch_size = 128
    pictures = np.zeros((2, 32, 32, 3), np.uint8)
    return make_plan(config, sources.arrays(pictures, pictures))


def test_eight_devices_hold_an_eighth_of_the_state_each(cifar):
    """Of CIFAR-10's network: params, Adam's moments, averages, within 1 in 1,000."""
    state = first_state.abstract_state(cifar)
    lie = shardings(eight(8), state)
    own = sum(
        math.prod(where.shard_shape(x.shape))
        for x, where in zip(*map(jax.tree.leaves, (state, lie)), strict=True)
    )
    total = sum(x.size for x in jax.tree.leaves(state))
    assert total > 35_000_000 * 5
    assert own == pytest.approx(total / 8, rel=1e-3)


def test_rows_are_shared_out_over_both_axes():
    mesh = devices.make_mesh(0, 2)
    rows = np.arange(8)
    put = devices.put_rows(mesh, rows)
    assert sorted(int(s.data[0]) for s in put.addressable_shards) == [0, 2, 4, 6]
    np.testing.assert_array_equal(devices.local_rows(mesh, 8), rows)
    np.testing.assert_array_equal(devices.to_host(put), rows)


def test_the_mesh_of_a_config_is_refused_as_a_wrong_request():
    config = cifar10.get_config()
    config.parallel.fsdp = 3
    with pytest.raises(train.BadRequest, match=r"parallel.fsdp \(3\)"):
        train.mesh_of(config)
