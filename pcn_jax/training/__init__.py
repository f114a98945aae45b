"""Training: one loop for every algorithm, any optax optimizer and any flax model."""

from pcn_jax.training.algorithms import ALGORITHMS, Algorithm, AlgorithmName
from pcn_jax.training.config import OptimizerConfig, SamplerName, TrainConfig
from pcn_jax.training.loop import make_train
from pcn_jax.training.measure import Record, make_measure, measured_steps
from pcn_jax.training.problem import Problem
from pcn_jax.training.runs import (
    RunWriter,
    environment,
    finished_description,
    params_path,
    plain,
    read_run,
    write_run,
)
from pcn_jax.training.state import Keep, TrainState
from pcn_jax.training.step import Steps, make_steps

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AlgorithmName",
    "Keep",
    "OptimizerConfig",
    "Problem",
    "Record",
    "RunWriter",
    "SamplerName",
    "Steps",
    "TrainConfig",
    "TrainState",
    "environment",
    "finished_description",
    "make_measure",
    "make_steps",
    "make_train",
    "measured_steps",
    "params_path",
    "plain",
    "read_run",
    "write_run",
]
