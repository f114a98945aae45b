"""The training loop: the same every time, whatever is watched and whatever follows."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from pcn_jax import per_class_value_and_grad
from pcn_jax.data import SETUPS, Dataset, Split, load
from pcn_jax.models import MLP
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    OptimizerConfig,
    Problem,
    Record,
    SamplerName,
    Steps,
    TrainConfig,
    TrainState,
    make_measure,
    make_steps,
    make_train,
    measured_steps,
)
from pcn_jax.training.algorithms import make_sampler

Loop = Literal["python", "scan"]

CLASS_COUNTS = (20, 9, 4)
NUM_CLASSES = len(CLASS_COUNTS)
FULL_BATCH: tuple[AlgorithmName, ...] = ("gd", "pcngd")

LOOPS: tuple[Loop, ...] = get_args(Loop)
# Some of optax mixes dtypes.
lenient = pytest.mark.usefixtures("standard_promotion")
LOG_SPACED: dict[str, Any] = {"steps": 23, "measurements_per_decade": 4}
every_loop = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):
        yield


class DropoutNet(nn.Module):
    """One hidden layer, half of which is dropped in training."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Any:
        x = nn.tanh(nn.Dense(16)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(NUM_CLASSES)(x)


class BatchNormNet(nn.Module):
    """One hidden layer with batch normalisation."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Any:
        x = nn.Dense(6)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(NUM_CLASSES)(nn.tanh(x))


def blobs(counts: tuple[int, ...] = CLASS_COUNTS) -> Dataset:
    """Overlapping classes in four dimensions, as bytes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(counts), 4))

    def split(counts: tuple[int, ...]) -> Split:
        labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        inputs = 128 + 25 * (centres[labels] + rng.normal(size=(len(labels), 4)))
        return Split(np.clip(inputs, 0, 255).astype(np.uint8), labels.astype(np.int32))

    return Dataset(
        name="blobs",
        train=split(counts),
        validation=split((3,) * len(counts)),
        test=split((3,) * len(counts)),
        class_names=tuple("abc"[: len(counts)]),
        mean=np.full(4, 128, np.float32),
        std=np.full(4, 32, np.float32),
    )


SMALL_MLP = MLP(NUM_CLASSES, features=(5,))


@functools.cache
def problem(loop: Loop = "python", model: nn.Module = SMALL_MLP) -> Problem:
    return Problem(blobs(), model, microbatch_size=12, loop=loop)


@functools.cache
def two_classes() -> Problem:
    return Problem(blobs((40, 2)), MLP(2, features=(5,)), microbatch_size=12)


def train_config(**options: Any) -> TrainConfig:
    return TrainConfig(**({"steps": 6, "batch_size": 12} | options))


def new_trainer(
    algorithm: AlgorithmName,
    on: Problem | None = None,
    learning_rate: float = 0.1,
    **options: Any,
) -> Callable[..., TrainState]:
    config = train_config(**options)
    return make_train(on or problem(), algorithm, learning_rate, config)


# Shared by all tests, because compiling is what takes their time.
trainer = functools.cache(new_trainer)


@functools.cache
def run(
    algorithm: AlgorithmName, on: Problem | None = None, seed: int = 0, **options: Any
) -> tuple[TrainState, list[Record]]:
    """Trains and measures; most tests only train, for measuring compiles slowly."""
    records: list[Record] = []
    state = trainer(algorithm, on, **options)(seed, on_record=records.append)
    return state, records


