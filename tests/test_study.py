"""Runs that are kept, and learning rates that are known or searched."""

import dataclasses
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import endings, study
from experiments.claims import (
    c11_settings,
    c12_early_stopping,
    c13_decaying_rate,
    c14_published_forms,
)
from experiments.claims.finding import Size
from experiments.experiment import SETUPS, Experiment
from experiments.kept import write_whole


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(study.FOLDERS, "fast", tmp_path)
    return tmp_path


def short(**changes: object) -> Experiment:
    setup = SETUPS["digits-halves"]
    few = dataclasses.replace(setup.train, steps=2)
    options = {"train": few, "learning_rate": 0.1, "seeds": (0, 1), **changes}
    return dataclasses.replace(setup, **options)  # type: ignore[arg-type]


def test_runs_are_kept_and_not_run_again(folder: Path) -> None:
    first = study.collect(short(), "fast", algorithms=["pcnsgd"])["pcnsgd"]
    path = folder / "digits-halves" / "pcnsgd.json"
    kept = json.loads(path.read_text())
    assert kept["commit"]
    assert kept["date"]
    assert kept["ran_on"]["jax"]
    assert first.steps.tolist() == [0, 1, 2]
    assert first.train_loss.shape == first.margins.shape == (2, 3, 2)
    assert first.class_counts.tolist() == [300, 15]
    assert first.validation_recall.shape == first.test_recall.shape
    cosine = first.margins[:, :, 0] - 1
    assert ((cosine >= -1) & (cosine <= 1)).all()
    written = path.stat().st_mtime_ns
    again = study.collect(short(), "fast", algorithms=["pcnsgd"])["pcnsgd"]
    assert path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.train_loss, first.train_loss)
    more = study.collect(short(seeds=(0, 1, 2)), "fast", algorithms=["pcnsgd"])
    np.testing.assert_array_equal(more["pcnsgd"].train_loss[:2], first.train_loss)
    other = study.collect(short(learning_rate=0.2), "fast", algorithms=["pcnsgd"])
    assert (other["pcnsgd"].train_loss[:, 1] != first.train_loss[:, 1]).any()
    assert set(json.loads(path.read_text())["seeds"]) == {"0", "1"}


def test_seeds_that_another_process_trained_meanwhile_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_train = study.make_train  # type: ignore[attr-defined]

    def interrupted(*given: Any) -> Any:
        train = make_train(*given)

        def train_after_another(seed: int, **options: Any) -> Any:
            monkeypatch.setattr(study, "make_train", make_train)
            study.collect(short(seeds=(7,)), "fast", algorithms=["sgd"])
            return train(seed, **options)

        return train_after_another

    monkeypatch.setattr(study, "make_train", interrupted)
    study.collect(short(seeds=(0,)), "fast", algorithms=["sgd"])
    kept = json.loads((folder / "digits-halves" / "sgd.json").read_text())
    assert set(kept["seeds"]) == {"0", "7"}


