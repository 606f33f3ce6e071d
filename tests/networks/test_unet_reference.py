"""The U-Net against the authors' code, written again in plain NumPy float64.

For sounds and clips too: a convolution of three taps over one axis, and the frames of a
clip one by one, except where they attend to each other.
"""

import functools
import itertools

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


def softmax(z):
    z = np.exp(z)
    return z / z.sum(-1, keepdims=True)


def reference_unet(
    p, x, t, cond, *, base, mults, num_res_blocks, attention, heads, groups, scale_shift
):
    """models/unet.py of hojonathanho/diffusion, in NumPy float64, with our names.

    It takes x [N, *space, C], or clips [B, F, H, W, C], whose frames are x [B F, H, W, C].
    """
    frames = x.shape[1] if x.ndim == 5 else 0

    def swish(z):
        return z / (1 + np.exp(-z))

    def norm(z, q):
        g = z.reshape(len(z), -1, groups, z.shape[-1] // groups)
        mean, var = g.mean((1, 3), keepdims=True), g.var((1, 3), keepdims=True)
        return ((g - mean) / np.sqrt(var + 1e-6)).reshape(z.shape) * q["scale"] + q["bias"]

    def dense(z, q):
        return z @ q["kernel"] + q["bias"]

    def conv(z, q, stride=1):
        # TensorFlow's SAME: a row on each side, but below and right only at stride 2.
        space, low = z.shape[1:-1], 2 - stride
        z = np.pad(z, ((0, 0), *[(low, 1)] * len(space), (0, 0)))
        kernel = q["kernel"].reshape(*(3,) * len(space), *q["kernel"].shape[-2:])
        y = q["bias"]
        for taps in itertools.product(range(3), repeat=len(space)):
            window = [slice(i, i + n, stride) for i, n in zip(taps, space, strict=True)]
            y = y + z[:, *window] @ kernel[taps]
        return y

    def along(z, e):
        return e.reshape(len(z), *(1,) * (z.ndim - 2), -1)

    def res(z, q):
        h = conv(swish(norm(z, q["norm1"])), q["conv1"])
        time = along(h, dense(swish(temb), q["temb"]))
        if scale_shift:  # As unet.py of openai/improved-diffusion.
            half = time.shape[-1] // 2
            h = norm(h, q["norm2"]) * (1 + time[..., :half]) + time[..., half:]
        else:
            h = norm(h + time, q["norm2"])
        h = conv(swish(h), q["conv2"])
        return h + (dense(z, q["shortcut"]) if "shortcut" in q else z)

    def attend(z, q):
        c = z.shape[-1]
        y = norm(z, q["norm"]).reshape(len(z), -1, c)
        out = []
        for queries, keys, values in zip(
            *(np.split(dense(y, q[n]), heads, axis=-1) for n in "qkv"), strict=True
        ):
            score = queries @ keys.transpose(0, 2, 1) / np.sqrt(c / heads)
            out.append(softmax(score) @ values)
        return z + dense(np.concatenate(out, -1).reshape(z.shape), q["out"])

    def over_time(z, q):
        """Attention of frame i to each frame j of its clip, one frame i after another."""
        c = z.shape[-1]
        y = norm(z, q["norm"]).reshape(-1, frames, *z.shape[1:])
        parts = [np.split(dense(y, q[n]), heads, axis=-1) for n in "qkv"]
        out = np.zeros_like(y)
        for i, k in itertools.product(range(frames), range(heads)):
            queries, keys, values = (part[k] for part in parts)
            scores = [
                (queries[:, i] * keys[:, j]).sum(-1) / np.sqrt(c / heads)
                + q["bias"][k, i - j + frames - 1]
                + np.where(cond.get("focus", np.array([False])) & (i != j), -1e9, 0)[
                    :, None, None
                ]
                for j in range(frames)
            ]
            share = softmax(np.stack(scores, -1))
            mixed = sum(share[..., j, None] * values[:, j] for j in range(frames))
            width = c // heads
            out[:, i, ..., k * width : (k + 1) * width] = mixed
        return z + dense(out.reshape(z.shape), q["out"])

    def attention_of(z, name, always=False):
        if always or z.shape[1] in attention:
            z = attend(z, p[name])
        return over_time(z, p[name.replace("attn", "time")]) if frames else z

    def embed(t, name):
        half = base // 2
        angles = t[:, None] * 10000.0 ** (-np.arange(half) / (half - 1))
        e = dense(np.concatenate([np.sin(angles), np.cos(angles)], 1), p[f"{name}1"])
        return dense(swish(e), p[f"{name}2"])

    p, x = jax.tree.map(np.float64, p), np.float64(x)
    temb = embed(t, "temb")
    if "low_res" in cond:
        temb = temb + embed(1000 * np.float64(cond["aug_level"]), "aug")
        low = np.float64(cond["low_res"])
        for axis in range(1, x.ndim - 1):
            low = cubic(low, axis, x.shape[axis])
        x = np.concatenate([x, low], -1)
    if frames:
        x, temb = x.reshape(-1, *x.shape[2:]), temb.repeat(frames, axis=0)
    h = conv(x, p["conv_in"])
    skips = [h]
    for level in range(len(mults)):
        for i in range(num_res_blocks):
            h = res(h, p[f"down{level}_res{i}"])
            h = attention_of(h, f"down{level}_attn{i}")
            skips.append(h)
        if level < len(mults) - 1:
            h = conv(h, p[f"down{level}_conv"], stride=2)
            skips.append(h)
    h = attention_of(res(h, p["mid_res0"]), "mid_attn", always=True)
    h = res(h, p["mid_res1"])
    for level in reversed(range(len(mults))):
        for i in range(num_res_blocks + 1):
            h = res(np.concatenate([h, skips.pop()], -1), p[f"up{level}_res{i}"])
            h = attention_of(h, f"up{level}_attn{i}")
        if level:
            for axis in range(1, h.ndim - 1):
                h = h.repeat(2, axis=axis)
            h = conv(h, p[f"up{level}_conv"])
    h = conv(swish(norm(h, p["norm_out"])), p["conv_out"])
    return h.reshape(-1, frames, *h.shape[1:]) if frames else h


# Shape of an example, and those of what it is conditioned on.
CASES = {
    "image": ((8, 4, 3), {}),
    "image of low resolution": ((8, 4, 3), {"low_res": (3, 2, 2), "aug_level": ()}),
    "sound": ((8, 3), {}),
    "sound of low resolution": ((8, 3), {"low_res": (3, 1), "aug_level": ()}),
    "clip": ((3, 8, 4, 3), {}),
    "focused clip": ((3, 8, 4, 3), {"focus": ()}),
    "clip of low resolution": ((3, 8, 4, 3), {"low_res": (3, 4, 2, 1), "aug_level": ()}),
}


def random_params(init_fn, seed=0):
    """Params that are all random, so that nothing is hidden behind a zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: np.float32(0.2 * rng.standard_normal(s.shape)),
        jax.eval_shape(init_fn, jax.random.key(0)),
    )


def unet(shape, cond_shapes, scale_shift=False):
    module = UNet(
        out_channels=shape[-1],
        base_channels=8,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(4,),
        num_heads=2,
        num_groups=4,
        scale_shift_norm=scale_shift,
    )
    makes_params = {k: s for k, s in cond_shapes.items() if k != "focus"}
    return as_functions(module, shape, makes_params)


@pytest.mark.parametrize(
    ("case", "scale_shift"), [*((case, False) for case in CASES), ("image", True)]
)
def test_the_unet_computes_what_the_authors_code_computes(case, scale_shift):
    """Every activation, residual, skip, padding and axis against plain NumPy."""
    shape, cond_shapes = CASES[case]
    init_fn, apply_fn = unet(shape, cond_shapes, scale_shift)
    params = random_params(init_fn)
    rng = np.random.default_rng(1)
    x = np.float32(rng.standard_normal((2, *shape)))
    t = np.array([3, 700])
    cond = {k: np.float32(rng.random((2, *s))) for k, s in cond_shapes.items()}
    if "focus" in cond:
        cond["focus"] = np.array([True, False])
    with jax.default_matmul_precision("highest"):
        found = jax.jit(apply_fn)(params, x, jnp.asarray(t), cond)
    expected = reference_unet(
        params,
        x,
        t,
        cond,
        base=8,
        mults=(1, 2),
        num_res_blocks=1,
        attention=(4,),
        heads=2,
        groups=4,
        scale_shift=scale_shift,
    )
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


CLIP, IMAGE = CASES["clip"][0], CASES["image"][0]


@functools.cache
def clips():
    """(params, apply_fn, x [2, F, H, W, C], t [2]) of a network for clips."""
    init_fn, apply_fn = unet(CLIP, {})
    x = jax.random.normal(jax.random.key(0), (2, *CLIP))
    return random_params(init_fn), jax.jit(apply_fn), x, jnp.array([3, 700])


def of_images(params):
    """The params that a network for images has as well."""
    return {name: p for name, p in params.items() if "time" not in name}


def test_a_network_for_clips_begins_as_one_for_images_of_the_same_params():
    """Params of an image network fit; with silent time attention each frame is an image."""
    params, apply_fn, x, t = clips()
    init_fn, of_image = unet(IMAGE, {})
    shapes = jax.eval_shape(init_fn, jax.random.key(0))
    same = jax.tree.map(lambda a, s: a.shape == s.shape, of_images(params), shapes)
    assert jax.tree.all(same)
    silent = {
        name: {**p, "out": jax.tree.map(np.zeros_like, p["out"])} if "time" in name else p
        for name, p in params.items()
    }
    found = apply_fn(silent, x, t)
    for i in range(CLIP[0]):
        expected = jax.jit(of_image)(of_images(params), x[:, i], t)
        np.testing.assert_allclose(found[:, i], expected, atol=1e-5)
    assert float(jnp.abs(apply_fn(params, x, t) - found).max()) > 1e-2
    begun = jax.jit(unet(CLIP, {})[0])(jax.random.key(0))
    outs = [np.abs(p["out"]["kernel"]).max() for n, p in begun.items() if "time" in n]
    assert len(outs) == 7 and 0 < max(outs) < 1e-5


def test_a_focused_clip_is_its_frames_one_by_one():
    """As clips of one frame, whose attention over time has the bias of distance 0 alone."""
    params, apply_fn, x, t = clips()
    focused = apply_fn(params, x, t, {"focus": jnp.array([True, True])})
    middle = slice(CLIP[0] - 1, CLIP[0])
    alone = {
        name: {**p, "bias": p["bias"][:, middle]} if "time" in name else p
        for name, p in params.items()
    }
    for i in range(CLIP[0]):
        expected = apply_fn(alone, x[:, i : i + 1], t)
        np.testing.assert_allclose(focused[:, i : i + 1], expected, atol=1e-5)


def test_focus_is_of_each_clip_and_cuts_every_path_between_its_frames():
    """The gradient of a frame is exactly 0 at the other frames of a focused clip alone."""
    params, apply_fn, x, t = clips()
    cond = {"focus": jnp.array([True, False])}
    free = apply_fn(params, x, t)
    found = apply_fn(params, x, t, cond)
    np.testing.assert_allclose(found[1], free[1], atol=1e-5)
    assert float(jnp.abs(found[0] - free[0]).max()) > 1e-2
    gradient = jax.grad(lambda x: jnp.sum(apply_fn(params, x, t, cond)[:, 1] ** 2))(x)
    largest = np.abs(gradient).max((2, 3, 4))
    assert (largest[0] > 0).tolist() == [False, True, False]
    assert (largest[1] > 0).all() and np.isfinite(largest).all()


def test_attention_over_time_tells_earlier_from_later():
    """Reversed in time, a clip gives the reversed result only with the reversed bias."""
    params, apply_fn, x, t = clips()
    reversed_bias = {
        name: {**p, "bias": p["bias"][:, ::-1]} if "time" in name else p
        for name, p in params.items()
    }
    expected = apply_fn(params, x, t)
    found = apply_fn(reversed_bias, x[:, ::-1], t)[:, ::-1]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert float(jnp.abs(apply_fn(params, x[:, ::-1], t)[:, ::-1] - expected).max()) > 1e-3