def steps_of(
    algorithm: AlgorithmName,
    on: Problem,
    optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> Steps:
    """The functions that `make_train` would drive."""
    config, chosen = train_config(**options), ALGORITHMS[algorithm]
    sampler = make_sampler(
        config.sampler or chosen.sampler,
        on.train_labels,
        config.batch_size,
        config.steps,
    )
    return make_steps(on, chosen, config, optimizer or optax.sgd(0.1), sampler)


def full_class_gradients(on: Problem, params: Any) -> Any:
    """Class gradients of all the training data, in one piece and in evaluation mode."""
    per_class = per_class_value_and_grad(on.losses, on.num_classes, has_aux=True)
    return per_class(params, *on.splits["train"], {})[1]


def one_step(steps: Steps, on: Problem) -> Callable[[TrainState], TrainState]:
    train = on.splits["train"]

    def step(state: TrainState) -> TrainState:
        if steps.refreshes_reference:
            reference = full_class_gradients(on, state.params)
            state = state._replace(reference=reference)
        return steps.apply(state, *steps.gradients(state, train))[1]

    return step


def evaluate(on: Problem, state: TrainState, split: str = "train") -> Record:
    return on.evaluate(state.params, state.model_state, on.splits[split])


def flat(tree: Any) -> np.ndarray:
    leaves = [np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def difference(a: Any, b: Any) -> float:
    return float(np.abs(flat(a) - flat(b)).max())


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Notes whatever XLA compiles."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class TestDeterminism:
    """The seed decides everything, and nothing else does."""

    @pytest.mark.parametrize(
        ("algorithm", "loop"), [("gd", "scan"), ("pcnsgd+r", "python")]
    )
    def test_same_seed_same_result(self, algorithm: AlgorithmName, loop: Loop) -> None:
        """Bit for bit, records included, when compiled anew and when not."""
        chosen: Any = {"algorithm": algorithm, "on": problem(loop, DropoutNet())}
        first = run(**chosen, reference_every=4)
        for maker in (trainer, new_trainer):
            records: list[Record] = []
            train = maker(**chosen, reference_every=4)
            assert_same_run((train(0, on_record=records.append), records), first)

    def test_another_seed_another_start_and_other_batches(self) -> None:
        steps = steps_of("sgd", problem())
        zero, one = steps.init(0), steps.init(1)
        assert difference(zero.params, one.params) > 0.1
        step = one_step(steps, problem())
        same_start = one._replace(params=zero.params)
        assert difference(step(zero).params, step(same_start).params) > 1e-3

    def test_batches_change_from_step_to_step(self) -> None:
        steps = steps_of("sgd", problem())
        state = steps.init(0)
        train = problem().splits["train"]
        _, now = steps.gradients(state, train)
        _, later = steps.gradients(state._replace(step=state.step + 1), train)
        assert difference(now, later) > 1e-3

    @pytest.mark.parametrize("seed", [2**31, 2**32 - 1])
    def test_large_seeds(self, seed: int) -> None:
        assert int(trainer("sgd", steps=1)(seed).seed) == seed

    @pytest.mark.parametrize("seed", [-1, 2**32])
    def test_seed_out_of_range(self, seed: int) -> None:
        with pytest.raises(ValueError, match=rf"from 0 to 2\*\*32 - 1, got {seed}"):
            trainer("sgd")(seed)

    @pytest.mark.parametrize("algorithm", ["gd", "pcnsgd+r"])
    def test_loops_agree(self, algorithm: AlgorithmName) -> None:
        """With dropout, so that both give each step the same masks."""
        python, scan = (
            run(algorithm, on=problem(loop, DropoutNet()), reference_every=4)
            for loop in LOOPS
        )
        chex.assert_trees_all_close(python, scan, rtol=1e-4, atol=1e-5)

    @every_loop
    def test_measuring_changes_nothing(self, loop: Loop) -> None:
        """Not even the reference of +R, which is older than the measurement."""
        chosen: Any = {"algorithm": "pcnsgd+r", "on": problem(loop, DropoutNet())}
        measured, _ = run(**chosen, reference_every=4)
        plain = trainer(**chosen, reference_every=4)(0)
        chex.assert_trees_all_equal(plain, measured)

    def test_no_steps(self) -> None:
        state = trainer("sgd", steps=0)(0)
        first = steps_of("sgd", problem()).init(0, state.learning_rate)
        chex.assert_trees_all_equal(state, first)


class TestMeasuredSteps:
    """Log-spaced, with both ends."""

    @given(st.integers(0, 10**7), st.integers(1, 30))
    def test_from_the_start_to_the_end(self, total: int, per_decade: int) -> None:
        steps = measured_steps(total, per_decade=per_decade)
        assert (steps[0], steps[-1]) == (0, total)
        assert all(a < b for a, b in itertools.pairwise(steps))
        assert all(type(step) is int for step in steps)

    @given(st.integers(1, 10**7), st.integers(1, 30))
    def test_no_gap_is_longer_than_asked_for(self, total: int, per_decade: int) -> None:
        steps = measured_steps(total, per_decade=per_decade)
        ratio = 10 ** (1 / per_decade)
        assert 1 in steps
        # Both ends of a gap are rounded by at most a half.
        longest = [(a + 0.5) * ratio + 0.5 for a in steps[1:]]
        assert all(b <= most for b, most in zip(steps[2:], longest, strict=False))

    @given(st.integers(0, 6), st.integers(1, 30))
    def test_powers_of_ten(self, decades: int, per_decade: int) -> None:
        steps = measured_steps(10**decades, per_decade=per_decade)
        assert {10**k for k in range(decades + 1)} <= {*steps}
        assert len(steps) <= 2 + decades * per_decade

    def test_are_those_of_the_records(self) -> None:
        _, records = run("sgd", **LOG_SPACED)
        expected = measured_steps(23, per_decade=4)
        assert [record["step"] for record in records] == expected
        assert len(expected) < 23


class TestRecords:
    """What is measured, and of which state."""

    def test_contents(self) -> None:
        _, records = run("pcnsgd+r")
        of_split = {"loss": (3,), "recall": (3,), "macro_recall": ()}
        expected = {
            "step": (),
            "train": of_split,
            "validation": of_split,
            "test": of_split,
            "class_norms": (3,),
            "class_cosines": (3, 3),
            "class_alignment": (3,),
            "predicted_loss_changes": (3,),
        }
        for record in records:
            shapes = jax.tree.map(np.shape, record, is_leaf=lambda x: type(x) is list)
            assert shapes == expected
            assert type(record["step"]) is int
            assert json.loads(json.dumps(record, allow_nan=False)) == record

    def test_last_record_is_that_of_the_result(self) -> None:
        state, records = run("sgd", **LOG_SPACED)
        measure = make_measure(problem(), steps_of("sgd", problem(), **LOG_SPACED))
        # The optimizer of these steps has the rate that the loop puts into the state.
        one = jnp.ones_like(state.learning_rate)
        assert measure(state._replace(learning_rate=one)) == records[-1]

    def test_macro_recall_weighs_classes_equally(self) -> None:
        _, records = run("sgd", **LOG_SPACED)
        for split in (records[-1][name] for name in ("train", "validation", "test")):
            assert split["macro_recall"] == pytest.approx(np.mean(split["recall"]))

    @pytest.mark.parametrize("algorithm", FULL_BATCH)
    def test_full_batches_are_aligned(self, algorithm: AlgorithmName) -> None:
        for record in run(algorithm, two_classes(), steps=1)[1]:
            np.testing.assert_allclose(record["class_alignment"], 1.0, rtol=1e-5)

    def test_mini_batches_are_not(self) -> None:
        _, records = run("pcnsgd+r")
        assert max(records[0]["class_alignment"]) < 0.999

    @pytest.mark.parametrize(
        ("algorithm", "optimizer"),
        [
            ("gd", OptimizerConfig()),
            ("pcnsgd+r", OptimizerConfig(momentum=0.9)),
            ("pcnsgd+clip", OptimizerConfig(name="adam")),
        ],
        ids=["gd", "pcnsgd+r, momentum", "pcnsgd+clip, adam"],
    )
    @lenient
    def test_a_class_predicted_to_get_worse_does(
        self, algorithm: AlgorithmName, optimizer: OptimizerConfig
    ) -> None:
        _, records = run(
            algorithm,
            optimizer=optimizer,
            learning_rate=1e-3,
            measurements_per_decade=100,
        )
        losses = np.array([record["train"]["loss"] for record in records])
        predicted = [record["predicted_loss_changes"] for record in records[:-1]]
        # The rest is of second order, and rounding of the losses.
        np.testing.assert_allclose(np.diff(losses, axis=0), predicted, 0.05, 5e-6)

    def test_minority_gets_worse_first_under_gd_but_not_under_pcngd(self) -> None:
        changes = {
            algorithm: run(algorithm, two_classes(), steps=1)[1][0][
                "predicted_loss_changes"
            ]
            for algorithm in FULL_BATCH
        }
        assert changes["gd"][0] < 0 < changes["gd"][1]
        assert max(changes["pcngd"]) < 0

    def test_prediction_is_of_the_step_with_an_old_reference(self) -> None:
        """That of step 3 divides by the alignment with the gradients of step 2."""
        fixed: dict[str, Any] = {"learning_rate": 0.5, "reference_every": 2}
        before, records = run("pcnsgd+r", steps=3, **fixed)
        after = trainer("pcnsgd+r", steps=4, **fixed)(0)
        class_grads = full_class_gradients(problem(), before.params)
        update = flat(after.params) - flat(before.params)
        rows = [flat(jax.tree.map(lambda g, c=c: g[c], class_grads)) for c in range(3)]
        counts = np.array(CLASS_COUNTS)
        expected = counts.sum() / counts * (np.stack(rows) @ update)
        predicted = records[-1]["predicted_loss_changes"]
        np.testing.assert_allclose(predicted, expected, rtol=1e-3)


class TestCompilation:
    """Everything is compiled at the first step, for all seeds."""

    @pytest.mark.parametrize(
        ("algorithm", "optimizer", "loop"),
        [
            ("gd", OptimizerConfig(name="adam", schedule="cosine"), "python"),
            ("pcnsgd+r", OptimizerConfig(schedule="cosine"), "python"),
            ("pcnsgd+r", OptimizerConfig(name="adam", weight_decay=0.1), "scan"),
        ],
        ids=["gd", "pcnsgd+r", "pcnsgd+r, scan"],
    )
    @lenient
    def test_nothing_is_compiled_later(
        self, algorithm: AlgorithmName, optimizer: OptimizerConfig, loop: Loop
    ) -> None:
        on = Problem(blobs(), SMALL_MLP, microbatch_size=12, loop=loop)
        train = new_trainer(algorithm, on, optimizer=optimizer, reference_every=2)
        with compilations() as compiled:
            counts: list[int] = []
            train(0, on_record=lambda record: counts.append(len(compiled)))
            assert counts[0] > 0
            assert compiled[counts[1] :] == []
            train(1, on_record=lambda record: None)
            assert compiled[counts[1] :] == []

    def test_measuring_is_compiled_once(self) -> None:
        steps = steps_of("sgd", problem())
        measure = make_measure(problem(), steps)
        state = steps.init(0)
        measure(state)
        later = jax.jit(one_step(steps, problem()))(state)
        with compilations() as compiled:
            measure(later)
        assert compiled == []


Step = Callable[[TrainState], TrainState]


@functools.cache
def with_adam_and_dropout(
    algorithm: AlgorithmName,
) -> tuple[Callable[[int], TrainState], Step, Step]:
    """How to start, a step, and the same compiled; there is state of every kind."""
    on = problem("scan", DropoutNet())
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 6))
    steps = steps_of(algorithm, on, optimizer)
    step = one_step(steps, on)
    return steps.init, step, jax.jit(step)


