"""The Receptive Field Tracer: backward rules, the depth-first search, and what a plan costs."""

from tracenet.rft.rules import Demand, Rule, register_rule
from tracenet.rft.trace import NodePlan, Plan, plan_windows

__all__ = ["Demand", "NodePlan", "Plan", "Rule", "plan_windows", "register_rule"]
