"""The convolution equals lax's, and its gradients have the layout that XLA runs fast in loops."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from sideways_jax.models.conv import CANONICAL, conv_general_dilated

CASES = [  # input size, kernel size, strides, padding
    ((8, 8), (3, 3), (1, 1), "SAME"),
    ((8, 8), (3, 3), (2, 2), "SAME"),
    ((7, 9), (3, 3), (2, 2), "SAME"),
    ((9, 8), (3, 3), (2, 3), "VALID"),
    ((8, 8), (3, 3), (2, 2), "VALID"),  # The last row and column are never seen.
    ((8, 8), (1, 1), (1, 1), "SAME"),
    ((8, 7), (1, 1), (2, 3), "SAME"),
    ((8, 8), (1, 1), (2, 2), "VALID"),
    ((8, 8), (2, 2), (1, 1), "SAME"),
    ((7, 8), (4, 2), (2, 1), "SAME_LOWER"),
    ((10, 10), (7, 5), (2, 2), "SAME"),
    ((3, 2), (7, 5), (1, 1), "SAME"),  # A kernel larger than the input.
    ((3, 3), (5, 7), (2, 2), "SAME"),
    ((1, 1), (3, 3), (2, 2), "SAME"),
    ((5, 5), (5, 5), (1, 1), "VALID"),
    ((6, 6), (2, 2), (3, 3), "VALID"),  # A stride larger than the kernel.
    ((6, 7), (3, 3), (1, 2), ((1, 2), (0, 3))),
    ((6, 6), (3, 3), (1, 1), ((4, 0), (-1, 5))),  # More padding than the kernel, and cropping.
]
FRAMES = 7


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arrays(size, kernel, *, batch=(2,), features=4, dtype=jnp.float32, seed=0):
    """An input with 3 channels, and a kernel with `features`: which decides what is the image."""
    x = normal((*batch, *size, 3), dtype, seed)
    return x, normal((*kernel, 3, features), dtype, seed + 1)


def both(strides, padding, precision=None, **options):
    """Ours and lax's convolution."""
    options |= {"dimension_numbers": CANONICAL, "precision": precision}

    def ours(x, k):
        return conv_general_dilated(x, k, strides, padding, **options)

    def reference(x, k):
        return lax.conv_general_dilated(x, k, strides, padding, **options)

    return ours, reference


def pulled_back(conv):
    """A function that gives the output and both gradients for some cotangent."""

    @jax.jit
    def run(x, k):
        y, vjp = jax.vjp(conv, x, k)
        return y, vjp(jnp.sin(3 * y))

    return run


def assert_close(actual, desired, tolerance):
    """Compares with an error relative to the largest element."""
    for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert a.shape == d.shape and a.dtype == d.dtype
        a, d = np.asarray(a, np.float64), np.asarray(d, np.float64)
        np.testing.assert_allclose(a, d, rtol=0, atol=tolerance * np.max(np.abs(d), initial=0))


def convolutions(jaxpr):
    """The parameters of all convolutions in a jaxpr, those in loops and calls too."""
    found = [e.params for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += convolutions(inner)
    return found


def assert_canonical(jaxpr, count):
    """There are `count` convolutions, all NHWC/HWIO/NHWC and none grouped."""
    found = convolutions(jaxpr.jaxpr)
    assert len(found) == count
    canonical = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, CANONICAL)
    for params in found:
        assert params["dimension_numbers"] == canonical
        assert params["feature_group_count"] == params["batch_group_count"] == 1


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("features", [4, 2])
@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), CASES)
def test_float64_gradients_equal_those_of_lax(size, kernel, strides, padding, features):
    with jax.enable_x64(True):
        x, k = arrays(size, kernel, features=features, dtype=jnp.float64)
        ours, reference = both(strides, padding)
        assert_close(pulled_back(ours)(x, k), pulled_back(reference)(x, k), 1e-12)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "dilation"),
    [
        ((3, 3), (1, 1), ((2, 1), (2, 1)), (2, 2)),
        ((3, 2), (2, 1), ((0, 1), (3, 2)), (2, 3)),
        ((1, 1), (1, 1), ((0, 0), (0, 0)), (2, 1)),
    ],
)
def test_transposed_convolutions(kernel, strides, padding, dilation):
    with jax.enable_x64(True):
        x, k = arrays((5, 6), kernel, batch=(FRAMES, 2), dtype=jnp.float64)
        ours, reference = both(strides, padding, lhs_dilation=dilation)
        for gradients in (sum_of_frames, frames_at_once):

            def run(k, x, gradients=gradients):
                return gradients(ours, k, x)

            assert_canonical(jax.make_jaxpr(run)(k, x), 3)
            assert_close(jax.jit(run)(k, x), gradients(reference, k, x), 1e-12)


