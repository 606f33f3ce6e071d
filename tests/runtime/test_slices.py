"""Names of slices, and the bandwidth of their links by hand."""

import pytest

from diffusion_jax.runtime import slices
from diffusion_jax.runtime.errors import BadRequest


@pytest.mark.parametrize(
    ("name", "shape", "num_chips"),
    [
        ("v5e:16x16", (16, 16), 256),
        ("v5e:2x2", (2, 2), 4),
        ("v4", (2, 2, 1), 4),
        ("v4:4x4x8", (4, 4, 8), 128),
        ("v6e", (1, 1), 1),
        ("h100", (1, 1), 1),
        ("h100:8", (1, 8), 8),
        ("h100:2x8", (2, 8), 16),
    ],
)
def test_names_are_read(name, shape, num_chips):
    found = slices.parse("--rehearse", name)
    assert (found.shape, found.num_chips) == (shape, num_chips)
    assert found.is_tpu == name.startswith("v")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5:2x2", "did you mean v5p?"),
        ("h101:8", "did you mean h100?"),
        ("abacus", "it can be v4, v5e"),
        ("", "it can be v4, v5e"),
        ("v5e:", "there are v5e:1x1"),
        ("v5e:4", "v5e:16x16"),
        ("v4:2x2", "v4:2x2x1"),
        ("h100:1x2x8", "h100:2x8"),
        ("h100:0", "h100:8"),
        ("h100:-8", "h100:8"),
        ("v5e:16X16", "v5e:16x16"),
        ("v5e:9999x9999", "at most 16,384"),
    ],
)
def test_other_names_are_refused(name, said):
    with pytest.raises(BadRequest, match="--rehearse") as error:
        slices.parse("--rehearse", name)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_links_of_a_slice():
    """GB/s one way: 50 for a link of a v5e; 450 in a host of H100, 50 out of it for each.

    256 chips of v5e at 200 GB/s are the 51.2 TB/s that the maker gives for a pod.
    """

    def gigabytes(name):
        return slices.parse("--rehearse", name).allreduce_bandwidth / 1e9

    assert gigabytes("v5e:2x2") == 2 * 50
    assert gigabytes("v5e:2x4") == 2 * 50
    assert gigabytes("v5e:8x16") == 3 * 50
    assert gigabytes("v5e:16x16") * 256 == 51_200
    assert gigabytes("v4:2x2x1") == 2 * 45
    assert gigabytes("v4:4x4x4") == 6 * 45
    assert gigabytes("h100:8") == 450
    assert gigabytes("h100:2x8") == 8 * 50
    assert gigabytes("h100:2x1") == 50
