"""Reproduces the claims: trains what is missing, measures, and says what was found.

    python -m experiments.reproduce                        # all, at full size
    python -m experiments.reproduce --claims C4 C5
    python -m experiments.reproduce --size fast --check    # minutes; may fail

At full size RESULTS.md is written, with a figure a claim in docs/results. Runs that are
kept in results/ are not run again. Those that are missing need CIFAR-10: see
`python -m pcn_jax.data`, and set TFDS_DATA_DIR if it is not in its usual place.

An effect is seen if its whole interval over seeds is on the right side, refuted if it
is on the other, and undecided otherwise. In a check at fast size half of the effects
may be seen on average only.
"""

import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import matplotlib

matplotlib.use("Agg")  # figures are files; no display is needed

import matplotlib.pyplot as plt
import tyro
from tabulate import tabulate

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
    c13_decaying_rate,
    c14_published_forms,
    theory,
)
from experiments.claims.finding import Finding, Outcome, Size
from experiments.experiment import SETUPS
from experiments.kept import commit, write_whole
from experiments.study import FOLDERS
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
    "C13",
    "C14",
]


class ClaimModule(Protocol):
    """What the module of a claim has."""

    TITLE: str

    def find(self, size: Size) -> Finding:
        """What was found, at that size."""


CLAIMS: dict[Claim, ClaimModule] = {
    "theory": theory,
    "C1": c1_initial_drop,
    "C2": c2_delay,
    "C3": c3_rising_steps,
    "C4": c4_directional_noise,
    "C5": c5_balance,
    "C6": c6_oversampling,
    "C7": c7_long_tail,
    "C8": c8_architectures,
    "C9": c9_end_of_training,
    "C10": c10_smoothed_norm,
    "C11": c11_settings,
    "C12": c12_early_stopping,
    "C13": c13_decaying_rate,
    "C14": c14_published_forms,
}
RESULTS = Path("RESULTS.md")
FIGURES = Path("docs/results")
_HEAD = """# Results

The claims of [the paper](https://arxiv.org/abs/2207.00391) (its theory, and C1 to C8)
and six of our own (C9 to C14). Made by `make reproduce`; every number is that of a run
kept in [results/](results), and every run goes through the same loop.
"""
_HOW_TO_READ = """## How to read it

- What a claim says was *seen* if its whole interval over seeds is on the right side,
  *refuted* if it is on the other, and is *undecided* otherwise. A claim *holds* if all
  of it was seen, and *in part* if some of it was. One that says *never* or
  *no better* (C11 to C14) *does not hold* if anything was refuted.
- [Brackets]: 95 % intervals over seeds, of Student's t. Comparisons are paired, since
  the runs of a seed start from the same parameters and see the same batches. (On normal
  data these intervals cover 95 %; those by bootstrap from five seeds cover 84 %.)
  A seed decides the parameters at the start and the batches. Training examples and test
  data are the same for all seeds: with others, numbers may differ by more. Nor do
  intervals hold the luck of a search: two learning rates with nearly the same score may
  end differently.
  (Parentheses), in tables: the least and the largest of the seeds.
- There are five seeds; on automobile-truck-mlp ten, except in C2 to C4, C8, C12 and
  C13.
- Each method has its own learning rate, from the same grid for all (of Adam another;
  with momentum a tenth of it; with decay one more above), chosen on validation data
  with other seeds (three; two on digits-halves; one of VGG16 and ResNet18, and of GD,
  PCNGD and PCNSGD+R on the CNN), and [kept](experiments/learning_rates). It is that
  with the best mean over training, but in C12, C13 and what is *decaying* in C14.
- Recalls are of test data, at the last step unless said otherwise. The minority is the
  rarer of two classes, and the rarest third of more. Macro recall is the mean of the
  recalls of the classes. *Over training*: the mean over log-spaced measurements.
- Nets are named at the end of a set-up, or an MLP with two layers of 32.
- Behind the command of a claim is when and by which code its numbers were found from
  the runs. When, where and by which code each run was made is in [its file](results).

| name | batches have | the mean gradient of each class is multiplied by |
| --- | --- | --- |
| GD | all data | its share of the data |
| SGD | each class as the data do (stratified) | its share of the batch |
| PCNGD, PCNSGD | as GD, SGD | 1 / its norm |
| +O | equally many examples of each class | as without |
| +R | as SGD | 1 / (its norm · p), p its cosine with that of all data at each step |
| +RW | as SGD | 1 / C |
| +LA | as SGD | as SGD; the log of each share of the data is added to its logit |
| +clip | as SGD, or +O | 1 / max(its norm, 0.1) |
| +O+LA | as +O | 1 / max(its norm, 1 / (C · its share)), logits by shares in steps |
| +split | as SGD | 1 / max(its norm without the noise, 0.3), from two halves of it |
"""
_NOT_RUN = """## Not run

- VGG16 and ResNet18 but in C8, and there GD, PCNGD, PCNSGD+R and what ends in +LA: they
  want an accelerator. Learning rates below 0.001 where that is the best (see C8).
- CIFAR-100; animals against vehicles, horse against deer and five classes but in C8
  and C11 to C13.
- The published form of +R and the published step-size rule of PCNGD but in C14;
  full-batch PCNGD to the end of training.
- The two halves of a class against all pairs of its examples in training: their spread
  is in the figure of C10.
- Several seeds in the search of learning rates of VGG16 and ResNet18, and of GD, PCNGD
  and PCNSGD+R on the CNN.
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
            finding = CLAIMS[claim].find(config.size)
        except (ValueError, FileNotFoundError) as error:
            not_run.append(f"error: {claim} was not run: {error}")
            continue
        print(f"\n{claim}: {finding.title}: {finding.verdict}", flush=True)
        for effect in finding.effects:
            print(f"  {effect.outcome}: {effect.statement}")
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
    parts = [_HEAD, _overview(kept), _HOW_TO_READ, _setups(), *sections, _NOT_RUN]
    return "\n".join(parts)


def _overview(kept: dict[Claim, dict[str, Any]]) -> str:
    lines = ["| claim | | verdict |", "| --- | --- | --- |"]
    for claim, module in CLAIMS.items():
        found = kept.get(claim)
        verdict = found["verdict"] if found else "not run"
        link = f"[{claim}](#{claim.lower()})" if found else claim
        lines.append(f"| {link} | {module.TITLE} | {verdict} |")
    return "\n".join(lines) + "\n"


def _setups() -> str:
    """The data of the set-ups, as the runs have them."""
    rows = []
    for name in SETUPS:
        path = FOLDERS["full"] / name / "sgd.json"
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            counts, train = kept["class_counts"], kept["description"]["train"]
            examples = " to " if len(counts) > 2 else ", "
            rows.append(
                [
                    name,
                    kept["description"]["data"]["name"],
                    len(counts),
                    examples.join(f"{count:,}" for count in (counts[0], counts[-1])),
                    train["batch_size"],
                    f"{train['steps']:,}",
                ]
            )
    head = ["set-up", "data", "classes", "training examples of each", "batch", "steps"]
    return tabulate(rows, head, tablefmt="github", stralign="left") + "\n"


def _section(claim: Claim, found: dict[str, Any]) -> str:
    effects: dict[Outcome, list[str]] = {"refuted": [], "undecided": [], "seen": []}
    for effect in found["effects"]:
        effects[effect["outcome"]].append(effect["statement"])
    seen, tables = effects.pop("seen"), found["table"].split("\n\n")
    parts = [
        f"## {claim}",
        f"{found['title']}: **{found['verdict']}**.",
        f"![{found['title']}]({FIGURES}/{claim}.png)",
        found["notes"],
        "\n".join(f"- **{o}**: {one}." for o, of in effects.items() for one in of),
        _folded(
            "\n".join(f"- seen: {one}." for one in seen),
            f"{len(seen)} effects that were seen",
        ),
        *(_folded(table, f"{table.count(chr(10)) - 1} rows") for table in tables),
        f"`{found['command']}`, found on {found['date']} by {found['commit']}.",
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
        "effects": [
            {"statement": effect.statement, "outcome": effect.outcome}
            for effect in finding.effects
        ],
        "table": finding.table,
        "notes": finding.notes,
        "command": f"python -m experiments.reproduce --claims {claim}",
    }
    path = FIGURES / f"{claim}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if plain(kept).items() <= before.items():
        return  # found before, then and by that code
    kept |= {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
    }
    write_whole(path, json.dumps(plain(kept), indent=1) + "\n")


if __name__ == "__main__":
    main()
