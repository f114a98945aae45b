"""What a claim came to: effects with their intervals, a verdict, a table, a figure."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from matplotlib.figure import Figure

Size = Literal["fast", "full"]
"""`"fast"`: digits, minutes, in continuous integration. `"full"`: CIFAR-10, hours."""

Verdict = Literal["holds", "holds in part", "does not hold"]


class Effect(NamedTuple):
    """One thing that the claim says must be so, and whether it was seen.

    Attributes:
      statement: What must be so, with the number that was measured.
      seen: Whether it was: where seeds are compared, with the whole interval.
      asserted: Whether a check fails without it. Not so where it was found not to hold.
    """

    statement: str
    seen: bool
    asserted: bool = True


class Finding(NamedTuple):
    """The result of one claim.

    Attributes:
      title: The claim, in one sentence.
      effects: What was looked at. If all were seen the claim holds.
      table: Markdown.
      draw: Makes the figure.
      notes: What a reader must know besides, such as what was not run.
    """

    title: str
    effects: Sequence[Effect]
    table: str
    draw: Callable[[], Figure]
    notes: str = ""

    @property
    def verdict(self) -> Verdict:
        """In words: all, some or none of the effects."""
        seen = [effect.seen for effect in self.effects]
        if all(seen):
            return "holds"
        return "holds in part" if any(seen) else "does not hold"
