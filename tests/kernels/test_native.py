"""The C++ extension against the Python windows and against brute force, and the package without it."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracenet_kernels import native, window
from tracenet_kernels.errors import BackendError, WindowError
from tracenet_kernels.window import Window

needs_extension = pytest.mark.skipif(not native.available(), reason=native.why_not())

REACH = 12


@pytest.fixture(scope="module")
def ext() -> ModuleType:
    return native.require()


def spans(reach: int = REACH) -> st.SearchStrategy[tuple[int, int]]:
    coordinate = st.integers(-reach, reach)
    return st.tuples(coordinate, coordinate).map(lambda pair: (min(pair), max(pair)))


def windows() -> st.SearchStrategy[Window]:
    return st.tuples(spans(), spans()).map(lambda axes: Window(*axes[0], *axes[1]))


@needs_extension
@given(windows(), windows(), st.integers(0, REACH), st.integers(0, REACH))
def test_same_windows_as_python(ext: ModuleType, a: Window, b: Window, height: int, width: int) -> None:
    assert ext.hull([a, b]) == window.hull([a, b])
    assert ext.intersect(a, b) == window.intersect(a, b)
    assert ext.subtract(a, b) == window.subtract(a, b)
    assert ext.shift(a, height, -width) == window.shift(a, height, -width)
    assert ext.clip(a, height, width) == window.clip(a, height, width)
    assert ext.border_of(a, height, width) == window.border_of(a, height, width)


@needs_extension
@given(st.lists(windows(), max_size=5))
def test_same_hull_as_python(ext: ModuleType, parts: list[Window]) -> None:
    assert ext.hull(parts) == window.hull(parts)


@needs_extension
@given(spans(), st.integers(1, 5), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3))
def test_conv_demand_is_the_hull_of_the_taps(
    ext: ModuleType, out: tuple[int, int], kernel: int, stride: int, padding: int, dilation: int
) -> None:
    begin, end = ext.conv_demand(out, kernel, stride, padding, dilation)
    taps = {o * stride - padding + dilation * k for o in range(*out) for k in range(kernel)}
    if not taps:
        assert begin == end
    else:
        assert (begin, end) == (min(taps), max(taps) + 1)


@needs_extension
@given(spans(), st.integers(1, 5), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3))
def test_transposed_demand_holds_every_input_that_reaches(
    ext: ModuleType, out: tuple[int, int], kernel: int, stride: int, padding: int, dilation: int
) -> None:
    begin, end = ext.transposed_demand(out, kernel, stride, padding, dilation)
    # Input i adds to the outputs i * stride - padding + dilation * k.
    wanted = set(range(*out))
    reach = range(-50, 50)
    readers = {i for i in reach if wanted & {i * stride - padding + dilation * k for k in range(kernel)}}
    assert readers <= set(range(begin, end))
    if dilation == 1:
        assert readers == set(range(begin, end))


@needs_extension
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ext: ext.hull([(0, 1, 2)]), "has 3 numbers"),
        (lambda ext: ext.hull([(0, 1.5, 2, 3)]), "not an integer"),
        (lambda ext: ext.hull([(0, True, 2, 3)]), "not an integer"),
        (lambda ext: ext.hull([(0, 2**63, 2, 3)]), "64 bits"),
        (lambda ext: ext.clip((3, 2, 1, 2), 4, 4), "ends before it starts"),
        (lambda ext: ext.clip((0, 1, 0, 1), -1, 4), "negative side"),
        (lambda ext: ext.shift((0, 1, 0, 2**63 - 1), 0, 1), "64 bits"),
        (lambda ext: ext.border_of((-(2**63), 2**63 - 1, 0, 1), 0, 4), "64 bits"),
        (lambda ext: ext.conv_demand((0, 2**62), 3, 8), "64 bits"),
        (lambda ext: ext.conv_demand((1, 0), 3), "ends before it starts"),
        (lambda ext: ext.conv_demand((0, 1), 0), ">= 1"),
        (lambda ext: ext.transposed_demand((-(2**63), 0), 3, 2), "64 bits"),
        (lambda ext: ext.transposed_demand((0, 1), 3, 0), ">= 1"),
    ],
)
def test_bad_windows_are_window_errors(ext: ModuleType, call, message: str) -> None:
    with pytest.raises(WindowError, match=message):
        call(ext)


@needs_extension
def test_processor_report(ext: ModuleType) -> None:
    features = ext.cpu_features()
    flags = {"avx512": "avx512f", "avx2": "avx2_fma", "neon": "neon"}
    assert features["isa"] in {"portable", *flags}
    if features["isa"] != "portable":
        assert features[flags[features["isa"]]]


def test_without_the_extension_asking_for_it_says_how_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tracenet_kernels._C", None)
    native._load.cache_clear()
    try:
        assert not native.available()
        assert "not built" in native.why_not()
        with pytest.raises(BackendError, match="TRACENET_BUILD_NATIVE=1"):
            native.require()
    finally:
        native._load.cache_clear()


def test_the_packages_work_without_the_extension() -> None:
    program = (
        "import sys; sys.modules['tracenet_kernels._C'] = None\n"
        "import tracenet, tracenet_kernels\n"
        "from tracenet_kernels import env_report\n"
        "assert tracenet_kernels.Window(0, 2, 0, 3).area == 6\n"
        "print(env_report.report())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "the C++ extension is not built" in result.stdout