class TestState:
    """One pytree of arrays: batched, saved and restored as such."""

    @pytest.mark.parametrize("algorithm", ["gd", "pcnsgd+r"])
    @lenient
    def test_vmap_over_seeds(self, algorithm: AlgorithmName) -> None:
        init, step, jitted = with_adam_and_dropout(algorithm)
        seeds = [0, 1, 7]
        separate = [init(seed) for seed in seeds]
        batched: TrainState = jax.tree.map(lambda *xs: jnp.stack(xs), *separate)
        many = jax.jit(jax.vmap(step))
        for _ in range(3):
            separate, batched = [jitted(state) for state in separate], many(batched)
        expected = jax.tree.map(lambda *xs: jnp.stack(xs), *separate)
        chex.assert_trees_all_close(batched, expected, rtol=1e-4, atol=1e-5)
        assert batched.seed.tolist() == seeds

    def test_init_under_vmap(self) -> None:
        steps = steps_of("pcnsgd+r", problem(), optax.adam(0.1))
        batched = jax.jit(jax.vmap(steps.init))(np.arange(3))
        expected = jax.tree.map(lambda *xs: jnp.stack(xs), *map(steps.init, range(3)))
        chex.assert_trees_all_close(batched, expected, rtol=1e-6)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_is_made_of_plain_arrays(self, algorithm: AlgorithmName) -> None:
        """No Python numbers and no typed keys, which NumPy could not hold."""
        state = steps_of(algorithm, problem(), optax.adam(0.1)).init(0)
        leaves = jax.tree.leaves(state)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        assert {np.asarray(leaf).dtype.kind for leaf in leaves} <= set("iuf")

    @pytest.mark.parametrize("algorithm", ["gd", "pcnsgd+r"])
    @lenient
    def test_restored_run_goes_on_bit_for_bit(self, algorithm: AlgorithmName) -> None:
        init, _, step = with_adam_and_dropout(algorithm)
        states = [init(3)]
        for _ in range(6):
            states.append(step(states[-1]))

        saved = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(states[3])]
        like, treedef = jax.tree.flatten(init(3))
        leaves = [
            np.frombuffer(data, leaf.dtype).reshape(leaf.shape)
            for data, leaf in zip(saved, like, strict=True)
        ]
        restored: TrainState = jax.tree.unflatten(treedef, leaves)
        for expected in states[4:]:
            restored = step(restored)
            chex.assert_trees_all_equal(restored, expected)

    def test_counts_its_steps(self) -> None:
        state = trainer("pcngd", steps=5)(2)
        assert (int(state.step), int(state.seed)) == (5, 2)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_reference_is_kept_only_where_needed(
        self, algorithm: AlgorithmName
    ) -> None:
        reference = steps_of(algorithm, problem()).init(0).reference
        assert bool(jax.tree.leaves(reference)) == (algorithm == "pcnsgd+r")


