"""How `pcn_jax.pcn_value_and_grad` does without making class gradients."""
