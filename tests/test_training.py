"""The training loop: the same every time, whatever is watched and whatever follows."""

import functools
import io
import sys
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_cases import (
    LOOPS,
    SMALL_MLP,
    DropoutNet,
    Loop,
    blobs,
    compilations,
    difference,
    every_loop,
    full_class_gradients,
    lenient,
    new_trainer,
    one_step,
    problem,
    run,
    steps_of,
    trainer,
)

from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    OptimizerConfig,
    Problem,
    Record,
    TrainState,
    make_measure,
)


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
