"""Reads prepared TensorFlow Datasets image sets without TensorFlow, decoding them once.

The files are looked for before `tensorflow_datasets` is imported, so that a data set
that is not there is reported at once and in one sentence.
"""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcn_jax.data.cache import read_cached, write_cached
from pcn_jax.data.dataset import Source, Split
from pcn_jax.data.optional import import_data_extra

_LOG = logging.getLogger(__name__)
_RECORDS = 1000  # decoded at once


def default_data_dir() -> Path:
    """`$TFDS_DATA_DIR`, else `~/tensorflow_datasets`, as TFDS itself has it."""
    chosen = os.environ.get("TFDS_DATA_DIR")
    return Path(chosen or "~/tensorflow_datasets").expanduser()


def read_tfds(name: str, data_dir: Path | None, label_feature: str) -> Source:
    """Reads the splits `train` and, if there is one, `test`.

    Args:
      name: Such as `"cifar10"`, or `"emnist/letters"` where there are configurations.
      data_dir: The folder that holds `<name>/<version>`; the newest is read.
      label_feature: A feature of class labels.

    Returns:
      A `Source` with inputs `[n, height, width, channels]`, uint8 as a rule, and the
      label names.

    Raises:
      FileNotFoundError: If it is not prepared, with the command that prepares it.
      ValueError: If its images or labels are not of a kind that can be used.
    """
    folder = find_prepared(name, Path(data_dir or default_data_dir()).expanduser())
    info = json.loads((folder / "dataset_info.json").read_text())
    splits = [split["name"] for split in info.get("splits", ())]
    if "train" not in splits:
        raise ValueError(f"{name} has no split 'train' but {splits}: use another one.")
    decoded = {
        split: _decoded(name, folder, split)
        for split in ("train", "test")
        if split in splits
    }
    train = decoded["train"]
    features = sorted(k.removeprefix("names_") for k in train if k.startswith("names_"))
    if label_feature not in features:
        raise ValueError(
            f"label_feature={label_feature!r} is not a class label of {name}: it must "
            f"be one of {features}."
        )
    labelled = {
        split: Split(_bytes_or_float32(arrays["image"]), arrays[label_feature])
        for split, arrays in decoded.items()
    }
    names = tuple(str(label_name) for label_name in train[f"names_{label_feature}"])
    return Source(labelled["train"], labelled.get("test"), names)


def find_prepared(name: str, data_dir: Path) -> Path:
    """The folder of the newest prepared version.

    Raises:
      FileNotFoundError: If there is none, with what there is instead, and the command
        that prepares it.
    """
    versions = _versions(data_dir, name)
    if not versions:
        others = [*_versions(data_dir, "*"), *_versions(data_dir, "*/*")]
        names = sorted({str(folder.parent.relative_to(data_dir)) for folder in others})
        instead = f" (prepared there: {', '.join(names)})" if names else ""
        raise FileNotFoundError(
            f"Data set {name!r} is not prepared: there is no "
            f"{data_dir / name / '<version>' / 'dataset_info.json'}{instead}; prepare "
            f"it with `python -m pcn_jax.data {name} --data-dir {data_dir}`."
        )
    return max(versions, key=lambda folder: tuple(map(int, folder.name.split("."))))


def _versions(data_dir: Path, names: str) -> list[Path]:
    """Folders of all prepared versions of a data set, or of those of a pattern."""
    return [
        path.parent
        for path in data_dir.glob(f"{names}/*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]


def _decoded(name: str, folder: Path, split: str) -> dict[str, NDArray[Any]]:
    """`image`, and for each class label its values and `names_<feature>`."""
    digest = hashlib.sha256((folder / "dataset_info.json").read_bytes()).hexdigest()
    key = "-".join([name.replace("/", "-"), folder.name, split, digest[:16]])
    arrays = read_cached(key)
    if arrays is None:
        _LOG.info("Decoding the images of %s, split %s, once.", name, split)
        arrays = _decode(name, folder, split)
        write_cached(key, arrays)
    return arrays


def _decode(name: str, folder: Path, split: str) -> dict[str, NDArray[Any]]:
    import_data_extra("PIL.Image")  # TFDS decodes with it and does not declare it
    tfds = import_data_extra("tensorflow_datasets")
    builder = tfds.builder_from_directory(folder)
    features = builder.info.features
    image = dict(features.items()).get("image")
    if not isinstance(image, tfds.features.Image) or None in image.shape:
        raise ValueError(
            f"{name} cannot be used: it must have a feature 'image', an image of one "
            f"fixed shape, and has {dict(features.items())}."
        )
    try:
        records = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise ValueError(
            f"{folder} is stored as {builder.info.file_format.value}, which only "
            "TensorFlow reads; prepare it as array_record in another folder with "
            f"`python -m pcn_jax.data {name} --data-dir FOLDER`."
        ) from error
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    images = np.empty((len(records), *image.shape), image.np_dtype)
    arrays = {key: np.empty(len(records), np.int32) for key in labels}
    for start in range(0, len(records), _RECORDS):
        rows = range(start, min(start + _RECORDS, len(records)))
        for row, record in zip(rows, records.__getitems__(list(rows)), strict=True):
            images[row] = record["image"]
            for key in labels:
                arrays[key][row] = record[key]
    names = {f"names_{key}": np.array(features[key].names, np.str_) for key in labels}
    return {"image": images} | arrays | names


def _bytes_or_float32(images: NDArray[Any]) -> NDArray[Any]:
    return images if images.dtype == np.uint8 else images.astype(np.float32)
