"""The order of devices in a mesh."""

import importlib.util
import itertools
import random
from types import SimpleNamespace

import jax
import pytest

from sideways_jax import make_mesh
from sideways_jax.devices.mesh import in_a_line


def _chips(*sizes, cores=1, slices=1):
    """Devices as libtpu numbers them: x first."""
    places = itertools.product(range(slices), *map(range, reversed(sizes)), range(cores))
    return [
        SimpleNamespace(id=k, coords=reversed_[::-1], core_on_chip=core, slice_index=part)
        for k, (part, *reversed_, core) in enumerate(places)
    ]


def _hops(one, other):
    return sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))


def test_the_line_on_eight_chips():
    line = [device.id for device in in_a_line(_chips(2, 4, 1))]
    assert line == [0, 1, 3, 2, 4, 5, 7, 6]


@pytest.mark.parametrize("sizes", [(2, 4, 1), (4, 4, 1), (2, 2, 4), (4, 2, 3), (8, 1, 1), (3,)])
def test_neighbours_are_one_hop_apart_and_every_device_is_there_once(sizes):
    chips = _chips(*sizes)
    shuffled = random.Random(0).sample(chips, len(chips))
    line = in_a_line(shuffled)
    assert sorted(device.id for device in line) == list(range(len(chips)))
    assert [_hops(*pair) for pair in itertools.pairwise(line)] == [1] * (len(chips) - 1)


def test_cores_of_a_chip_are_neighbours_and_slices_follow_each_other():
    line = in_a_line(_chips(2, 2, 1, cores=2, slices=2))
    pairs = list(itertools.pairwise(line))
    assert sum(_hops(a, b) for a, b in pairs if a.slice_index == b.slice_index) == 6
    assert sum(a.slice_index != b.slice_index for a, b in pairs) == 1


def test_devices_without_places_keep_their_order():
    devices = jax.devices()[::-1]
    assert in_a_line(devices) == devices
    assert list(make_mesh(2, devices=devices).devices.flat) == devices[:2]
    assert in_a_line([]) == []


def test_a_topology_of_tpus():
    """As libtpu describes it, where it is installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = make_mesh(4, data=2, devices=devices)
    assert [device.id for device in mesh.devices.flat] == [0, 1, 3, 2, 4, 5, 7, 6]
    assert all(_hops(*pair) == 1 for row in mesh.devices for pair in itertools.pairwise(row))
