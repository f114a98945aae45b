"""Measures what a balanced gradient costs on an accelerator, and by which way.

    python -m benchmarks.accelerator          # minutes, most of them of compiling
    python -m benchmarks.accelerator --nets mlp --fresh
    python -m benchmarks.accelerator --draw   # only the table

A method is a step in a compiled loop, as it is in training: a call would measure how
fast Python tells the device what to do. PyTorch's steps are called, as they are in its
training. Beside what the fused path chooses, each way to the norms that it could take
at matrices and convolutions is forced once: the choice in `pcn_jax.fused.plan` rests on
these times. A case is measured as a whole, net by net, and written as soon as it is
done; those that are done are not measured again (`--fresh` does).
"""

import concurrent.futures
import datetime
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args
from unittest import mock

import flax
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm.auto import tqdm

import pcn_jax
from benchmarks.accelerator_report import page
from benchmarks.cases import TOO_LONG, AnyNet, Case, build, least, losses
from benchmarks.gradients import Worker, make_peers
from experiments.kept import commit, write_whole
from pcn_jax import balanced
from pcn_jax.fused import gradients
from pcn_jax.fused.plan import Choice, choose
from pcn_jax.fused.sites import Site

_LOOP_SECONDS = 0.03
"""About how long the steps of a loop take together."""
_PEER_SECONDS = 1.0
"""A method of PyTorch that took so long is not called again."""
_MANY_TOKENS = 64
"""Inner products of all positions of two images are too many beyond."""

Method = Callable[..., tuple[Any, Any]]
"""From parameters, images and labels to a value and a gradient."""
Choose = Callable[..., Choice]


def _forced(way: Callable[[Site, int], Choice | None]) -> Choose:
    """Takes a way wherever it can be taken, and else what is chosen."""

    def chosen(site: Site, num_rows: int, **options: Any) -> Choice:
        forced = way(site, num_rows) if site.kind in ("dense", "conv") else None
        return forced or choose(site, num_rows, **options)

    return chosen


