"""What one call of ``predict`` computed, as plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tracenet.sessions.base import PhasePlan
from tracenet_kernels.window import Window, hull


@dataclass(frozen=True)
class ClickPlan:
    """What one call of ``predict`` computed: the plans of both phases, and views of them as one.

    Attributes:
        locate: heads at the clicks of all objects, one plan or more per scale: clicks far apart have their own.
        segment: mask windows, one plan per mask and click, without what earlier plans had already computed. Masks that
            were only compared (``agreement``) are among them.
        masks: those of ``segment`` that the returned masks come from, in their order.
        factors: the scale of each plan.
    """

    locate: list[PhasePlan] = field(default_factory=list)
    segment: list[PhasePlan] = field(default_factory=list)
    masks: list[PhasePlan] = field(default_factory=list)
    factors: dict[PhasePlan, float] = field(default_factory=dict)
    count_full: Callable[[], int] = lambda: 0

    @property
    def plans(self) -> list[PhasePlan]:
        return [*self.locate, *self.segment]

    @property
    def macs(self) -> int:
        """Multiply-adds computed in both phases, at all scales."""
        return sum(plan.macs for plan in self.plans)

    @property
    def full_macs(self) -> int:
        """Multiply-adds of the whole network at the working size, whatever scales were looked at."""
        return self.count_full()

    @property
    def factor(self) -> float:
        """The scale of the first mask."""
        return self.factors[self.masks[0]]

    def at(self, factor: float) -> list[PhasePlan]:
        """The plans of one scale, first those that locate."""
        return [plan for plan in self.plans if self.factors[plan] == factor]

    @property
    def windows(self) -> dict[str, Window]:
        """Name -> hull of what either phase computed at the scale of the first mask; see :meth:`windows_at`."""
        return self.windows_at(self.factor)

    def windows_at(self, factor: float) -> dict[str, Window]:
        """Name -> hull of what either phase computed at one scale."""
        plans = self.at(factor)
        names = dict.fromkeys(name for plan in plans for name in plan.windows)
        return {name: hull(plan.windows[name] for plan in plans if name in plan.windows) for name in names}

    @property
    def planning_ms(self) -> float:
        return sum(plan.planning_ms for plan in self.plans)

    def table(self, full: bool = False) -> str:
        """The phases' tables one after the other; see :meth:`tracenet.Plan.table`."""
        titles = ["locate"] * len(self.locate) + ["segment"] * len(self.segment)
        several = len(set(self.factors.values())) > 1
        parts = []
        for title, plan in zip(titles, self.plans, strict=True):
            scale = f" at {self.factors[plan]:g}" if several else ""
            parts.append(f"{title}{scale}\n{plan.table(full)}")
        return "\n\n".join(parts)
