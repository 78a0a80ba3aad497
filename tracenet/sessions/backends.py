"""The choice of a backend for the predictor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracenet.checkpoint import Checkpoint
from tracenet.sessions.base import Network
from tracenet_kernels.backends import choose

if TYPE_CHECKING:
    from tracenet.config import TraceNetConfig
    from tracenet.engine.program import Program
    from tracenet.models import TraceNet


def open_network(
    source: TraceNet | Checkpoint, backend: str, device: str = "cuda", dtype: str | None = None
) -> Network:
    """The network of a model, or of an opened checkpoint, on a backend.

    Args:
        backend: ``"triton"``, ``"native"``, ``"torch"``, or ``"auto"``: the first of them that is available and fits.
        device: of the triton backend.
        dtype: ``"float32"``, and for the triton backend also ``"float16"`` (its default) and ``"bfloat16"``.

    Raises:
        BackendError: the backend is not known, not available or does not fit the model.
        InputError: the device or dtype is not possible.
    """
    obstacle = _config_obstacle(source.config)
    program: Program | None = None
    half = "" if dtype in (None, "float32") else f"it computes in float32, not in {dtype}"
    obstacles = {"triton": obstacle, "native": obstacle or half, "torch": half}
    chosen = choose(backend, obstacles)
    if chosen == "triton":
        from tracenet.sessions.triton_session import TritonNetwork

        model = source.model if isinstance(source, Checkpoint) else source
        return TritonNetwork(model, source.config, device, dtype or "float16")
    if chosen == "native":
        program, obstacle = _open_program(source)
        if choose(backend, {**obstacles, "native": obstacle}) == "native":
            from tracenet.sessions.native_session import NativeNetwork

            assert program is not None
            return NativeNetwork(program, source.config)
    from tracenet.sessions.torch_session import TorchNetwork

    return TorchNetwork(source.model if isinstance(source, Checkpoint) else source)


def _config_obstacle(config: TraceNetConfig) -> str:
    """Why no kernel runs an architecture, as a clause; an empty string where nothing speaks against it."""
    if "gn" in (config.tower_norm, config.mask_norm):
        return "GroupNorm reads whole planes and has no kernel"
    return ""


def _open_program(source: TraceNet | Checkpoint) -> tuple[Program | None, str]:
    """The program, from the cache where a checkpoint has one there; or None and why there is none."""
    if isinstance(source, Checkpoint):
        from tracenet.program_cache import cached_program

        program = cached_program(source)
    else:
        from tracenet.sessions.native_program import build_program, model_obstacle

        if obstacle := model_obstacle(source):
            return None, obstacle
        program = build_program(source)
    return program, _external(program)


def _external(program: Program) -> str:
    steps = [step.name for step in program.schedule.steps if step.op == "external"]
    return f"no kernel computes {steps[0]}" if steps else ""
