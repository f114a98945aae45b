r"""Measures what a balanced gradient costs, and writes the table and the figure.

    python -m benchmarks.gradients               # everything: an hour
    python -m benchmarks.gradients --nets mlp --classes 10 --no-peers
    python -m benchmarks.gradients --draw        # only the table and the figure
    python -m benchmarks.gradients --nets narrow mlp --classes 2 10 --cores 0 1 \
        --no-peers --folder docs/benchmarks/two_cores           # minutes

One process for JAX and one for PyTorch, on the same cores, take turns: in each round
every method is called twice, and the second call counts. Cases that are done are not
measured again (`--fresh` does), and each is written as soon as it is done.
"""

import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import tyro
from tqdm.auto import tqdm

from benchmarks.cases import TOO_LONG, Case, Net, cases
from benchmarks.report import draw
from experiments.kept import write_whole
from pcn_jax.training.runs import processor

_HERE = Path(__file__).parent
_LEAST_ROUNDS = 3
_PEERS = _HERE.parent / ".venv-peers"
_KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}
"""Keeps glibc from giving memory back after every call: see the report."""


@dataclass(frozen=True)
class Config:
    """What is measured."""

    nets: tuple[Net, ...] = get_args(Net)
    """Networks."""

    classes: tuple[int, ...] = (2, 10, 100, 1000)
    """Numbers of classes; a thousand is for the MLP alone."""

    repeats: int = 15
    """Rounds, of which the median counts."""

    seconds: float = 10.0
    """What a method may take in all its rounds; slow ones take part in three."""

    cores: tuple[int, ...] = (0,)
    """Cores on which everything runs."""

    peers: bool = True
    """Whether PyTorch is measured too, in an environment that is made for it."""

    keep_memory: bool = True
    """Whether malloc keeps what is freed, or, as it does by itself, takes what is more
    than 32 MB from the system anew in every call."""

    fresh: bool = False
    """Whether cases that are done are measured again."""

    draw: bool = False
    """Whether nothing is measured, and only the table and the figure are made."""

    folder: Path = Path("docs/benchmarks")
    """Where the results are written."""

    def __post_init__(self) -> None:
        """Refuses what cannot be measured."""
        if self.repeats < 1:
            raise ValueError(f"repeats must be 1 or more, got {self.repeats}.")
        if not self.cores:
            raise ValueError("cores must be one or more, got none.")
        if min(self.classes, default=2) < 2:
            raise ValueError(f"classes must be 2 or more, got {self.classes}.")


class Worker:
    """A process that prepares cases and runs methods."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        """Starts it."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_HERE.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("A worker ended: its last words are above.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Reads the command line, measures and writes."""
    config = tyro.cli(Config, description=__doc__)
    path = config.folder / "gradients.json"
    results: dict[str, Any] = {"cases": {}}
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
    if not config.draw:
        _measure_all(config, results, path)
    if not results["cases"]:
        raise SystemExit(f"There is nothing to draw: {path} does not exist yet.")
    draw(results, config.folder)
    print(f"{config.folder}/gradients.md, gradients.png")


def _measure_all(config: Config, results: dict[str, Any], path: Path) -> None:
    wanted = [
        case
        for case in cases(config.nets, config.classes)
        if config.fresh or case.name not in results["cases"]
    ]
    cores = ["--cores", ",".join(map(str, config.cores))]
    start = functools.partial(
        Worker, environment=_KEEP_MEMORY if config.keep_memory else {}
    )
    workers = {"jax": start([sys.executable, "-m", "benchmarks.jax_worker", *cores])}
    if config.peers:
        workers["torch"] = start(
            [make_peers(), "-m", "benchmarks.torch_worker", *cores]
        )
    for case in tqdm(wanted, unit="case", disable=not sys.stderr.isatty()):
        results["cases"][case.name] = _measure(case, workers, config)
        results["python"] = platform.python_version()
        results["cores"] = config.cores
        write_whole(path, _text(results))
        draw(results, config.folder)
    for one in workers.values():
        one.close()


def _measure(case: Case, workers: dict[str, Worker], config: Config) -> dict[str, Any]:
    methods: dict[str, dict[str, Any]] = {}
    versions: dict[str, str] = {}
    parameters: set[int] = set()
    for library, worker in workers.items():
        if library == "torch" and not case.has_peers:
            continue
        answer = worker.ask(
            do="prepare",
            **case._asdict() | {"labels": case.classes.tolist()},
            case=list(case),
            allows_stacks=case.allows_stacks,
            too_long=TOO_LONG,
        )
        versions |= answer["versions"]
        parameters.add(answer["parameters"])
        for name, facts in answer["methods"].items():
            methods[f"{library}: {name}"] = {**facts, "ms": []}
    if len(parameters) > 1:
        raise RuntimeError(f"{case.name}: the libraries build different nets.")
    for number in range(config.repeats):
        for name, facts in methods.items():
            library, method = name.split(": ", maxsplit=1)
            is_slow = 2 * sum(facts["ms"]) > 1000 * config.seconds
            if "not_run" in facts or (is_slow and number >= _LEAST_ROUNDS):
                continue
            answer = workers[library].ask(do="run", method=method)
            facts["ms"].append(round(answer["ms"], 3))
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": processor(),
        "keep_memory": config.keep_memory,
        "case": case._asdict(),
        "methods": methods,
        "versions": versions,
    }


def _text(results: dict[str, Any]) -> str:
    """JSON with one case a line."""
    head = {name: value for name, value in results.items() if name != "cases"}
    cases = [
        f"{json.dumps(name)}: {json.dumps(case)}"
        for name, case in results["cases"].items()
    ]
    return json.dumps({**head, "cases": {}})[:-2] + "\n" + ",\n".join(cases) + "\n}}\n"


def make_peers() -> str:
    """The Python of the environment of the peers, made if it is not there.

    Raises:
      SystemExit: If they could not be installed.
    """
    python = _PEERS / "bin" / "python"
    if not (_PEERS / "installed").exists():
        print(f"Making {_PEERS.name}, the environment of the peers.", flush=True)
        venv.create(_PEERS, with_pip=True, clear=True)
        requirements = _HERE / "peers-requirements.txt"
        install = [str(python), "-m", "pip", "install", "--quiet", "-r"]
        if subprocess.run([*install, str(requirements)], check=False).returncode:
            raise SystemExit(
                f"The peers could not be installed from {requirements.name}: see "
                "above. Without them: --no-peers."
            )
        (_PEERS / "installed").touch()
    return str(python)


if __name__ == "__main__":
    main()