OPTIMIZERS = {
    "momentum": OptimizerConfig(momentum=0.9),
    "nesterov": OptimizerConfig(momentum=0.9, nesterov=True),
    "cosine": OptimizerConfig(schedule="cosine"),
    "decay": OptimizerConfig(weight_decay=0.1),
    "adam": OptimizerConfig(name="adam"),
    "adam, decay, cosine": OptimizerConfig("adam", "cosine", weight_decay=0.1),
    "adamw": OptimizerConfig(name="adamw", weight_decay=0.1),
}


class TestOptimizers:
    """The sum over classes is an ordinary gradient to whatever follows."""

    @pytest.mark.parametrize("name", OPTIMIZERS)
    @lenient
    def test_of_the_configuration(self, name: str) -> None:
        state = trainer("pcnsgd", optimizer=OPTIMIZERS[name])(0)
        assert np.isfinite(flat(state)).all()
        assert difference(state.params, trainer("pcnsgd")(0).params) > 1e-3
        assert int(state.step) == 6

    @lenient
    def test_schedule_ends_with_the_run(self) -> None:
        """The step after the last one would have a learning rate of zero."""
        _, records = run("sgd", optimizer=OPTIMIZERS["cosine"])
        changes = [np.abs(record["predicted_loss_changes"]) for record in records]
        np.testing.assert_allclose(changes[-1], 0.0, atol=1e-7)
        assert min(np.max(change) for change in changes[:-1]) > 1e-4

    @pytest.mark.parametrize(
        ("name", "gradients", "expected"),
        [
            ("momentum", (1.0, 1.0), (-0.5, -0.95)),
            ("nesterov", (1.0, 1.0), (-0.95, -1.355)),  # g + 0.9 m, m = 1 and 1.9
            ("cosine", (1.0, 1.0, 1.0, 1.0), (-0.5, -0.375, -0.125, 0.0)),
            ("decay", (1.0, 0.0), (-0.6, -0.1)),  # 0.1 times a parameter of 2
            ("adam", (3.0, 3.0), (-0.5, -0.5)),
            # A direction however small has full length: 0.1 * 2 as well.
            ("adam, decay, cosine", (0.0,), (-0.5,)),
            ("adamw", (0.0,), (-0.1,)),  # decoupled: 0.5 * 0.1 * 2
        ],
    )
    @lenient
    def test_updates_worked_out_by_hand(
        self, name: str, gradients: tuple[float, ...], expected: tuple[float, ...]
    ) -> None:
        tx = OPTIMIZERS[name].build(0.5, total_steps=3)
        param = jnp.asarray(2.0)
        state, updates = tx.init(param), []
        for gradient in gradients:
            update, state = tx.update(jnp.asarray(gradient), state, param)
            updates.append(float(update))
        np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "optimizer",
        [
            optax.lion(0.01),
            optax.chain(optax.clip_by_global_norm(0.5), optax.rmsprop(0.01)),
            optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
            optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        ],
        ids=["lion", "chain", "inject_hyperparams", "MultiSteps"],
    )
    @lenient
    def test_any_other_from_optax(
        self, optimizer: optax.GradientTransformation
    ) -> None:
        steps = steps_of("pcnsgd", problem(), optimizer)
        step = jax.jit(one_step(steps, problem()), donate_argnums=0)
        start = steps.init(0)
        params = jax.tree.map(np.asarray, start.params)
        first = step(start)
        shapes = jax.eval_shape(lambda state: state, first)
        end = step(first)
        assert np.isfinite(flat(end)).all()
        assert difference(end.params, params) > 1e-3
        chex.assert_trees_all_equal_shapes_and_dtypes(end, shapes)