@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), CASES[1::3])
def test_float32_output_bit_equal_and_gradients_close(size, kernel, strides, padding):
    x, k = arrays(size, kernel)
    ours, reference = both(strides, padding)
    y, gradients = pulled_back(ours)(x, k)
    desired_y, desired_gradients = pulled_back(reference)(x, k)
    np.testing.assert_array_equal(y, desired_y)
    assert_close(gradients, desired_gradients, 1e-5)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_bit_equal_to_flax_conv(strides, padding):
    x, _ = arrays((12, 11), (3, 3), batch=(2, 3))  # flax flattens more than one batch dimension.
    default = nn.Conv(5, (3, 3), strides, padding)
    ours = nn.Conv(5, (3, 3), strides, padding, conv_general_dilated=conv_general_dilated)
    variables = default.init(jax.random.key(2), x)
    np.testing.assert_array_equal(ours.apply(variables, x), default.apply(variables, x))


@pytest.mark.parametrize(("strides", "features"), [((2, 2), 4), ((1, 1), 2)])
def test_bfloat16(strides, features):
    x, k = arrays((8, 8), (3, 3), features=features, dtype=jnp.bfloat16)
    ours, reference = both(strides, "SAME")
    y, gradients = pulled_back(ours)(x, k)
    assert y.dtype == jnp.bfloat16
    desired_y, desired_gradients = pulled_back(reference)(x, k)
    np.testing.assert_array_equal(y, desired_y)
    assert_close(gradients, desired_gradients, 2**-6)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(
    ("strides", "padding", "features"),
    [((1, 1), "SAME", 4), ((1, 1), "SAME", 2), ((2, 3), "VALID", 4)],
)
def test_jvp_vmap_and_second_order(strides, padding, features):
    with jax.enable_x64(True):
        some = {"batch": (FRAMES, 2), "features": features, "dtype": jnp.float64}
        x, k = arrays((7, 7), (3, 3), **some)
        x_dot, k_dot = arrays((7, 7), (3, 3), **some, seed=2)

        def everything(conv):
            def loss(x, k):
                return jnp.sum(jnp.sin(conv(x, k)))

            def hessian_product(x, k):
                return jax.grad(lambda x, k: jnp.vdot(jax.grad(loss, 1)(x, k), k), (0, 1))(x, k)

            kernels = jnp.stack([k * (n + 1) for n in range(FRAMES)])
            return (
                jax.jvp(conv, (x[0], k), (x_dot[0], k_dot)),
                jax.vmap(conv, (0, None))(x, k),
                jax.vmap(conv, (None, 0))(x[0], kernels),
                jax.vmap(jax.grad(loss, (0, 1)), (0, None))(x, k),
                jax.vmap(jax.grad(loss, (0, 1)), (0, 0))(x, kernels),
                jax.jvp(jax.grad(loss, 1), (x[0], k), (x_dot[0], k_dot)),
                hessian_product(x[0], k),
            )

        ours, reference = both(strides, padding)
        actual, desired = jax.jit(lambda x, k: (everything(ours), everything(reference)))(x, k)
        assert_close(actual, desired, 1e-12)


