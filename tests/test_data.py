"""Digits, .npz files and every set-up: what they give, and what is refused."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_checks import assert_disjoint, class_totals, splits

from pcn_jax.data import (
    SETUPS,
    DataConfig,
    Dataset,
    Split,
    from_arrays,
    input_statistics,
    load,
)
from pcn_jax.data.imbalance import label_counts

# --- digits and the common path ------------------------------------------------------


def test_digits_lt_is_long_tailed_with_balanced_held_out_splits() -> None:
    data = load(SETUPS["digits-lt"])
    assert data.num_classes == 10
    assert data.class_names == tuple("0123456789")
    assert list(data.class_counts) == [120, 72, 43, 26, 16, 9, 6, 3, 2, 2]
    assert data.class_counts.dtype == np.int64
    assert class_totals(data.validation, 10) == class_totals(data.test, 10) == [25] * 10
    for split in splits(data):
        assert split.inputs.shape[1:] == (8, 8, 1)
        assert split.inputs.dtype == np.float32
        assert split.labels.dtype == np.int32
    assert_disjoint(data)


def test_natural_digits_lose_only_what_is_held_out() -> None:
    data = load(DataConfig())
    assert data.class_counts.sum() == 1797 - 500
    assert data.class_counts.min() == 124


def test_labels_go_with_their_inputs() -> None:
    digits = importlib.import_module("sklearn.datasets").load_digits()
    truth = {
        image.astype(np.float32).tobytes(): target
        for image, target in zip(digits.images, digits.target, strict=True)
    }
    data = load(DataConfig(groups=((7,), (4, 1)), seed=3))
    for split in splits(data):
        original = np.array([truth[row.tobytes()] for row in split.inputs])
        np.testing.assert_array_equal(split.labels, np.where(original == 7, 0, 1))
        assert set(original) == {7, 4, 1}
        assert np.any(np.diff(split.labels) != 0)


def test_merged_classes_count_per_original_label_and_drop_the_rest() -> None:
    config = DataConfig(
        groups=((2, 3, 4), (0, 9)), profile="geometric", ratio=0.1, n_max=50
    )
    data = load(config)
    assert list(data.class_counts) == [150, 10]
    assert data.class_names == ("2+3+4", "0+9")
    assert class_totals(data.test, 2) == [75, 50]
    named = dataclasses.replace(config, class_names=("some", "others"))
    assert load(named).class_names == ("some", "others")


def test_same_seed_same_data_other_seed_other_data() -> None:
    config = SETUPS["digits-lt"]
    first, again = load(config), load(config)
    other = load(dataclasses.replace(config, seed=1))
    for a, b, c in zip(splits(first), splits(again), splits(other), strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert not np.array_equal(a.inputs, c.inputs)


def test_training_order_is_shuffled() -> None:
    labels = load(DataConfig(profile="balanced")).train.labels
    assert np.count_nonzero(np.diff(labels)) > len(labels) / 2


def test_held_out_examples_do_not_depend_on_the_profile() -> None:
    natural, tailed = load(DataConfig()), load(SETUPS["digits-lt"])
    np.testing.assert_array_equal(natural.test.inputs, tailed.test.inputs)
    np.testing.assert_array_equal(natural.validation.inputs, tailed.validation.inputs)


def test_statistics_are_of_the_training_split_in_use() -> None:
    data = load(SETUPS["digits-lt"])
    values = data.train.inputs.astype(np.float64)
    np.testing.assert_allclose(data.mean, [values.mean()], rtol=1e-6)
    np.testing.assert_allclose(data.std, [values.std()], rtol=1e-6)
    assert data.mean.dtype == data.std.dtype == np.float32
    assert abs(data.mean[0] - load(DataConfig()).mean[0]) > 1e-3


def test_statistics_of_bytes_are_exact_over_many_blocks() -> None:
    images = np.random.default_rng(0).integers(0, 256, (70, 9, 11, 3), dtype=np.uint8)
    images[..., 1] = 5
    mean, std = input_statistics(images)
    wide = images.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std[[0, 2]], wide.std(axis=(0, 1, 2))[[0, 2]], rtol=1e-6)
    assert std[1] == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(profile="balanced", n_max=150), "Class 0 asks for 150 .*are avail"),
        (DataConfig(groups=((0,), (10,))), "names label 10, but digits has labels 0"),
        (DataConfig(profile="counts", counts=(2, 1)), "counts has 2 entries, but dig"),
        (DataConfig(class_names=("a", "b", "c")), "class_names has 3 entries"),
    ],
)
def test_what_the_data_cannot_give_is_refused(config: DataConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(config)


def test_the_name_of_a_set_up_is_no_set_up() -> None:
    name: Any = "digits-lt"
    with pytest.raises(ValueError, match=r"such as SETUPS\['digits-lt'\].*got 'digi"):
        load(name)


# --- configuration -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cifar 10"}, "name must be 'digits', .* ending in .* got 'cifar 10'"),
        ({"name": "cifar10:3.0.2"}, "TFDS name such as"),
        ({"label_feature": "coarse"}, "label_feature='coarse' does not belong to"),
        ({"name": "a.npz", "label_feature": "coarse"}, "does not belong to data set"),
        ({"profile": "zipf"}, "profile must be one of 'natural', .* got 'zipf'"),
        ({"profile": "geometric"}, "profile 'geometric' needs ratio"),
        ({"profile": "exponential"}, "'exponential' needs imbalance_factor"),
        ({"profile": "step"}, "profile 'step' needs imbalance_factor"),
        ({"profile": "counts"}, "profile 'counts' needs counts"),
        ({"ratio": 0.5}, "ratio=0.5 does not belong to profile 'natural'"),
        ({"n_max": 5}, "n_max=5 does not belong to profile 'natural'"),
        ({"profile": "counts", "counts": (2, 1), "n_max": 5}, "n_max=5 does not bel"),
        ({"profile": "step", "imbalance_factor": 2, "counts": (1, 1)}, "counts=.*does"),
        ({"profile": "geometric", "ratio": 0.0}, "ratio must be above 0 .* got 0.0"),
        ({"profile": "geometric", "ratio": 1.5}, "ratio must be .* at most 1, got 1.5"),
        ({"profile": "geometric", "ratio": float("nan")}, "ratio must be .* got nan"),
        ({"profile": "step", "imbalance_factor": 0.1}, "imbalance_factor must.* 0.1"),
        ({"profile": "step", "imbalance_factor": float("inf")}, "must be finite and"),
        ({"profile": "balanced", "n_max": 0}, "n_max must be a positive integer, got"),
        ({"profile": "balanced", "n_max": 2.5}, "positive integer, got 2.5"),
        ({"profile": "counts", "counts": (5, 0)}, r"counts\[1\] must be .*, got 0"),
        ({"profile": "counts", "counts": (1.9, 1.2)}, "positive integer, got 1.9"),
        ({"profile": "counts", "counts": (2, True)}, r"counts\[1\] must .*, got True"),
        ({"profile": "counts", "counts": (5,)}, "two or more"),
        ({"groups": ((1,),)}, "groups must be two or more"),
        ({"groups": ((1,), ())}, "none of them empty"),
        ({"groups": ((1,), (-2,))}, "labels of 0 or more"),
        ({"groups": ((1, 2), (2, 3))}, "label 2 is there 2 times"),
        ({"groups": ((1,), (2,)), "class_names": ("a",)}, "Lengths .* disagree"),
        ({"seed": -1}, "seed must be an integer of 0 or more, got -1"),
        ({"seed": 1.5}, "seed must be an integer of 0 or more, got 1.5"),
        ({"seed": True}, "seed must be an integer of 0 or more, got True"),
    ],
)
def test_wrong_fields_are_refused_at_construction(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_integers_of_numpy_are_integers() -> None:
    counts: Any = tuple(np.array([9, 4] + [1] * 8))
    seed: Any = np.int64(3)
    data = load(DataConfig(profile="counts", counts=counts, seed=seed))
    assert list(data.class_counts) == list(counts)


SETUP_COUNTS = {
    "digits-halves": [300, 15],
    "animals-vehicles": [29880, 332],
    "automobile-truck": [4900, 700],
    "horse-deer": [4900, 700],
    "cifar10-five": [5000, 3000, 1800, 1080, 648],
    "cifar10-multi": [5000, 3000, 1800, 1080, 648, 389, 233, 140, 84, 50],
    "cifar100-superclasses": [round(2500 * 0.85**c) for c in range(20)],
    "cifar100": [round(500 * 0.955**c) for c in range(100)],
    "cifar10-lt": [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
    "cifar100-lt": [int(500 * 0.01 ** (c / 99)) for c in range(100)],
    "digits-lt": [120, 72, 43, 26, 16, 9, 6, 3, 2, 2],
}
AVAILABLE = {
    "cifar10": np.full(10, 5000),
    "cifar100": np.full(100, 500),
    "coarse_label": np.full(20, 2500),
    "digits": np.full(10, 124),
}


@pytest.mark.parametrize("setup", SETUPS)
def test_set_ups_have_their_published_counts_largest_first(setup: str) -> None:
    config = SETUPS[setup]
    coarse = config.label_feature == "coarse_label"
    available = AVAILABLE["coarse_label" if coarse else config.name]
    groups = config.groups or tuple((label,) for label in range(len(available)))
    names = [str(label) for label in range(len(available))]
    of_labels = label_counts(config, available, groups=groups, label_names=names)
    counts = [int(of_labels[list(group)].sum()) for group in groups]
    assert counts == SETUP_COUNTS[setup]
    assert counts[0] == max(counts)


# --- .npz ----------------------------------------------------------------------------


def _arrays(totals: tuple[int, ...] = (60, 40, 20), **changes: Any) -> dict[str, Any]:
    labels = np.repeat(np.arange(len(totals)), totals)
    inputs = np.arange(len(labels) * 6, dtype=np.float64).reshape(-1, 6)
    arrays = {"x_train": inputs, "y_train": labels} | changes
    return {key: value for key, value in arrays.items() if value is not None}


def _npz(folder: Path, arrays: dict[str, Any]) -> DataConfig:
    np.savez(folder / "own.npz", allow_pickle=True, **arrays)
    return DataConfig(str(folder / "own.npz"))


def test_npz_without_a_test_split_holds_out_a_fifth_of_the_smallest(
    tmp_path: Path,
) -> None:
    data = load(_npz(tmp_path, _arrays()))
    assert class_totals(data.validation, 3) == class_totals(data.test, 3) == [2, 2, 2]
    assert list(data.class_counts) == [56, 36, 16]
    assert data.train.inputs.dtype == np.float32
    assert data.mean.shape == (6,)
    assert_disjoint(data)


def test_npz_with_a_test_split_halves_its_balanced_part(tmp_path: Path) -> None:
    test = _arrays((9, 8, 7))
    arrays = _arrays(x_test=test["x_train"] + 0.5, y_test=test["y_train"])
    data = load(_npz(tmp_path, arrays))
    assert list(data.class_counts) == [60, 40, 20]
    assert class_totals(data.validation, 3) == [3, 3, 3]
    assert class_totals(data.test, 3) == [4, 4, 4]
    assert_disjoint(data)


def test_npz_needs_few_examples_of_a_label(tmp_path: Path) -> None:
    alone = load(_npz(tmp_path, _arrays((60, 10))))
    assert list(alone.class_counts) == [58, 8]
    assert class_totals(alone.validation, 2) == class_totals(alone.test, 2) == [1, 1]
    test = _arrays((9, 2))
    split = _arrays((60, 1), x_test=test["x_train"], y_test=test["y_train"])
    data = load(_npz(tmp_path, split))
    assert list(data.class_counts) == [60, 1]
    assert class_totals(data.validation, 2) == class_totals(data.test, 2) == [1, 1]


def test_npz_keeps_bytes_and_gives_grey_images_a_channel(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (120, 5, 4), dtype=np.uint8)
    labels = _arrays()["y_train"][:, None]  # as Keras stores CIFAR's labels
    data = load(_npz(tmp_path, {"x_train": images, "y_train": labels}))
    assert data.train.inputs.dtype == np.uint8
    assert data.train.inputs.shape == (108, 5, 4, 1)
    assert data.mean.shape == (1,)


Y = _arrays()["y_train"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (_arrays(y_train=None), r"y_train missing; it has \['x_train'\]"),
        (_arrays(x_test=np.ones((9, 6))), "y_test missing"),
        (_arrays(x_train=np.ones(120)), r"x_train has shape \(120,\); it must be"),
        (_arrays(x_train=np.ones((0, 6))), r"x_train has shape \(0, 6\)"),
        (_arrays(x_train=np.ones((120, 6), complex)), "x_train is complex128"),
        (_arrays(x_train=np.full((120, 6), np.nan)), "x_train has 720 values that are"),
        (_arrays(x_train=np.full((120, 6), 1e300)), "infinite in float32"),
        (_arrays(x_train=np.full((120, 6), object())), "no arrays of Python objects"),
        (_arrays(y_train=Y[:-1]), r"y_train has shape \(119,\), x_train 120 examples"),
        (_arrays(y_train=np.eye(3)[Y]), "class indices and not one-hot rows"),
        (
            _arrays(y_train=np.where(Y == 1, np.nan, Y)),
            "float64 and holds NaN; it must",
        ),
        (_arrays(y_train=Y.astype(float)), "y_train is float64; it must be integers"),
        (_arrays(y_train=Y - 1), "y_train has label -1"),
        (_arrays(y_train=Y + 500), "y_train has label 502, more than"),
        (_arrays(y_train=Y + 1), "Label 0 .* in all, .* from 0 without gaps"),
        (_arrays(y_train=Y * 0), "own.npz has 1 class; two or more are needed"),
        (_arrays((60, 9)), "Label 1 .* has 9 examples in all, .* 10 .*, or with a t"),
        (
            _arrays(x_test=np.ones((9, 5)), y_test=np.arange(9) % 3),
            r"x_train has shape \(6,\), one of x_test \(5,\)",
        ),
        (
            _arrays(x_test=np.ones((9, 6), np.uint8), y_test=np.arange(9) % 3),
            "x_train is taken as float32, x_test as uint8",
        ),
        (
            _arrays(x_test=np.ones((9, 6)), y_test=np.arange(9)),
            "y_test has label 8, but the largest in y_train is 2",
        ),
        (
            _arrays(x_test=np.ones((4, 6)), y_test=np.array([0, 0, 1, 2])),
            "Label 1 .* has 1 examples in the test split, .* at least 2",
        ),
    ],
)
def test_unusable_npz_files_are_refused_with_the_reason(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(_npz(tmp_path, arrays))


def test_own_arrays_give_what_their_file_gives(tmp_path: Path) -> None:
    test = _arrays((9, 8, 7))
    arrays = _arrays(x_test=test["x_train"] + 0.5, y_test=test["y_train"])
    for given in (arrays, _arrays()):
        config = dataclasses.replace(_npz(tmp_path, given), profile="balanced", seed=4)
        data, expected = from_arrays(**given, config=config), load(config)
        assert (data.name, data.class_names) == ("own data", ("0", "1", "2"))
        for own, of_file in zip(splits(data), splits(expected), strict=True):
            np.testing.assert_array_equal(own.inputs, of_file.inputs)
            np.testing.assert_array_equal(own.labels, of_file.labels)
        np.testing.assert_array_equal(data.std, expected.std)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y_train": Y - 1}, "^y_train has label -1"),
        ({"x_test": np.ones((9, 6))}, "^y_test missing: give both of x_test and y_t"),
        ({"y_test": Y}, "^x_test missing"),
        ({"config": "exponential"}, "^config must be a DataConfig, .* got 'exponent"),
        ({"config": DataConfig(class_names=("a", "b"))}, "but own data has 3 classes"),
        ({"config": DataConfig(profile="balanced", n_max=99)}, "^Class 0 asks for 99"),
    ],
)
def test_errors_of_own_arrays_name_the_argument(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_arrays(**(_arrays() | options))


# --- made by hand --------------------------------------------------------------------

X3 = np.arange(12, dtype=np.float32).reshape(6, 2)
Y3: Any = np.array([0, 1, 2, 0, 1, 2])
LIST: Any = [0, 1, 2, 0, 1, 2]


def _dataset(**changes: Any) -> Dataset:
    split = Split(X3, Y3)
    mean, std = input_statistics(X3)
    fields: dict[str, Any] = {
        "name": "own",
        "train": split,
        "validation": split,
        "test": split,
    }
    fields |= {"class_names": ("a", "b", "c"), "mean": mean, "std": std}
    return Dataset(**(fields | changes))


def test_splits_may_lack_a_class_where_nothing_is_learned() -> None:
    assert list(_dataset(test=Split(X3[:1], Y3[:1])).class_counts) == [2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": Split(X3, Y3 + 3)}, "test.labels has label 5, but there are 3 class"),
        ({"validation": Split(X3, Y3 - 1)}, "validation.labels has label -1"),
        ({"train": Split(X3, Y3.astype(float))}, "train.labels is float64; it must be"),
        (
            {"train": Split(X3, Y3[:, None])},
            r"train.labels has shape \(6, 1\), train.in",
        ),
        ({"train": Split(X3, Y3[:5])}, "train.inputs 6 examples"),
        ({"train": Split(X3, LIST)}, "train.labels must be an array, got a list"),
        ({"train": (X3, Y3)}, r"train must be a Split\(inputs, labels\), got a tuple"),
        (
            {"validation": Split(X3[:0], Y3[:0])},
            r"validation.inputs has shape \(0, 2\)",
        ),
        (
            {"train": Split(np.where(X3 > 9, np.nan, X3), Y3)},
            "train.inputs has 2 values that are NaN",
        ),
        ({"test": Split(X3[:, :1], Y3)}, r"shape \(2,\), one of test.inputs \(1,\)"),
        ({"test": Split(X3.astype(np.uint8), Y3)}, "test.inputs as uint8: give both"),
        ({"class_names": tuple("abcd")}, "Class 3 .'d'. has no training examples"),
        ({"class_names": ("a", "b")}, "label 2, but there are 2 class_names"),
        ({"mean": np.zeros(1)}, r"mean must be as input_stat.*\(2,\), got \(1,\)"),
        ({"mean": np.array([0, np.nan])}, "mean must be finite, got nan"),
        ({"std": np.zeros(2)}, "std must be positive and finite, got 0.0"),
        ({"std": np.array([1, np.inf])}, "std must be positive and finite, got inf"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _dataset(**changes)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    with pytest.raises(
        FileNotFoundError, match=r"no such file; write it with np.savez"
    ):
        load(DataConfig(str(path)))
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match="cannot be read"):
        load(DataConfig(str(path)))
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="cannot be read"):
        load(DataConfig(str(path)))
