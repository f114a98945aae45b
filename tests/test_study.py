"""The study: runs that are kept, intervals, noise from a Gramian, what is written."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import endings, reproduce, study
from experiments.claims import (
    advised,
    c9_end_of_training,
    c11_settings,
    c12_early_stopping,
    c13_decaying_rate,
    c14_published_forms,
    measures,
)
from experiments.claims.finding import Effect, Finding, Size
from experiments.experiment import SETUPS, Experiment
from experiments.intervals import difference, factor, interval, proportion, spread
from experiments.kept import write_whole
from experiments.noise import of_batches


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


@pytest.mark.parametrize(
    ("least", "late", "lost"),
    [
        (0.05, 0.0, False),
        (0.05, 0.14, False),
        (0.05, 0.16, True),
        (0.5, 1.5, False),  # it was never learned
        (0.5, np.nan, True),
    ],
)
def test_a_class_is_lost_again_where_it_was_learned_and_its_loss_is_higher_late(
    least: float, late: float, lost: bool
) -> None:
    ending = endings.Ending("constant rate", 0.1, "sgd", 0, least, late, 0.5)
    assert c9_end_of_training.loses_again(ending) is lost


def curves_of(validation: Any, test: Any) -> study.Curves:
    """Of one class, `[S, T]`, at steps 0, 1, 10 and 100."""
    recalls = [
        np.asarray(values, float)[:, :, np.newaxis] for values in (validation, test)
    ]
    rest = {name: np.empty(0) for name in study.Curves._fields}
    given = {"steps": np.array([0, 1, 10, 100]), "validation_recall": recalls[0]}
    return study.Curves(**{**rest, **given, "test_recall": recalls[1]})  # type: ignore[arg-type]


def test_runs_are_stopped_where_validation_data_say_so() -> None:
    curves = curves_of(
        validation=[[0.9, 0.2, 0.7, 0.6], [0.1, 0.8, 0.8, 0.3]],
        test=[[0.5, 0.1, 0.2, 0.9], [0.5, 0.3, 0.4, 0.6]],
    )
    assert measures.stopped_at(curves).tolist() == [10, 1]  # never before training
    recall = measures.macro_recall(curves)
    assert measures.at_the_best(curves, recall).tolist() == [0.2, 0.3]
    old = curves._replace(validation_recall=np.full((2, 4, 1), np.nan))
    with pytest.raises(ValueError, match="without recalls on validation data"):
        measures.stopped_at(old)


def test_recall_may_fall_late_without_having_fallen_at_first() -> None:
    curves = curves_of([[0.0] * 4] * 2, [[0.5, 0.4, 0.6, 0.1], [0.5, 0.6, 0.7, 0.4]])
    curves = curves._replace(class_counts=np.array([3]))
    np.testing.assert_allclose(measures.recall_lost(curves), [0.4, 0.1])
    at_first = measures.recall_lost(curves, at_first=True)
    np.testing.assert_allclose(at_first, [0.1, 0])


def test_intervals_hold_the_mean_and_pairs_cancel_what_they_share() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert found.low < found.mean == 2.5 < found.high
    shared = np.array([5.0, 50.0, 500.0])
    assert difference(shared + 1, shared) == pytest.approx((1, 1, 1))
    assert factor(3 * shared, shared) == pytest.approx((3, 3, 3))
    assert str(interval([2.0])) == "2 [2, 2]"
    assert str(spread([1.0, 2.0, 6.0])) == "3 (1 to 6)"


def test_intervals_of_five_seeds_cover_what_they_say() -> None:
    rng = np.random.default_rng(0)
    found = [interval(values) for values in rng.normal(size=(2000, 5))]
    covered = np.mean([each.low < 0 < each.high for each in found])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_intervals_of_parts_cover_at_least_what_they_say() -> None:
    counts = np.random.default_rng(0).binomial(20, 0.3, size=2000)
    of = {count: proportion(int(count), 20) for count in set(counts.tolist())}
    covered = np.mean([of[count].low < 0.3 < of[count].high for count in counts])
    assert 0.95 <= covered < 0.99
    assert proportion(0, 20).low == 0
    assert proportion(20, 20).high == 1


def test_noise_from_a_gramian_is_that_of_gradients() -> None:
    rng = np.random.default_rng(1)
    gradients = 0.2 + rng.normal(size=(200, 30))
    true = gradients.mean(axis=0)
    drawn = np.argsort(rng.random((4000, 200)), axis=1)[:, :8]
    batches = gradients[drawn].mean(axis=1)
    lengths = np.linalg.norm(batches, axis=1) * np.linalg.norm(true)
    halves = [gradients[drawn[:, k::2]].mean(axis=1) for k in (0, 1)]
    products = (halves[0] * halves[1]).sum(axis=1) / (true @ true)
    alignment, predicted, noisy, split, expected, split_spread, pairs_spread = (
        of_batches(gradients @ gradients.T, 8)
    )
    assert alignment == pytest.approx((batches @ true / lengths).mean(), abs=0.01)
    assert predicted == pytest.approx(alignment, abs=0.03)
    squares = (batches**2).sum(axis=1) / (true @ true)
    assert noisy == pytest.approx(squares.mean(), rel=0.03)
    products_of_all = gradients @ gradients.T
    different = ~np.eye(200, dtype=bool)
    mean = products_of_all[different].mean() / (true @ true)
    assert expected == pytest.approx(mean)
    assert split == pytest.approx(mean, abs=0.1)
    assert split_spread == pytest.approx(products.std(), rel=0.1)
    assert pairs_spread < 0.9 * split_spread


def found(*seen: bool) -> Finding:
    effects = [Effect(f"effect {k}", one) for k, one in enumerate(seen)]
    return Finding("A claim", effects, "| table |", Figure, "A note.")


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
@pytest.mark.parametrize(
    ("claim", "variant"),
    [
        (c12_early_stopping, c12_early_stopping.stopping_early),
        (c13_decaying_rate, c13_decaying_rate.decaying),
    ],
)
def test_variants_of_set_ups_have_known_learning_rates(
    claim: Any, variant: Callable[[Experiment], Experiment], size: Size
) -> None:
    for setup in claim.SETUPS_OF[size]:
        for algorithm in claim.COMPARED[size]:
            of_setup = variant(SETUPS[setup])
            assert of_setup.learning_rate_of(algorithm) > 0  # or CI would search


@pytest.mark.parametrize("size", ["fast", "full"])
def test_published_forms_have_known_learning_rates(size: Size) -> None:
    for form in c14_published_forms.FORMS:
        for name in form.setups[size]:
            setup = c14_published_forms.setup_of(name, size)
            for one in setup, form.of(setup):
                assert one.learning_rate_of(form.algorithm) > 0  # or CI would search


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


def test_verdicts() -> None:
    assert found(True, True).verdict == "holds"
    assert found(True, False).verdict == "holds in part"
    assert found(False).verdict == "does not hold"


def test_a_check_fails_with_the_claims_that_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce.CLAIMS["C1"], "find", lambda size: found(True))
    monkeypatch.setattr(reproduce.CLAIMS["C2"], "find", lambda size: found(True, False))
    words = ["--size", "fast", "--check", "--claims"]
    reproduce.main([*words, "C1"])
    with pytest.raises(SystemExit, match="not all was seen of C2"):
        reproduce.main([*words, "C1", "C2"])
    assert "refuted: effect 1" in capsys.readouterr().out


RECALLS = {
    "one": {"sgd": np.array([0.5, 0.5]), "pcnsgd+o": np.array([0.8, 0.8])},
    "two": {
        "sgd": np.array([0.9, 0.9, 0.9]),
        "pcnsgd+o": np.array([0.7, 0.8, 0.9]),
        "pcnsgd+o+clip": np.array([0.8, 0.9, 1.0]),
    },
}


def test_how_far_rules_are_below_the_best_of_each_set_up() -> None:
    below = advised.below_the_best(RECALLS)
    assert list(below) == ["pcnsgd+o", "sgd"]  # the third was not run on all
    assert below["pcnsgd+o"].mean.mean == pytest.approx((0 + 0.15) / 2)  # two seeds
    assert below["pcnsgd+o"].most == difference([0.9] * 3, RECALLS["two"]["pcnsgd+o"])
    assert (below["pcnsgd+o"].on, below["sgd"].on) == ("two", "one")
    assert below["sgd"].most.mean == pytest.approx(0.3)


def test_the_best_may_be_sought_among_some_rules_only() -> None:
    below = advised.below_the_best(RECALLS, among=lambda rule: rule != "pcnsgd+o+clip")
    assert below["sgd"].on == "one"
    assert below["pcnsgd+o"].most == difference([0.9] * 3, RECALLS["two"]["pcnsgd+o"])
    below = advised.below_the_best(RECALLS, among=lambda rule: rule == "pcnsgd+o")
    assert below["sgd"].mean.mean == pytest.approx((0.3 - 0.15) / 2)


def test_how_far_a_rule_is_below_the_best_where_it_is_most_so_for_a_seed() -> None:
    most = advised.most_below(RECALLS)
    np.testing.assert_allclose(most["sgd"], [0.3, 0.3])
    np.testing.assert_allclose(most["pcnsgd+o"], [0.2, 0.1])


def test_rates_that_work_are_ranges_of_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = {"0.1": 0.5, "0.01": 0.5, "0.3": 0.2, "1": 0.49, "0.03": 0.48, "3": 0.1}
    monkeypatch.setattr(measures, "_scores", lambda *_: scores)
    assert measures.rates_that_work("digits-lt", "sgd") == "0.01 to 0.1, 1"


def test_rules_that_are_advised_are_compared_where_they_were_run() -> None:
    recalls: Any = RECALLS
    effects = advised.compared(recalls, asserted=["pcnsgd+o"])
    found = [(effect.asserted, effect.statement.split(":")[0]) for effect in effects]
    assert found == [(True, "one")] * 2 + [(False, "two")] * 2 + [(True, "two")] * 2
    assert [effect.outcome for effect in effects[:2]] == ["seen", "seen"]
    assert "minus that of SGD: -0.1 " in effects[-1].statement


def more(*values: float) -> Effect:
    return Effect.of("more", interval(values).is_above(0))


def test_an_effect_is_refuted_only_if_its_opposite_was_seen() -> None:
    outcomes = [more(*of).outcome for of in ((2, 2.1), (1, -2), (-2, -2.1), (0, 0))]
    assert outcomes == ["seen", "undecided", "refuted", "refuted"]
    less = Effect.of("less", interval([2, 2.1]).is_below(0))
    both = interval([1, -2]).is_above(0), interval([2, 2.1]).is_below(0)
    assert (less.outcome, Effect.of("both", *both).outcome) == ("refuted",) * 2
    seen = Effect("without seeds", seen=True), Effect("without seeds", seen=False)
    assert [effect.outcome for effect in seen] == ["seen", "refuted"]


def test_one_refuted_effect_refutes_a_claim_of_all() -> None:
    sure, open_, opposite = more(2, 2.1), more(1, -2), more(-2, -2.1)
    of_effects = [(sure,), (sure, open_), (sure, opposite), (open_, opposite)]
    some, every = (
        [found()._replace(effects=of, of_all=of_all).verdict for of in of_effects]
        for of_all in (False, True)
    )
    part, no = "holds in part", "does not hold"
    assert some == ["holds", part, part, no]
    assert every == ["holds", part, no, no]


def test_a_fast_check_takes_half_of_the_effects_on_average() -> None:
    def fails(size: Size, *effects: Effect) -> bool:
        return found()._replace(effects=effects).fails(size)

    sure, likely, reversed_ = more(2, 2.1), more(-1, 2), more(1, -2)
    assert [one.seen for one in (sure, likely, reversed_)] == [1, 0, 0]
    assert not fails("fast", sure, likely)
    assert fails("full", sure, likely)
    assert fails("fast", sure, likely, likely)
    assert fails("fast", sure, sure, reversed_)
    assert fails("fast", sure, sure, more(0, 0))
    assert fails("fast", sure, sure, Effect("by itself", seen=False))
    assert not fails("full", sure, reversed_._replace(asserted=False))
    both = interval([-1, 2]).is_above(0), interval([2, 2.1]).is_below(0)
    assert fails("fast", sure, Effect.of("more of one, less of the other", *both))


def test_a_claim_that_cannot_be_run_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_data(size: str) -> Finding:
        raise FileNotFoundError(f"no data for {size}")

    monkeypatch.setattr(reproduce.CLAIMS["C1"], "find", without_data)
    monkeypatch.setattr(reproduce.CLAIMS["C2"], "find", lambda size: found(True))
    with pytest.raises(SystemExit, match="C1 was not run: no data for fast"):
        reproduce.main(["--size", "fast", "--claims", "C1", "C2"])
    assert "C2: A claim: holds" in capsys.readouterr().out


def test_results_say_what_was_found_and_what_was_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce.CLAIMS["C2"], "find", lambda size: found(True, False))
    reproduce.main(["--claims", "C2"])
    text = Path("RESULTS.md").read_text(encoding="utf-8")
    assert re.search(r"\| \[C2\]\(#c2\) \| .* \| holds in part \|", text)
    assert re.search(r"\| C1 \| .*minority.* \| not run \|", text)
    assert "## C2\n\nA claim: **holds in part**." in text
    assert "- **refuted**: effect 1." in text
    assert Path("docs/results/C2.png").read_bytes().startswith(b"\x89PNG")


def test_the_results_in_the_repository_are_what_is_written() -> None:
    path = Path(reproduce.__file__).parent.parent / "RESULTS.md"
    assert path.read_text(encoding="utf-8") == reproduce.results()