def sum_of_frames(conv, k, x):
    """Kernel and input gradients of frames one after the other, in a scan."""

    def one(total, x):
        y, vjp = jax.vjp(conv, x, k)
        x_bar, k_bar = vjp(y)
        return total + k_bar, x_bar

    return lax.scan(one, jnp.zeros_like(k), x)


def frames_at_once(conv, k, x):
    y, vjp = jax.vjp(jax.vmap(conv, (0, None)), x, k)
    x_bar, k_bar = vjp(y)
    return k_bar, x_bar


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(("strides", "features"), [((1, 1), 4), ((1, 1), 2), ((2, 2), 4)])
def test_gradients_are_canonical_convolutions(strides, features):
    x, k = arrays((8, 8), (3, 3), batch=(FRAMES, 2), features=features)
    ours, reference = both(strides, "SAME")
    for gradients in (sum_of_frames, frames_at_once):

        def run(k, x, gradients=gradients):
            return gradients(ours, k, x)

        # The output, the gradient of the input and that of the kernel: of all frames at once.
        assert_canonical(jax.make_jaxpr(run)(k, x), 3)
        desired = gradients(reference, k, x)
        assert_close(jax.jit(run)(k, x), desired, 1e-5)


def images_of_kernel_gradient(conv, x, k):
    """The shape of the image in the convolution that gives the gradient of the kernel."""
    y = conv(x, k)
    jaxpr = jax.make_jaxpr(lambda y: jax.vjp(lambda k: conv(x, k), k)[1](y))(y).jaxpr
    outer = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    return outer[-1].invars[0].aval.shape, outer[-1].params


@pytest.mark.parametrize(("features", "channels"), [(4, 3), (2, 2)])
def test_the_image_has_the_fewer_channels(features, channels):
    """3 of the input or as many as the cotangent has: they are in the place of the batch."""
    x, k = arrays((8, 8), (3, 3), features=features)
    image, _ = images_of_kernel_gradient(both((1, 1), "SAME")[0], x, k)
    assert image == (channels, 8, 8, 2)


@pytest.mark.parametrize(("strides", "dilation", "channels"), [(2, 1, 3), (1, 2, 4)])
def test_the_image_is_not_what_is_dilated(strides, dilation, channels):
    """A stride dilates the cotangent, and a transposed convolution its input."""
    x, k = arrays((8, 8), (3, 3))
    ours, _ = both((strides,) * 2, ((1, 1), (1, 1)), lhs_dilation=(dilation,) * 2)
    image, params = images_of_kernel_gradient(ours, x, k)
    assert image[0] == channels
    assert (params["lhs_dilation"], params["rhs_dilation"]) == ((1, 1), (2, 2))


def test_compiled_loop_holds_canonical_convolutions_only():
    x, k = arrays((8, 8), (3, 3), batch=(FRAMES, 2))
    ours, reference = both((2, 2), "SAME")

    def layouts(conv):
        compiled = jax.jit(lambda k, x: sum_of_frames(conv, k, x)).lower(k, x).compile()
        return set(re.findall(r"convolution\(.*dim_labels=(\S+?)[,\s]", compiled.as_text()))

    assert layouts(ours) == {"b01f_01io->b01f"}
    # Otherwise XLA has learned to do it itself, and this module is not needed any more.
    assert len(layouts(reference)) > 1


def test_no_work_for_an_unused_gradient():
    x, k = arrays((8, 8), (3, 3))
    ours, _ = both((2, 2), "SAME")

    def loss(k):
        return jnp.sum(jnp.square(ours(x, k)))

    assert_canonical(jax.make_jaxpr(jax.grad(loss))(k), 2)
    assert_canonical(jax.make_jaxpr(jax.grad(jax.jit(loss)))(k), 2)
    assert_canonical(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(jnp.square(ours(x, k)))))(x), 2)


