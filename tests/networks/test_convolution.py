"""The convolution of a CPU, differentiated in both modes; the stock one elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffusion_jax.config import Config, DataConfig, MLPConfig, UNetConfig
from diffusion_jax.experiment import build
from diffusion_jax.networks import UNet, as_functions
from diffusion_jax.networks.convolution import conv_general_dilated, for_platform

RNG = np.random.default_rng(0)
TINY = {
    "out_channels": 1,
    "base_channels": 4,
    "channel_mults": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (),
    "num_groups": 2,
}
# Size of the images, channels in and out, taps, stride, padding. One is wide enough for
# winograd.py.
CASES = [
    ((5, 5), 3, 4, 1, 1, "SAME"),
    ((8, 6), 3, 4, 3, 1, "SAME"),
    ((8, 6), 3, 4, 3, 2, "SAME"),
    ((7, 9), 3, 4, 3, 2, ((1, 0), (0, 2))),
    ((4, 6), 64, 64, 3, 1, "SAME"),
    ((1, 9), 3, 4, (1, 3), 1, "SAME"),  # A sound.
    ((1, 8), 3, 4, (1, 3), (1, 2), "SAME"),
]


def draw(*shape):
    return RNG.standard_normal(shape)


def pair(n):
    return n if isinstance(n, tuple) else (n, n)


def convolution(stride, padding, x, kernel):
    return conv_general_dilated(x, kernel, pair(stride), padding)


SHAPES = [(4, 4, 1), (4, 1), (2, 4, 4, 1)]  # An image, a sound and a clip.


def small_unet(platform="cpu", shape=(4, 4, 1)):
    """(apply_fn, params), where no parameter is 0."""
    init_fn, apply_fn = as_functions(UNet(platform=platform, **TINY), shape)
    shapes = jax.eval_shape(init_fn, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: np.float32(0.3 * rng.standard_normal(s.shape)), shapes)
    return apply_fn, params


@pytest.mark.parametrize("case", CASES)
def test_forward_mode_is_a_central_difference(case):
    """Tangents in float64. A central difference of a bilinear map is exact at any step."""
    size, channels, out, taps, stride, padding = case
    f = functools.partial(convolution, stride, padding)
    point = draw(2, *size, channels), draw(*pair(taps), channels, out)
    direction = draw(*point[0].shape), draw(*point[1].shape)
    with jax.enable_x64(True):
        ahead, behind = (
            f(*(p + sign * d for p, d in zip(point, direction, strict=True)))
            for sign in (1, -1)
        )
        y, tangent = jax.jvp(f, point, direction)
        np.testing.assert_allclose(y, f(*point), rtol=1e-12)
        np.testing.assert_allclose(tangent, (ahead - behind) / 2, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_both_modes_are_adjoints(case):
    """<J v, w> = <v, J^T w>, in float32, where one case is wide enough for winograd.py."""
    size, channels, out, taps, stride, padding = case
    f = functools.partial(convolution, stride, padding)
    point = (
        np.float32(draw(2, *size, channels)),
        np.float32(draw(*pair(taps), channels, out)),
    )
    direction = np.float32(draw(*point[0].shape)), np.float32(draw(*point[1].shape))
    y, tangent = jax.jvp(f, point, direction)
    w = np.float32(draw(*y.shape))
    gradients = jax.vjp(f, *point)[1](w)
    ahead = np.vdot(np.float64(tangent), w)
    pairs = zip(direction, gradients, strict=True)
    back = sum(np.vdot(np.float64(v), g) for v, g in pairs)
    size_of = np.linalg.norm(tangent) * np.linalg.norm(w)
    assert abs(ahead - back) < 1e-6 * size_of


@pytest.mark.parametrize("case", CASES)
def test_derivatives_of_derivatives(case):
    """A derivative along v of the gradient of sum(f^2) / 2, which is J^T f.

    f(p + s v) is f + s J v + s^2 f(v), so the difference of gradients is exact once the
    term of third order, s^2 f'(v)^T f(v), is taken off.
    """
    size, channels, out, taps, stride, padding = case
    f = functools.partial(convolution, stride, padding)
    point = draw(2, *size, channels), draw(*pair(taps), channels, out)
    direction = draw(*point[0].shape), draw(*point[1].shape)

    gradient = jax.grad(lambda p: jnp.sum(f(*p) ** 2) / 2)
    with jax.enable_x64(True):
        ahead, behind = (
            gradient(tuple(p + s * d for p, d in zip(point, direction, strict=True)))
            for s in (1, -1)
        )
        third = gradient(direction)
        _, found = jax.jvp(gradient, (point,), (direction,))
        # The same by reverse mode twice, for a second derivative is symmetric.
        (reverse,) = jax.vjp(gradient, point)[1](direction)
        for a, b, c, g, r in zip(ahead, behind, third, found, reverse, strict=True):
            for second in (g, r):
                atol = 1e-9 * np.abs(a).max()
                np.testing.assert_allclose(second, (a - b) / 2 - c, atol=atol)


@pytest.mark.parametrize("axes", [(0, None), (2, None), (None, 3), (2, 0)])
@pytest.mark.parametrize("case", CASES)
def test_vmap_is_one_by_one(case, axes):
    """The convolution and both of its gradients under vmap, against one by one."""
    size, channels, out, taps, stride, padding = case
    arrays = [draw(3, 2, *size, channels), draw(3, *pair(taps), channels, out)]

    def gradients(x, kernel):
        f = functools.partial(convolution, stride, padding)
        y, vjp = jax.vjp(f, x, kernel)
        return y, vjp(jnp.sin(y))

    def one(i):
        rows = [
            a[i if axis is not None else 0] for a, axis in zip(arrays, axes, strict=True)
        ]
        return gradients(*rows)

    moved = [
        a[0] if axis is None else np.moveaxis(a, 0, axis)
        for a, axis in zip(arrays, axes, strict=True)
    ]
    with jax.enable_x64(True):
        found = jax.vmap(gradients, axes)(*moved)
        expected = jax.tree.map(lambda *rows: np.stack(rows), *map(one, range(3)))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9),
            found,
            expected,
        )


def test_the_jacobian_of_a_network_is_the_same_by_both_modes():
    apply_fn, params = small_unet()
    x, t = jnp.asarray(draw(1, 4, 4, 1), jnp.float32), jnp.array([3])
    ahead, back = (
        jax.jit(jacobian(lambda x: apply_fn(params, x, t)))(x)
        for jacobian in (jax.jacfwd, jax.jacrev)
    )
    assert float(jnp.abs(back).max()) > 0.01
    np.testing.assert_allclose(ahead, back, atol=2e-5 * float(jnp.abs(back).max()))


def test_forward_mode_goes_through_scan_and_checkpoint():
    """Three steps down the loss of a kernel; forward mode beside reverse mode."""
    x, kernel = np.float32(draw(2, 4, 4, 3)), np.float32(draw(3, 3, 3, 3))
    direction = np.float32(draw(*kernel.shape))

    def loss(kernel):
        return jnp.mean(convolution(1, "SAME", x, kernel) ** 2)

    def after(kernel):
        def step(kernel, _):
            return kernel - 0.1 * jax.grad(jax.checkpoint(loss))(kernel), None

        return loss(lax.scan(step, kernel, None, length=3)[0])

    _, ahead = jax.jvp(after, (kernel,), (direction,))
    back = np.vdot(jax.grad(after)(kernel), direction)
    assert float(ahead) == pytest.approx(float(back), rel=1e-4)


def equations(jaxpr):
    """Names of all primitives, those within others too."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                names |= equations(inner)
    return names


