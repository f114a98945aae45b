"""The networks have the published sizes, layers and initial weights."""

import functools
import itertools
import re
from collections.abc import Iterator
from typing import Any

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pcn_jax.models import (
    CNN,
    MLP,
    VGG16,
    ModelConfig,
    ResNet18,
    ResNet32,
    build,
)
from pcn_jax.models.residual import BasicBlock

# The first four are the defaults of their networks, at 32 x 32 x 3 the published ones.
CONFIGS = {
    "mlp": ModelConfig(name="mlp"),
    "cnn": ModelConfig(name="cnn"),
    "vgg16": ModelConfig(name="vgg16"),
    "resnet18": ModelConfig(name="resnet18"),
    "resnet18-imagenet": ModelConfig(name="resnet18", stem="imagenet"),
    "resnet32": ModelConfig(name="resnet32"),
    "resnet32-group": ModelConfig(name="resnet32", norm="group"),
}
# This generator compiles several times faster than the default one.
KEY = jax.random.key(0, impl="rbg")


@pytest.fixture(autouse=True, scope="module")
def optimized() -> Iterator[None]:
    """These programs are large, and run for longer than XLA takes to optimize them."""
    option = "jax_disable_most_optimizations"
    before = jax.config.read(option)
    jax.config.update(option, False)
    yield
    jax.config.update(option, before)


every_model = pytest.mark.parametrize("name", CONFIGS)


def images(*shape: int, seed: int = 0) -> jax.Array:
    noise = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(noise, jnp.float32)


def spec(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    return jax.eval_shape(lambda: jnp.zeros(shape, dtype))


def specs(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """Shapes and dtypes of the variables, without computing any."""
    return jax.eval_shape(model.init, KEY, spec(shape))


def logits(model: nn.Module, variables: Any, x: jax.Array) -> jax.Array:
    out = jax.jit(model.apply)(variables, x)
    assert isinstance(out, jax.Array)
    return out


@functools.cache
def initial(name: str) -> Any:
    """The variables for ten classes, without compiling the forward pass."""
    return build(CONFIGS[name], num_classes=10).lazy_init(KEY, spec((1, 32, 32, 3)))


def initial_params(name: str) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(initial(name)["params"])
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


@functools.cache
def training_pass(name: str) -> Any:
    """``(images, key) -> (logits, new state)``, compiled once for several tests."""

    @jax.jit
    def apply(variables: Any, x: jax.Array, key: jax.Array) -> Any:
        return build(CONFIGS[name], num_classes=10).apply(
            variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )

    return functools.partial(apply, initial(name))


def layers(model: nn.Module, shape: tuple[int, ...]) -> list[nn.Module]:
    """The layers that have no layers inside, in the order in which they are called."""
    called: list[nn.Module] = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(
            context.module,
            nn.Conv | nn.Dense | nn.GroupNorm | nn.BatchNorm | nn.Dropout,
        ):
            called.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        specs(model, shape)
    return called


# --- size -------------------------------------------------------------------

# 3 x 3 convolutions of the thirteen layers, their biases, and scales and shifts.
_VGG16_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_VGG16 = sum(9 * a * b + 3 * b for a, b in itertools.pairwise(_VGG16_WIDTHS))
# Per stage four 3 x 3 convolutions and a 1 x 1 one, and five norms; no biases.
_RESNET18 = (
    (9 * 3 * 64 + 2 * 64)
    + (4 * 9 * 64 * 64 + 4 * 2 * 64)
    + sum(
        9 * w // 2 * w + 3 * 9 * w * w + w // 2 * w + 5 * 2 * w for w in (128, 256, 512)
    )
)
# Ten convolutions a stage, thirty-one norms, and shortcuts without parameters.
_RESNET32 = (
    (9 * 3 * 16 + 2 * 16)
    + 10 * (9 * 16 * 16 + 2 * 16)
    + sum(9 * w // 2 * w + 9 * 9 * w * w + 10 * 2 * w for w in (32, 64))
)


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("mlp", 2, 99_458),
        ("cnn", 2, 18_146),
        ("vgg16", 10, 14_728_266),
        ("vgg16", 2, _VGG16 + 512 * 2 + 2),
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, _RESNET18 + 512 * 100 + 100),
        ("resnet18-imagenet", 10, 11_173_962 + (7 * 7 - 3 * 3) * 3 * 64),
        ("resnet32", 10, 464_154),
        ("resnet32-group", 100, _RESNET32 + 64 * 100 + 100),
    ],
)
def test_number_of_parameters(name: str, num_classes: int, count: int) -> None:
    params = specs(build(CONFIGS[name], num_classes), (1, 32, 32, 3))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@every_model
