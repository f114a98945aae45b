"""What a claim came to: effects with their intervals, a verdict, a table, a figure."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Self

from matplotlib.figure import Figure

from experiments.intervals import Comparison

Size = Literal["fast", "full"]
"""`"fast"`: digits, minutes, in continuous integration. `"full"`: CIFAR-10, hours."""

Outcome = Literal["seen", "undecided", "refuted"]
"""Undecided: the interval over seeds has values of both kinds."""

Verdict = Literal["holds", "holds in part", "does not hold"]


class Effect(NamedTuple):
    """One thing that the claim says must be so, and whether it was seen.

    Attributes:
      statement: What must be so, with the number that was measured.
      seen: Whether it was: where seeds are compared, with the whole interval.
      asserted: Whether a check fails without it. Not so where it was found not to hold.
      on_average: Whether it was at least in the mean over seeds, where it has one.
      refuted: Whether the opposite was seen, and not only too little; by default, if it
        was not seen and there are no seeds.
    """

    statement: str
    seen: bool
    asserted: bool = True
    on_average: bool | None = None
    refuted: bool | None = None

    @property
    def outcome(self) -> Outcome:
        """In a word: what was seen of it."""
        if self.seen:
            return "seen"
        refuted = self.on_average is None if self.refuted is None else self.refuted
        return "refuted" if refuted else "undecided"

    @classmethod
    def of(cls, statement: str, *found: Comparison, asserted: bool = True) -> Self:
        """One that takes all of some comparisons.

        Args:
          statement: What must be so, with the number that was measured.
          *found: What was found of it.
          asserted: Whether a check fails without it.
        """
        surely = all(one.surely for one in found)
        on_average = all(one.on_average for one in found)
        refuted = any(one.refuted for one in found)
        return cls(statement, surely, asserted, on_average, refuted)


class Finding(NamedTuple):
    """The result of one claim.

    Attributes:
      title: The claim, in one sentence.
      effects: What was looked at. If all were seen the claim holds.
      table: Markdown.
      draw: Makes the figure.
      notes: What a reader must know besides, such as what was not run.
      of_all: Whether it says that something is so everywhere, so that it does not hold
        if one effect is refuted.
    """

    title: str
    effects: Sequence[Effect]
    table: str
    draw: Callable[[], Figure]
    notes: str = ""
    of_all: bool = False

    @property
    def verdict(self) -> Verdict:
        """In words: all, some or none of the effects."""
        outcomes = {effect.outcome for effect in self.effects}
        if outcomes == {"seen"}:
            return "holds"
        if "seen" not in outcomes or (self.of_all and "refuted" in outcomes):
            return "does not hold"
        return "holds in part"

    def fails(self, size: Size) -> bool:
        """Whether a check of that size has to fail.

        At full size it does without any effect that is asserted. At fast size all have
        to be seen on average, and half of them with the whole interval: few short runs
        end elsewhere on another processor, which rounds otherwise, and then an interval
        that was just on one side of a limit is not.

        Args:
          size: Of the study.
        """
        asserted = [effect for effect in self.effects if effect.asserted]
        surely = sum(effect.seen for effect in asserted)
        if size == "full":
            return surely < len(asserted)
        on_average = all(effect.seen or effect.on_average for effect in asserted)
        return not on_average or 2 * surely < len(asserted)
