"""What can be chosen of a run: optimizer, sampler, settings; and what is refused."""

import dataclasses
from typing import Any, cast, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import (
    difference,
    flat,
    lenient,
    one_step,
    problem,
    run,
    steps_of,
    trainer,
    two_classes,
)

from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    OptimizerConfig,
    SamplerName,
    TrainConfig,
)

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
        message = r"batch_size=3 class 2 .* would get no example: use [0-9]+\."
        with pytest.raises(ValueError, match=message):
            trainer("pcnsgd", batch_size=3)

    @pytest.mark.parametrize("algorithm", ["sgd+o", "pcnsgd+o"])
    def test_oversampled_batch_must_be_a_multiple(
        self, algorithm: AlgorithmName
    ) -> None:
        with pytest.raises(ValueError, match="3 classes, got 13: use 12 or 15"):
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

        chosen, spy = ALGORITHMS[algorithm], cast(TrainConfig, Spy())
        if chosen.links is not None:
            chosen.links(spy, np.full(3, 1 / 3))
        if chosen.weights is not None:
            chosen.weights(spy, np.full(3, 1 / 3))
        if chosen.needs_reference:  # which no model with batch normalisation can have
            read.add("reference_every")
        elif chosen.weights is not None:
            read.add("frozen_statistics")
        assert read == set(chosen.options)

    def test_all_else_is_heeded_by_every_one(self) -> None:
        of_some = {name for each in ALGORITHMS.values() for name in each.options}
        everything = {field.name for field in dataclasses.fields(TrainConfig)}
        for chosen in ALGORITHMS.values():
            heeded = chosen.heeded(TrainConfig(steps=7, frozen_statistics=True))
            assert set(heeded) == everything - of_some | set(chosen.options)
            assert heeded["steps"] == 7

    def test_a_newer_one_that_is_off_leaves_older_runs_as_they_are(self) -> None:
        for on in (False, True):
            config = TrainConfig(frozen_statistics=on)
            heeded = ALGORITHMS["pcnsgd"].heeded(config)
            assert ("frozen_statistics" in heeded) == on


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


class TestRefusals:
    """A value that no run can take is refused, with what is allowed."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
            ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
            ({"momentum": float("nan")}, "momentum must be .*got nan"),
            ({"weight_decay": -1.0}, "weight_decay must be 0 or more .*got -1.0"),
            ({"weight_decay": float("inf")}, "weight_decay must be .*finite, got inf"),
            ({"name": "adam", "momentum": 0.9}, "belong to sgd, not to adam"),
            ({"name": "adamw", "nesterov": True}, "belong to sgd, not to adamw"),
            ({"name": "rmsprop"}, "'sgd', 'adam', 'adamw', got 'rmsprop'"),
            ({"schedule": "linear"}, "constant.*cosine.*'linear'"),
        ],
    )
    def test_optimizer(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OptimizerConfig(**options)

    @pytest.mark.parametrize("learning_rate", [0.0, -0.1, float("nan"), float("inf")])
    def test_learning_rate(self, learning_rate: float) -> None:
        message = f"learning_rate must be positive and finite, got {learning_rate}"
        with pytest.raises(ValueError, match=message):
            trainer("sgd", learning_rate=learning_rate)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"optimizer": optax.adam(0.1)},
                "optimizer must be an OptimizerConfig, .* got a Gradient.* make_steps",
            ),
            ({"steps": -1}, "steps must be an integer of 0 or more, got -1"),
            ({"steps": 2.5}, "steps must be an integer of 0 or more, got 2.5"),
            ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
            (
                {"reference_every": 0},
                "reference_every must be a positive integer, got 0",
            ),
            ({"measurements_per_decade": 0}, "measurements_per_decade must be a pos"),
            ({"max_norm": -1.0}, "max_norm must be 0 or more and finite, got -1.0"),
            ({"max_norm": float("inf")}, "max_norm must be .*finite, got inf"),
            ({"min_norm": float("inf")}, "min_norm must be positive and finite"),
            ({"min_alignment": 0.0}, r"min_alignment must be in .* 1\], got 0.0"),
            ({"min_alignment": 1.5}, r"min_alignment must be in .* 1\], got 1.5"),
            (
                {"frozen_statistics": True, "class_momentum": 0.9},
                "class_momentum takes class gradients, and frozen_statistics makes no",
            ),
        ],
    )
    def test_run(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TrainConfig(**options)

    def test_numbers_of_steps_may_be_those_of_numpy(self) -> None:
        steps: Any = np.int64(3)
        assert TrainConfig(steps=steps) == TrainConfig(steps=3)
        with pytest.raises(ValueError, match="steps must be an integer of 0 or more"):
            TrainConfig(steps=True)

    def test_algorithm(self) -> None:
        name: Any = "pcn"
        with pytest.raises(ValueError, match="'pcn': choose from gd, pcngd, sgd"):
            trainer(name)
