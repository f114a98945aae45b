"""The command that prepares a TFDS data set: `python -m pcn_jax.data cifar10`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pcn_jax.data.prepare import prepare
from pcn_jax.data.tfds import default_data_dir


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares the data set named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pcn_jax.data",
        description="Download an image-classification data set of TensorFlow Datasets "
        "and prepare it for pcn_jax. TensorFlow is not needed.",
    )
    parser.add_argument("name", help="TFDS name, such as cifar10, cifar100 or mnist")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=default_data_dir(),
        help="folder to prepare it in (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        folder = prepare(options.name, options.data_dir.expanduser())
    except (ModuleNotFoundError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"prepared in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
