"""Reading of compiled programs: a text by hand, and programs whose FLOP are known."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.runtime import flop, hlo

# A loop of three kernels, one of them launched 5 times, and two collectives.
TEXT = """HloModule jit_steps, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_norm (p: f32[8,4]) -> f32[8] {
  %p = f32[8,4]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %r = f32[8]{0} reduce(%p, %zero), dimensions={1}, to_apply=%add
}

%fused_scale (p.1: f32[8,4]) -> f32[8,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %m = f32[8,4]{1,0} multiply(%p.1, %p.1)
}

%inner_body (t.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %t.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %x.1 = f32[8,4]{1,0} get-tuple-element(%t.1), index=1
  %scaled = f32[8,4]{1,0} fusion(%x.1), kind=kLoop, calls=%fused_scale
  ROOT %out.1 = (s32[], f32[8,4]{1,0}) tuple(%i.1, %scaled)
}

%condition (t.2: (s32[], f32[8,4])) -> pred[] {
  %t.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%body (t: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %t = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%t), index=1
  %norms = f32[8]{0} fusion(%x), kind=kInput, calls=%fused_norm
  %both = (f32[8]{0}, f32[8,4]{1,0:T(8,128)S(1)}) all-reduce(%norms, %x), to_apply=%add
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%norms), dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %y = (bf16[8,4]{1,0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$conv"
  %next = s32[] add(%i, %i)
  %state = (s32[], f32[8,4]{1,0}) tuple(%next, %x)
  %loop = (s32[], f32[8,4]{1,0}) while(%state), body=%inner_body, TRIPS
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
}

ENTRY %main (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %steps = (s32[], f32[8,4]{1,0}) while(%s), condition=%condition, body=%body
}
""".replace("TRIPS", 'condition=%condition, backend_config={"known_trip_count":{"n":"5"}}')


def test_a_program_is_read_as_by_hand():
    found = hlo.read(TEXT)
    assert found.kernels == {
        "elementwise": 5,
        "collective": 2,
        "reduction": 1,
        "convolution": 1,
        "scalar": 1,
    }
    assert found.collectives == {
        "all-reduce": hlo.Collectives(1, 4 * (8 + 32)),
        "all-gather": hlo.Collectives(1, 4 * 32),
    }
    x, norms = 4 * 32, 4 * 8
    inner, all_reduce, gather = 5 * 2 * x, (norms + x) + norms, 2 * norms + x
    assert found.memory_bytes == inner + all_reduce + gather + (x + norms) + 1.5 * x + 12


def test_bytes_of_types():
    assert hlo.array_bytes("(f32[8,3]{1,0}, bf16[2]{0}, pred[5]{0})") == 96 + 4 + 5
    assert hlo.array_bytes("f32[]") == 4 and hlo.array_bytes("s8[0]{0}") == 0
    on_chip = "f32[3,3]{1,0:T(8,128)S(1)}"
    assert hlo.array_bytes(on_chip) == 36
    assert hlo.array_bytes(on_chip, in_memory=True) == 0


def count(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flop.count(jax.jit(function).trace(*arguments).jaxpr)


def test_flop_are_those_of_products():
    product = 2 * 3 * 4 * 5
    assert count(jnp.dot, (3, 4), (4, 5)) == product
    assert count(lambda a, b: jnp.tanh(a) + b, (3, 4), (3, 4)) == 0
    batched = count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 3, 4), (7, 4, 5))
    assert batched == 7 * product

    def loss(a, b):
        return jnp.dot(a, b).sum()

    assert count(jax.grad(loss, (0, 1)), (3, 4), (4, 5)) in (2 * product, 3 * product)

    def chain(a, b):
        return jax.lax.scan(lambda x, _: (x @ b, None), a, length=6)[0]

    assert count(chain, (3, 4), (4, 4)) == 6 * 2 * 3 * 4 * 4

    def either(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 5)))

    assert count(either, (3, 4), (4, 5)) == product


@pytest.mark.parametrize("stride", [1, 2])
def test_flop_of_a_convolution_and_its_gradients(stride):
    """Each of the three is a sum over examples, outputs, taps and both channels."""

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = (2, 9, 9, 5), (3, 3, 5, 7)
    out = (9 - 3) // stride + 1
    forward = 2 * 2 * out**2 * 9 * 5 * 7
    assert count(conv, *shapes) == forward
    kernel_gradient = jax.grad(lambda k, x: conv(x, k).sum())
    assert count(kernel_gradient, shapes[1], shapes[0]) in (forward, 2 * forward)
    by_input = count(jax.grad(lambda x, k: conv(x, k).sum()), *shapes)
    # The outputs at the border have fewer taps, which the count does not know.
    assert by_input == pytest.approx(2 * 2 * 81 * 9 * 5 * 7 / stride**2, abs=forward + 1)
