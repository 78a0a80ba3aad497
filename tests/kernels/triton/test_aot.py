"""The ahead-of-time gate: what it compiles and what it refuses, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tracenet_kernels.errors import BackendError, InputError
from tracenet_kernels.triton import aot, sass
from tracenet_kernels.triton.cases import LAYERS, centre, dtypes_on
from tracenet_kernels.triton.devices import limits
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.planes import ahead_of_time, capability_of, interpreted, same_device
from tracenet_kernels.window import Window

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of the small kernels by architecture, from a process without the interpreter."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.kernels.triton.aot_kernels", "80", "90"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def by_name(compiled: dict[str, Any], arch: int) -> dict[str, Any]:
    return {result["names"][0]: result for result in compiled["kernels"][str(arch)]}


def test_kernels_that_only_differ_in_values_are_compiled_once(compiled: dict[str, Any]) -> None:
    assert by_name(compiled, 80)["first"]["names"] == ["first", "alike"]


def test_a_good_kernel_passes_with_its_figures(compiled: dict[str, Any]) -> None:
    result = by_name(compiled, 80)["first"]
    assert result["problems"] == []
    assert result["code"]["tensor_core"]["HMMA"] >= 4
    assert 32 <= result["code"]["registers"] <= 255
    assert result["code"]["async_copies"] > 0
    assert 0 < result["shared"] <= limits(80).shared_block
    assert result["constants"]["M"] == 64


def test_hopper_multiplies_by_warp_groups(compiled: dict[str, Any]) -> None:
    assert by_name(compiled, 90)["first"]["code"]["tensor_core"]["HGMMA"] >= 1


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("spilling", "spills: "),
        ("cores", "no tensor-core instruction"),
        ("large", "bytes of shared memory; 166912 is the most"),
        ("broken", "does not compile: "),
    ],
)
def test_a_bad_kernel_fails_and_says_why(compiled: dict[str, Any], name: str, problem: str) -> None:
    assert any(problem in text for text in by_name(compiled, 80)[name]["problems"])


def test_integers_equal_to_one_are_constants(compiled: dict[str, Any]) -> None:
    assert by_name(compiled, 80)["plain"]["constants"]["n"] == 1
    assert "n" not in by_name(compiled, 80)["cores"]["constants"]


def test_an_architecture_the_assembler_does_not_know_is_named(compiled: dict[str, Any]) -> None:
    assert "sm_999a" in compiled["no_part"]


def test_a_table_holds_a_line_per_kernel() -> None:
    code = sass.MachineCode(40, 0, 0, 0, {"HMMA": 8}, 0, 2, 100)
    result = aot.Result("m:kernel", 80, ("a", "b"), {"num_warps": 4}, {}, 1024, 0, code)
    lines = aot.table([result, aot.Result("m:kernel", 80, ("c",), problems=("does not compile",))]).splitlines()
    assert len(lines) == 3
    assert "8 HMMA" in lines[1] and "a +1" in lines[1] and " - " in lines[2]


def test_instructions_are_counted_by_name() -> None:
    listing = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
                                                                 /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R219], desc[UR8][R4.64] ;
        /*0020*/              @UP1 UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ;
        /*0030*/                   HGMMA.64x64x16.F32 R24, gdesc[UR4], R24 ;
        /*0040*/                   QMMA.16832.F32.E4M3.E4M3 R4, R8, R12, R4 ;
        /*0050*/                   STL.64 [R1], R2 ;
        /*0060*/                   LDL R3, [R1+0x8] ;
        /*0070*/                   UTMALDG.2D [UR4], [UR6] ;
        /*0080*/                   UTMACCTL.PF [UR4] ;
    """
    code = sass.count(listing, 32, 16)
    assert code.tensor_core == {"UTCHMMA": 1, "HGMMA": 1, "QMMA": 1}
    assert (code.spill_stores, code.spill_loads, code.async_copies, code.tma) == (1, 1, 1, 1)
    assert code.instructions == 9
    assert code.spills


@pytest.mark.skipif(not interpreted(), reason="kernels are compiled here")
def test_kernels_of_the_interpreter_cannot_be_compiled() -> None:
    with pytest.raises(BackendError, match="TRITON_INTERPRET=0"):
        aot.job_of(Launch("x", object(), (1, 1, 1), {}, {}), 80)


def test_tensors_may_be_anywhere_ahead_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = torch.empty(2)
    with pytest.raises(InputError, match="move them to a CUDA device"):
        same_device(x)
    with ahead_of_time((9, 0)):
        assert same_device(x) == torch.device("cpu")
        assert capability_of(x.device) == (9, 0)
    with pytest.raises(InputError):
        same_device(x)


def test_cases_name_real_shapes() -> None:
    assert sum(layer.times for layer in LAYERS if layer.name.startswith("layer")) == 3 * 16 + 4
    for layer in LAYERS:
        window = centre(layer.plane, layer.window)
        assert layer.levels > 1 or (window.height, window.width) == layer.window
        assert Window.full(*layer.plane).contains(window)
    assert torch.float8_e4m3fn not in dtypes_on(87)
    assert torch.float8_e4m3fn in dtypes_on(90)
