"""Reproduces the claims: trains what is missing, measures, and says what was found.

    python -m experiments.reproduce                        # all, at full size
    python -m experiments.reproduce --claims C4 C5
    python -m experiments.reproduce --size fast --check    # minutes; may fail

At full size RESULTS.md is written, with a figure a claim in docs/results. Runs that are
kept in results/ are not run again. Those that are missing need CIFAR-10: see
`python -m pcn_jax.data`, and set TFDS_DATA_DIR if it is not in its usual place.

What was seen with its whole interval is marked [x], what was seen on average only [~].
The latter is enough for half of the effects in a check at fast size.
"""

import datetime
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")  # figures are files; no display is needed

import matplotlib.pyplot as plt
import tyro

from experiments.claims import (
    c1_initial_drop,
    c2_delay,
    c3_rising_steps,
    c4_directional_noise,
    c5_balance,
    c6_oversampling,
    c7_long_tail,
    c8_architectures,
    c9_end_of_training,
    c10_smoothed_norm,
    c11_settings,
    c12_early_stopping,
    theory,
)
from experiments.claims.finding import Finding, Size
from experiments.kept import commit
from pcn_jax.training import plain

Claim = Literal[
    "theory",
    "C1",
    "C2",
    "C3",
    "C4",
    "C5",
    "C6",
    "C7",
    "C8",
    "C9",
    "C10",
    "C11",
    "C12",
]
CLAIMS: dict[Claim, Callable[[Size], Finding]] = {
    "theory": theory.find,
    "C1": c1_initial_drop.find,
    "C2": c2_delay.find,
    "C3": c3_rising_steps.find,
    "C4": c4_directional_noise.find,
    "C5": c5_balance.find,
    "C6": c6_oversampling.find,
    "C7": c7_long_tail.find,
    "C8": c8_architectures.find,
    "C9": c9_end_of_training.find,
    "C10": c10_smoothed_norm.find,
    "C11": c11_settings.find,
    "C12": c12_early_stopping.find,
}
RESULTS = Path("RESULTS.md")
FIGURES = Path("docs/results")
_HEAD = """# Results

What came of each claim of [the paper](https://arxiv.org/abs/2207.00391) (C1 to C8)
and of four of our own (C9 to C12). Made by `make reproduce`; every number is that of a
run kept in [results/](results), and every run goes through the same loop. In
[brackets]: 95 % intervals over seeds, of Student's t; comparisons are paired, since
the runs of a seed start from the same parameters and see the same data. In tables, in
(parentheses): the least and the largest of the seeds. There are five; on automobile
and truck ten, but in C2 to C4, C8 and C12. Recalls are of test data at the last step
unless said otherwise. Learning rates come from one grid
for all methods (of Adam another), chosen on validation data with other seeds (three;
two on digits-halves; one of CNN, VGG16 and ResNet18), and are kept in
[experiments/learning_rates](experiments/learning_rates). A claim *holds* if
everything that is listed under it was seen, each with its whole interval; it *holds
in part* if some was. On normal data these intervals do cover 95 %; those by bootstrap
from five seeds cover 84 %.

Two classes are CIFAR-10's automobile and truck, 4,900 to 700 training images, in
batches of 128 for 1,000 steps (horse-deer: as many horses and deer); ten classes
are CIFAR-10 with each class 0.6 times the one before, 5,000 to 50, in batches of 500
for 500 steps (animals-vehicles and cifar10-five: see C8). The net is an MLP with two
layers of 32. PCNSGD+R takes fresh gradients of all data every 10 steps, of digits every
step. Set-ups called digits are of scikit-learn's handwritten digits: *lt* of ten
classes, 120 to 2 examples, *halves* of 0 to 4 against 5 to 9, 300 to 15. The minority
is the rarer class of two, and the rarest third of more; macro recall is the mean of the
recalls of the classes.

| name | batches have | the mean gradient of each class is multiplied by |
| --- | --- | --- |
| GD, SGD | all data; each class as the data do | its share of the batch |
| PCNGD, PCNSGD | so too | 1 / its norm |
| +O | equally many examples of each class | as without |
| +R | as SGD | 1 / (its norm · p), p its cosine with that of all data |
| +RW | as SGD | 1 / C |
| +clip | as SGD, or +O | 1 / max(its norm, 0.1) |
| +split | as SGD | 1 / max(its norm without the noise, 0.3), from two halves of it |
"""
_NOT_RUN = """## Not run

- VGG16 and ResNet18 but in C8, and there GD, PCNGD and PCNSGD+R: they want an
  accelerator. Learning rates below 0.001 for the methods whose best that is (see C8).
- CIFAR-100; animals against vehicles, horse against deer and five classes but in C8,
  C11 and C12.
- The two halves of a class against all pairs of its examples in training: their spread
  is in the figure of C10.
- Several seeds in the search of learning rates of CNN, VGG16 and ResNet18.
"""


