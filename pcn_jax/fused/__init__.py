"""How `pcn_jax.pcn_value_and_grad` does without a backward pass for each class."""