class TestSamplers:
    """An algorithm is its links; how it draws is a choice."""

    @pytest.mark.parametrize(
        ("algorithm", "sampler", "same"),
        [
            ("pcnsgd", "full", "pcngd"),
            ("pcnsgd", "oversampled", "pcnsgd+o"),
            ("pcnsgd", "stratified", "pcnsgd"),
            ("sgd+o", "stratified", "sgd"),
            ("gd", "oversampled", "sgd+o"),
        ],
    )
    def test_override_gives_the_other_algorithm(
        self, algorithm: AlgorithmName, sampler: SamplerName, same: AlgorithmName
    ) -> None:
        expected = trainer(same)(0)
        actual = trainer(algorithm, sampler=sampler)(0)
        chex.assert_trees_all_equal(actual, expected)

    def test_every_one_runs_and_draws_its_own(self) -> None:
        ends: list[np.ndarray] = []
        for sampler in get_args(SamplerName):
            state = trainer("pcnsgd", sampler=sampler)(0)
            assert np.isfinite(flat(state)).all()
            ends.append(flat(state.params))
        for k, end in enumerate(ends):
            assert all(np.abs(end - other).max() > 1e-4 for other in ends[:k])

    @pytest.mark.parametrize("algorithm", ["sgd+rw", "pcnsgd+r"])
    def test_absent_class_makes_no_nan(self, algorithm: AlgorithmName) -> None:
        state, records = run(
            algorithm, sampler="uniform", batch_size=3, measurements_per_decade=100
        )
        assert np.isfinite(flat(state)).all()
        assert all(np.isfinite(flat(record)).all() for record in records)
        # A class without an example has no direction to be aligned.
        alignments = np.array([record["class_alignment"] for record in records])
        assert (alignments[:, 2] == 0).any()
        assert (alignments[:, 0] != 0).any()

    def test_batch_without_room_for_a_class(self) -> None:
        message = "batch_size=3 is too small: class 2 .* The smallest .* is [0-9]+"
        with pytest.raises(ValueError, match=message):
            trainer("pcnsgd", batch_size=3)

    @pytest.mark.parametrize("algorithm", ["sgd+o", "pcnsgd+o"])
    def test_oversampled_batch_must_be_a_multiple(
        self, algorithm: AlgorithmName
    ) -> None:
        with pytest.raises(ValueError, match="got batch_size=13: use 12 or 15"):
            trainer(algorithm, batch_size=13)

    def test_unknown_one(self) -> None:
        with pytest.raises(ValueError, match=r"oversampled.*got 'balanced'"):
            trainer("sgd", sampler="balanced")


