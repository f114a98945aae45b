"""What a run of the command line is: a set-up, the algorithms and the seeds."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import tyro

from pcn_jax.data import SETUPS as DATA_SETUPS
from pcn_jax.data import DataConfig, Dataset, load
from pcn_jax.models import ModelConfig, build
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    Keep,
    Problem,
    TrainConfig,
    plain,
)

Goal = Literal["over training", "early stopping", "at the end"]
"""The mean of the measurements of a run counts, or the best of them, or the last."""


@dataclass(frozen=True)
class Experiment:
    """Trains algorithms on a set-up over seeds, prints a table and draws figures."""

    name: tyro.conf.Suppress[str]
    """The set-up."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig

    algorithms: tuple[AlgorithmName, ...] = tuple(ALGORITHMS)
    """Algorithms to train."""

    learning_rate: float | None = None
    """Learning rate of all algorithms. Without it each has its own, as found by
    python -m experiments.tune for the same data, model and training."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of initialisation and batches; the data do not depend on them."""

    search_seeds: tyro.conf.Suppress[tuple[int, ...]] = (100, 101, 102)
    """Seeds on which learning rates are searched: others than those of the runs."""

    searched_for: tyro.conf.Suppress[Goal] = "over training"
    """Where a search wants macro recall on validation data to be best."""

    target_recall: float = 0.5
    """Minority recall up to which steps are counted in the table."""

    out: Path = Path("runs")
    """Folder for results; the runs are in OUT/SETUP/ALGORITHM/seed-SEED."""

    tensorboard: bool = False
    """Write TensorBoard event files, too, of the runs that are trained: those that are
    finished already get none."""

    save_params: Keep | None = None
    """Write the parameters, too, in the folder of each run: the last, to
    last_params.msgpack; or the best, to best_params.msgpack: those that were measured
    after the start with the best macro recall on validation data (early stopping).
    Finished runs without them are trained again."""

    overwrite: bool = False
    """Replace finished runs that were made otherwise or cannot be read, instead of
    refusing."""

    microbatch_size: int = 500
    """Examples at a time in passes over all the data; changes memory, not results."""

    typed: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Words of the command line, which advice repeats."""

    def __post_init__(self) -> None:
        """Refuses what would only fail later."""
        for name in ("algorithms", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"{name} must be one or more, each once, got {values}."
                )
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ValueError(f"seeds must be from 0 to 2**32 - 1, got {self.seeds}.")
        if not 0 < self.target_recall <= 1:
            raise ValueError(
                f"target_recall must be in (0, 1], got {self.target_recall}."
            )

    @property
    def folder(self) -> Path:
        """Folder of all the runs."""
        return self.out / self.name

    def variant(
        self, label: str, *, searched_for: Goal | None = None, **training: Any
    ) -> Self:
        """The set-up, trained otherwise, under a name of its own.

        Args:
          label: What comes behind the name of the set-up.
          searched_for: What learning rates are to be good for, if something else.
          **training: Fields of `TrainConfig`.

        Example:
          >>> SETUPS["digits-lt"].variant("short", steps=100).name
          'digits-lt/short'
        """
        return dataclasses.replace(
            self,
            name=f"{self.name}/{label}",
            train=dataclasses.replace(self.train, **training),
            searched_for=searched_for or self.searched_for,
        )

    def learning_rate_of(self, algorithm: AlgorithmName) -> float:
        """The learning rate given, or else the one that was found for the like.

        Args:
          algorithm: One of `algorithms`.

        Raises:
          ValueError: If neither is there.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        path = self.rates_path(algorithm)
        found = json.loads(path.read_text())["best"] if path.exists() else {}
        if algorithm not in found:
            raise ValueError(
                f"No learning rate is known for {algorithm} on {self.name} with these "
                "options: give --learning-rate, or search: "
                f"python -m experiments.tune {self._words_of_a_search()}"
            )
        return float(found[algorithm])

    def rates_path(self, algorithm: AlgorithmName) -> Path:
        """The file in which `experiments.tune` keeps the learning rate of an algorithm.

        It belongs to the repository if this is a set-up as it stands, or a variant with
        a name of its own. Whatever else was chosen on the command line has a file under
        `out`, named after what decides the rate.

        Args:
          algorithm: One of `algorithms`.
        """
        setup, mine = SETUPS.get(self.name), self._tuned_for(algorithm)
        if not setup or (self.name != _OWN and setup._tuned_for(algorithm) == mine):
            return learning_rates_path(self.name)
        digest = hashlib.sha256(json.dumps(mine).encode()).hexdigest()[:8]
        return self.folder / algorithm / f"learning_rates-{digest}.json"

    def _tuned_for(self, algorithm: AlgorithmName) -> dict[str, Any]:
        """What decides a learning rate; a look at fewer steps is to need no search."""
        train = ALGORITHMS[algorithm].heeded(self.train)
        for name in ("steps", "measurements_per_decade", "explicit_class_gradients"):
            train.pop(name)
        data = dataclasses.replace(self.data, data_dir=None)
        tuned_for: dict[str, Any] = plain(
            {"data": data, "model": self.model, "train": train}
        )
        return tuned_for

    def _words_of_a_search(self) -> str:
        """What was typed, but for the seeds: a search has others."""
        words, keep = [], True
        for word in self.typed or (self.name,):
            if word.startswith("--"):
                keep = word.split("=")[0] not in ("--seeds", "--overwrite")
            if keep:
                words.append(word)
        return shlex.join(words)


