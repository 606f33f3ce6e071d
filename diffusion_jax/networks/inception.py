"""The Inception-v3 of the Fréchet inception distance (Heusel et al. 2017).

It is the network of TensorFlow's graph of 2015-12-05 (Szegedy et al. 2016). It differs from
that of torchvision: average pools leave the padding out, the last block has a max pool in
place of an average pool, and there are 1,008 classes. Names are those of the files for
torch by which its weights are distributed, pt_inception-2015-12-05-6726825d.pth of
pytorch-fid and weights-inception-2015-12-05-6726825d.pth of torch-fidelity.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.networks import folded, pooling, resizing

SIZE = 299  # Pixels in a row and in a column.
NUM_FEATURES, NUM_CLASSES = 2048, 1008
_EPSILON = 0.001  # Of the batch norm.


class _Block(nn.Module):
    """Convolutions, each with a bias and a ReLU; subclasses say how they are joined."""

    platform: str

    def conv(
        self,
        x: jax.Array,
        name: str,
        features: int,
        taps: tuple[int, int],
        stride: int = 1,
        padded: bool = True,
    ) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]; padded so that stride 1 keeps the size."""
        kernel, bias = folded.Affine((*taps, x.shape[-1], features), name=name)()
        (top, left) = (t // 2 if padded else 0 for t in taps)
        pads = ((top, top), (left, left))
        return nn.relu(folded.convolution(x, kernel, stride, pads, self.platform) + bias)

    def pointwise(self, x: jax.Array, **features: int) -> list[jax.Array]:
        """1x1 convolutions of one input, by name, as a single product of matrices.

        The branch "branch_pool" has an average pool before it. Here it comes after the
        product: both are linear, and so there are fewer channels to pool.
        """
        layers = [
            folded.Affine((1, 1, x.shape[-1], k), name=name)()
            for name, k in features.items()
        ]
        kernel = jnp.concatenate([kernel[0, 0] for kernel, _ in layers], axis=-1)
        products = jnp.tensordot(x, kernel, 1)
        ends = np.cumsum([*features.values()])[:-1]
        return [
            nn.relu((pooling.average(y) if name == "branch_pool" else y) + bias)
            for name, y, (_, bias) in zip(
                features, jnp.split(products, ends, axis=-1), layers, strict=True
            )
        ]


class _A(_Block):
    """35x35: 1x1, 5x5, twice 3x3, and a pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b1, b5, dbl, pool = self.pointwise(
            x,
            branch1x1=64,
            branch5x5_1=48,
            branch3x3dbl_1=64,
            branch_pool=self.pool_features,
        )
        b5 = self.conv(b5, "branch5x5_2", 64, (5, 5))
        for i in (2, 3):
            dbl = self.conv(dbl, f"branch3x3dbl_{i}", 96, (3, 3))
        return jnp.concatenate([b1, b5, dbl, pool], axis=-1)


class _B(_Block):
    """35x35 to 17x17: 3x3, twice 3x3, and a max pool."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b3 = self.conv(x, "branch3x3", 384, (3, 3), 2, False)
        (dbl,) = self.pointwise(x, branch3x3dbl_1=64)
        dbl = self.conv(dbl, "branch3x3dbl_2", 96, (3, 3))
        dbl = self.conv(dbl, "branch3x3dbl_3", 96, (3, 3), 2, False)
        return jnp.concatenate([b3, dbl, pooling.largest(x, 2)], axis=-1)


class _C(_Block):
    """17x17: 1x1, 7x7 by a row and a column, the same twice, and a pool."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, row, column = self.width, (1, 7), (7, 1)
        b1, b7, dbl, pool = self.pointwise(
            x, branch1x1=192, branch7x7_1=c, branch7x7dbl_1=c, branch_pool=192
        )
        b7 = self.conv(b7, "branch7x7_2", c, row)
        b7 = self.conv(b7, "branch7x7_3", 192, column)
        for i, taps in enumerate((column, row, column), start=2):
            dbl = self.conv(dbl, f"branch7x7dbl_{i}", c, taps)
        dbl = self.conv(dbl, "branch7x7dbl_5", 192, row)
        return jnp.concatenate([b1, b7, dbl, pool], axis=-1)


class _D(_Block):
    """17x17 to 8x8: 3x3, 7x7 and 3x3, and a max pool."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b3, b7 = self.pointwise(x, branch3x3_1=192, branch7x7x3_1=192)
        b3 = self.conv(b3, "branch3x3_2", 320, (3, 3), 2, False)
        b7 = self.conv(b7, "branch7x7x3_2", 192, (1, 7))
        b7 = self.conv(b7, "branch7x7x3_3", 192, (7, 1))
        b7 = self.conv(b7, "branch7x7x3_4", 192, (3, 3), 2, False)
        return jnp.concatenate([b3, b7, pooling.largest(x, 2)], axis=-1)


class _E(_Block):
    """8x8: 1x1, 3x3 as a row and a column, 3x3 before both, and a pool."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
        if self.max_pool:
            b1, b3, dbl = self.pointwise(x, **wide)
            pool = self.conv(pooling.largest(x, 1), "branch_pool", 192, (1, 1))
        else:
            b1, b3, dbl, pool = self.pointwise(x, **wide, branch_pool=192)
        dbl = self.conv(dbl, "branch3x3dbl_2", 384, (3, 3))
        both = [
            self.conv(y, f"{name}{letter}", 384, taps)
            for y, name in ((b3, "branch3x3_2"), (dbl, "branch3x3dbl_3"))
            for letter, taps in (("a", (1, 3)), ("b", (3, 1)))
        ]
        return jnp.concatenate([b1, *both, pool], axis=-1)


class Inception(_Block):
    """Features and logits of images."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Run the network on pictures as files have them.

        They are resized to 299x299 pixels (`resizing.bilinear`), and (x - 128) / 128.

        Args:
          x: uint8 [B, H, W, 3], of any size.

        Returns:
          float32 [B, 2048], the means over the last feature map; and float32 [B, 1008],
          their product with the last matrix, without its bias: the inception score
          (Salimans et al. 2016) was defined by these, and torch-fidelity names them
          "logits_unbiased".
        """
        x = (resizing.bilinear(x, (SIZE, SIZE)) - 128) / 128
        x = self.conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, False)
        x = self.conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, False)
        x = self.conv(x, "Conv2d_2b_3x3", 64, (3, 3))
        x = pooling.largest(x, 2)
        (x,) = self.pointwise(x, Conv2d_3b_1x1=80)
        x = self.conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, False)
        x = pooling.largest(x, 2)
        for letter, features in (("b", 32), ("c", 64), ("d", 64)):
            x = _A(self.platform, features, name=f"Mixed_5{letter}")(x)
        x = _B(self.platform, name="Mixed_6a")(x)
        for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = _C(self.platform, width, name=f"Mixed_6{letter}")(x)
        x = _D(self.platform, name="Mixed_7a")(x)
        x = _E(self.platform, False, name="Mixed_7b")(x)
        x = _E(self.platform, True, name="Mixed_7c")(x)
        x = x.mean((1, 2))
        shape = (NUM_FEATURES, NUM_CLASSES)
        return x, x @ self.param("fc", nn.initializers.zeros, shape)


def params_of(tensors: Mapping[str, np.ndarray]) -> Any:
    """Return the params of `Inception`, from the tensors of a file for torch.

    Batch norm is folded into the convolutions (folded.py). The bias of the last layer,
    "fc.bias", has to be there but is not used.

    Raises:
      ValueError: naming a tensor that is missing, left over or of another shape.
    """
    module, left = Inception("cpu"), folded.Tensors(tensors)
    image = jax.ShapeDtypeStruct((1, 1, 1, 3), jnp.uint8)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]

    def convert(tree: Any, prefix: str) -> Any:
        if "kernel" in tree:
            source = folded.Source(f"{prefix}.conv", f"{prefix}.bn")
            return folded.fold(left, source, tree["kernel"].shape, _EPSILON)
        return {
            name: convert(below, f"{prefix}.{name}" if prefix else name)
            for name, below in tree.items()
        }

    shape = shapes.pop("fc").shape
    params = convert(shapes, "")
    params["fc"] = left.take("fc.weight", shape[::-1]).T.astype(np.float32)
    left.take("fc.bias", shape[1:])
    left.check_all_taken()
    return params