class TestOptions:
    """What an algorithm does not heed must not tell its runs apart."""

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_are_those_that_are_read(self, algorithm: AlgorithmName) -> None:
        read = set()

        class Spy:
            def __getattr__(self, name: str) -> Any:
                read.add(name)
                return getattr(TrainConfig(), name)

        chosen = ALGORITHMS[algorithm]
        if chosen.links is not None:
            chosen.links(Spy(), 3)
        if chosen.weights is not None:
            chosen.weights(Spy())
        read |= {"reference_every"} if chosen.needs_reference else set()
        assert read == set(chosen.options)

    def test_all_else_is_heeded_by_every_one(self) -> None:
        of_some = {name for each in ALGORITHMS.values() for name in each.options}
        everything = {field.name for field in dataclasses.fields(TrainConfig)}
        for algorithm, chosen in ALGORITHMS.items():
            heeded = TrainConfig(steps=7).heeded_by(algorithm)
            assert set(heeded) == everything - of_some | set(chosen.options)
            assert heeded["steps"] == 7


def assert_same_run(
    actual: tuple[TrainState, list[Record]], expected: tuple[TrainState, list[Record]]
) -> None:
    chex.assert_trees_all_equal(actual[0], expected[0])
    assert actual[1] == expected[1]


class TestReferenceEvery:
    """PCNSGD+R: the gradients of all the data, fresh or a few steps old."""

    @every_loop
    def test_refreshed_exactly_at_multiples(self, loop: Loop) -> None:
        """The steps 0 to 5 use those of step 0, 0, 0, 3, 3 and 3."""
        on = problem(loop)
        after = {
            steps: trainer("pcnsgd+r", on, 0.5, steps=steps, reference_every=3)(0)
            for steps in (0, 3, 4, 6)
        }
        for steps, refreshed in [(3, 0), (4, 3), (6, 3)]:
            expected = full_class_gradients(on, after[refreshed].params)
            chex.assert_trees_all_close(
                after[steps].reference, expected, rtol=1e-5, atol=1e-7
            )

    def test_an_old_one_gives_another_path(self) -> None:
        ends = [
            trainer("pcnsgd+r", problem(), 0.5, steps=6, reference_every=every)(
                0
            ).params
            for every in (1, 3)
        ]
        assert difference(*ends) > 1e-3


class TestAngleStepSize:
    """The published rule: PCNGD's step times `1 + cos` of the angle."""

    def test_two_classes(self) -> None:
        two = two_classes()
        start = flat(trainer("pcngd", two, steps=0)(0).params)
        plain, records = run("pcngd", two, steps=1)
        scaled = trainer("pcngd", two, steps=1, angle_step_size=True)(0)
        factor = 1 + records[0]["class_cosines"][0][1]
        assert not 0.9 < factor < 1.1
        np.testing.assert_allclose(
            flat(scaled.params) - start,
            factor * (flat(plain.params) - start),
            rtol=1e-3,
            atol=1e-6,
        )

    def test_three_classes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="exactly two classes, got 3"):
            trainer("pcngd", angle_step_size=True)(0)


