"""Arrays on a mesh with explicit axes, whose types say how they are split."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
from jax.sharding import NamedSharding, PartitionSpec

from pcn_jax.arguments import take_out_arrays

ValueAndGrad = Callable[..., tuple[Any, chex.ArrayTree]]


def auto_sharded(value_and_grad: ValueAndGrad) -> ValueAndGrad:
    """Leaves to the compiler how arrays on an explicit mesh are split inside.

    The batch is sorted by class, which a batch axis that is split by its type forbids.

    Args:
      value_and_grad: A function of `(params, *args, **kwargs)` that returns a value and
        a pytree like `params`.

    Returns:
      The same function. Where an argument is on an explicit mesh, the value is
      replicated over it and the pytree is split as `params` are.
    """

    @functools.wraps(value_and_grad)
    def on_any_mesh(
        params: chex.ArrayTree, *args: Any, **kwargs: Any
    ) -> tuple[Any, chex.ArrayTree]:
        fixed, arrays = take_out_arrays(args, kwargs)
        leaves = jax.tree.leaves((params, arrays))
        on_device = (x for x in leaves if isinstance(x, jax.Array))
        meshes = (jax.typeof(x).sharding.mesh for x in on_device)
        mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
        if mesh is None:
            return value_and_grad(params, *args, **kwargs)
        spec = PartitionSpec()
        replicated = NamedSharding(mesh, spec)
        like_params = jax.tree.map(
            lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), params
        )

        def call(
            params: chex.ArrayTree, arrays: list[Any]
        ) -> tuple[Any, chex.ArrayTree]:
            args, kwargs = fixed.with_arrays(arrays)
            return value_and_grad(params, *args, **kwargs)

        inside = jax.sharding.auto_axes(call, out_sharding=(replicated, like_params))
        value, direction = inside(params, arrays)
        return value, direction

    return on_any_mesh