@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
def test_logits_have_the_dtype_asked_for_and_parameters_float32(
    name: str, dtype: Any
) -> None:
    model = build(CONFIGS[name], num_classes=7, dtype=dtype)
    x = spec((3, 32, 32, 3))
    # flax mixes dtypes within its normalisations, in all dtypes but float32.
    with jax.numpy_dtype_promotion("standard"):
        output, variables = jax.eval_shape(model.init_with_output, KEY, x)
    chex.assert_shape(output, (3, 7))
    assert output.dtype == (dtype or jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@every_model
def test_float64_throughout(name: str) -> None:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model = build(CONFIGS[name], 2, dtype=jnp.float64, param_dtype=jnp.float64)
        x = spec((1, 32, 32, 3), jnp.float64)
        output, variables = jax.eval_shape(model.init_with_output, KEY, x)
        assert output.dtype == jnp.float64
        params = jax.tree.leaves(variables["params"])
        assert {leaf.dtype for leaf in params} == {jnp.dtype("float64")}


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_bfloat16_agrees_with_float32(name: str) -> None:
    x = images(4, 8, 8, 1)
    variables = jax.jit(build(CONFIGS[name], 10).init)(KEY, x)
    exact = logits(build(CONFIGS[name], 10), variables, x)
    rounded = logits(build(CONFIGS[name], 10, dtype=jnp.bfloat16), variables, x)
    chex.assert_trees_all_close(rounded.astype(jnp.float32), exact, atol=0.05)


# --- initial weights --------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg16", "resnet18", "resnet32"])
def test_biases_start_at_zero_and_scales_at_one(name: str) -> None:
    params = initial_params(name)
    for path, leaf in params.items():
        if not path.endswith("kernel"):
            assert np.all(leaf == (1.0 if path.endswith("scale") else 0.0)), path


def _kaiming(fan_in: int, fan_out: int) -> float:
    return 2.0 / fan_in


def _xavier(fan_in: int, fan_out: int) -> float:
    return 2.0 / (fan_in + fan_out)


@pytest.mark.parametrize(
    ("name", "hidden", "head"),
    [
        ("mlp", _kaiming, _xavier),
        ("cnn", _kaiming, _xavier),
        ("vgg16", _xavier, _xavier),
        ("resnet18", _kaiming, _xavier),
        ("resnet32", _kaiming, _kaiming),
    ],
)
def test_weights_are_normal_with_the_published_variance(
    name: str, hidden: Any, head: Any
) -> None:
    kernels = {k: v for k, v in initial_params(name).items() if k.endswith("kernel")}
    for path, kernel in kernels.items():
        *window, inputs, outputs = kernel.shape
        field = int(np.prod(window))
        expected = (head if outputs == 10 else hidden)(field * inputs, field * outputs)
        spread = np.sqrt(2.0 / kernel.size)  # of the sample variance, relative
        variance = np.mean(kernel.astype(np.float64) ** 2)
        assert variance == pytest.approx(expected, rel=5 * spread), path
    largest = max(kernels.values(), key=np.size)
    # A normal truncated at two standard deviations ends at 2.27 of its own.
    assert np.abs(largest).max() > 3 * largest.std()


# --- layers -----------------------------------------------------------------


def test_mlp_agrees_with_numpy() -> None:
    model, x = MLP(num_classes=3, features=(5, 6, 7)), images(4, 2, 2)
    variables = jax.jit(model.init)(KEY, x)
    weights = [
        np.asarray(variables["params"][f"Dense_{i}"]["kernel"]) for i in range(4)
    ]
    hidden = np.asarray(x).reshape(4, 4)
    for weight in weights[:2]:
        hidden = np.maximum(hidden @ weight, 0.0)
    expected = np.tanh(hidden @ weights[2]) @ weights[3]
    np.testing.assert_allclose(logits(model, variables, x), expected, atol=1e-5)


def test_mlp_with_tanh_throughout_is_odd_and_with_relu_is_not() -> None:
    x = images(4, 6)
    smooth = MLP(num_classes=3, features=(8, 8, 8), activation=nn.tanh)
    variables = jax.jit(smooth.init)(KEY, x)
    chex.assert_trees_all_close(
        logits(smooth, variables, -x), -logits(smooth, variables, x), atol=1e-6
    )
    rough = MLP(num_classes=3, features=(8, 8, 8), last_activation=nn.relu)
    gap = logits(rough, variables, -x) + logits(rough, variables, x)
    assert np.abs(gap).max() > 0.1


def test_mlp_without_hidden_layers_is_linear() -> None:
    model, x = MLP(num_classes=3, features=()), images(4, 6)
    variables = jax.jit(model.init)(KEY, x)
    chex.assert_trees_all_close(
        logits(model, variables, 3.0 * x), 3.0 * logits(model, variables, x), atol=1e-5
    )


def test_cnn_agrees_with_numpy() -> None:
    model, x = CNN(num_classes=3), images(2, 8, 8, 2)
    variables = jax.jit(model.init)(KEY, x)
    params = jax.tree.map(np.asarray, variables["params"])

    def conv(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        x = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(1, 2))
        out: np.ndarray = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
        return out

    def blocks(x: np.ndarray) -> np.ndarray:
        batch, height, width, channels = x.shape
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels)

    hidden = np.maximum(conv(np.asarray(x), params["Conv_0"]["kernel"]), 0.0)
    hidden = blocks(hidden).max(axis=(2, 4))
    hidden = np.tanh(conv(hidden, params["Conv_1"]["kernel"]))
    hidden = blocks(hidden).mean(axis=(2, 4))
    expected = hidden.reshape(2, -1) @ params["Dense_0"]["kernel"]
    np.testing.assert_allclose(logits(model, variables, x), expected, atol=1e-4)


