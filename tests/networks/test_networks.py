"""Networks: the paper's parameter count, shapes, initialisation, gradients."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import print_saved_residuals
from jax.test_util import check_grads

from diffusion_jax.networks import MLP, UNet, as_functions, blocks
from diffusion_jax.networks.convolution import conv_general_dilated
from diffusion_jax.networks.embeddings import timestep_embedding

TINY = {
    "base_channels": 8,
    "channel_mults": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
    "num_groups": 4,
}

SHAPES = [(8, 8, 1), (8, 1), (3, 8, 8, 1)]  # An image, a sound and a clip.


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def shapes_of(module, shape):
    return jax.eval_shape(as_functions(module, shape)[0], jax.random.key(0))


def test_parameter_counts_of_the_papers_networks():
    assert count(shapes_of(UNet(), (32, 32, 3))) == 35_746_307  # CIFAR-10
    large = UNet(channel_mults=(1, 1, 2, 2, 4, 4), dropout=0.0)
    assert count(shapes_of(large, (256, 256, 3))) == 113_673_219  # LSUN, CelebA-HQ
    celeba = UNet(channel_mults=(1, 2, 2, 2, 4))
    assert count(shapes_of(celeba, (64, 64, 3))) == 78_700_803  # CelebA 64, DDIM


def random_params(shapes, key=0):
    """Params that are all random, so that nothing is hidden behind a zero."""
    rng = np.random.default_rng(key)
    return jax.tree.map(lambda s: np.float32(0.2 * rng.standard_normal(s.shape)), shapes)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((8, 4, 3), "float32"),
        ((12, 6, 5), "float32"),
        ((8, 8, 1), "bfloat16"),
        ((10, 2), "float32"),
        ((8, 1), "bfloat16"),
        ((1, 8, 4, 3), "float32"),
        ((5, 8, 8, 1), "bfloat16"),
    ],
)
def test_any_size_and_channel_count(shape, dtype):
    module = UNet(out_channels=shape[-1], dtype=dtype, **TINY)
    shapes = shapes_of(module, shape)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    apply_fn = jax.jit(as_functions(module, shape)[1])
    out = apply_fn(random_params(shapes), x, jnp.array([0, 999]))
    assert out.shape == x.shape and out.dtype == jnp.float32
    assert np.isfinite(out).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_computes_in_bfloat16_and_agrees_roughly(shape):
    outs = {}
    for dtype in ("float32", "bfloat16"):
        module = UNet(out_channels=1, dtype=dtype, **TINY)
        params = random_params(shapes_of(module, shape))
        apply_fn = as_functions(module, shape)[1]
        x = jax.random.normal(jax.random.key(1), (2, *shape))
        lowered = jax.jit(apply_fn).lower(params, x, jnp.array([0, 999]))
        convs = [s for s in lowered.as_text().splitlines() if "stablehlo.convolution" in s]
        kind = "xbf16>" if dtype == "bfloat16" else "xf32>"
        assert convs and all(kind in line.rpartition("->")[2] for line in convs)
        outs[dtype] = np.asarray(lowered.compile()(params, x, jnp.array([0, 999])))
    scale = np.abs(outs["float32"]).max()
    assert 0 < np.abs(outs["float32"] - outs["bfloat16"]).max() < 0.1 * scale


@pytest.fixture(scope="module")
def tiny():
    module = UNet(out_channels=1, dropout=0.5, **TINY)
    apply_fn = as_functions(module, (8, 8, 1))[1]
    params = random_params(shapes_of(module, (8, 8, 1)))
    return params, jax.jit(apply_fn, static_argnames="train")


def test_the_network_sees_its_timestep_and_each_row_its_own(tiny):
    params, apply_fn = tiny
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(2), (1, 8, 8, 1)), (3, 8, 8, 1))
    out = apply_fn(params, x, jnp.array([3, 700, 3]))
    np.testing.assert_allclose(out[0], out[2], atol=1e-5)
    assert float(jnp.abs(out[0] - out[1]).max()) > 1e-3


def test_real_valued_timesteps_lie_between_their_neighbours(tiny):
    params, apply_fn = tiny
    x = jax.random.normal(jax.random.key(2), (1, 8, 8, 1))
    at = {t: apply_fn(params, x, jnp.array([t])) for t in (500, 500.0, 500.5, 501)}
    np.testing.assert_array_equal(at[500], at[500.0])
    middle = (at[500] + at[501]) / 2
    gap = jnp.abs(at[500] - at[501]).max()
    assert float(jnp.abs(at[500.5] - middle).max()) < 0.5 * float(gap)


def test_dropout_acts_in_training_only(tiny):
    params, apply_fn = tiny
    x, t = jax.random.normal(jax.random.key(2), (1, 8, 8, 1)), jnp.array([5])
    calls = [apply_fn(params, x, t, train=True, key=jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(calls[0], calls[1])
    assert float(jnp.abs(calls[0] - calls[2]).max()) > 1e-3
    np.testing.assert_array_equal(apply_fn(params, x, t), apply_fn(params, x, t))


@pytest.mark.slow
def test_initialisers_are_those_of_the_ddpm_code():
    """Kernels are uniform of variance 1 / mean(fan_in, fan_out), or 0 where scaled by 0."""
    module = UNet(base_channels=64, channel_mults=(1, 2), num_res_blocks=1)
    params = as_functions(module, (8, 8, 3))[0](jax.random.key(0))
    block = params["down1_res0"]
    kernel = np.asarray(block["conv1"]["kernel"])
    assert kernel.shape == (3, 3, 64, 128)
    limit = math.sqrt(3 / ((64 + 128) / 2 * 9))
    assert abs(kernel).max() == pytest.approx(limit, rel=1e-3)
    assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=0.01)
    shortcut = np.asarray(block["shortcut"]["kernel"])
    assert abs(shortcut).max() == pytest.approx(math.sqrt(3 / ((64 + 128) / 2)), rel=1e-2)
    for silent in (block["conv2"], params["mid_attn"]["out"], params["conv_out"]):
        assert 0 < abs(np.asarray(silent["kernel"])).max() < 1e-5  # No noise predicted.
    biases = [v for path, v in jax.tree.leaves_with_path(params) if "bias" in str(path[-1])]
    assert len(biases) > 30 and all((np.asarray(b) == 0).all() for b in biases)


def test_attention_over_time_follows_every_residual_block_of_a_clip():
    """But the second one in the middle; sounds and images have the names of the paper."""
    options = {"num_res_blocks": 2, "attn_resolutions": (16,)}
    names = {
        len(shape): list(shapes_of(UNet(**options, base_channels=32), shape))
        for shape in [(32, 3), (32, 32, 3), (2, 32, 32, 3)]
    }
    assert sorted(names[2]) == sorted(names[3])
    times = {name for name in names[4] if "time" in name}
    assert set(names[4]) - times == set(names[3])
    blocks_of = {name for name in names[3] if "_res" in name} - {"mid_res0", "mid_res1"}
    assert times == {name.replace("res", "time") for name in blocks_of} | {"mid_time"}


def test_attention_lies_where_the_paper_has_it():
    names = shapes_of(UNet(), (32, 32, 3)).keys()
    attention = sorted(name for name in names if "attn" in name)
    assert attention == [
        "down1_attn0",
        "down1_attn1",
        "mid_attn",
        "up1_attn0",
        "up1_attn1",
        "up1_attn2",
    ]


def test_timestep_embedding_has_the_ddpm_order_and_divisor():
    """An embedding is sin || cos, frequencies from 1 down to 1/10000, both inclusive."""
    embedding = np.asarray(timestep_embedding(jnp.array([0, 3]), 8))
    np.testing.assert_allclose(embedding[0], [0, 0, 0, 0, 1, 1, 1, 1])
    frequencies = [1, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1e-4]
    expected = [math.sin(3 * f) for f in frequencies] + [
        math.cos(3 * f) for f in frequencies
    ]
    np.testing.assert_allclose(embedding[1], expected, rtol=1e-5)
    assert timestep_embedding(jnp.array([1]), 9).shape == (1, 9)


# Convolutions with their own gradients

CASES = [
    ((8, 8), 3, 1, "SAME"),
    ((8, 6), 3, 2, "SAME"),
    ((7, 9), 3, 2, "SAME"),
    ((5, 5), 1, 1, "SAME"),
    ((9, 10), 3, 2, "VALID"),
    ((10, 10), 2, 3, "VALID"),
    ((8, 8), 3, 3, ((1, 0), (0, 2))),
]


@pytest.mark.parametrize(("size", "taps", "stride", "padding"), CASES)
def test_own_gradients_equal_those_that_jax_derives(size, taps, stride, padding):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, *size, 4))
    kernel = jax.random.normal(keys[1], (taps, taps, 4, 6))

    def stock(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=numbers
        )

    def own(x, kernel):
        return conv_general_dilated(x, kernel, (stride, stride), padding)

    y, stock_vjp = jax.vjp(stock, x, kernel)
    cotangent = jax.random.normal(keys[2], y.shape)
    z, own_vjp = jax.vjp(own, x, kernel)
    np.testing.assert_array_equal(y, z)
    for a, b in zip(stock_vjp(cotangent), own_vjp(cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    # Finite differences are exact, as a convolution is bilinear.
    check_grads(own, (x, kernel), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1.0)


def test_the_program_holds_own_gradients_on_cpu():
    """Gradients as plain convolutions: no batch_group_count, no reversed window."""

    def loss(x, kernel):
        return jnp.sum(conv_general_dilated(x, kernel, (1, 1), "SAME") ** 2)

    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 3
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in lines)


def test_convolutions_that_are_not_implemented_are_refused():
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    with pytest.raises(NotImplementedError):
        conv_general_dilated(x, kernel, (1, 1), "SAME", rhs_dilation=(2, 2))
    with pytest.raises(NotImplementedError):
        conv_general_dilated(x[0], kernel, (1,), "SAME")


def test_mlp_takes_points():
    init_fn, apply_fn = as_functions(MLP(out_channels=2, width=16, num_blocks=2), (2,))
    params = init_fn(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 2))
    out = apply_fn(params, x, jnp.arange(5))
    assert out.shape == (5, 2) and out.dtype == jnp.float32


def test_group_norm_has_the_epsilon_of_tensorflow():
    """At variance 1e-6, epsilon 1e-6 halves the power (torch's 1e-5 leaves 1/11)."""
    x = 1e-3 * jnp.tile(jnp.array([1.0, -1.0]), 8).reshape(1, 2, 2, 4)
    norm = blocks.GroupNorm(2, jnp.float32)
    out = norm.apply(norm.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(out**2, 0.5, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_norm_is_its_definition(dtype):
    """Mean and variance of each group, then scale and bias of each channel, in float64."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * rng.standard_normal((3, 4, 6, 8)), dtype)
    scale, bias = np.float32(rng.standard_normal((2, 8)))
    norm = blocks.GroupNorm(2, dtype)
    found = norm.apply({"params": {"scale": scale, "bias": bias}}, x)
    groups = np.asarray(x, np.float64).reshape(3, 4 * 6, 2, 4)
    axes = {"axis": (1, 3), "keepdims": True}
    whitened = (groups - groups.mean(**axes)) / np.sqrt(groups.var(**axes) + 1e-6)
    expected = whitened.reshape(x.shape) * scale + bias
    assert found.dtype == dtype
    rounding = 1e-5 if dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(np.asarray(found, float), expected, rounding, rounding)


def test_group_norm_of_a_constant_is_finite():
    """The computed variance of a constant is rounding, of either sign, above epsilon."""
    constants = jnp.linspace(100, 2000, 50).reshape(50, 1, 1, 1)
    norm = blocks.GroupNorm(2, jnp.float32)
    params = {"params": {"scale": jnp.ones(6), "bias": jnp.zeros(6)}}
    assert np.isfinite(norm.apply(params, jnp.tile(constants, (1, 7, 5, 6)))).all()


@pytest.mark.parametrize("attention", [blocks.AttentionBlock, blocks.TimeAttention])
def test_attention_takes_its_softmax_in_float32(attention):
    frames = (2,) if attention is blocks.TimeAttention else ()
    block, x = attention(*frames, 1, 4, jnp.bfloat16), jnp.ones((2, 4, 4, 8))
    params = jax.eval_shape(block.init, jax.random.key(0), x)
    text = jax.jit(block.apply).lower(params, x).as_text()
    exponentials = [line for line in text.splitlines() if "stablehlo.exponential" in line]
    assert exponentials and all("xf32>" in line for line in exponentials)


def test_dropout_drops_its_share_and_keeps_the_mean():
    """Dropout in one block, where it is followed by a linear map alone."""
    block = blocks.ResBlock(8, 0.3, 4, False, blocks.Form((3, 3), jnp.float32, "cpu"))
    x, temb = jax.random.normal(jax.random.key(0), (4, 16, 16, 8)), jnp.ones((4, 8))
    params = random_params(
        jax.eval_shape(lambda: block.init(jax.random.key(0), x, temb, train=False))
    )
    _, state = block.apply(
        params,
        x,
        temb,
        train=True,
        rngs={"dropout": jax.random.key(1)},
        capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
    )
    (dropped,) = jax.tree.leaves(state["intermediates"])
    assert float((dropped == 0).mean()) == pytest.approx(0.3, abs=0.02)


def test_mlp_sees_its_timestep_and_an_odd_embedding_ends_in_zero():
    module = MLP(out_channels=2, width=16, num_blocks=2)
    apply_fn = as_functions(module, (2,))[1]
    params = random_params(shapes_of(module, (2,)))
    x = jnp.ones((2, 2))
    out = apply_fn(params, x, jnp.array([3, 700]))
    assert float(jnp.abs(out[0] - out[1]).max()) > 1e-3
    params = jax.tree.map(np.zeros_like, params)
    assert float(jnp.abs(apply_fn(params, x, jnp.array([3, 700]))).max()) == 0
    odd, even = timestep_embedding(jnp.array([7]), 9), timestep_embedding(jnp.array([7]), 8)
    np.testing.assert_array_equal(odd[0], [*even[0], 0])


def test_mlp_blocks_add_to_their_input():
    """Points reach the output even if every block is silent."""
    module = MLP(out_channels=2, width=16, num_blocks=2)
    params = random_params(shapes_of(module, (2,)))
    for name in ("dense0b", "dense1b"):
        params[name] = jax.tree.map(np.zeros_like, params[name])
    apply_fn = as_functions(module, (2,))[1]
    out = apply_fn(params, jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([3, 3]))
    assert float(jnp.abs(out[0] - out[1]).max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]])
def test_blocks_computed_again_have_the_same_gradient_and_keep_less(shape, capsys):
    """The gradient with dropout, whose masks are drawn twice; and what is kept for it."""
    options = {**TINY, "dropout": 0.5, "out_channels": 1}
    plain = as_functions(UNet(**options), shape)
    again = as_functions(UNet(remat=True, **options), shape)
    params = random_params(jax.eval_shape(plain[0], jax.random.key(0)))
    x, t = jax.random.normal(jax.random.key(1), (2, *shape)), jnp.array([3, 900])

    def gradient(apply_fn):
        def loss(params):
            output = apply_fn(params, x, t, train=True, key=jax.random.key(2))
            return jnp.square(output).sum()

        return jax.jit(jax.grad(loss))(params)

    expected, found = map(jax.tree.leaves, map(gradient, (plain[1], again[1])))
    largest = max(float(jnp.abs(x).max()) for x in expected)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6 * largest)

    def kept(apply_fn):
        """Numbers that the backward pass takes from the forward pass."""
        args = params, x, t
        print_saved_residuals(lambda p, x, t: apply_fn(p, x, t, train=False).sum(), *args)
        said = capsys.readouterr().out.splitlines()
        shapes = [x.split("]")[0].partition("[")[2] for x in said if "output of" in x]
        return sum(math.prod(map(int, filter(None, s.split(",")))) for s in shapes)

    assert kept(again[1]) < 0.5 * kept(plain[1])


@pytest.mark.parametrize("over", ["space", "time"])
def test_attention_is_that_of_the_formula_where_logits_are_large(over):
    """One head of 4 channels at 3 places, in NumPy; logits of some units tell its scale."""
    if over == "time":
        block, shape = blocks.TimeAttention(3, 1, 2, jnp.float32), (3, 1, 1, 4)
    else:
        block, shape = blocks.AttentionBlock(1, 2, jnp.float32), (1, 1, 3, 4)
    x = jax.random.normal(jax.random.key(0), shape)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x))
    params = jax.tree.map(lambda x: 5 * x, random_params(shapes))
    change = (np.asarray(block.apply(params, x)) - x).reshape(3, 4)
    p = jax.tree.map(np.float64, params["params"])
    pairs = np.float64(x).reshape(3, 2, 2)  # Two groups of two channels.
    axes = (2,) if over == "time" else (0, 2)  # Each frame is normalised by itself.
    mean, variance = (f(pairs, axis=axes, keepdims=True) for f in (np.mean, np.var))
    h = ((pairs - mean) / np.sqrt(variance + 1e-6)).reshape(3, 4)
    h = h * p["norm"]["scale"] + p["norm"]["bias"]
    q, k, v = (h @ p[name]["kernel"] + p[name]["bias"] for name in "qkv")
    logits = q @ k.T / 2
    if over == "time":
        logits += p["bias"][0][np.arange(3)[:, None] - np.arange(3) + 2]
    assert np.ptp(logits) > 3
    weights = np.exp(logits)
    weights /= weights.sum(axis=1, keepdims=True)
    out = weights @ v @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(change, out, atol=1e-4)
