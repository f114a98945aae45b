"""What a run measures, and when."""

import itertools
import json
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_cases import (
    CLASS_COUNTS,
    FULL_BATCH,
    LOG_SPACED,
    flat,
    full_class_gradients,
    lenient,
    problem,
    run,
    steps_of,
    train_config,
    trainer,
    two_classes,
)

from pcn_jax.training import (
    AlgorithmName,
    OptimizerConfig,
    Record,
    TrainState,
    make_measure,
    make_train,
    measured_steps,
)


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


class TestKeep:
    """Which state a run returns."""

    def test_the_best_is_that_of_a_run_that_ended_there(self) -> None:
        on, every_step = problem(), {"steps": 12, "measurements_per_decade": 1000}
        made: Any = (on, "pcnsgd", 3.0, train_config(**every_step))
        records: list[Record] = []
        best = make_train(*made, keep="best")(0, on_record=records.append)
        recalls = [record["validation"]["macro_recall"] for record in records]
        at = 1 + int(np.argmax(recalls[1:]))
        assert at < 12  # or it would be the last anyway
        assert int(best.step) == at
        ended = make_train(on, "pcnsgd", 3.0, train_config(steps=at))(0)
        chex.assert_trees_all_equal(best.params, ended.params)
        unwatched = make_train(*made, keep="best")(0)
        chex.assert_trees_all_equal(best, unwatched)
        assert int(make_train(*made)(0).step) == 12

    def test_of_no_steps_it_is_the_start(self) -> None:
        train = make_train(problem(), "sgd", 0.1, train_config(steps=0), keep="best")
        assert int(train(0).step) == 0

    def test_refuses_a_measure_that_has_no_recall(self) -> None:
        def measure(state: TrainState) -> Record:
            return {"step": int(state.step), "validation": {"loss": 0.5}}

        made: Any = (problem(), "sgd", 0.1, train_config(steps=1))
        with pytest.raises(ValueError, match=r"macro_recall.* it has step, validation"):
            make_train(*made, measure=measure, keep="best")(0)

    def test_refuses_what_is_neither(self) -> None:
        keep: Any = "first"
        with pytest.raises(ValueError, match=r"keep must be one of 'last', 'best'"):
            make_train(problem(), "sgd", 0.1, train_config(), keep=keep)


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

    def test_the_smoothed_norm_says_what_it_takes_p_to_be(self) -> None:
        state, records = run("pcnsgd+split", steps=3)
        estimates = [record["estimated_alignment"] for record in records]
        assert estimates[0] == [0, 0, 0]  # nothing was seen yet
        np.testing.assert_array_equal(estimates[-1], state.weights_state.alignment)
        assert max(estimates[-1]) > 0

    def test_last_record_is_that_of_the_result(self) -> None:
        state, records = run("sgd", **LOG_SPACED)
        measure = make_measure(problem(), steps_of("sgd", problem(), **LOG_SPACED))
        # The optimizer of these steps has the rate that the loop puts into the state.
        one = jnp.ones_like(state.learning_rate)
        assert measure(state._replace(learning_rate=one)) == records[-1]

    def test_a_measurement_of_ones_own(self) -> None:
        """Of the same states."""
        config = train_config(steps=3)
        measured: list[Record] = []
        train = make_train(
            problem(), "sgd", 0.1, config, measure=lambda s: {"params": flat(s.params)}
        )
        state = train(0, on_record=measured.append)
        assert [set(record) for record in measured] == 4 * [{"params"}]
        np.testing.assert_array_equal(measured[-1]["params"], flat(state.params))
        assert (measured[0]["params"] != measured[-1]["params"]).any()

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
