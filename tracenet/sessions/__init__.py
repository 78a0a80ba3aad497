"""Backends of the predictor: networks, and sessions that run them on one photo at one scale."""

from tracenet.sessions.backends import BACKENDS, choose_backend, open_network
from tracenet.sessions.base import Network, Parameters, PhasePlan, Session

__all__ = ["BACKENDS", "Network", "Parameters", "PhasePlan", "Session", "choose_backend", "open_network"]
