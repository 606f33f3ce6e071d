"""networks.folded: batch norm behind a convolution, and convolutions of any size."""

import jax
import numpy as np
import pytest

from diffusion_jax.networks import folded

RNG = np.random.default_rng(0)
SOURCE = folded.Source("conv", "bn")


def direct(x, kernel, stride, pads):
    """Every window of the padded images times the kernel, in float64."""
    x = np.pad(x.astype(float), ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    strided = windows[:, ::stride, ::stride]
    return np.einsum("bijchw,hwck->bijk", strided, kernel, optimize=True)


@pytest.mark.parametrize(
    ("size", "taps", "channels", "stride", "pads"),
    [
        ((5, 8), (3, 3), 64, 1, ((1, 1), (1, 1))),  # By products of matrices, from here on,
        ((8, 8), (3, 3), 64, 1, ((1, 1), (1, 1))),
        ((7, 5), (3, 3), 64, 1, ((0, 0), (0, 0))),
        ((6, 5), (3, 3), 64, 1, ((1, 0), (0, 1))),  # and up to here.
        ((7, 8), (3, 3), 64, 2, ((0, 0), (0, 0))),
        ((7, 8), (3, 3), 2, 1, ((1, 1), (1, 1))),
        ((7, 8), (1, 7), 64, 1, ((0, 0), (3, 3))),
    ],
)
def test_convolutions_of_any_size(size, taps, channels, stride, pads):
    x = np.float32(RNG.standard_normal((2, *size, channels)))
    kernel = np.float32(RNG.standard_normal((*taps, channels, 64)))
    expected = direct(x, kernel, stride, pads)
    for platform in ("cpu", "gpu"):
        found = jax.jit(folded.convolution, static_argnums=(2, 3, 4))(
            x, kernel, stride, pads, platform
        )
        assert found.shape == expected.shape
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
        )


def tensors(outputs=4, inputs=3, taps=(1, 3)):
    """A convolution and its batch norm, as torch names and shapes them."""
    draw = {
        "conv.weight": RNG.standard_normal((outputs, inputs, *taps)),
        "bn.weight": RNG.uniform(0.5, 2, outputs),
        "bn.bias": RNG.standard_normal(outputs),
        "bn.running_mean": RNG.standard_normal(outputs),
        "bn.running_var": RNG.uniform(0.1, 2, outputs),
        "bn.num_batches_tracked": np.array(7),
    }
    return {name: np.float32(x) for name, x in draw.items()}


def test_a_folded_convolution_is_that_one_with_batch_norm_behind_it():
    given = tensors()
    params = folded.fold(folded.Tensors(given), SOURCE, (1, 3, 3, 4), 0.3)
    patch = np.float32(RNG.standard_normal((1, 3, 3)))
    plain = np.einsum("hwi,oihw->o", patch, given["conv.weight"])
    expected = (
        (plain - given["bn.running_mean"])
        / np.sqrt(given["bn.running_var"] + 0.3)
        * given["bn.weight"]
    ) + given["bn.bias"]
    found = np.einsum("hwi,hwio->o", patch, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert params["kernel"].dtype == params["bias"].dtype == np.float32


def test_each_tensor_is_taken_once():
    given = folded.Tensors(tensors())
    with pytest.raises(ValueError, match="5 further tensors, such as 'conv.weight'"):
        given.check_all_taken()
    folded.fold(given, SOURCE, (1, 3, 3, 4), 0.001)
    given.check_all_taken()  # The count of train steps may be left.
    with pytest.raises(ValueError, match="there is no tensor 'conv.weight'"):
        folded.fold(given, SOURCE, (1, 3, 3, 4), 0.001)
    with pytest.raises(
        ValueError, match=r"'conv.weight' has the shape .* not \(4, 3, 3, 1\)"
    ):
        folded.fold(folded.Tensors(tensors()), SOURCE, (3, 1, 3, 4), 0.001)
