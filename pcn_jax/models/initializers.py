"""The paper's two weight initialisers, which flax names but draws differently.

`nn.initializers.kaiming_normal` and `xavier_normal` draw from a normal truncated at
two standard deviations; the published networks draw from the normal itself.
"""

from flax import linen as nn

kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""Normal with variance `2 / fan_in` (He et al. 2015, arXiv 1502.01852)."""

xavier_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
"""Normal with variance `2 / (fan_in + fan_out)` (Glorot and Bengio 2010)."""
