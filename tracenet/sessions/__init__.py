"""Backends of the predictor: networks, and sessions that run them on one photo at one scale."""

from tracenet.sessions.backends import open_network
from tracenet.sessions.base import Network, Parameters, PhasePlan, Session

__all__ = ["Network", "Parameters", "PhasePlan", "Session", "open_network"]