def test_a_file_may_be_written_by_several_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_whole, [path] * 100, map(str, range(100))))
    assert [kept.name for kept in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.usefixtures("standard_promotion")  # optax's cosine decay relies on it
def test_endings_are_those_of_the_curves_and_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(SETUPS["digits-halves"].train, steps=4)
    setup = short(train=few)
    measured = functools.partial(endings.measure_endings, setup, "fast")
    first = measured(["sgd"], [0.1])
    assert [(end.plan, end.seed) for end in first] == [
        (plan, seed) for plan in endings.PLANS for seed in (0, 1)
    ]
    curves = study.collect(setup, "fast", algorithms=["sgd"])["sgd"]
    worst = curves.train_loss.max(axis=2)  # after 0 to 4 steps
    for end in first[:2]:
        assert end.least_loss == pytest.approx(worst[end.seed, :2].min(), rel=1e-4)
        assert end.late_loss == pytest.approx(worst[end.seed, 2:].max(), rel=1e-4)
        recall = curves.test_recall[end.seed, -1].mean()
        assert end.macro_recall == pytest.approx(recall, rel=1e-4)
    assert first[4].late_loss != first[0].late_loss  # the rate decays
    more = measured(["sgd"], [0.1, 0.2])
    assert [end for end in more if end.learning_rate == 0.1] == measured(["sgd"], [0.1])
    monkeypatch.setattr(endings, "make_train", None)  # nothing is trained again
    assert measured(["sgd"], [0.1, 0.2]) == more
    with pytest.raises(TypeError):
        measured(["sgd"], [0.3])


def test_endings_of_one_algorithm_outlive_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_train(*_: Any) -> Any:
        """What is kept does not depend on what was learned."""

        def train(seed: int, on_record: Any) -> None:
            for step in range(3):
                loss, recall = [1.0, 0.5 / (1 + step)], [0.5, 0.1 * seed]
                on_record(
                    {"step": step, "train": {"loss": loss}, "test": {"recall": recall}}
                )

        return train

    monkeypatch.setattr(endings, "make_train", make_train)
    measured = functools.partial(endings.measure_endings, size="fast")
    setup = short()
    measured(setup, algorithms=["sgd", "pcnsgd+clip"], learning_rates=[0.1])
    measured(setup, algorithms=["sgd+rw"], learning_rates=[0.1])
    path = folder / "digits-halves" / "endings.json"
    of = [row[2] for row in json.loads(path.read_text())["rows"]]
    assert {a: of.count(a) for a in of} == {"sgd": 6, "pcnsgd+clip": 6, "sgd+rw": 6}
    other = dataclasses.replace(setup.train, max_norm=2.0)  # heeded by clipping alone
    measured(short(train=other), algorithms=["sgd+rw"], learning_rates=[0.1, 0.2])
    of = [row[2] for row in json.loads(path.read_text())["rows"]]
    assert {a: of.count(a) for a in of} == {"sgd": 6, "sgd+rw": 12}


def test_a_missing_learning_rate_is_searched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {}
    monkeypatch.setattr(
        study, "search", lambda experiment, algorithm, _: rates.update({algorithm: 0.1})
    )
    monkeypatch.setattr(
        Experiment, "learning_rate_of", lambda self, algorithm: rates[algorithm]
    )
    few = short(learning_rate=None, seeds=(0,))
    assert study.collect(few, "fast", algorithms=["sgd"])["sgd"].learning_rate == 0.1


@pytest.mark.parametrize("size", ["fast", "full"])
def test_settings_have_folders_of_their_own_and_known_learning_rates(
    size: Size,
) -> None:
    for setup in c11_settings.SETUPS_OF[size]:
        variants = c11_settings.variants(setup, size)
        changed = [variant.of(SETUPS[setup]) for variant in variants]
        plain = [variant for variant in variants if not variant.changes]
        assert [one.name for one in changed].count(setup) == len(plain)
        names = {
            (one.name, variant.algorithm)
            for one, variant in zip(changed, variants, strict=True)
        }
        assert len(names) == len(variants)
        for one, variant in zip(changed, variants, strict=True):
            assert one.learning_rate_of(variant.algorithm) > 0  # or CI would search


@pytest.mark.parametrize("size", ["fast", "full"])
def test_variants_of_set_ups_have_known_learning_rates(size: Size) -> None:
    stopped, decaying = c12_early_stopping, c13_decaying_rate
    searched = [
        (stopped.stopping_early(SETUPS[setup]), stopped.COMPARED[size])
        for setup in stopped.SETUPS_OF[size]
    ]
    searched += [
        (decaying.decaying(SETUPS[setup]), decaying.COMPARED[size])
        for setup in decaying.SETUPS_OF[size]
    ]
    for variant, algorithms in searched:
        for algorithm in algorithms:
            assert variant.learning_rate_of(algorithm) > 0  # or CI would search


@pytest.mark.parametrize("size", ["fast", "full"])
def test_published_forms_have_known_learning_rates(size: Size) -> None:
    for form in c14_published_forms.FORMS:
        for name in form.setups[size]:
            setup = c14_published_forms.setup_of(name, size)
            for one in setup, form.of(setup):
                assert one.learning_rate_of(form.algorithm) > 0  # or CI would search
