"""Every source, every set-up, and what is said when the data is not as it must be."""

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcn_jax.data import (
    SETUPS,
    DataConfig,
    Dataset,
    Split,
    cache,
    input_statistics,
    load,
    optional,
    prepare,
    tfds,
)
from pcn_jax.data.__main__ import main
from pcn_jax.data.imbalance import label_counts

tensorflow_datasets = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def assert_disjoint(data: Dataset) -> None:
    """Assumes that every example of the data set has inputs of its own."""
    rows = [row.tobytes() for split in _splits(data) for row in split.inputs]
    assert len(set(rows)) == len(rows)


def _splits(data: Dataset) -> tuple[Split, Split, Split]:
    return data.train, data.validation, data.test


def _totals(split: Split, num_classes: int) -> list[int]:
    return list(np.bincount(split.labels, minlength=num_classes))


# --- digits and the common path ------------------------------------------------------


def test_digits_lt_is_long_tailed_with_balanced_held_out_splits() -> None:
    data = load(SETUPS["digits-lt"])
    assert data.num_classes == 10
    assert data.class_names == tuple("0123456789")
    assert list(data.class_counts) == [120, 72, 43, 26, 16, 9, 6, 3, 2, 2]
    assert data.class_counts.dtype == np.int64
    assert _totals(data.validation, 10) == _totals(data.test, 10) == [25] * 10
    for split in _splits(data):
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
    for split in _splits(data):
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
    assert _totals(data.test, 2) == [75, 50]
    named = dataclasses.replace(config, class_names=("some", "others"))
    assert load(named).class_names == ("some", "others")


