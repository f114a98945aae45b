"""What a model refuses, in the sentences a reader of a traceback needs."""

import jax


def check_num_classes(num_classes: int) -> None:
    """Refuses `num_classes` below two."""
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}.")


def check_group_size(group_size: int, *, channels: int) -> None:
    """Refuses groups of `group_size` that do not fill `channels` exactly.

    Args:
      group_size: Channels per group.
      channels: Of the narrowest normalised layer; those of the others are multiples of
        it.
    """
    if group_size < 1 or channels % group_size:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(
            f"group_size counts channels per group and must divide {channels}, the "
            f"width of the narrowest layer: choose one of {divisors}, got {group_size}."
        )


def check_images(x: jax.Array, *, model: str, min_side: int = 1) -> None:
    """Refuses what is not images `[B, H, W, channels]`, or too small."""
    if x.ndim != 4 or min(x.shape[1:3]) < min_side:
        raise ValueError(
            f"{model} needs images [B, H, W, channels] of at least {min_side} x "
            f"{min_side} pixels, got an array of shape {x.shape}. Pad or resize the "
            f"images, or use the MLP, which takes any shape."
        )
