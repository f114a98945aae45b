"""What is said of runs: measures, intervals, effects and verdicts."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import endings, study
from experiments.claims import (
    advised,
    c9_end_of_training,
    c11_settings,
    measures,
)
from experiments.claims.finding import Effect, Finding, Size
from experiments.intervals import difference, factor, interval, proportion, spread
from experiments.noise import of_batches


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


def test_a_seed_that_was_run_twice_counts_with_the_mean_of_its_runs() -> None:
    values = [[0.0, 0.2, 0.4, 0.6], [0.0, 0.1, 0.2, 0.3]]
    once = {
        ("", name): curves_of(values, values) for name in ("sgd", "pcnsgd", "pcnsgd+o")
    }
    again = {("", "pcnsgd"): curves_of([[0.0] * 4], [[1.0] * 4])}
    both = c11_settings.pooled(once, again)  # type: ignore[arg-type]
    assert list(both) == list(once)
    recalls = [measures.macro_recall(curves)[:, -1] for curves in both.values()]
    np.testing.assert_allclose(recalls, [[0.6, 0.3], [0.8, 0.3], [0.6, 0.3]])
    np.testing.assert_allclose(once["", "pcnsgd"].test_recall[0, -1], 0.6)


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
        of_batches(gradients @ gradients.T, 8, np.random.default_rng(1))
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


def finding(*effects: Effect, of_all: bool = False) -> Finding:
    return Finding("A claim", effects, "| table |", Figure, of_all=of_all)


def test_verdicts() -> None:
    seen, not_seen = Effect("one", True), Effect("another", False)
    assert finding(seen, seen).verdict == "holds"
    assert finding(seen, not_seen).verdict == "holds in part"
    assert finding(not_seen).verdict == "does not hold"


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
        [finding(*of, of_all=of_all).verdict for of in of_effects]
        for of_all in (False, True)
    )
    part, no = "holds in part", "does not hold"
    assert some == ["holds", part, part, no]
    assert every == ["holds", part, no, no]


def test_a_fast_check_takes_half_of_the_effects_on_average() -> None:
    def fails(size: Size, *effects: Effect) -> bool:
        return finding(*effects).fails(size)

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
