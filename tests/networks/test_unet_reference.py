"""The U-Net against the authors' code, written again in plain NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.networks import UNet, as_functions


def cubic(x, axis, length):
    """Cubic interpolation (Keys 1981, a = -1/2) along an axis; weights sum to 1."""

    def w(d):
        d = abs(d)
        near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    given = x.shape[axis]
    centres = (np.arange(length) + 0.5) * given / length - 0.5
    weights = w(centres[:, None] - np.arange(given))
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)


def reference_unet(
    p, x, t, cond, *, base, mults, num_res_blocks, attention, heads, groups, scale_shift
):
    """models/unet.py of hojonathanho/diffusion, in NumPy float64, with our names."""

    def swish(z):
        return z / (1 + np.exp(-z))

    def norm(z, q):
        g = z.reshape(*z.shape[:3], groups, -1)
        mean, var = g.mean((1, 2, 4), keepdims=True), g.var((1, 2, 4), keepdims=True)
        return ((g - mean) / np.sqrt(var + 1e-6)).reshape(z.shape) * q["scale"] + q["bias"]

    def dense(z, q):
        return z @ q["kernel"] + q["bias"]

    def conv(z, q, stride=1):
        # TensorFlow's SAME: a row on each side, but below and right only at stride 2.
        (_, h, w, _), low = z.shape, 2 - stride
        z = np.pad(z, ((0, 0), (low, 1), (low, 1), (0, 0)))
        taps = [(i, j) for i in range(3) for j in range(3)]
        shifted = [z[:, i : i + h : stride, j : j + w : stride] for i, j in taps]
        return (
            sum(s @ q["kernel"][ij] for s, ij in zip(shifted, taps, strict=True))
            + q["bias"]
        )

    def res(z, q):
        h = conv(swish(norm(z, q["norm1"])), q["conv1"])
        time = dense(swish(temb), q["temb"])[:, None, None]
        if scale_shift:  # As unet.py of openai/improved-diffusion.
            half = time.shape[-1] // 2
            h = norm(h, q["norm2"]) * (1 + time[..., :half]) + time[..., half:]
        else:
            h = norm(h + time, q["norm2"])
        h = conv(swish(h), q["conv2"])
        return h + (dense(z, q["shortcut"]) if "shortcut" in q else z)

    def attend(z, q):
        b, h, w, c = z.shape
        y = norm(z, q["norm"]).reshape(b, h * w, c)
        out = []
        for queries, keys, values in zip(
            *(np.split(dense(y, q[n]), heads, axis=-1) for n in "qkv"), strict=True
        ):
            score = np.exp(queries @ keys.transpose(0, 2, 1) / np.sqrt(c / heads))
            out.append(score / score.sum(-1, keepdims=True) @ values)
        return z + dense(np.concatenate(out, -1).reshape(z.shape), q["out"])

    def embed(t, name):
        half = base // 2
        angles = t[:, None] * 10000.0 ** (-np.arange(half) / (half - 1))
        e = dense(np.concatenate([np.sin(angles), np.cos(angles)], 1), p[f"{name}1"])
        return dense(swish(e), p[f"{name}2"])

    p, x = jax.tree.map(np.float64, p), np.float64(x)
    temb = embed(t, "temb")
    if cond:
        temb = temb + embed(1000 * np.float64(cond["aug_level"]), "aug")
        low = cubic(np.float64(cond["low_res"]), 1, x.shape[1])
        x = np.concatenate([x, cubic(low, 2, x.shape[2])], -1)
    h = conv(x, p["conv_in"])
    skips = [h]
    for level in range(len(mults)):
        for i in range(num_res_blocks):
            h = res(h, p[f"down{level}_res{i}"])
            if h.shape[1] in attention:
                h = attend(h, p[f"down{level}_attn{i}"])
            skips.append(h)
        if level < len(mults) - 1:
            h = conv(h, p[f"down{level}_conv"], stride=2)
            skips.append(h)
    h = res(attend(res(h, p["mid_res0"]), p["mid_attn"]), p["mid_res1"])
    for level in reversed(range(len(mults))):
        for i in range(num_res_blocks + 1):
            h = res(np.concatenate([h, skips.pop()], -1), p[f"up{level}_res{i}"])
            if h.shape[1] in attention:
                h = attend(h, p[f"up{level}_attn{i}"])
        if level:
            h = conv(h.repeat(2, axis=1).repeat(2, axis=2), p[f"up{level}_conv"])
    return conv(swish(norm(h, p["norm_out"])), p["conv_out"])


@pytest.mark.parametrize("low_res", [None, (3, 2, 2)])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_unet_computes_what_the_authors_code_computes(scale_shift, low_res):
    """Every activation, residual, skip, padding and axis against plain NumPy."""
    shape = (8, 4, 3)
    module = UNet(
        out_channels=3,
        base_channels=8,
        channel_mults=(1, 2),
        num_res_blocks=2,
        attn_resolutions=(4,),
        num_heads=2,
        num_groups=4,
        scale_shift_norm=scale_shift,
    )
    cond_shapes = {"low_res": low_res, "aug_level": ()} if low_res else {}
    init_fn, apply_fn = as_functions(module, shape, cond_shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: np.float32(0.2 * rng.standard_normal(s.shape)),
        jax.eval_shape(init_fn, jax.random.key(0)),
    )
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, *shape)))
    t = np.array([3, 700])
    cond = {k: np.float32(rng.random((2, *s))) for k, s in cond_shapes.items()}
    with jax.default_matmul_precision("highest"):
        found = jax.jit(apply_fn)(params, x, jnp.asarray(t), cond)
    expected = reference_unet(
        params,
        x,
        t,
        cond,
        base=8,
        mults=(1, 2),
        num_res_blocks=2,
        attention=(4,),
        heads=2,
        groups=4,
        scale_shift=scale_shift,
    )
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
