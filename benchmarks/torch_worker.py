"""The PyTorch side: the same nets, and the ways to a balanced gradient that it has.

Runs in an environment of its own, without JAX. Every method has a copy of the net to
itself: TorchJD leaves hooks on the one that it is given.
"""

import copy
import itertools
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

_CORES = {int(core) for core in sys.argv[sys.argv.index("--cores") + 1].split(",")}
_DEVICE = sys.argv[sys.argv.index("--device") + 1] if "--device" in sys.argv else "cpu"
os.sched_setaffinity(0, _CORES)

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torchjd.aggregation import WeightedAggregator, Weighting  # noqa: E402
from torchjd.autogram import Engine  # noqa: E402
from torchjd.autojac import backward, jac_to_grad  # noqa: E402

from benchmarks.answering import answer  # noqa: E402

torch.set_num_threads(len(_CORES))
torch.set_float32_matmul_precision("high")  # TF32 where there is, as JAX takes it

Grads = list[torch.Tensor]
Method = Callable[[nn.Module], Grads]


class Block(nn.Module):
    """Two convolutions and a shortcut, of ResNet18 with GroupNorm."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        """Projects the shortcut where shapes differ."""
        super().__init__()
        self.long = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
            nn.GroupNorm(width // 4, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(width // 4, width),
        )
        self.short = nn.Sequential()
        if (before, stride) != (width, 1):
            self.short = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False),
                nn.GroupNorm(width // 4, width),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds both."""
        return torch.relu(self.long(x) + self.short(x))


class Transformer(nn.Module):
    """The same as in `benchmarks.cases`."""

    def __init__(self, num_classes: int) -> None:
        """Its blocks are PyTorch's own."""
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        self.position = nn.Parameter(0.02 * torch.randn(64, 64))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(4)
            )
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images to logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.blocks(tokens).mean(1))


def build(net: str, num_classes: int) -> nn.Module:
    """The nets of `benchmarks.cases`, for images with the channels first."""
    if net in ("mlp", "narrow"):
        sizes = [3072, 512, 256] if net == "mlp" else [3072, 32, 32]
        layers = [
            layer
            for before, width in itertools.pairwise(sizes)
            for layer in (nn.Linear(before, width), nn.ReLU())
        ]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], num_classes))
    if net == "cnn":
        return nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(2048, num_classes),
        )
    if net == "wide":
        widths = [3, 32, 64, 128]
        layers = [
            layer
            for before, width in itertools.pairwise(widths)
            for layer in (
                nn.Conv2d(before, width, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
        ]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, num_classes))
    if net == "transformer":
        return Transformer(num_classes)
    blocks, before = [], 64
    for width in (64, 128, 256, 512):
        blocks += [Block(before, width, 1 + (width > 64)), Block(width, width, 1)]
        before = width
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.GroupNorm(16, 64),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, num_classes),
    )


class InverseNorm(Weighting):
    """One over the norm of each row, from the Gramian or from the rows themselves."""

    def __init__(self, *, of_gramian: bool) -> None:
        """Remembers what it will be given."""
        super().__init__()
        self.of_gramian = of_gramian

    def forward(self, stat: torch.Tensor) -> torch.Tensor:
        """Weights `[C]`; zero for a class that is absent."""
        norms = stat.diagonal().sqrt() if self.of_gramian else stat.norm(dim=1)
        return torch.where(norms == 0, 0, 1 / norms)


