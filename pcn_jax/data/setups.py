"""The data sets of the paper and of the long-tail literature, by name.

The first seven are those of Francazi, Baity-Jesi and Lucchi, ICML 2023. Adapt one with
`dataclasses.replace(SETUPS[name], data_dir=..., seed=...)`. CIFAR-10 has to be prepared
once, with `python -m pcn_jax.data cifar10`, and CIFAR-100 likewise. The ratios are
published ones; which examples they are is chosen by our seed, not by theirs.

Example:
  >>> SETUPS["automobile-truck"].groups
  ((1,), (9,))
"""

from pcn_jax.data.config import DataConfig

SETUPS: dict[str, DataConfig] = {
    # Binary, strong imbalance: 60 : 1 for each label, 29,880 animals to 332 vehicles.
    "animals-vehicles": DataConfig(
        name="cifar10",
        groups=((2, 3, 4, 5, 6, 7), (0, 1, 8, 9)),
        class_names=("animals", "vehicles"),
        profile="geometric",
        ratio=1 / 60,
        n_max=4980,
    ),
    # Binary, mild imbalance: 4,900 to 700.
    "automobile-truck": DataConfig(
        name="cifar10",
        groups=((1,), (9,)),
        profile="geometric",
        ratio=1 / 7,
        n_max=4900,
    ),
    # Binary, two animals of the same imbalance: 4,900 to 700.
    "horse-deer": DataConfig(
        name="cifar10",
        groups=((7,), (4,)),
        profile="geometric",
        ratio=1 / 7,
        n_max=4900,
    ),
    # Five classes, each 0.6 times the one before.
    "cifar10-five": DataConfig(
        name="cifar10",
        groups=((0,), (1,), (2,), (3,), (4,)),
        profile="geometric",
        ratio=0.6,
        n_max=5000,
    ),
    # Ten classes, each 0.6 times the one before.
    "cifar10-multi": DataConfig(
        name="cifar10", profile="geometric", ratio=0.6, n_max=5000
    ),
    # The 20 superclasses of CIFAR-100, each 0.85 times the one before.
    "cifar100-superclasses": DataConfig(
        name="cifar100",
        label_feature="coarse_label",
        profile="geometric",
        ratio=0.85,
        n_max=2500,
    ),
    # All of CIFAR-100, each class 0.955 times the one before.
    "cifar100": DataConfig(
        name="cifar100", profile="geometric", ratio=0.955, n_max=500
    ),
    # Long-tailed CIFAR-10 of Cui et al. 2019 and Cao et al. 2019, imbalance factor 100.
    "cifar10-lt": DataConfig(
        name="cifar10", profile="exponential", imbalance_factor=100.0, n_max=5000
    ),
    # Long-tailed CIFAR-100 of the same papers, imbalance factor 100.
    "cifar100-lt": DataConfig(
        name="cifar100", profile="exponential", imbalance_factor=100.0, n_max=500
    ),
    # Ours: two classes of digits, five labels each, 20 : 1, 300 to 15; no download.
    "digits-halves": DataConfig(
        name="digits",
        groups=((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)),
        class_names=("0 to 4", "5 to 9"),
        profile="geometric",
        ratio=1 / 20,
        n_max=60,
    ),
    # Ours: the smallest real long tail, about 0.6 a class, and no download.
    "digits-lt": DataConfig(
        name="digits", profile="counts", counts=(120, 72, 43, 26, 16, 9, 6, 3, 2, 2)
    ),
}
