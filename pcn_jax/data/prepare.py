"""Downloads a TFDS data set and prepares it for reading: the one place with network.

TFDS reads without TensorFlow, but the scripts that prepare CIFAR and MNIST still call
it, to open files and to encode images as PNG. Where TensorFlow is not installed this
module gives them Python's `open` and Pillow instead.
"""

import contextlib
import glob
import importlib.util
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from pcn_jax.data.optional import import_data_extra

_PROBE_SECONDS = 10


def prepare(name: str, data_dir: Path) -> Path:
    """Downloads and prepares a data set as array_record files, unless it is there.

    Args:
      name: A TFDS name, such as `"cifar10"`.
      data_dir: The folder to prepare it in, made if need be.

    Returns:
      The folder of the prepared version, `<data_dir>/<name>/<version>`.

    Raises:
      ValueError: If TFDS has no data set of this name.
      ConnectionError: If it cannot be downloaded.
    """
    for hidden in ("importlib_resources", "PIL.Image"):  # TFDS does not declare them
        import_data_extra(hidden)
    tfds = import_data_extra("tensorflow_datasets")
    try:
        # Without file_format TFDS writes TFRecord, which only TensorFlow can read.
        builder = tfds.builder(
            name, data_dir=os.fspath(data_dir), file_format="array_record"
        )
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"TFDS has no data set {name!r}: choose one of "
            "https://www.tensorflow.org/datasets/catalog/overview."
        ) from error
    folder = Path(builder.data_dir)
    if not (folder / "dataset_info.json").is_file():
        check_reachable(builder.url_infos)
        prepare_builder(builder)
    return folder


def prepare_builder(builder: Any) -> None:
    """Runs a TFDS builder's `download_and_prepare`, with TensorFlow or without."""
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("tensorflow") is None:
            stack.enter_context(_stand_in(builder))
        builder.download_and_prepare()


def check_reachable(urls: Any) -> None:
    """Asks the first server once, because TFDS would retry for minutes when offline.

    Args:
      urls: What the data set downloads; may be empty.

    Raises:
      ConnectionError: If no connection can be made.
    """
    for url in list(urls)[:1]:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
        except urllib.error.HTTPError as answer:
            answer.close()  # whether it answers HEAD does not matter
        except OSError as error:
            raise ConnectionError(
                f"Cannot reach {url} ({error}); connect to the network, or prepare the "
                "data set elsewhere and copy its folder."
            ) from error


class _Part(SimpleNamespace):
    """A part of TensorFlow that says so when more of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        raise ModuleNotFoundError(
            f"The script that prepares this data set needs TensorFlow's {name!r}: pip "
            "install tensorflow for this once; reading the data does not need it."
        )


@contextlib.contextmanager
def _stand_in(builder: Any) -> Iterator[None]:
    """Gives a builder, and the script it is from, what they call TensorFlow for."""
    gfile = _Part(GFile=open, exists=os.path.exists, glob=glob.glob, listdir=os.listdir)
    tensorflow = _Part(io=_Part(gfile=gfile))
    script = sys.modules[type(builder).__module__]
    generate = _with_pillow_images(builder)
    with (
        mock.patch.object(script, "tf", tensorflow, create=True),
        mock.patch.object(builder, "_generate_examples", generate),
    ):
        yield


def _with_pillow_images(builder: Any) -> Callable[..., Iterator[Any]]:
    """The builder's generator with arrays as Pillow images, which TFDS can encode."""
    image_type = import_data_extra("tensorflow_datasets").features.Image
    pillow = import_data_extra("PIL.Image")
    original = builder._generate_examples

    def encodable(feature: Any, value: Any) -> Any:
        if not isinstance(feature, image_type) or not isinstance(value, np.ndarray):
            return value
        return pillow.fromarray(value[..., 0] if value.shape[-1] == 1 else value)

    def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
        features = builder.info.features
        for key, example in original(*args, **kwargs):
            yield key, {k: encodable(features[k], v) for k, v in example.items()}

    return generate