WAYS: dict[str, Choose] = {
    "each": _forced(lambda site, _: Choice("rows", site.size)),
    "groups": _forced(lambda site, n: Choice("rows", max(1, site.size // (2 * n)))),
    "masked": _forced(
        lambda site, _: Choice("masked") if site.kind == "conv" else None
    ),
    "pairs": _forced(
        lambda site, _: Choice("pairs") if site.tokens <= _MANY_TOKENS else None
    ),
}
"""Ways to the norms: the gradients of all examples side by side; those of groups of
examples one after the other; those of classes, each of a masked batch, at convolutions;
or inner products of pairs of examples."""


@dataclass(frozen=True)
class Config:
    """What is measured."""

    nets: tuple[AnyNet, ...] = get_args(AnyNet)
    """Networks."""

    classes: tuple[int, ...] = (2, 10, 100)
    """Numbers of classes."""

    ways: bool = True
    """Whether each way is forced, too."""

    peers: bool = True
    """Whether PyTorch is measured too, on a GPU."""

    peers_python: str | None = None
    """A Python that has PyTorch and TorchJD; without it an environment is made."""

    repeats: int = 5
    """Rounds, in which the methods of a case take turns."""

    fresh: bool = False
    """Whether cases that are done are measured again."""

    draw: bool = False
    """Whether nothing is measured, and only the table is made."""

    folder: Path = Path("docs/benchmarks")
    """Where the results are written."""

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        if self.repeats < 1:
            raise ValueError(f"repeats must be 1 or more, got {self.repeats}.")
        if min(self.classes, default=2) < 2:
            raise ValueError(f"classes must be 2 or more, got {self.classes}.")


class Program(NamedTuple):
    """A compiled method.

    Attributes:
      run: The steps; see `in_a_loop`.
      given: Parameters, images and labels.
      facts: What is known of it.
    """

    run: Any
    given: tuple[Any, jax.Array, jax.Array]
    facts: dict[str, Any]

    def seconds(self, number: int) -> float:
        """How long so many steps take."""
        start = time.perf_counter()
        jax.block_until_ready(self.run(*self.given, jnp.int32(number), jnp.float32(0)))
        return time.perf_counter() - start


def main() -> None:
    """Reads the command line, measures and writes."""
    config = tyro.cli(Config, description=__doc__)
    path = config.folder / "accelerator.json"
    if not config.draw:
        if jax.default_backend() == "cpu":
            raise SystemExit(
                "There is no accelerator. On CPU: python -m benchmarks.gradients"
            )
        _measure_all(config, path)
    if not path.exists():
        raise SystemExit(f"There is nothing to draw: {path} does not exist yet.")
    results = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(page(results), encoding="utf-8")
    print(path.with_suffix(".md"))


def in_a_loop(method: Method) -> Callable[..., tuple[Any, Any]]:
    """Steps of gradient descent, of which nothing can be left out of the loop.

    All of a step depends on the step before, by a rate of which only we know that it
    is 0.

    Args:
      method: Whose gradient is followed.

    Returns:
      A function of parameters, images, labels, the number of steps and the rate, that
      returns the parameters and the last gradient.
    """

    def steps(
        params: Any, images: Any, labels: Any, number: Any, rate: Any
    ) -> tuple[Any, Any]:
        def step(_: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            params, one, _ = carry
            shift = (one - 1).astype(labels.dtype)
            _, gradient = method(params, images * one, labels + shift)
            moved = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
            some = jax.tree.leaves(gradient)[0].reshape(-1)[0]
            return moved, one + rate * some, gradient

        carry = params, jnp.float32(1), jax.tree.map(jnp.zeros_like, params)
        params, _, gradient = jax.lax.fori_loop(0, number, step, carry)
        return params, gradient

    return steps


def _measure_all(config: Config, path: Path) -> None:
    results = kept_of_this_device(path)
    has_peers = config.peers and jax.default_backend() == "gpu"
    torch = _start_peers(config) if has_peers else None
    for net in tqdm(config.nets, unit="net"):
        cases = [
            case
            for case in _cases(net, config.classes)
            if config.fresh or case.name not in results["cases"]
        ]
        # Threads that compile would stand in the way of tracing.
        lowered = {case: lower_all(case, ways=config.ways) for case in cases}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            compiling = {
                case: {name: pool.submit(_compile, *x) for name, x in methods.items()}
                for case, methods in lowered.items()
            }
        for case, methods in compiling.items():
            programs = {name: program.result() for name, program in methods.items()}
            _take_turns(programs, config.repeats)
            record = _stamp({"jax": jax.__version__, "flax": flax.__version__}) | {
                "case": case._asdict(),
                "least": least(case),
                "methods": {name: program.facts for name, program in programs.items()},
            }
            before = results["cases"].get(case.name, {})
            if torch and case.has_peers:
                record["peers"] = _measure_peers(torch, case, config.repeats)
            elif "peers" in before:  # PyTorch is as fast as it was
                record["peers"] = before["peers"]
            results["cases"][case.name] = record
            write_whole(path, json.dumps(results, indent=1) + "\n")
    if torch:
        torch.close()


def kept_of_this_device(path: Path) -> dict[str, Any]:
    """What was measured before, or a start with what the device can do at most.

    Args:
      path: Where it is kept.

    Raises:
      SystemExit: If it was measured on another device.
    """
    device = jax.devices()[0].device_kind
    if not path.exists():
        return {"device": device, "limits": _limits(), "note": "", "cases": {}}
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if kept["device"] != device:
        raise SystemExit(
            f"{path} has times of {kept['device']}, and this is {device}: give another "
            "--folder."
        )
    return kept


def _stamp(versions: dict[str, str]) -> dict[str, Any]:
    """Of which code a measurement is, of which day, and with which libraries."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"commit": commit(), "date": today, "versions": versions}


def _start_peers(config: Config) -> Worker:
    python = config.peers_python or make_peers()
    worker = [python, "-m", "benchmarks.torch_worker", "--device", "cuda"]
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return Worker([*worker, "--cores", cores], environment={})


def _measure_peers(torch: Worker, case: Case, repeats: int) -> dict[str, Any]:
    """The same facts of the methods of PyTorch."""
    prepared = torch.ask(
        do="prepare",
        **case._asdict() | {"labels": case.classes.tolist()},
        allows_stacks=case.allows_stacks,
        too_long=TOO_LONG,
    )
    methods = [name for name, f in prepared["methods"].items() if "not_run" not in f]
    taken: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name in methods:
            if sum(taken[name]) < 1000 * _PEER_SECONDS:
                answer = torch.ask(do="run", method=name)
                taken[name].append(round(answer["ms"], 4))
    facts = {name: {"ms": ms} for name, ms in taken.items()}
    return _stamp(prepared["versions"]) | {"methods": facts}


def _cases(net: AnyNet, classes: tuple[int, ...]) -> Iterator[Case]:
    """Long-tailed batches: what is compiled does not know its labels."""
    sizes = {"mlp": [128, 1024], "resnet18": [64], "transformer": [64]}
    for size in sizes.get(net, [128]):
        for number in classes:
            yield Case(net, number, size, "long-tailed")


def lower_all(case: Case, *, ways: bool) -> dict[str, tuple[Any, ...]]:
    """Traces each method.

    Args:
      case: The net and the batch.
      ways: Whether each way is forced, too.

    Returns:
      By name: the lowered program, what it is given, and the ways that it takes.
    """
    model = build(case.net, case.num_classes)
    images = np.random.RandomState(0).normal(size=(case.batch_size, 32, 32, 3))
    given: Any = (jnp.asarray(images, jnp.float32), jnp.asarray(case.classes))
    shapes = jax.eval_shape(model.init, jax.random.key(0), given[0][:1])
    given = _random_like(shapes["params"]), *given
    loss = functools.partial(losses, model)

    def mean_loss(*given: Any) -> jax.Array:
        return loss(*given).mean()

    def lower(method: Method, chosen: Choose) -> tuple[Any, ...]:
        taken: list[str] = []

        def noted(site: Site, *args: Any, **options: Any) -> Choice:
            choice = chosen(site, *args, **options)
            if site.kind in ("dense", "conv"):
                taken.append(f"{site.kind} {site.param_shape}: {choice}")
            return choice

        with mock.patch.object(gradients, "choose", noted):
            more = jnp.int32(1), jnp.float32(0)
            program = jax.jit(in_a_loop(method)).lower(*given, *more)
        return program, given, taken

    path: balanced.GradientPath = "frozen" if case.examples_interact else "fused"
    rule = pcn_jax.weights.inverse_smoothed_norm(0.3)
    by_halves = pcn_jax.pcn_value_and_grad(
        loss, case.num_classes, path=path, weights=rule
    )
    smoothed = functools.partial(by_halves, state=rule.init(case.num_classes))
    fused = pcn_jax.pcn_value_and_grad(loss, case.num_classes, path=path)
    lowered = {"plain": lower(jax.value_and_grad(mean_loss), choose)}
    lowered["fused"] = lower(fused, choose)
    lowered["smoothed norm"] = lower(smoothed, choose)
    if ways:
        lowered |= {name: lower(fused, way) for name, way in WAYS.items()}
    if case.allows_stacks:
        masked = pcn_jax.pcn_value_and_grad(loss, case.num_classes, path="masked")
        lowered["textbook"] = lower(masked, choose)
    return lowered


def _random_like(shapes: Any) -> Any:
    """Weights as good as any for timing: to compile a net's own takes longer."""
    random = np.random.RandomState(0)

    def weight(x: Any) -> jax.Array:
        fan_in = math.prod(x.shape[:-1])
        return jnp.asarray(random.normal(scale=fan_in**-0.5, size=x.shape), x.dtype)

    return jax.tree.map(weight, shapes)


def _compile(program: Any, given: Any, ways: list[str]) -> Program:
    start = time.perf_counter()
    compiled = program.compile()
    facts = {
        "compile_s": round(time.perf_counter() - start, 1),
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "ways": ways,
    }
    return Program(compiled, given, facts)


def _take_turns(methods: dict[str, Program], repeats: int) -> None:
    """Fills in the milliseconds of a step, one number a round."""
    numbers = {}
    for name, program in methods.items():
        program.facts["ms"] = []
        program.seconds(1)
        once = program.seconds(2) / 2
        numbers[name] = max(2, min(400, int(_LOOP_SECONDS / once)))
    for _ in range(repeats):
        for name, program in methods.items():
            elapsed = program.seconds(numbers[name]) / numbers[name]
            program.facts["ms"].append(round(1000 * elapsed, 4))


def _limits() -> dict[str, float]:
    """What the device reaches a second in large products of matrices and copies."""
    matrix = jax.random.normal(jax.random.key(0), (8192, 8192))
    numbers = jnp.ones(2**28)

    def seconds(step: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
        def repeated(x: jax.Array) -> Any:
            return jax.lax.fori_loop(0, 20, lambda _, x: step(x), x)

        repeat: Any = jax.jit(repeated)
        repeat(x).block_until_ready()
        start = time.perf_counter()
        repeat(x).block_until_ready()
        return (time.perf_counter() - start) / 20

    return {
        "flops": 2 * 8192**3 / seconds(lambda x: (x @ matrix) * 0.01, matrix),
        "bytes": 2 * numbers.nbytes / seconds(lambda x: x + 1, numbers),
    }


if __name__ == "__main__":
    main()
