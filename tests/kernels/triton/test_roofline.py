"""The roofline model: its terms, against arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tracenet_kernels.errors import InputError
from tracenet_kernels.triton import roofline
from tracenet_kernels.triton.configs import ConvConfig, ConvKey
from tracenet_kernels.triton.devices import PARTS, part
from tracenet_kernels.triton.launch import Cost, Launch
from tracenet_kernels.triton.roofline import Work, predict, predict_conv

H100 = PARTS["h100"]


def test_a_large_product_takes_its_multiply_adds_at_the_peak_rate() -> None:
    work = Work(Cost(10**12, 10**6, 10**6), 132 * 100)
    found = predict(work, H100)
    assert found.compute == pytest.approx(1e12 / H100.tensor["float16"])
    assert found.seconds == pytest.approx(H100.launch + found.compute)
    assert found.bound == "compute"


def test_the_busiest_multiprocessor_decides() -> None:
    even = predict(Work(Cost(10**10), 132), H100).compute
    assert predict(Work(Cost(10**10), 133), H100).compute == pytest.approx(2 * even * 132 / 133)
    assert predict(Work(Cost(10**10), 1), H100).compute == pytest.approx(132 * even)


def test_bytes_come_from_memory_where_they_are_cold_or_do_not_fit() -> None:
    work = Work(Cost(0, 10 << 20, 0), 1000)
    assert predict(work, H100, warm=True).memory == 0
    assert predict(work, H100, warm=False).memory == pytest.approx((10 << 20) / 3.35e12)
    assert predict(Work(Cost(0, 100 << 20, 0), 1000), H100, warm=True).memory > 0
    assert predict(work, PARTS["orin"], warm=True).memory > 0


def test_dependent_launch_and_dtype_count() -> None:
    assert predict(Work(Cost(), 1, pdl=True), H100).launch < predict(Work(Cost(), 1), H100).launch
    half, eight = (predict(Work(Cost(10**12), 13200, dtype), H100).compute for dtype in ("float16", "int8"))
    assert half == pytest.approx(2 * eight, rel=1e-3)
    plain = predict(Work(Cost(10**12), 13200, "float32", False), H100).compute
    assert plain == pytest.approx(1e12 / H100.fp32)


def test_a_launch_says_its_own_work() -> None:
    x = torch.empty(2, 2, 16, dtype=torch.int8)
    args = {"table": torch.empty(1, 4, dtype=torch.int32), "x": x}
    launch = Launch("a", None, (3, 2, 1), args, {}, {"launch_pdl": True}, tensor_cores=True, cost=Cost(5, 6, 7))
    assert Work.of(launch) == Work(Cost(5, 6, 7), 6, "int8", True, True)


def test_small_windows_gain_from_split_sums_and_large_ones_do_not() -> None:
    few, many = ConvKey("conv2d", "float16", 16, 1024, 64, 9), ConvKey("conv2d", "float16", 65536, 64, 64, 9)
    one, split = ConvConfig(16, 64, 64, 1, 4, 4), ConvConfig(16, 64, 64, 16, 4, 4)
    assert predict_conv(few, split, H100) < predict_conv(few, one, H100)
    assert predict_conv(many, split, H100) > predict_conv(many, one, H100)


def test_a_report_stands_beside_measurements(tmp_path: Path) -> None:
    launches = [
        Launch("conv", None, (132, 1, 1), {"x": torch.empty(1, dtype=torch.float16)}, {}, {}, True, Cost(10**9, 10**6)),
        Launch("pool", None, (10, 1, 1), {}, {}, {}, False, Cost(0, 10**6, 10**6)),
    ]
    (tmp_path / "m.json").write_text(json.dumps({"conv": 5}))
    measured = roofline.read_measured(tmp_path / "m.json")
    rows = roofline.report(launches, H100, measured)
    assert rows[0].measured == pytest.approx(5e-6) and rows[1].measured is None
    text = roofline.report_text(rows, H100, warm=True)
    assert "5.00" in text and "2 launches on NVIDIA H100" in text and "of the 1 measured" in text


@pytest.mark.parametrize("text", ["", "[]", '{"a": "b"}', '{"a": -1}', '{"a": true}'])
def test_measurements_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match="measurements"):
        roofline.read_measured(tmp_path / "m.json")


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(InputError, match="h100"):
        part("abacus")
