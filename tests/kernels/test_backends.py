"""Backends: asked for by name they run or fail loudly; the automatic choice says why once."""

from __future__ import annotations

import logging
import sys

import pytest

from tracenet_kernels import backends, gpu, native
from tracenet_kernels.backends import BACKENDS, choose, say_once
from tracenet_kernels.errors import BackendError


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_said", set())


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, "the C++ extension is not built"))


@pytest.fixture
def with_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (native, ""))


def test_the_registry_is_frozen() -> None:
    assert list(BACKENDS) == ["triton", "native", "torch"]
    with pytest.raises(TypeError):
        BACKENDS["mine"] = BACKENDS["torch"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        BACKENDS["torch"].name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["cuda", "", "Native", None, 3, ["native"]])
def test_unknown_backends_are_refused(name: object) -> None:
    with pytest.raises(BackendError, match=r"is not available; choose one of \('auto', 'triton', 'native', 'torch'\)"):
        choose(name)


def test_no_gpu_is_no_news(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(gpu, "_DRIVER_FILES", ())
    monkeypatch.setattr(sys, "platform", "linux")
    assert gpu.why_not()
    with caplog.at_level(logging.WARNING):
        assert choose("auto", {"native": "it is a test"}) == "torch"
    assert caplog.messages == ["not using backend 'native': it is a test"]
    with pytest.raises(BackendError, match=r"'triton' cannot run here: .*choose 'auto', 'native' or 'torch'"):
        choose("triton")


def test_the_interpreter_is_never_chosen_automatically(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton") == "triton"
    assert choose("auto", {"native": "it is a test"}) == "torch"


@pytest.mark.usefixtures("without_extension")
def test_native_fails_loudly_and_auto_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    assert not BACKENDS["native"].available
    with pytest.raises(BackendError, match=r"not built.*TRACENET_BUILD_NATIVE=1"):
        choose("native")
    with caplog.at_level(logging.WARNING):
        assert [choose("auto"), choose("auto"), choose("torch")] == ["torch"] * 3
    assert caplog.messages == ["not using backend 'native': the C++ extension is not built"]


@pytest.mark.usefixtures("with_extension")
def test_the_best_that_fits(caplog: pytest.LogCaptureFixture) -> None:
    assert choose("auto") == choose("native") == "native"
    obstacle = {"native": "input 'x' is torch.float64"}
    with caplog.at_level(logging.WARNING):
        assert choose("auto", obstacle) == choose("torch", obstacle) == choose("auto", obstacle) == "torch"
        assert choose("auto", {"native": "input 'x' lies on cuda"}) == "torch"
    assert [message.rpartition(": ")[2] for message in caplog.messages] == [
        "input 'x' is torch.float64",
        "input 'x' lies on cuda",
    ]
    with pytest.raises(BackendError, match="'native' cannot run this: input 'x' is torch"):
        choose("native", obstacle)
    with pytest.raises(BackendError, match="no backend fits"):
        choose("auto", {"native": "one reason", "torch": "another"})


def test_the_same_words_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for message in ("a", "b", "a"):
            say_once(message)
    assert caplog.messages == ["a", "b"]
