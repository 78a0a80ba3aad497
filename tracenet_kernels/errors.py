"""Every error this project raises on purpose, so that callers can catch one family.

Each message says what came, what is allowed and what to do about it.
"""

from __future__ import annotations


class TraceNetError(Exception):
    """Base class of all errors raised on purpose by ``tracenet`` and ``tracenet_kernels``."""


class WindowError(TraceNetError, ValueError):
    """A window is malformed, or lies outside the plane it refers to."""


class RequestError(TraceNetError, ValueError):
    """A request names an unknown output or asks for something a plan cannot give."""


class InputError(TraceNetError, ValueError):
    """An argument has the wrong shape, dtype, range or value."""


class ClickError(InputError):
    """A click lies outside the image, is not finite, or has an unsupported label."""


class ImageError(InputError):
    """An image is empty, too large, corrupt, or in a format that cannot be read."""


class CaptureError(TraceNetError, RuntimeError):
    """A model could not be captured as a graph."""


class UnsupportedOpError(TraceNetError, NotImplementedError):
    """No backward rule is registered for an operation met while tracing."""


class ExecutionError(TraceNetError, RuntimeError):
    """A node failed while a plan was executed; the message names the node."""


class ExactnessError(TraceNetError, AssertionError):
    """A traced run differs from the full network; the message names the request and the first node that is wrong."""


class CheckpointError(TraceNetError, ValueError):
    """A checkpoint is truncated, foreign, or does not match the model."""


class ScheduleError(TraceNetError, ValueError):
    """A stored schedule is truncated, foreign, of another version or inconsistent."""


class ConfigError(TraceNetError, ValueError):
    """A file of kernel configurations is truncated, foreign, of another version or inconsistent."""


class BackendError(TraceNetError, RuntimeError):
    """A backend was asked for explicitly and is not available."""