_SCREEN = 25
"""Lines that are shown as they are."""


@dataclass(frozen=True)
class Config:
    """Which claims, and how large."""

    claims: tuple[Claim, ...] = tuple(CLAIMS)
    """Claims to look at."""

    size: Size = "full"
    """fast: digits, in minutes; full: CIFAR-10, in hours."""

    check: bool = False
    """End with an error if an effect that was seen before is not."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
      arguments: Instead of those of the process.
    """
    config = tyro.cli(Config, description=__doc__, args=arguments)
    failed, not_run = [], []
    for claim in config.claims:
        try:
            finding = CLAIMS[claim](config.size)
        except (ValueError, FileNotFoundError) as error:
            not_run.append(f"error: {claim} was not run: {error}")
            continue
        print(f"\n{claim}: {finding.title}: {finding.verdict}", flush=True)
        for effect in finding.effects:
            mark = "x" if effect.seen else "~" if effect.on_average else " "
            print(f"  [{mark}] {effect.statement}")
        print(f"\n{finding.table}\n", flush=True)
        if finding.fails(config.size):
            failed.append(claim)
        if config.size == "full":
            _keep(claim, finding)
    if config.size == "full":
        RESULTS.write_text(results(), encoding="utf-8")
    if not_run:
        sys.exit("\n".join(not_run))
    if config.check and failed:
        sys.exit(f"error: not all was seen of {', '.join(failed)}: see above.")


def results() -> str:
    """RESULTS.md, from what is kept of each claim."""
    kept = {
        claim: json.loads(path.read_text(encoding="utf-8"))
        for claim in CLAIMS
        if (path := FIGURES / f"{claim}.json").exists()
    }
    sections = [_section(*item) for item in kept.items()]
    parts = [_HEAD, _overview(kept), *sections, _NOT_RUN]
    return "\n".join(parts)


def _overview(kept: dict[Claim, dict[str, Any]]) -> str:
    lines = ["| claim | | verdict |", "| --- | --- | --- |"]
    for claim in CLAIMS:
        found = kept.get(claim)
        title = getattr(sys.modules[CLAIMS[claim].__module__], "TITLE", "")
        verdict = found["verdict"] if found else "not run"
        link = f"[{claim}](#{claim.lower()})" if found else claim
        lines.append(f"| {link} | {title} | {verdict} |")
    return "\n".join(lines) + "\n"


def _section(claim: Claim, found: dict[str, Any]) -> str:
    effects: dict[bool, list[str]] = {True: [], False: []}
    for effect in found["effects"]:
        mark = "seen" if effect["seen"] else "**not seen**"
        effects[effect["seen"]].append(f"- {mark}: {effect['statement']}.")
    seen, tables = effects[True], found["table"].split("\n\n")
    parts = [
        f"## {claim}",
        f"{found['title']}: **{found['verdict']}**.",
        f"![{found['title']}]({FIGURES}/{claim}.png)",
        "\n".join(effects[False]),
        _folded("\n".join(seen), f"{len(seen)} effects that were seen"),
        *(_folded(table, f"{table.count(chr(10)) - 1} rows") for table in tables),
        found["notes"],
        f"`{found['command']}`, {found['date']}, at {found['commit']}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _folded(text: str, summary: str) -> str:
    """The text; behind a summary to click on, where it would fill a screen."""
    if text.count("\n") < _SCREEN:
        return text
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _keep(claim: Claim, finding: Finding) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure = finding.draw()
    figure.savefig(FIGURES / f"{claim}.png", dpi=130)
    plt.close(figure)
    kept = {
        "title": finding.title,
        "verdict": finding.verdict,
        "effects": [effect._asdict() for effect in finding.effects],
        "table": finding.table,
        "notes": finding.notes,
        "command": f"python -m experiments.reproduce --claims {claim}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
    }
    path = FIGURES / f"{claim}.json"
    path.write_text(json.dumps(plain(kept), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
