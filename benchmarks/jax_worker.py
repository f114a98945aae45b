"""The JAX side: prepares a case, and runs one method when it is told to.

Kept in a process of its own, on given cores, so that it can take turns with another
library.
"""

import os
import sys

_CORES = {int(core) for core in sys.argv[sys.argv.index("--cores") + 1].split(",")}
os.sched_setaffinity(0, _CORES)
if len(_CORES) == 1:
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


class Prepared:
    """A case with its compiled methods."""

    def __init__(self, case: Case) -> None:
        """Compiles every method and calls it once."""
        model = build(case.net, case.num_classes)
        images = np.random.RandomState(0).normal(size=(case.batch_size, 32, 32, 3))
        self.images = jnp.asarray(images, jnp.float32)
        self.labels = jnp.asarray(case.classes)
        self.params = model.init(jax.random.key(0), self.images[:1])["params"]
        self.loss = functools.partial(losses, model)
        self.case = case
        self.compiled: dict[str, Any] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        for name, method in self._methods().items():
            if isinstance(method, str):
                self.facts[name] = {"not_run": method}
                continue
            start = time.perf_counter()
            lowered = jax.jit(method).lower(self.params, self.images, self.labels)
            self.compiled[name] = lowered.compile()
            self.facts[name] = {"compile_s": time.perf_counter() - start}
            memory = self.compiled[name].memory_analysis()
            self.facts[name]["temporary_mb"] = memory.temp_size_in_bytes / 1e6
            self.run(name)
        self._measure_errors()

    def describe(self) -> dict[str, Any]:
        """Facts about each method, the number of parameters and versions."""
        return {
            "methods": self.facts,
            "parameters": sum(x.size for x in jax.tree.leaves(self.params)),
            "versions": {"jax": jax.__version__, "flax": flax.__version__},
        }

    def run(self, name: str) -> float:
        """Milliseconds of the second of two calls: in training a step follows another.

        The first finds caches and memory as another method left them.
        """
        given = self.params, self.images, self.labels
        for _ in range(2):
            start = time.perf_counter()
            jax.block_until_ready(self.compiled[name](*given))
            elapsed = time.perf_counter() - start
        return 1000 * elapsed

    def _methods(self) -> dict[str, Callable[..., Any] | str]:
        number, loss = self.case.num_classes, self.loss

        def mean_loss(params: Any, images: Any, labels: Any) -> jax.Array:
            return loss(params, images, labels).mean()

        segments = pcn_jax.known_labels_value_and_grad(loss, number, self.case.classes)
        chain = optax.chain(pcn_jax.scale_by_class_norm(), pcn_jax.sum_over_classes())

        def by_segments(params: Any, images: Any, labels: Any) -> Any:
            del labels
            value, grads = segments(params, images)
            return value, chain.update(grads, chain.init(params), params)[0]

        rule = pcn_jax.weights.inverse_smoothed_norm(0.3)
        by_halves = pcn_jax.pcn_value_and_grad(loss, number, path="fused", weights=rule)

        def smoothed(params: Any, images: Any, labels: Any) -> Any:
            return by_halves(params, images, labels, state=rule.init(number))

        methods: dict[str, Callable[..., Any] | str] = {
            "plain": jax.value_and_grad(mean_loss),
            "fused": pcn_jax.pcn_value_and_grad(loss, number, path="fused"),
            "fused, Gramian": pcn_jax.pcn_value_and_grad(
                loss, number, path="fused", with_gramian=True
            ),
            "fused, smoothed norm": smoothed,
            "known labels": by_segments,
            "masked": pcn_jax.pcn_value_and_grad(loss, number, path="masked"),
        }
        if not self.case.allows_stacks:
            methods |= dict.fromkeys(["known labels", "masked"], TOO_LONG)
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
        exact = self._slow_direction(*given)
        directions = {"fused": jax.jit(fused)(*given)[1]}
        if size == self.case.batch_size:
            directions |= {
                name: self.compiled[name](*given)[1]
                for name in self.compiled
                if name not in ("plain", "fused", "fused, smoothed norm")
            }
        for name, direction in directions.items():
            self.facts[name]["error_float32"] = _relative_error(direction, exact)
        with jax.enable_x64(True):
            params, images = jax.tree.map(
                lambda x: jnp.asarray(np.asarray(x), jnp.float64), given[:2]
            )
            given = params, images, jnp.asarray(np.asarray(given[2]))
            error = _relative_error(
                jax.jit(fused)(*given)[1], self._slow_direction(*given)
            )
            self.facts["fused"]["error_float64"] = error

    def _slow_direction(self, params: Any, images: Any, labels: jax.Array) -> Any:
        """One plain gradient a class, normalised and added in float64."""

        @jax.jit
        def gradient(params: Any, images: Any, which: Any, label: Any) -> Any:
            def class_loss(params: Any) -> jax.Array:
                each = self.loss(params, images, which)
                return jnp.where(which == label, each, 0).sum()

            return jax.grad(class_loss)(params)

        total = jax.tree.map(lambda x: np.zeros(x.shape), params)
        for label in np.unique(labels):
            grads = gradient(params, images, labels, label)
            grads = jax.tree.map(lambda g: np.asarray(g, np.float64), grads)
            norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
            total = jax.tree.map(lambda t, g, n=norm: t + g / n, total, grads)
        return total


def _relative_error(found: Any, exact: Any) -> float:
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    worst = max(np.abs(np.asarray(x, np.float64) - y).max() for x, y in pairs)
    return float(worst / max(np.abs(y).max() for _, y in pairs))


if __name__ == "__main__":
    answer(lambda request: Prepared(Case(*request["case"])))