@pytest.mark.usefixtures("quick_compile")
def test_data_parallel_shard_map():
    x, k = arrays((6, 6), (3, 3), batch=(8,))
    ours, reference = both((2, 2), "SAME")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def sharded(conv):
        run = jax.shard_map(
            lambda x, k: lax.psum(jnp.sum(jnp.sin(conv(x, k))), "data"),
            mesh=mesh,
            in_specs=(P("data"), P()),
            out_specs=P(),
        )
        return jax.jit(jax.grad(run, (0, 1)))(x, k)

    unsharded = jax.grad(lambda x, k: jnp.sum(jnp.sin(reference(x, k))), (0, 1))(x, k)
    assert_close(sharded(ours), unsharded, 1e-5)


@pytest.mark.parametrize("features", [4, 2])
def test_precision_reaches_every_convolution(features):
    x, k = arrays((8, 8), (3, 3), features=features)
    ours, _ = both((1, 1), "SAME", precision="highest")
    found = convolutions(jax.make_jaxpr(pulled_back(ours))(x, k).jaxpr)
    assert len(found) == 3
    assert all(p["precision"] == (lax.Precision.HIGHEST,) * 2 for p in found)


@pytest.mark.parametrize(
    "options",
    [
        {"rhs_dilation": (2, 1)},
        {"feature_group_count": 2},
        {"batch_group_count": 2},
        {"dimension_numbers": ("NHWC", "OIHW", "NHWC")},
        {"dimension_numbers": None},
        {"preferred_element_type": jnp.float32},
    ],
    ids=str,
)
def test_everything_else_is_left_to_lax(options):
    x = normal((4, 4, 4, 4), jnp.bfloat16)
    k = x[:, :, : 4 // options.get("feature_group_count", 1)]
    options = {"dimension_numbers": CANONICAL, **options}

    def run(conv):
        def pair(x, k):
            y, vjp = jax.vjp(lambda x, k: conv(x, k, (1, 1), ((1, 1), (0, 2)), **options), x, k)
            return y, vjp(y)

        return jax.make_jaxpr(pair)(x, k), pair(x, k)

    (ours, values), (reference, desired) = run(conv_general_dilated), run(lax.conv_general_dilated)
    assert str(ours) == str(reference)
    jax.tree.map(np.testing.assert_array_equal, values, desired)


def test_integers_are_left_to_lax():
    x, k = jnp.ones((1, 4, 4, 1), jnp.int32), jnp.ones((3, 3, 1, 1), jnp.int32)
    y = conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=CANONICAL)
    np.testing.assert_array_equal(y, jnp.full((1, 2, 2, 1), 9, jnp.int32))


@pytest.mark.parametrize("features", [4, 2])
@pytest.mark.parametrize(
    ("size", "kernel", "padding", "dilation"),
    [
        ((2, 2), (5, 5), "VALID", 1),
        ((1, 6), (3, 3), "VALID", 1),
        ((0, 4), (3, 3), ((2, 2), (1, 1)), 1),
        ((2, 2), (6, 6), ((1, 0), (0, 1)), 2),
        ((0, 4), (3, 3), ((2, 2), (1, 1)), 2),
    ],
)
def test_no_pixels(size, kernel, padding, dilation, features):
    x, k = arrays(size, kernel, features=features)
    options = {"lhs_dilation": (dilation,) * 2} if dilation > 1 else {}
    ours, reference = both((1, 1), padding, **options)
    actual, desired = pulled_back(ours)(x, k), pulled_back(reference)(x, k)
    assert 0 in (x.size, actual[0].size)
    assert_close(actual, desired, 0)


def test_mismatched_channels_raise_the_error_of_lax():
    x, k = arrays((4, 4), (3, 3))
    with pytest.raises(ValueError, match="feature_group_count"):
        conv_general_dilated(x[..., :2], k, (1, 1), "SAME", dimension_numbers=CANONICAL)