class Prepared:
    """A case with its methods, each called once."""

    def __init__(self, request: dict[str, Any]) -> None:
        """Builds the net and calls every method once."""
        torch.manual_seed(0)
        self.number = request["num_classes"]
        net = build(request["net"], self.number).to(_DEVICE)
        self.labels = torch.tensor(request["labels"], device=_DEVICE)
        self.images = torch.randn(len(self.labels), 3, 32, 32, device=_DEVICE)
        numbers = torch.arange(self.number, device=_DEVICE)
        self.members = self.labels[None, :] == numbers[:, None]
        self.parameters = sum(p.numel() for p in net.parameters())
        self.nets: dict[str, nn.Module] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        exact: Grads = []
        for name, (method, is_stack) in self._methods().items():
            if is_stack and not request["allows_stacks"]:
                self.facts[name] = {"not_run": request["too_long"]}
                continue
            self.nets[name] = copy.deepcopy(net)
            found = method(self.nets[name])
            self.facts[name] = {}
            if name == "class loop":
                exact = found
            if name not in ("plain", "class loop"):
                self.facts[name]["error"] = _relative_error(found, exact)

    def describe(self) -> dict[str, Any]:
        """Facts about each method, the number of parameters and versions."""
        return {
            "methods": self.facts,
            "parameters": self.parameters,
            "versions": {"torch": torch.__version__, "torchjd": version("torchjd")},
        }

    def run(self, name: str) -> float:
        """Milliseconds of the second of two calls, as in `jax_worker`."""
        method, _ = self._methods()[name]
        for _ in range(2):
            _finish()
            start = time.perf_counter()
            method(self.nets[name])
            _finish()
            elapsed = time.perf_counter() - start
        return 1000 * elapsed

    def _methods(self) -> dict[str, tuple[Method, bool]]:
        """By name; and whether all class gradients are made at once."""
        return {
            "plain": (self._plain, False),
            "class loop": (self._class_loop, False),
            "torch.func vmap": (self._vmap, True),
            "torchjd autojac": (self._autojac, True),
            "torchjd autogram": (self._autogram, True),
        }

    def _losses(self, net: Any) -> torch.Tensor:
        return cross_entropy(net(self.images), self.labels, reduction="none")

    def _class_losses(self, net: Any) -> torch.Tensor:
        """Each class's share of the mean loss, `[C]`."""
        losses = self._losses(net)
        return torch.where(self.members, losses[None, :], 0).sum(1) / len(self.labels)

    def _plain(self, net: nn.Module) -> Grads:
        return list(torch.autograd.grad(self._losses(net).mean(), [*net.parameters()]))

    def _class_loop(self, net: nn.Module) -> Grads:
        """The way of the published code: one class after the other."""
        params = list(net.parameters())
        total = [torch.zeros_like(p) for p in params]
        for label in range(self.number):
            here = self.members[label]
            if not here.any():
                continue
            logits = net(self.images[here])
            loss = cross_entropy(logits, self.labels[here], reduction="sum")
            grads = torch.autograd.grad(loss / len(self.labels), params)
            norm = torch.stack([(g * g).sum() for g in grads]).sum().sqrt()
            for k, grad in enumerate(grads):
                total[k] += grad / norm
        return total

    def _vmap(self, net: nn.Module) -> Grads:
        names, params = zip(*net.named_parameters(), strict=True)

        def class_losses(*params: torch.Tensor) -> torch.Tensor:
            given = dict(zip(names, params, strict=True))
            return self._class_losses(
                lambda images: torch.func.functional_call(net, given, (images,))
            )

        _, pullback = torch.func.vjp(class_losses, *params)
        rows = torch.vmap(pullback)(torch.eye(self.number, device=_DEVICE))
        norms = torch.stack([(r * r).flatten(1).sum(1) for r in rows]).sum(0).sqrt()
        weights = torch.where(norms == 0, 0, 1 / norms)
        return [torch.tensordot(weights, r, 1) for r in rows]

    def _autojac(self, net: nn.Module) -> Grads:
        backward(self._class_losses(net), inputs=net.parameters())
        aggregator = WeightedAggregator(InverseNorm(of_gramian=False))
        jac_to_grad(net.parameters(), aggregator)
        return _taken_grads(net)

    def _autogram(self, net: nn.Module) -> Grads:
        engine = getattr(net, "engine", None)
        if engine is None:
            engine = Engine(net, batch_dim=None)
            object.__setattr__(net, "engine", engine)  # made once, as it asks for
        losses = self._class_losses(net)
        gramian = engine.compute_gramian(losses)
        losses.backward(InverseNorm(of_gramian=True)(gramian))
        return _taken_grads(net)


def _finish() -> None:
    if _DEVICE != "cpu":
        torch.cuda.synchronize()


def _taken_grads(net: nn.Module) -> Grads:
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    return grads


def _relative_error(found: Grads, exact: Grads) -> float:
    worst = max((x - y).abs().max() for x, y in zip(found, exact, strict=True))
    return float((worst / max(y.abs().max() for y in exact)).detach())


if __name__ == "__main__":
    answer(Prepared)
