"""Data sets in TFDS form: how they are read, kept, refused and prepared."""

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_checks import assert_disjoint, class_totals

from pcn_jax.data import DataConfig, cache, load, optional, prepare, tfds
from pcn_jax.data.__main__ import main

tensorflow_datasets = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


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
    assert class_totals(data.test, 4) == class_totals(data.validation, 4) == [3] * 4
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


def test_a_wrong_name_is_told_what_is_prepared(tmp_path: Path) -> None:
    for name in ("mnist/3.0.1", "cifar10/3.0.1", "cifar10/3.0.2", "emnist/mnist/3.1.0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "dataset_info.json").touch()
    (tmp_path / "downloads" / "1.0.0").mkdir(parents=True)
    there = r"\(prepared there: cifar10, emnist/mnist, mnist\); prepare it with"
    with pytest.raises(FileNotFoundError, match=there):
        load(DataConfig("cifra10", data_dir=tmp_path))


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
    with pytest.raises(FileNotFoundError) as caught:
        load(DataConfig("cifar10", data_dir=tmp_path))
    message = str(caught.value)
    assert f"{tmp_path / 'cifar10'}" in message
    assert message.endswith(f"`python -m pcn_jax.data cifar10 --data-dir {tmp_path}`.")
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
    assert class_totals(data.validation, 4) == class_totals(data.test, 4) == [1] * 4
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
    assert "error: Cannot reach https://" in capsys.readouterr().err


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