class TestProblem:
    """The data, the model and passes over all of it."""

    @pytest.mark.parametrize("size", [5, 33])
    def test_size_of_micro_batches_does_not_matter(self, size: int) -> None:
        on = Problem(blobs(), SMALL_MLP, microbatch_size=size)
        state, expected = trainer("gd", on)(0), trainer("gd")(0)
        chex.assert_trees_all_close(state, expected, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(
            evaluate(on, expected), evaluate(problem(), expected), rtol=1e-5
        )

    def test_inputs_are_normalised_by_the_statistics_of_the_data(self) -> None:
        data = blobs()

        def standard(split: Split) -> Split:
            inputs = (split.inputs.astype(np.float32) - 128) / 32
            return Split(inputs, split.labels)

        normalised = dataclasses.replace(
            data,
            train=standard(data.train),
            validation=standard(data.validation),
            test=standard(data.test),
            mean=np.zeros(4, np.float32),
            std=np.ones(4, np.float32),
        )
        on = Problem(normalised, SMALL_MLP, microbatch_size=12)
        expected = trainer("sgd")(0)
        chex.assert_trees_all_equal(trainer("sgd", on)(0), expected)
        chex.assert_trees_all_equal(
            evaluate(on, expected), evaluate(problem(), expected)
        )

    def test_splits_are_on_the_device(self) -> None:
        data = blobs()
        for name in ("train", "validation", "test"):
            split = problem().splits[name]
            assert isinstance(split.inputs, jax.Array)
            np.testing.assert_array_equal(split.inputs, getattr(data, name).inputs)
            np.testing.assert_array_equal(split.labels, getattr(data, name).labels)

    def test_impossible_micro_batches(self) -> None:
        with pytest.raises(ValueError, match=r"microbatch_size must be .*got 0"):
            trainer("gd", Problem(blobs(), SMALL_MLP, microbatch_size=0))

    def test_unknown_loop(self) -> None:
        loop: Any = "while"
        with pytest.raises(ValueError, match="'python', 'scan' or None, got 'while'"):
            Problem(blobs(), SMALL_MLP, loop=loop)

    def test_real_digits_are_learned(self) -> None:
        on = Problem(load(SETUPS["digits-lt"]), MLP(10))
        ends = [
            trainer("pcnsgd+o", on, steps=steps, batch_size=100)(0) for steps in (0, 60)
        ]
        recalls = [evaluate(on, end, "test")["macro_recall"] for end in ends]
        assert recalls[0] < 0.3
        assert recalls[1] > 0.6


class TestBatchNorm:
    """Nets whose examples interact: mini-batches only, and jointly."""

    @pytest.mark.parametrize(
        ("algorithm", "loop"),
        [
            ("sgd", "python"),
            ("sgd+o", "scan"),
            ("pcnsgd", "scan"),
            ("pcnsgd+o", "python"),
        ],
    )
    def test_statistics_follow_the_whole_batch(
        self, algorithm: AlgorithmName, loop: Loop
    ) -> None:
        """One step moves them by a tenth towards those of all classes together."""
        on = problem(loop, BatchNormNet())
        start = steps_of(algorithm, on).init(5)
        state = trainer(algorithm, on, steps=1)(5)
        sampler = make_sampler(
            ALGORITHMS[algorithm].sampler, on.train_labels, 12, total_steps=1
        )
        assert sampler is not None
        inputs = blobs().train.inputs[np.asarray(sampler(5, 0))]
        params: Any = start.params
        hidden = (
            (inputs - np.float32(128)) / 32 @ np.asarray(params["Dense_0"]["kernel"])
        )
        statistics = state.model_state["batch_stats"]["BatchNorm_0"]
        np.testing.assert_allclose(
            statistics["mean"], 0.1 * hidden.mean(axis=0), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            statistics["var"], 0.9 + 0.1 * hidden.var(axis=0), rtol=1e-4
        )

    @pytest.mark.parametrize("algorithm", ["sgd", "pcnsgd+o"])
    def test_trains(self, algorithm: AlgorithmName) -> None:
        on = problem("python", BatchNormNet())
        ends = [trainer(algorithm, on, steps=steps)(0) for steps in (0, 30)]
        assert np.isfinite(flat(ends)).all()
        losses = [evaluate(on, end)["loss"].mean() for end in ends]
        assert losses[1] < 0.9 * losses[0]

    def test_class_gradients_of_a_joint_pass_sum_to_the_gradient(self) -> None:
        on = problem("python", BatchNormNet())
        steps, train = steps_of("sgd+o", on), on.splits["train"]
        state = steps.init(0)
        _, rows = steps.class_gradients(state, train)
        _, gradient = steps.gradients(state, train)
        total = jax.tree.map(lambda g: g.sum(axis=0, keepdims=True), rows)
        chex.assert_trees_all_close(total, gradient, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("algorithm", "sampler"),
        [("gd", None), ("pcngd", None), ("pcnsgd+r", None), ("sgd", "full")],
    )
    def test_passes_over_all_the_data_are_refused(
        self, algorithm: AlgorithmName, sampler: SamplerName | None
    ) -> None:
        label = re.escape(ALGORITHMS[algorithm].label)
        message = f"{label} takes .* BatchNormNet .* interact .*batch_stats"
        train = trainer(algorithm, problem("python", BatchNormNet()), sampler=sampler)
        with pytest.raises(ValueError, match=message):
            train(0)


class TestDropout:
    """On in training, off in evaluation."""

    @pytest.mark.parametrize("algorithm", ["gd", "pcnsgd+o"])
    def test_on_in_training(self, algorithm: AlgorithmName) -> None:
        """The masks are new at every step and with every seed, and else the same."""
        on = problem("python", DropoutNet())
        # One batch for all steps and seeds: only the masks can differ.
        steps = steps_of(algorithm, on, sampler="full")
        state, train = steps.init(0), on.splits["train"]

        def gradient(state: TrainState) -> Any:
            return steps.gradients(state, train)[1]

        same, now = gradient(state), gradient(state)
        later = gradient(state._replace(step=state.step + 1))
        elsewhere = gradient(state._replace(seed=state.seed + 1))
        chex.assert_trees_all_equal(same, now)
        assert difference(now, later) > 1e-3
        assert difference(now, elsewhere) > 1e-3

    def test_off_in_evaluation(self) -> None:
        on = problem("python", DropoutNet())
        state = trainer("sgd", on)(0)
        train = on.splits["train"]
        inputs = (train.inputs.astype(jnp.float32) - 128) / 32
        logits = DropoutNet().apply({"params": state.params}, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, train.labels)
        expected = [losses[train.labels == c].mean() for c in range(NUM_CLASSES)]
        np.testing.assert_allclose(
            evaluate(on, state)["loss"], expected, rtol=1e-5, atol=1e-6
        )

    def test_off_in_the_reference(self) -> None:
        on = problem("python", DropoutNet())
        start = trainer("pcnsgd+r", on, steps=0)(0)
        state = trainer("pcnsgd+r", on, steps=1)(0)
        expected = full_class_gradients(on, start.params)
        chex.assert_trees_all_close(state.reference, expected, rtol=1e-4, atol=1e-6)


class TestRefusals:
    """A value that no run can take is refused, with what is allowed."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
            ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
            ({"momentum": float("nan")}, "momentum must be .*got nan"),
            ({"weight_decay": -1.0}, "weight_decay must be 0 or more, got -1.0"),
            ({"name": "adam", "momentum": 0.9}, "belong to sgd, not to adam"),
            ({"name": "adamw", "nesterov": True}, "belong to sgd, not to adamw"),
            ({"name": "rmsprop"}, "sgd, adam.*'rmsprop'"),
            ({"schedule": "linear"}, "constant.*cosine.*'linear'"),
        ],
    )
    def test_optimizer(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OptimizerConfig(**options)

    @pytest.mark.parametrize("learning_rate", [0.0, -0.1, float("nan")])
    def test_learning_rate(self, learning_rate: float) -> None:
        message = f"learning_rate must be positive, got {learning_rate}"
        with pytest.raises(ValueError, match=message):
            trainer("sgd", learning_rate=learning_rate)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": -1}, "steps must be 0 or more, got -1"),
            ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
            ({"reference_every": 0}, "reference_every must be 1 or more, got 0"),
            ({"measurements_per_decade": 0}, "measurements_per_decade must be 1 or"),
            ({"max_norm": -1.0}, "max_norm must be 0 or more, got -1.0"),
            ({"min_alignment": 0.0}, r"min_alignment must be in .* 1\], got 0.0"),
            ({"min_alignment": 1.5}, r"min_alignment must be in .* 1\], got 1.5"),
        ],
    )
    def test_run(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TrainConfig(**options)

    def test_algorithm(self) -> None:
        name: Any = "pcn"
        with pytest.raises(ValueError, match="'pcn': choose from gd, pcngd, sgd"):
            trainer(name)


class FakeTerminal(io.StringIO):
    """Pretends that a person watches."""

    def isatty(self) -> bool:
        return True


class TestProgressBar:
    """For a person who watches."""

    def test_silent_when_nobody_does(self, capfd: pytest.CaptureFixture[str]) -> None:
        trainer("pcnsgd")(0)
        assert capfd.readouterr() == ("", "")

    def test_says_what_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = FakeTerminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        trainer("pcnsgd")(4)
        assert "PCNSGD, seed 4" in terminal.getvalue()
        assert "/6" in terminal.getvalue()
