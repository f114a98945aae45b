"""Data and net together: passes over all the data, batch normalisation, dropout."""

import dataclasses
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from training_cases import (
    NUM_CLASSES,
    SMALL_MLP,
    BatchNormNet,
    DropoutNet,
    Loop,
    blobs,
    difference,
    evaluate,
    flat,
    full_class_gradients,
    problem,
    steps_of,
    train_config,
    trainer,
)

from pcn_jax.data import SETUPS, Split, load
from pcn_jax.models import MLP
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    Problem,
    SamplerName,
    TrainState,
    make_steps,
)
from pcn_jax.training.algorithms import make_sampler


class NoDefaultNet(nn.Module):
    """Has to be told whether it is in training."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Any:
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(NUM_CLASSES)(x)


class TimesThree(nn.Module):
    """Has nothing to learn."""

    def __call__(self, x: jax.Array, *, train: bool) -> Any:
        del train
        return 3 * x[:, :NUM_CLASSES]


class BothNet(nn.Module):
    """Returns its inputs, too."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Any:
        return nn.Dense(NUM_CLASSES)(x), x


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

    @pytest.mark.parametrize("number", [NUM_CLASSES - 1, NUM_CLASSES + 1])
    def test_a_model_of_other_classes_is_refused(self, number: int) -> None:
        with pytest.raises(ValueError, match=rf"logits .*, got float32\[1, {number}\]"):
            Problem(blobs(), MLP(num_classes=number))

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (MLP, "Module, such as .*, got a type"),
            (
                nnx.Linear(4, NUM_CLASSES, rngs=nnx.Rngs(0)),
                r"a Linear\. .*docs/flax.md",
            ),
            (nn.Dense(NUM_CLASSES), r"Dense must take .* __call__\(self, x, train\)"),
            (nn.Sequential([nn.Dense(NUM_CLASSES)]), "Sequential must take"),
            (TimesThree(), r"arrays to train, got \{\}"),
            (BothNet(), "got a tuple for B = 1"),
        ],
    )
    def test_what_is_no_model_is_refused(self, model: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Problem(blobs(), model)

    def test_a_model_need_not_know_how_it_is_called_by_default(self) -> None:
        on = Problem(blobs(), NoDefaultNet(), microbatch_size=12)
        state = trainer("pcnsgd", on)(0)
        assert np.isfinite(evaluate(on, state)["loss"]).all()

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
        with pytest.raises(ValueError, match="one of 'python', 'scan', got 'while'"):
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
            ("pcnsgd+o+la", "python"),
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

    @pytest.mark.parametrize("algorithm", ["sgd", "sgd+la", "pcnsgd+o", "pcnsgd+o+la"])
    def test_trains(self, algorithm: AlgorithmName) -> None:
        on = problem("python", BatchNormNet())
        ends = [trainer(algorithm, on, steps=steps)(0) for steps in (0, 30)]
        assert np.isfinite(flat(ends)).all()
        losses = [evaluate(on, end)["loss"].mean() for end in ends]
        assert losses[1] < 0.9 * losses[0]

    @pytest.mark.parametrize("algorithm", ["pcnsgd+o", "pcnsgd+o+la", "pcnsgd+split"])
    def test_trains_with_frozen_statistics(self, algorithm: AlgorithmName) -> None:
        """Norms are others, and so is the end; statistics are those of the batch."""
        on, options = problem("python", BatchNormNet()), {"frozen_statistics": True}
        first, exact = (trainer(algorithm, on, steps=1, **o)(0) for o in (options, {}))
        chex.assert_trees_all_close(first.model_state, exact.model_state, rtol=1e-6)
        assert difference(first.params, exact.params) > 1e-3
        ends = [trainer(algorithm, on, steps=s, **options)(0) for s in (0, 30)]
        losses = [evaluate(on, end)["loss"].mean() for end in ends]
        assert losses[1] < 0.9 * losses[0]

    def test_frozen_statistics_are_exact_without_norms(self) -> None:
        on = problem("python", BatchNormNet())
        frozen, exact = (
            trainer("sgd+rw", on, frozen_statistics=choice)(0)
            for choice in (True, False)
        )
        chex.assert_trees_all_close(frozen.params, exact.params, rtol=1e-4, atol=1e-6)

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


@pytest.mark.parametrize("algorithm", ["pcnsgd+o+la", "pcnsgd+split"])
def test_what_is_averaged_over_batches_needs_them(algorithm: AlgorithmName) -> None:
    label = re.escape(ALGORITHMS[algorithm].label)
    with pytest.raises(ValueError, match=f"{label} needs mini-batches"):
        trainer(algorithm, problem("python", BatchNormNet()), sampler="full")


def test_a_sampler_of_other_data_is_refused() -> None:
    other = make_sampler("uniform", np.arange(200) % NUM_CLASSES, 12, 6)
    message = "draws from 200 examples, but the training data have 33"
    with pytest.raises(ValueError, match=message):
        make_steps(problem(), ALGORITHMS["sgd"], train_config(), optax.sgd(0.1), other)


@pytest.mark.parametrize("sampler", ["oversampled", "square-root"])
def test_logits_are_not_adjusted_by_shares_that_batches_do_not_have(
    sampler: SamplerName,
) -> None:
    with pytest.raises(ValueError, match=rf"SGD\+LA adjusts .* {sampler} batches"):
        trainer("sgd+la", problem("python", BatchNormNet()), sampler=sampler)


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