def problem(experiment: Experiment) -> tuple[Dataset, Problem]:
    """The data and the model of an experiment, loaded once.

    Args:
      experiment: Any with this data and model.

    Returns:
      Both; the same objects again for the next experiment that has them. Where few
      examples are held out, it is printed when they are loaded.

    Raises:
      FileNotFoundError: If the data set is not there.
    """
    return _problem(experiment.data, experiment.model, experiment.microbatch_size)


@functools.lru_cache(maxsize=2)
def _problem(
    data: DataConfig, model: ModelConfig, microbatch_size: int
) -> tuple[Dataset, Problem]:
    dataset = load(data)
    test, validation = fewest_held_out(dataset)
    if min(test, validation) < 10:
        print(
            f"warning: of some classes there are only {test} test and {validation} "
            "validation examples: recalls, early stopping and searched learning rates "
            "mean little with fewer than 10.",
            file=sys.stderr,
        )
    net = build(model, dataset.num_classes)
    return dataset, Problem(dataset, net, microbatch_size=microbatch_size)


def fewest_held_out(dataset: Dataset) -> tuple[int, int]:
    """How many test and validation examples the class with the fewest has.

    Args:
      dataset: Whose.

    Example:
      >>> fewest_held_out(load(DATA_SETUPS["digits-lt"]))
      (25, 25)
    """
    test, validation = (
        int(np.bincount(split.labels, minlength=dataset.num_classes).min())
        for split in (dataset.test, dataset.validation)
    )
    return test, validation


def make_folder(experiment: Experiment) -> None:
    """Makes the folder of the runs, before anything is trained in vain.

    Args:
      experiment: Whose.

    Raises:
      ValueError: If it cannot be made.
    """
    try:
        experiment.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {experiment.out} cannot be written ({error}): choose another."
        ) from error


def learning_rates_path(setup: str) -> Path:
    """The file in the repository with what `experiments.tune` found for a set-up."""
    return Path(__file__).parent / "learning_rates" / f"{setup}.json"


def parse(
    module: str,
    arguments: list[str] | None,
    setups: dict[str, Experiment],
    description: str,
) -> Experiment:
    """Reads a command line: the name of a set-up, and what is to be different.

    Args:
      module: Name of the module that is run.
      arguments: Words of the command line; `None` for those of the process.
      setups: Set-ups by name.
      description: What the command does.

    Returns:
      The experiment.

    Raises:
      ValueError: If no data are named for the set-up for data of one's own.

    Example:
      >>> parse("experiments.train", ["digits-lt", "--seeds", "7"], SETUPS, "").seeds
      (7,)
    """
    described = {
        name: (
            f"{setup.data.name}, {setup.data.profile}; {setup.model.name}, "
            f"batch {setup.train.batch_size}",
            setup,
        )
        for name, setup in setups.items()
    }
    arguments = sys.argv[1:] if arguments is None else arguments
    name, prog = next(iter(arguments), ""), f"python -m {module}"
    with _constructors:
        if name in setups:  # alone, so that errors name its options and its help
            experiment = tyro.cli(
                Experiment,
                prog=f"{prog} {name}",
                description=described[name][0],
                args=arguments[1:],
                default=setups[name],
                config=(tyro.conf.AvoidSubcommands,),
            )
        else:
            experiment = tyro.extras.overridable_config_cli(
                described, prog=prog, description=description, args=arguments
            )
    if experiment.name == _OWN and not any(
        word.startswith("--data.name") for word in arguments
    ):
        raise ValueError(
            f"{_OWN} is for data of your own: give --data.name FILE.npz, or the name "
            "of another data set."
        )
    return dataclasses.replace(experiment, typed=tuple(arguments))


@contextlib.contextmanager
def without_traceback(interrupted: str) -> Iterator[None]:
    """Ends the process with a sentence where a command cannot go on.

    Args:
      interrupted: What it says after Ctrl-C; the exit status is 130 then, and 1 after
        an error.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        said = [f"\ninterrupted: {interrupted}", *getattr(stop, "__notes__", ())]
        print(*said, file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


_constructors = tyro.constructors.ConstructorRegistry()


@_constructors.primitive_rule
def _groups_of_labels(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Reads `--data.groups 2,3,4,5,6,7 0,1,8,9`: nested tuples have no other way."""
    if type_info.type != tuple[tuple[int, ...], ...]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="LABEL,LABEL,... ...",
        instance_from_str=lambda words: tuple(
            tuple(int(label) for label in word.split(",")) for word in words
        ),
        is_instance=lambda groups: isinstance(groups, tuple),
        str_from_instance=lambda groups: [",".join(map(str, g)) for g in groups],
    )