def test_same_seed_same_data_other_seed_other_data() -> None:
    config = SETUPS["digits-lt"]
    first, again = load(config), load(config)
    other = load(dataclasses.replace(config, seed=1))
    for a, b, c in zip(_splits(first), _splits(again), _splits(other), strict=True):
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
        (DataConfig(profile="balanced", n_max=150), "class 0 asks for 150 .*are avail"),
        (DataConfig(groups=((0,), (10,))), "names label 10, but digits has labels 0"),
        (DataConfig(profile="counts", counts=(2, 1)), "counts has 2 entries, but dig"),
        (DataConfig(class_names=("a", "b", "c")), "class_names has 3 entries"),
    ],
)
def test_what_the_data_cannot_give_is_refused(config: DataConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(config)


# --- configuration -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cifar 10"}, "name='cifar 10' is not allowed: .* '.npz'|ending in"),
        ({"name": "cifar10:3.0.2"}, "TFDS name such as"),
        ({"label_feature": "coarse"}, "label_feature='coarse' does not belong to"),
        ({"name": "a.npz", "label_feature": "coarse"}, "does not belong to data set"),
        ({"profile": "zipf"}, "profile='zipf' is not allowed: it must be one of"),
        ({"profile": "geometric"}, "profile 'geometric' needs ratio"),
        ({"profile": "exponential"}, "'exponential' needs imbalance_factor"),
        ({"profile": "step"}, "profile 'step' needs imbalance_factor"),
        ({"profile": "counts"}, "profile 'counts' needs counts"),
        ({"ratio": 0.5}, "ratio=0.5 does not belong to profile 'natural'"),
        ({"n_max": 5}, "n_max=5 does not belong to profile 'natural'"),
        ({"profile": "counts", "counts": (2, 1), "n_max": 5}, "n_max=5 does not bel"),
        ({"profile": "step", "imbalance_factor": 2, "counts": (1, 1)}, "counts=.*does"),
        ({"profile": "geometric", "ratio": 0.0}, "ratio=0.0 is not allowed"),
        ({"profile": "geometric", "ratio": 1.5}, "ratio=1.5 is not allowed"),
        ({"profile": "geometric", "ratio": float("nan")}, "ratio=nan is not allowed"),
        ({"profile": "step", "imbalance_factor": 0.1}, "imbalance_factor=0.1 is not"),
        ({"profile": "step", "imbalance_factor": float("inf")}, "it must be finite"),
        ({"profile": "balanced", "n_max": 0}, "n_max=0 is not allowed"),
        ({"profile": "counts", "counts": (5, 0)}, "each at least 1"),
        ({"profile": "counts", "counts": (5,)}, "two or more"),
        ({"groups": ((1,),)}, "groups=.* two or more"),
        ({"groups": ((1,), ())}, "none of them empty"),
        ({"groups": ((1,), (-2,))}, "labels of 0 or more"),
        ({"groups": ((1, 2), (2, 3))}, "label 2 is there 2 times"),
        ({"groups": ((1,), (2,)), "class_names": ("a",)}, "lengths .* disagree"),
        ({"seed": -1}, "seed=-1 is not allowed: it must be 0 or more"),
    ],
)
def test_wrong_fields_are_refused_at_construction(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


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
    assert _totals(data.validation, 3) == _totals(data.test, 3) == [2, 2, 2]
    assert list(data.class_counts) == [56, 36, 16]
    assert data.train.inputs.dtype == np.float32
    assert data.mean.shape == (6,)
    assert_disjoint(data)


def test_npz_with_a_test_split_halves_its_balanced_part(tmp_path: Path) -> None:
    test = _arrays((9, 8, 7))
    arrays = _arrays(x_test=test["x_train"] + 0.5, y_test=test["y_train"])
    data = load(_npz(tmp_path, arrays))
    assert list(data.class_counts) == [60, 40, 20]
    assert _totals(data.validation, 3) == [3, 3, 3]
    assert _totals(data.test, 3) == [4, 4, 4]
    assert_disjoint(data)


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
        (_arrays(y_train=Y + 1), "label 0 .* has 0 examples in all, too few for"),
        (_arrays(y_train=Y * 0), "own.npz has 1 class; two or more are needed"),
        (_arrays((60, 9)), "label 1 .* has 9 examples in all, .* at least 10"),
        (
            _arrays(x_test=np.ones((9, 5)), y_test=np.arange(9) % 3),
            r"x_train has shape \(6,\), one of x_test \(5,\)",
        ),
        (
            _arrays(x_test=np.ones((9, 6), np.uint8), y_test=np.arange(9) % 3),
            "x_train is float64, x_test is uint8",
        ),
        (
            _arrays(x_test=np.ones((9, 6)), y_test=np.arange(9)),
            "y_test has label 8, but the largest in y_train is 2",
        ),
        (
            _arrays(x_test=np.ones((4, 6)), y_test=np.array([0, 0, 1, 2])),
            "label 1 .* has 1 examples in the test split, .* at least 2",
        ),
    ],
)
def test_unusable_npz_files_are_refused_with_the_reason(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(_npz(tmp_path, arrays))


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


# --- TFDS ----------------------------------------------------------------------------

SHAPE = (4, 5, 3)
EXAMPLES = {"train": 48, "test": 24}


def _images(split: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(EXAMPLES[split])
    return rng.integers(0, 256, (EXAMPLES[split], *SHAPE), dtype=np.uint8)


class _Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):  # type: ignore[misc, name-defined]
    """Images of noise with a fine and a coarse label, given as arrays like CIFAR's."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    name = "tiny"
    splits = ("train", "test")
    shape: tuple[int | None, ...] = SHAPE

    def _info(self) -> Any:
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=self.shape),
                    "label": features.ClassLabel(names=["a", "b", "c", "d"]),
                    "coarse": features.ClassLabel(names=["ab", "cd"]),
                    "id": features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split: str) -> Any:
        for i, image in enumerate(_images(split)):
            yield (
                i,
                {"image": image, "label": i % 4, "coarse": i % 4 // 2, "id": str(i)},
            )


def _prepare(data_dir: Path) -> None:
    prepare.prepare_builder(_Tiny(data_dir=str(data_dir), file_format="array_record"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("tfds")
    _prepare(data_dir)
    return data_dir


def test_tfds_images_come_back_bit_for_bit(tiny: Path) -> None:
    data = load(DataConfig("tiny", data_dir=tiny))
    assert data.class_names == ("a", "b", "c", "d")
    assert list(data.class_counts) == [12] * 4
    assert _totals(data.test, 4) == _totals(data.validation, 4) == [3] * 4
    truth = {image.tobytes(): i % 4 for i, image in enumerate(_images("train"))}
    assert [truth[row.tobytes()] for row in data.train.inputs] == list(
        data.train.labels
    )
    assert data.train.inputs.dtype == np.uint8
    assert_disjoint(data)


def test_tfds_label_feature_chooses_the_label(tiny: Path) -> None:
    data = load(DataConfig("tiny", data_dir=tiny, label_feature="coarse"))
    assert data.class_names == ("ab", "cd")
    assert list(data.class_counts) == [24, 24]
    with pytest.raises(
        ValueError, match=r"'id' is not .* one of \['coarse', 'label'\]"
    ):
        load(DataConfig("tiny", data_dir=tiny, label_feature="id"))


def test_tfds_data_dir_defaults_to_the_environment(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
    assert load(DataConfig("tiny")).num_classes == 4
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert tfds.default_data_dir() == Path.home() / "tensorflow_datasets"


def test_tfds_reads_the_newest_complete_version(tmp_path: Path) -> None:
    for version in ("3.0.2", "3.0.10", "3.0.9", "incomplete.3.1.0"):
        (tmp_path / "some" / version).mkdir(parents=True)
        (tmp_path / "some" / version / "dataset_info.json").touch()
    (tmp_path / "some" / "4.0.0").mkdir()
    assert tfds.find_prepared("some", tmp_path).name == "3.0.10"


def test_decoding_happens_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig("tiny", data_dir=tiny)
    first = load(config)
    monkeypatch.setattr(tfds, "_decode", _fail)
    np.testing.assert_array_equal(load(config).train.inputs, first.train.inputs)


def test_a_broken_cache_is_rebuilt(tiny: Path, tmp_path: Path) -> None:
    config = DataConfig("tiny", data_dir=tiny)
    first = load(config)
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(load(config).train.inputs, first.train.inputs)
    assert load(config).test.inputs.shape == (12, *SHAPE)


def test_an_unwritable_cache_is_no_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PCN_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert load(DataConfig("tiny", data_dir=tiny)).num_classes == 4


def test_an_interrupted_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    cache.write_cached("key", {"x": np.ones(3)})
    assert cache.read_cached("key") is None
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_defaults_to_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PCN_JAX_CACHE")
    assert cache.cache_dir() == Path.home() / ".cache" / "pcn_jax"


def test_missing_data_fails_at_once_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfds, "import_data_extra", _fail)
    started = time.perf_counter()
    with pytest.raises(FileNotFoundError) as caught:
        load(DataConfig("cifar10", data_dir=tmp_path))
    assert time.perf_counter() - started < 0.5
    message = str(caught.value)
    assert f"{tmp_path / 'cifar10'}" in message
    assert message.endswith(f"python -m pcn_jax.data cifar10 --data-dir {tmp_path}")
    assert "\n" not in message


def _edit_info(folder: Path, **changes: Any) -> None:
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_without_an_official_test_split_a_part_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Tiny, "splits", ("train",))
    _prepare(tmp_path)
    data = load(DataConfig("tiny", data_dir=tmp_path))
    assert _totals(data.validation, 4) == _totals(data.test, 4) == [1] * 4
    assert list(data.class_counts) == [10] * 4
    assert_disjoint(data)


def test_unusable_tfds_sets_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig("tiny", data_dir=tmp_path)
    folder = tmp_path / "tiny" / "1.0.0"
    monkeypatch.setattr(_Tiny, "shape", (None, None, 3))
    _prepare(tmp_path)
    with pytest.raises(ValueError, match="of one fixed shape, and has"):
        load(config)
    _edit_info(folder, splits=[])
    with pytest.raises(ValueError, match="tiny has no split 'train'"):
        load(config)


def test_tfrecord_is_refused_with_the_reason(tmp_path: Path) -> None:
    _prepare(tmp_path)
    _edit_info(tmp_path / "tiny" / "1.0.0", fileFormat="tfrecord")
    with pytest.raises(ValueError, match="stored as tfrecord, which only TensorFlow"):
        load(DataConfig("tiny", data_dir=tmp_path))


def test_tensorflow_is_never_imported(tiny: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pcn_jax.data import *\n"
        "lazy = {'sklearn', 'tensorflow_datasets', 'flax', 'tensorflow'}\n"
        "assert not lazy & set(sys.modules), lazy & set(sys.modules)\n"
        "load(DataConfig('tiny', data_dir=Path(sys.argv[1])))\n"
        "assert 'tensorflow_datasets' in sys.modules\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tiny)], check=True)


def test_missing_extra_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pcn_jax\[data\]'"):
        optional.import_data_extra("sklearn.datasets")


# --- preparing -----------------------------------------------------------------------


def _fail(*args: Any, **_: Any) -> None:
    raise AssertionError(f"called with {args}")


def _fake_cifar(folder: Path, name: str) -> None:
    """Files in the format of the CIFAR archives: label bytes, then 3 planes."""
    rng = np.random.default_rng(0)

    def rows(labels: np.ndarray[Any, Any]) -> bytes:
        pixels = rng.integers(0, 256, (len(labels), 3072))
        return np.concatenate([labels, pixels], axis=1).astype(np.uint8).tobytes()

    if name == "cifar10":
        root, per_file = folder / "cifar-10-batches-bin", np.arange(20)[:, None] % 10
        files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        names = {"batches.meta.txt": 10}
    else:
        root, fine = folder / "cifar-100-binary", np.arange(200) % 100
        per_file, files = np.stack([fine // 5, fine], axis=1), ["train.bin", "test.bin"]
        names = {"coarse_label_names.txt": 20, "fine_label_names.txt": 100}
    root.mkdir(parents=True)
    for file in files:
        (root / file).write_bytes(rows(per_file))
    for file, number in names.items():
        (root / file).write_text("".join(f"{file[0]}{i}\n" for i in range(number)))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_command_prepares_cifar_without_tensorflow(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _fake_cifar(tmp_path / "archive", name)
    monkeypatch.setattr(
        tensorflow_datasets.download.DownloadManager,
        "download_and_extract",
        lambda *_: tmp_path / "archive",
    )
    asked: list[Any] = []
    monkeypatch.setattr(prepare, "check_reachable", asked.append)
    assert main([name, "--data-dir", str(tmp_path / "prepared")]) == 0
    assert str(tmp_path / "prepared" / name) in capsys.readouterr().out
    assert len(asked) == 1

    config = DataConfig(name, data_dir=tmp_path / "prepared")
    data = load(config)
    first = {"cifar10": (tmp_path / "archive/cifar-10-batches-bin/data_batch_1.bin", 1)}
    path, skip = first.get(name, (tmp_path / "archive/cifar-100-binary/train.bin", 2))
    planes = np.frombuffer(path.read_bytes()[skip : skip + 3072], np.uint8)
    image = planes.reshape(3, 32, 32).transpose(1, 2, 0)
    assert image.tobytes() in {row.tobytes() for row in data.train.inputs}
    if name == "cifar100":
        assert data.class_names[99] == "f99"
        coarse = load(dataclasses.replace(config, label_feature="coarse_label"))
        assert coarse.class_names == tuple(f"c{i}" for i in range(20))

    monkeypatch.setattr(prepare, "prepare_builder", _fail)
    assert main([name, "--data-dir", str(tmp_path / "prepared")]) == 0


def test_grey_arrays_lose_their_channel_and_other_images_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate() -> Any:
        yield 0, {"image": _images("test")[0][..., :1], "label": 0}
        yield 1, {"image": io.BytesIO(b"png"), "label": 1}

    builder = _Tiny(data_dir=str(tmp_path), file_format="array_record")
    monkeypatch.setattr(builder, "_generate_examples", generate)
    examples = list(prepare._with_pillow_images(builder)())
    np.testing.assert_array_equal(examples[0][1]["image"], _images("test")[0][..., 0])
    assert examples[1][1]["image"].read() == b"png"
    assert examples[1][1]["label"] == 1


def test_a_script_that_needs_more_of_tensorflow_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(self: _Tiny, split: str) -> Any:
        yield 0, {"image": globals()["tf"].image.resize, "label": 0}

    monkeypatch.setattr(_Tiny, "_generate_examples", generate)
    with pytest.raises(ModuleNotFoundError, match="needs TensorFlow's 'image': pip"):
        _prepare(tmp_path)
    assert "tf" not in globals()


def test_an_installed_tensorflow_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Builder:
        prepared = False

        def download_and_prepare(self) -> None:
            self.prepared = True

    builder = Builder()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(prepare, "_stand_in", _fail)
    prepare.prepare_builder(builder)
    assert builder.prepared


def _answer(error: OSError | None) -> Any:
    def urlopen(*_: Any, **__: Any) -> io.BytesIO:
        if error:
            raise error
        return io.BytesIO()

    return urlopen


def test_offline_the_command_fails_without_retrying(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = urllib.error.URLError("no route to host")
    monkeypatch.setattr(urllib.request, "urlopen", _answer(error))
    monkeypatch.setattr(prepare, "prepare_builder", _fail)
    assert main(["cifar10", "--data-dir", str(tmp_path)]) == 1
    assert "error: cannot reach https://" in capsys.readouterr().err


def test_a_server_that_answers_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", _answer(None))
    prepare.check_reachable(["https://example.org/a"])
    refused = urllib.error.HTTPError("", 405, "", {}, None)  # type: ignore[arg-type]
    monkeypatch.setattr(urllib.request, "urlopen", _answer(refused))
    prepare.check_reachable(["https://example.org/a"])
    monkeypatch.setattr(urllib.request, "urlopen", _fail)
    prepare.check_reachable([])


def test_unknown_names_are_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["no_such_set", "--data-dir", str(tmp_path)]) == 1
    assert "TFDS has no data set 'no_such_set'" in capsys.readouterr().err
