"""The JAX side: prepares a case, and runs one method when it is told to.

Kept in a process of its own, so that it can take turns with another library: on one
core with `--core`, and else on the accelerator.
"""

import os
import sys

_ON_CORE = "--core" in sys.argv
if _ON_CORE:
    os.sched_setaffinity(0, {int(sys.argv[sys.argv.index("--core") + 1])})
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"

import functools  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import flax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import pcn_jax  # noqa: E402
from benchmarks.answering import answer  # noqa: E402
from benchmarks.cases import TOO_LONG, Case, build, losses  # noqa: E402

_FEW = 8
"""Examples on which the error is measured, where all would take too long."""
_CLASSES = 10
"""On an accelerator, errors are measured of so many classes."""
_LOOP_MS = 20
"""What the steps of one loop take together."""

Given = tuple[Any, jax.Array, jax.Array]
"""Parameters, images and labels."""


class Called:
    """A method that is compiled and called: what counts on a core."""

    def __init__(self, method: Callable[..., Any], given: Given) -> None:
        """Compiles it."""
        start = time.perf_counter()
        lowered: Any = jax.jit(self._program(method)).lower(*self._all(given))
        self._compiled: Any = lowered.compile()
        memory: Any = self._compiled.memory_analysis()
        self.facts = {
            "compile_s": time.perf_counter() - start,
            "temporary_mb": memory.temp_size_in_bytes / 1e6,
        }

    def direction(self, given: Given) -> Any:
        """The gradient that the method is there for."""
        return self._compiled(*given)[1]

    def milliseconds(self, given: Given) -> float:
        """Of the second of two calls: in training a step follows another.

        The first finds caches and memory as another method left them.
        """
        self._seconds(given)
        return 1000 * self._seconds(given)

    def _program(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return method

    def _all(self, given: Given, number: int = 1) -> tuple[Any, ...]:
        del number
        return given

    def _seconds(self, given: Given, number: int = 1) -> float:
        start = time.perf_counter()
        for result in jax.tree.leaves(self._compiled(*self._all(given, number))):
            result.block_until_ready()
        return time.perf_counter() - start


class Looped(Called):
    """A method as a step in a compiled loop: what counts on an accelerator.

    A single call would measure how fast Python tells the device what to do.
    """

    _number = 0

    def direction(self, given: Given) -> Any:
        """The gradient that the method is there for."""
        return self._compiled(*self._all(given))[1]

    def milliseconds(self, given: Given) -> float:
        """Of one step of many."""
        if not self._number:
            self._seconds(given)
            once = 1000 * self._seconds(given, 2) / 2
            self._number = max(2, int(_LOOP_MS / once))
        return 1000 * self._seconds(given, self._number) / self._number

    def _program(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Steps of gradient descent of a rate of which only we know that it is 0.

        Nothing of a step may be taken out of the loop, so all of it depends on the
        step before.
        """

        def steps(
            params: Any, images: Any, labels: Any, number: Any, rate: Any
        ) -> tuple[Any, Any]:
            def step(_: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
                params, one, _ = carry
                shift = (one - 1).astype(labels.dtype)
                _, direction = method(params, images * one, labels + shift)
                moved = jax.tree.map(lambda p, d: p - rate * d, params, direction)
                some = jax.tree.leaves(direction)[0].reshape(-1)[0]
                return moved, one + rate * some, direction

            carry = params, jnp.float32(1), jax.tree.map(jnp.zeros_like, params)
            params, _, direction = jax.lax.fori_loop(0, number, step, carry)
            return params, direction

        return steps

    def _all(self, given: Given, number: int = 1) -> tuple[Any, ...]:
        return *given, jnp.int32(number), jnp.float32(0)


_PROGRAMS: dict[tuple[Any, ...], Looped] = {}
"""Those of an accelerator: on other labels they are the same."""


class Prepared:
    """A case with its compiled methods."""

    def __init__(self, case: Case, wanted: tuple[str, ...]) -> None:
        """Compiles the wanted methods, or all if none is named, and calls each once."""
        images = np.random.RandomState(0).normal(size=(case.batch_size, 32, 32, 3))
        model = build(case.net, case.num_classes)
        self.images = jnp.asarray(images, jnp.float32)
        self.labels = jnp.asarray(case.classes)
        self.params = jax.jit(model.init)(jax.random.key(0), self.images[:1])["params"]
        self.loss = functools.partial(losses, model)
        self.case = case
        self.programs: dict[str, Called] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        for name, method in self._methods().items():
            if wanted and name not in wanted:
                continue
            if isinstance(method, str):
                self.facts[name] = {"not_run": method}
                continue
            self.programs[name] = program = self._program(name, method)
            self.facts[name] = dict(program.facts)
            self.run(name)
        if _ON_CORE:
            self._measure_errors()
        elif case.num_classes == _CLASSES and case.net != "resnet18":
            self._measure_rounding()

    @property
    def given(self) -> Given:
        """What the methods are given."""
        return self.params, self.images, self.labels

    def describe(self) -> dict[str, Any]:
        """Facts about each method, the number of parameters and versions."""
        return {
            "methods": self.facts,
            "parameters": sum(x.size for x in jax.tree.leaves(self.params)),
            "versions": {"jax": jax.__version__, "flax": flax.__version__},
        }

    def run(self, name: str) -> float:
        """Milliseconds of one method."""
        return self.programs[name].milliseconds(self.given)

    def _program(self, name: str, method: Callable[..., Any]) -> Called:
        if _ON_CORE:
            return Called(method, self.given)
        labels = self.case.labels if name == "known labels" else None
        key = *self.case._replace(labels="balanced"), labels, name
        if key not in _PROGRAMS:
            _PROGRAMS[key] = Looped(method, self.given)
        return _PROGRAMS[key]

    def _methods(self) -> dict[str, Callable[..., Any] | str]:
        number, loss = self.case.num_classes, self.loss

        def mean_loss(params: Any, images: Any, labels: Any) -> jax.Array:
            return loss(params, images, labels).mean()

        segments = pcn_jax.known_labels_value_and_grad(loss, self.case.classes, number)
        chain = optax.chain(pcn_jax.scale_by_class_norm(), pcn_jax.sum_over_classes())

        def by_segments(params: Any, images: Any, labels: Any) -> Any:
            del labels
            value, grads = segments(params, images)
            return value, chain.update(grads, chain.init(params), params)[0]

        methods: dict[str, Callable[..., Any] | str] = {
            "plain": jax.value_and_grad(mean_loss),
            "fused": pcn_jax.pcn_value_and_grad(loss, number, path="fused"),
            "fused, Gramian": pcn_jax.pcn_value_and_grad(
                loss, number, path="fused", with_gramian=True
            ),
            "known labels": by_segments,
            "masked": pcn_jax.pcn_value_and_grad(loss, number, path="masked"),
        }
        if not self.case.allows_stacks:
            why = TOO_LONG if _ON_CORE else "too long to compile"
            methods |= dict.fromkeys(["known labels", "masked"], why)
        return methods

    def _measure_errors(self) -> None:
        """Errors of the directions: the largest, over the largest entry.

        Each against the slow direction in the same precision: a ReLU or a maximum that
        falls out otherwise in float32 changes any gradient by 1e-3, the plain one, too.
        """
        size = _FEW if self.case.net == "resnet18" else self.case.batch_size
        given = self.params, self.images[:size], self.labels[:size]
        fused = pcn_jax.pcn_value_and_grad(
            self.loss, self.case.num_classes, path="fused"
        )
        exact, _ = self._slow_directions(*given)
        directions = {"fused": jax.jit(fused)(*given)[1]}
        if size == self.case.batch_size:
            directions |= {
                name: program.direction(given)
                for name, program in self.programs.items()
                if name not in ("plain", "fused")
            }
        for name, direction in directions.items():
            self.facts[name]["error_float32"] = _relative_error(direction, exact)
        with jax.enable_x64(True):
            params, images = jax.tree.map(
                lambda x: jnp.asarray(np.asarray(x), jnp.float64), given[:2]
            )
            given = params, images, jnp.asarray(np.asarray(given[2]))
            error = _relative_error(
                jax.jit(fused)(*given)[1], self._slow_directions(*given)[0]
            )
            self.facts["fused"]["error_float64"] = error

    def _measure_rounding(self) -> None:
        """The same errors against products in full precision, and the plain gradient's.

        An accelerator rounds what it multiplies, in every method.
        """
        with jax.default_matmul_precision("highest"):
            exact, plain = self._slow_directions(*self.given)
        for name, program in self.programs.items():
            error = _relative_error(
                program.direction(self.given), plain if name == "plain" else exact
            )
            self.facts[name]["error_float32"] = error

    def _slow_directions(
        self, params: Any, images: Any, labels: jax.Array
    ) -> tuple[Any, Any]:
        """One plain gradient a class, added in float64: normalised, and as they are."""

        @jax.jit
        def gradient(params: Any, images: Any, which: Any, label: Any) -> Any:
            def class_loss(params: Any) -> jax.Array:
                each = self.loss(params, images, which)
                return jnp.where(which == label, each, 0).sum()

            return jax.grad(class_loss)(params)

        total = plain = jax.tree.map(lambda x: np.zeros(x.shape), params)
        for label in np.unique(labels):
            grads = gradient(params, images, labels, label)
            grads = jax.tree.map(lambda g: np.asarray(g, np.float64), grads)
            norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
            total = jax.tree.map(lambda t, g, n=norm: t + g / n, total, grads)
            plain = jax.tree.map(lambda t, g: t + g / len(labels), plain, grads)
        return total, plain


def _relative_error(found: Any, exact: Any) -> float:
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    worst = max(np.abs(np.asarray(x, np.float64) - y).max() for x, y in pairs)
    return float(worst / max(np.abs(y).max() for _, y in pairs))


def limits() -> dict[str, float]:
    """What the device reaches: products of float32 matrices, and copies in memory."""
    matrix = jax.random.normal(jax.random.key(0), (8192, 8192))
    long = jnp.ones(2**28)

    def seconds(step: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
        number = 20
        repeat: Any = jax.jit(
            lambda x: jax.lax.fori_loop(0, number, lambda _, x: step(x), x)
        )
        repeat(x).block_until_ready()
        start = time.perf_counter()
        repeat(x).block_until_ready()
        return (time.perf_counter() - start) / number

    return {
        "flops": 2 * 8192**3 / seconds(lambda x: (x @ matrix) * 0.01, matrix),
        "bytes": 2 * long.nbytes / seconds(lambda x: x + 1, long),
    }


if __name__ == "__main__":
    # On an accelerator all cases are prepared before the first is measured.
    prepared = Prepared if _ON_CORE else functools.lru_cache(maxsize=None)(Prepared)
    answer(
        lambda request: prepared(Case(*request["case"]), tuple(request["methods"])),
        limits=lambda: {**limits(), "device": jax.devices()[0].device_kind},
    )