def _mlp(data: str, *, batch_size: int, steps: int) -> Experiment:
    return Experiment(
        name=f"{data}-mlp",
        data=DATA_SETUPS[data],
        model=ModelConfig(name="mlp", features=(32, 32)),
        train=TrainConfig(
            steps=steps,
            batch_size=batch_size,
            measurements_per_decade=6,
        ),
    )


def _automobile_truck(
    model: ModelConfig, search_seeds: tuple[int, ...] = (100,)
) -> Experiment:
    return Experiment(
        name=f"automobile-truck-{model.name}",
        search_seeds=search_seeds,
        data=DATA_SETUPS["automobile-truck"],
        model=model,
        train=TrainConfig(steps=300, batch_size=128, measurements_per_decade=5),
    )


def _image_setup(name: str, *, batch_size: int, steps: int) -> Experiment:
    return Experiment(
        name=name,
        data=DATA_SETUPS[name],
        model=ModelConfig(name="cnn"),
        train=TrainConfig(steps=steps, batch_size=batch_size),
    )


_OWN = "custom"
"""The set-up for data of one's own: no learning rate in the repository is for them."""

SETUPS: dict[str, Experiment] = {
    "digits-lt": Experiment(
        name="digits-lt",
        data=DATA_SETUPS["digits-lt"],
        model=ModelConfig(name="mlp", features=(32, 32)),
        train=TrainConfig(steps=2000, batch_size=100),
        target_recall=0.3,
    ),
    "digits-halves": Experiment(
        name="digits-halves",
        search_seeds=(100, 101),
        data=DATA_SETUPS["digits-halves"],
        model=ModelConfig(name="mlp", features=(32, 32)),
        train=TrainConfig(steps=1000, batch_size=64),
    ),
    "digits-halves-cnn": Experiment(
        name="digits-halves-cnn",
        search_seeds=(100,),
        data=DATA_SETUPS["digits-halves"],
        model=ModelConfig(name="cnn"),
        train=TrainConfig(steps=100, batch_size=64, measurements_per_decade=5),
    ),
    "digits-halves-resnet32": Experiment(
        name="digits-halves-resnet32",
        data=DATA_SETUPS["digits-halves"],
        model=ModelConfig(name="resnet32", norm="group"),
        train=TrainConfig(steps=100, batch_size=64, measurements_per_decade=5),
    ),
    "automobile-truck-cnn": _automobile_truck(
        ModelConfig(name="cnn"), search_seeds=(100, 101, 102)
    ),
    "automobile-truck-resnet18": _automobile_truck(
        ModelConfig(name="resnet18", stem="imagenet")
    ),
    "automobile-truck-vgg16": _automobile_truck(ModelConfig(name="vgg16")),
    "automobile-truck-mlp": _mlp("automobile-truck", batch_size=128, steps=1000),
    "horse-deer-mlp": _mlp("horse-deer", batch_size=128, steps=1000),
    "animals-vehicles-mlp": _mlp("animals-vehicles", batch_size=1000, steps=500),
    "cifar10-five-mlp": _mlp("cifar10-five", batch_size=500, steps=500),
    "cifar10-multi-mlp": dataclasses.replace(
        _mlp("cifar10-multi", batch_size=500, steps=500), target_recall=0.2
    ),
    "animals-vehicles": _image_setup("animals-vehicles", batch_size=1000, steps=2000),
    "automobile-truck": _image_setup("automobile-truck", batch_size=128, steps=2000),
    "horse-deer": _image_setup("horse-deer", batch_size=128, steps=2000),
    "cifar10-five": _image_setup("cifar10-five", batch_size=500, steps=2000),
    "cifar10-multi": _image_setup("cifar10-multi", batch_size=1000, steps=2000),
    "cifar100-superclasses": _image_setup(
        "cifar100-superclasses", batch_size=1000, steps=2000
    ),
    "cifar100": _image_setup("cifar100", batch_size=1000, steps=2000),
    "cifar10-lt": _image_setup("cifar10-lt", batch_size=500, steps=2000),
    "cifar100-lt": _image_setup("cifar100-lt", batch_size=2000, steps=2000),
    _OWN: Experiment(
        name=_OWN,
        data=DataConfig(),
        model=ModelConfig(),
        # Oversampling wants as many of each class: 2 to 6, 8 or 10 of them divide it.
        train=TrainConfig(batch_size=120),
    ),
}