def test_a_network_for_another_platform_holds_stock_convolutions_alone():
    x, t = jnp.ones((1, 4, 4, 1)), jnp.array([3])

    def names(platform):
        apply_fn, params = small_unet(platform)
        gradient = jax.grad(lambda p: jnp.sum(apply_fn(p, x, t)))
        return equations(jax.make_jaxpr(jax.jit(gradient))(params).jaxpr)

    assert "conv_general_dilated" not in names("cpu")
    for platform in ("gpu", "tpu"):
        found = names(platform)
        assert "conv_general_dilated" in found
        assert not [n for n in found if "custom_vjp" in n or "platform" in n or "cpu" in n]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_network_for_another_platform_computes_the_same(shape):
    x, t = jnp.asarray(draw(2, *shape), jnp.float32), jnp.array([3, 700])
    outs = []
    for platform in ("cpu", "tpu"):
        apply_fn, params = small_unet(platform, shape)
        along = functools.partial(lambda f, p, x: f(p, x, t), apply_fn, params)
        outs.append(jax.jvp(along, (x,), (jnp.ones_like(x),)))
    for own, stock in zip(*outs, strict=True):
        np.testing.assert_allclose(own, stock, atol=1e-5 * float(jnp.abs(stock).max()))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_network_can_be_exported_for_another_platform(platform):
    """Export on a machine that has only a CPU, also of forward mode through a scan."""
    apply_fn, params = small_unet(platform)

    def chain(x):
        step = functools.partial(lambda x, t: (apply_fn(params, x, t[None]), None))
        return lax.scan(step, x, jnp.arange(3))[0]

    program = jax.jit(lambda x: jax.jvp(chain, (x,), (x,)))
    x = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    exported = jax.export.export(program, platforms=[platform])(x)
    assert exported.platforms == (platform,)
    assert "stablehlo.convolution" in exported.mlir_module()


def test_a_network_is_built_for_the_default_backend_or_for_the_platform_given():
    assert UNet(**TINY).platform == jax.default_backend()
    assert for_platform("cpu") is conv_general_dilated
    assert for_platform("cuda") is lax.conv_general_dilated
    config = Config(
        data=DataConfig(image_size=(4,), channels=1),
        model=UNetConfig(**{k: v for k, v in TINY.items() if k != "out_channels"}),
    )
    _, params = small_unet()
    x, t = jnp.ones((1, 4, 4, 1)), jnp.array([3])
    for platform, stock in ((None, False), ("tpu", True)):
        apply_fn = build.make_network(config, platform=platform)[1]
        found = equations(jax.make_jaxpr(apply_fn)(params, x, t).jaxpr)
        assert ("conv_general_dilated" in found) == stock
    points = Config(data=DataConfig(image_size=(), channels=2), model=MLPConfig(width=8))
    build.make_network(points, platform="tpu")