def test_vgg16_order_of_layers() -> None:
    letters = {nn.Conv: "C", nn.GroupNorm: "G", nn.Dropout: "D", nn.Dense: "L"}
    called = layers(VGG16(num_classes=2, group_size=16), (1, 32, 32, 3))
    order = "".join(letters[type(layer)] for layer in called)
    assert order == "CGDCG" * 2 + "CGDCGDCG" * 3 + "DL"
    norms = [layer for layer in called if isinstance(layer, nn.GroupNorm)]
    assert {(norm.num_groups, norm.group_size) for norm in norms} == {(None, 16)}


def test_vgg16_normalises_after_the_activation() -> None:
    model, x = VGG16(num_classes=2), spec((2, 32, 32, 3))
    found = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.name == "GroupNorm_0":
            found["into"] = args[0]
        out = call(*args, **kwargs)
        if context.module.name == "Conv_0":
            found["conv"] = out
        return out

    def first_layer(key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        with nn.intercept_methods(record):
            model.init(key, x)
        return found["conv"], found["into"]

    # Only what is returned is compiled, hence one convolution and no more.
    conv, into = jax.jit(first_layer)(KEY, images(*x.shape))
    chex.assert_trees_all_close(jnp.tanh(conv), into, atol=1e-6)


@pytest.mark.parametrize(("side", "half"), [(4, 2), (5, 3)])
def test_option_a_shortcut_subsamples_and_adds_zero_channels(
    side: int, half: int
) -> None:
    zero = functools.partial(
        nn.Conv, use_bias=False, kernel_init=nn.initializers.zeros_init()
    )
    block = BasicBlock(8, 2, zero, lambda x: x, project=False)
    x = images(2, side, side, 4)
    out, _ = block.init_with_output(KEY, x)
    expected = np.zeros((2, half, half, 8))
    expected[..., 2:6] = np.maximum(x[:, ::2, ::2], 0.0)
    np.testing.assert_array_equal(out, expected)


def test_strided_convolution_pads_both_sides() -> None:
    ones = functools.partial(
        nn.Conv, use_bias=False, kernel_init=nn.initializers.ones_init()
    )
    block = BasicBlock(1, 2, ones, lambda x: x, project=False)
    # Pixel (1, 1) is within reach of all four outputs of the first convolution.
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(1.0)
    out, _ = block.init_with_output(KEY, x)
    np.testing.assert_array_equal(out, np.full((1, 2, 2, 1), 4.0))


@pytest.mark.parametrize(
    ("name", "convolutions", "norm"),
    [
        ("resnet18", 17 + 3, nn.GroupNorm),  # three projections
        ("resnet18-imagenet", 17 + 3, nn.GroupNorm),
        ("resnet32", 31, nn.BatchNorm),
        ("resnet32-group", 31, nn.GroupNorm),
    ],
)
def test_resnets_normalise_every_convolution(
    name: str, convolutions: int, norm: type[nn.Module]
) -> None:
    called = layers(build(CONFIGS[name], num_classes=10), (1, 32, 32, 3))
    assert [type(layer) for layer in called] == [nn.Conv, norm] * convolutions + [
        nn.Dense
    ]


# --- training mode ----------------------------------------------------------


def test_dropout_draws_a_mask_from_the_key() -> None:
    apply, x = training_pass("vgg16"), images(3, 32, 32, 3)
    first, second = jax.random.split(KEY)
    once = apply(x, first)
    chex.assert_trees_all_equal(once, apply(x, first))
    assert jnp.abs(once[0] - apply(x, second)[0]).max() > 1e-2


def test_dropout_acts_in_training_only() -> None:
    model = VGG16(num_classes=10)
    x = spec((2, 32, 32, 3))
    variables = specs(model, x.shape)
    # Without a key, whatever draws a mask is an error.
    assert jax.eval_shape(model.apply, variables, x).shape == (2, 10)
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(functools.partial(model.apply, train=True), variables, x)


def test_dropout_rate_zero_needs_no_random_key() -> None:
    model = VGG16(num_classes=10, dropout_rate=0.0)
    x = spec((2, 32, 32, 3))
    variables = specs(model, x.shape)
    output = jax.eval_shape(functools.partial(model.apply, train=True), variables, x)
    assert output.shape == (2, 10)


def test_running_moments_follow_the_batch_in_training() -> None:
    x = images(3, 8, 8, 3)
    before = initial("resnet32")["batch_stats"]
    after = training_pass("resnet32")(x, KEY)[1]["batch_stats"]
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert all(jax.tree.leaves(changed))
    # Blank images have variance 0 after the first convolution: 0.9 * 1 + 0.1 * 0.
    _, state = training_pass("resnet32")(jnp.zeros_like(x), KEY)
    blank = state["batch_stats"]["BatchNorm_0"]
    chex.assert_trees_all_close(blank["var"], jnp.full(16, 0.9))
    chex.assert_trees_all_equal(blank["mean"], jnp.zeros(16))


def test_running_moments_change_in_training_only() -> None:
    model = ResNet32(num_classes=10)
    x = spec((2, 8, 8, 3))
    variables = specs(model, x.shape)
    # Where batch_stats is not mutable, whatever changes it is an error.
    assert jax.eval_shape(model.apply, variables, x).shape == (2, 10)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        jax.eval_shape(functools.partial(model.apply, train=True), variables, x)


@pytest.mark.parametrize(
    ("name", "side", "alone"),
    [
        ("mlp", 32, True),
        ("cnn", 32, True),
        ("vgg16", 32, True),
        ("resnet18", 8, True),
        ("resnet32", 8, False),
    ],
)
def test_examples_interact_under_batch_normalisation_only(
    name: str, side: int, alone: bool
) -> None:
    apply = training_pass(name)
    one = images(3, side, side, 3)
    two = 2.0 + images(3, side, side, 3, seed=1)
    gap = jnp.abs(apply(one, KEY)[0][0] - apply(two.at[0].set(one[0]), KEY)[0][0])
    assert gap.max() < 1e-4 if alone else gap.max() > 1e-2


# --- configuration and errors -----------------------------------------------


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (ModelConfig(), MLP(10)),
        (
            ModelConfig(features=(64,), activation="tanh", last_activation="relu"),
            MLP(10, features=(64,), activation=nn.tanh, last_activation=nn.relu),
        ),
        (ModelConfig(name="cnn", features=(7,), group_size=7), CNN(10)),
        (
            ModelConfig(name="vgg16", group_size=16, dropout_rate=0.4),
            VGG16(10, group_size=16, dropout_rate=0.4),
        ),
        (
            ModelConfig(name="resnet18", group_size=64, stem="imagenet"),
            ResNet18(10, group_size=64, stem="imagenet"),
        ),
        (
            ModelConfig(name="resnet32", group_size=8, norm="group"),
            ResNet32(10, group_size=8, norm="group"),
        ),
        (ModelConfig(name="resnet32", group_size=7), ResNet32(10, group_size=7)),
    ],
)
def test_configuration_builds_its_network(
    config: ModelConfig, model: nn.Module
) -> None:
    assert build(config, num_classes=10) == model


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "lenet"}, "'resnet18', 'resnet32', got 'lenet'"),
        ({"features": (32, 0)}, "positive widths, got (32, 0)"),
        (
            {"activation": "gelu"},
            "activation must be one of 'relu', 'tanh', got 'gelu'",
        ),
        (
            {"last_activation": "x"},
            "last_activation must be one of 'relu', 'tanh', got 'x'",
        ),
        ({"name": "vgg16", "group_size": 3}, "[1, 2, 4, 8, 16, 32, 64], got 3"),
        ({"name": "vgg16", "dropout_rate": 1.0}, "at least 0 and below 1, got 1.0"),
        ({"name": "resnet18", "group_size": 0}, "must divide 64"),
        ({"name": "resnet18", "stem": "big"}, "one of 'cifar', 'imagenet', got 'big'"),
        ({"name": "resnet32", "norm": "layer"}, "one of 'batch', 'group', got 'layer'"),
        (
            {"name": "resnet32", "norm": "group", "group_size": 32},
            "choose one of [1, 2, 4, 8, 16], got 32",
        ),
    ],
)
def test_impossible_configuration_is_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(ModelConfig(**config), num_classes=10)


@pytest.mark.parametrize("name", ["activation", "last_activation"])
def test_the_name_of_an_activation_is_refused(name: str) -> None:
    options: dict[str, Any] = {name: "relu"}
    message = f"{name} must be a function, such as flax.linen.relu, got 'relu'"
    with pytest.raises(ValueError, match=message):
        MLP(3, **options)


@every_model
def test_one_class_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        build(CONFIGS[name], num_classes=1)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (CNN(2), (1, 3, 8, 1), "at least 4 x 4 pixels, got an array of shape (1, 3"),
        (
            VGG16(2),
            (1, 31, 32, 3),
            "VGG16 needs images [B, H, W, channels] of at least 32",
        ),
        (ResNet18(2), (1, 64), "ResNet18 needs images"),
        (ResNet32(2), (8, 8, 3), "ResNet32 needs images"),
        (ResNet18(2, 1, "imagenet"), (1, 32, 32, 3), "choose a larger group_size"),
    ],
)
def test_input_that_does_not_fit_is_refused(
    model: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        specs(model, shape)
