"""What is learned, without how: a model and its loss on a data set.

Whatever needs no algorithm lives here, jitted once and shared by all of them: passes
over all the data, for evaluation and for the class gradients of the training set.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcn_jax.accumulation import accumulate
from pcn_jax.checks import check_params, check_positive_integer, describe
from pcn_jax.class_gradients import ClassValue, ClassValueAndGrad
from pcn_jax.data import Dataset
from pcn_jax.dynamics import class_means, macro_recall
from pcn_jax.known_labels import known_labels_value_and_grad
from pcn_jax.loops import Loop, resolve_loop
from pcn_jax.precision import at_least_float32
from pcn_jax.weighing import PCNValue

StepValue = ClassValue | PCNValue
Gradients = tuple[ClassValue, chex.ArrayTree]
ModelState = dict[str, Any]


class Examples(NamedTuple):
    """A split of the data on the device: inputs `[n, ...]` and integer labels `[n]`."""

    inputs: jax.Array
    labels: jax.Array


class Problem:
    """A flax model, softmax cross-entropy and a data set that is put on the device.

    Attributes:
      model: Flax module, called with `(inputs, train=...)`, returning logits `[B, C]`.
      num_classes: `C`.
      splits: `train`, `validation` and `test`, on the default device.
      train_labels: Class of each training example, on the host, `[n]`.
      class_shares: Of the training data, on the host, `[C]`.
      has_state: Whether the model keeps more than parameters, such as `batch_stats`.
      loop: Kind of loop, resolved for the backend.
      compiled: What training loops have compiled for it.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: nn.Module,
        *,
        microbatch_size: int = 500,
        loop: Loop | None = None,
    ) -> None:
        """Puts the data on the device.

        Args:
          dataset: What to learn.
          model: With what.
          microbatch_size: Examples at a time in passes over all the data.
          loop: `"python"`, `"scan"`, or `None` to choose by backend.

        Raises:
          ValueError: If `microbatch_size` is not a positive integer, or the model no
            flax module that takes `train` and returns one logit a class.
        """
        check_positive_integer("microbatch_size", microbatch_size)
        self.model = model
        self.num_classes = dataset.num_classes
        self._mean, self._std = dataset.mean, dataset.std
        self.has_state = self._check_model(dataset.train.inputs[:1]) != {"params"}
        self.loop = resolve_loop(loop)
        self.splits = {
            name: Examples(*jax.device_put(tuple(split)))
            for name, split in [
                ("train", dataset.train),
                ("validation", dataset.validation),
                ("test", dataset.test),
            ]
        }
        self.train_labels: np.ndarray = dataset.train.labels
        self.class_shares: np.ndarray = dataset.class_counts / len(self.train_labels)
        self._microbatch_size = microbatch_size
        self.compiled: dict[Any, Any] = {}

    def init(self, key: jax.Array) -> tuple[chex.ArrayTree, ModelState]:
        """Fresh parameters of the model, and its other collections."""
        example = self._normalised(self.splits["train"].inputs[:1])
        variables: ModelState = dict(self._init(key, example))
        return variables.pop("params"), variables

    @functools.cached_property
    def _init(self) -> Callable[..., Any]:
        """The model's own; compiled where else each operation would be, by itself."""
        init = functools.partial(self.model.init, train=False)
        return jax.jit(init) if self.loop == "scan" else init

    def _check_model(self, example: np.ndarray) -> set[str]:
        """The collections of the model, refused if it does not suit the data."""
        if not isinstance(self.model, nn.Module):
            raise ValueError(
                "model must be a flax.linen Module, such as MLP(num_classes="
                f"{self.num_classes}), got {describe(self.model)}. Others go into a "
                "loss function for pcn_value_and_grad: see docs/flax.md."
            )

        def call(key: jax.Array, inputs: jax.Array) -> Any:
            inputs = self._normalised(inputs)
            return self.model.init_with_output(key, inputs, train=False)

        try:
            logits, variables = jax.eval_shape(call, jax.random.key(0), example)
        except TypeError as error:
            if "unexpected keyword argument 'train'" not in str(error):
                raise
            raise ValueError(
                f"{type(self.model).__name__} must take whether it is in training: "
                "def __call__(self, x, train)."
            ) from error
        if getattr(logits, "shape", None) != (1, self.num_classes):
            raise ValueError(
                f"The data have {self.num_classes} classes, so the model must return "
                f"logits [B, {self.num_classes}], got {describe(logits)} for B = 1."
            )
        check_params(variables.get("params", {}))
        return set(variables)

    def losses(
        self,
        params: chex.ArrayTree,
        inputs: jax.Array,
        labels: jax.Array,
        model_state: ModelState,
        key: jax.Array | None = None,
        *,
        shares: jax.Array | None = None,
    ) -> tuple[jax.Array, ModelState]:
        """Cross-entropy of each example `[B]`, and the model's new state.

        In training mode with a key for dropout, in evaluation mode without.

        With logit adjustment where `shares` `[C]` are given: the logarithm of the share
        of a class is added to its logit, so that the model's own logits come to be
        those of balanced data where the classes have these shares in training. This is
        the logit-adjusted loss of Menon et al., ICLR 2021, with τ = 1, and the balanced
        softmax of Ren et al., NeurIPS 2020.
        """
        logits, new_state = self._apply(
            params,
            model_state,
            inputs,
            train=key is not None,
            rngs={} if key is None else {"dropout": key},
            mutable=list(model_state) if key is not None else [],
        )
        logits = at_least_float32(logits)
        if shares is not None:
            logits += jnp.log(shares)[None, :].astype(logits.dtype)
        return _cross_entropy(logits, labels), new_state

    def logits(
        self, params: chex.ArrayTree, model_state: ModelState, inputs: jax.Array
    ) -> jax.Array:
        """What the model makes of inputs as the data have them, in evaluation mode.

        Args:
          params: Parameters, such as `state.params` of a trained `TrainState`.
          model_state: Its other collections, `state.model_state`.
          inputs: `[B, ...]`; they are normalised here.

        Returns:
          Logits `[B, C]`; `argmax(axis=-1)` of them is the predicted class.
        """
        logits, _ = self._apply(params, model_state, inputs, train=False, mutable=[])
        found: jax.Array = logits
        return found

    @property
    def passes_are_traceable(self) -> bool:
        """Whether a pass over the training set may be under `jax.jit` as a whole."""
        return self.loop == "scan" or len(self.train_labels) <= self._microbatch_size

    def over_all_data(self, value_and_grad: ClassValueAndGrad) -> ClassValueAndGrad:
        """The same in micro-batches, for a whole split."""
        return accumulate(value_and_grad, self._microbatch_size, loop=self.loop)

    @functools.cached_property
    def train_class_gradients(self) -> Callable[..., Gradients]:
        """Class gradients of all the training data.

        A function of `(params, inputs, model_state, key)`; the examples are taken class
        by class, so the price is that of a plain gradient.
        """
        class_gradients = known_labels_value_and_grad(
            self.losses,
            self.num_classes,
            self.train_labels,
            has_aux=True,
            microbatch_size=self._microbatch_size,
            loop=self.loop,
        )
        if not self.passes_are_traceable:
            return class_gradients
        jitted: Callable[..., Gradients] = jax.jit(class_gradients)
        return jitted

    @functools.cached_property
    def evaluate(
        self,
    ) -> Callable[[chex.ArrayTree, ModelState, Examples], dict[str, jax.Array]]:
        """`loss` `[C]`, `recall` `[C]` and `macro_recall` on a whole split."""

        @jax.jit
        def of_examples(
            params: chex.ArrayTree, model_state: ModelState, split: Examples
        ) -> tuple[jax.Array, jax.Array]:
            logits = self.logits(params, model_state, split.inputs)
            losses = _cross_entropy(logits, split.labels)
            predictions = jnp.argmax(logits, axis=-1).astype(split.labels.dtype)
            return losses, predictions == split.labels

        @jax.jit
        def of_classes(
            losses: jax.Array, correct: jax.Array, labels: jax.Array
        ) -> dict[str, jax.Array]:
            recalls = class_means(correct, labels, self.num_classes)
            return {
                "loss": class_means(losses, labels, self.num_classes),
                "recall": recalls,
                "macro_recall": macro_recall(recalls),
            }

        def evaluate(
            params: chex.ArrayTree, model_state: ModelState, split: Examples
        ) -> dict[str, jax.Array]:
            size = self._microbatch_size
            if len(split.labels) <= size:  # to cut takes longer than to evaluate
                of_all = of_examples(params, model_state, split)
            else:
                parts = [
                    of_examples(
                        params,
                        model_state,
                        jax.tree.map(lambda x, at=start: x[at : at + size], split),
                    )
                    for start in range(0, len(split.labels), size)
                ]
                of_all = tuple(map(jnp.concatenate, zip(*parts, strict=True)))
            metrics: dict[str, jax.Array] = of_classes(*of_all, split.labels)
            return metrics

        return evaluate

    def _apply(
        self,
        params: chex.ArrayTree,
        model_state: ModelState,
        inputs: jax.Array,
        **options: Any,
    ) -> Any:
        """Logits `[B, C]`, and the collections named by `mutable`."""
        variables = {"params": params, **model_state}
        return self.model.apply(variables, self._normalised(inputs), **options)

    def _normalised(self, inputs: jax.Array) -> jax.Array:
        inputs = at_least_float32(inputs)
        shape = (1,) * (inputs.ndim - 1) + self._mean.shape
        mean, std = self._mean.reshape(shape), self._std.reshape(shape)
        return (inputs - mean.astype(inputs.dtype)) / std.astype(inputs.dtype)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(
        at_least_float32(logits), labels
    )
    return losses
