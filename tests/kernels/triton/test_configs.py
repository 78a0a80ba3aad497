"""Configurations of kernels: which file is looked up, what a file may hold, what is taken without one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracenet_kernels import backends
from tracenet_kernels.errors import ConfigError
from tracenet_kernels.triton import configs
from tracenet_kernels.triton.cases import LAYERS
from tracenet_kernels.triton.configs import ConvConfig, ConvKey, Table, Target, bucket, conv_config
from tracenet_kernels.triton.devices import LIMITS, PARTS, REPRESENTATIVES, limits, nearest_part, part
from tracenet_kernels.triton.roofline import fits, model_config

KEY = ConvKey("conv2d", "float16", 4096, 256, 256, 9)
MINE = ConvConfig(32, 16, 64, 3, 8, 2, True)
GPU = Target("NVIDIA H100 80GB HBM3", 90, 132)


@pytest.fixture(autouse=True)
def own_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The user's folder is an empty one, and nothing is remembered from other tests."""
    monkeypatch.setenv("TRACENET_KERNEL_CONFIGS", str(tmp_path))
    configs.forget()
    yield tmp_path
    configs.forget()


def save(path: Path, table: Table) -> Path:
    path.write_text(configs.table_text(table))
    return path


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(n) for n in (0, 1, 16, 17, 1000, 1024)] == [16, 16, 16, 32, 1024, 1024]


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    other = ConvKey("conv2d_levels", "int8", 16, 1, 169, 1, 5)
    table = Table("Some GPU", 87, "measured", {KEY: MINE, other: ConvConfig()}, {KEY: 12.345})
    read = configs.read_table(save(tmp_path / "x.json", table))
    assert (read.gpu, read.arch, read.origin, read.configs, read.micros) == (
        table.gpu,
        table.arch,
        table.origin,
        table.configs,
        table.micros,
    )


def test_the_users_file_comes_first(own_files: Path) -> None:
    save(own_files / "nvidia-h100-80gb-hbm3.json", Table(GPU.name, 90, "measured", {KEY: MINE}))
    with configs.assume(GPU):
        assert conv_config(KEY) == MINE


def test_a_single_file_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = save(tmp_path / "any.json", Table(GPU.name, 90, "measured", {KEY: MINE}))
    monkeypatch.setenv("TRACENET_KERNEL_CONFIGS", str(path))
    with configs.assume(GPU):
        assert conv_config(KEY) == MINE


def test_a_users_file_of_another_gpu_is_refused(own_files: Path) -> None:
    save(own_files / "nvidia-h100-80gb-hbm3.json", Table("NVIDIA L4", 89, "measured", {KEY: MINE}))
    with configs.assume(GPU), pytest.raises(ConfigError, match="NVIDIA L4"):
        conv_config(KEY)


def test_a_shipped_file_of_the_gpu_comes_before_that_of_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "shipped"
    folder.mkdir()
    save(folder / "sm90.json", Table("NVIDIA H100", 90, "model", {KEY: ConvConfig(128)}))
    save(folder / "sm80.json", Table("NVIDIA A100", 80, "model", {KEY: ConvConfig(32)}))
    save(folder / "exact.json", Table(GPU.name, 90, "measured", {KEY: MINE}))
    monkeypatch.setattr(configs, "SHIPPED", folder)
    with configs.assume(GPU):
        assert conv_config(KEY) == MINE
    with configs.assume(Target("NVIDIA H300", 90, 144)):
        assert conv_config(KEY).block_m == 128
    with configs.assume(Target("NVIDIA A40", 86, 84)):
        assert conv_config(KEY).block_m == 32


def test_a_neighbours_table_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_said", set())
    with caplog.at_level(logging.WARNING), configs.assume(Target("NVIDIA Imaginary", 87, 4)):
        conv_config(KEY)
        configs.forget()
        conv_config(KEY)
    assert [record.message.count("NVIDIA Imaginary") for record in caplog.records] == [1]


def test_what_does_not_fit_a_neighbour_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "shipped"
    folder.mkdir()
    large = ConvConfig(128, 128, 64, 1, 8, 4)
    save(folder / "sm80.json", Table("NVIDIA A100", 80, "model", {KEY: large}))
    monkeypatch.setattr(configs, "SHIPPED", folder)
    with configs.assume(PARTS["a100"]):
        assert conv_config(KEY) == large
    with configs.assume(Target("NVIDIA A40", 86, 84)):
        assert conv_config(KEY) != large


def test_half_types_share_configurations(own_files: Path) -> None:
    save(own_files / "nvidia-h100-80gb-hbm3.json", Table(GPU.name, 90, "measured", {KEY: MINE}))
    with configs.assume(GPU):
        assert conv_config(ConvKey("conv2d", "bfloat16", 4096, 256, 256, 9)) == MINE


def test_without_a_gpu_tiles_are_small() -> None:
    assert configs.small_config(ConvKey("conv2d", "float32", 16, 16, 16, 1)) == ConvConfig(16, 16, 32)


@pytest.mark.parametrize("name", ["NVIDIA Unknown", "Orin", ""])
@pytest.mark.parametrize("arch", [50, 75, 86, 93, 110, 121, 300])
def test_unknown_gpus_get_something_that_fits(name: str, arch: int) -> None:
    with configs.assume(Target(name, arch, 7)):
        config = conv_config(KEY)
    assert fits(KEY, config, arch)


def entry(**changes: Any) -> dict[str, Any]:
    key = {"family": "conv2d", "dtype": "float16", "cells": 16, "in_channels": 8, "out_channels": 8, "taps": 1}
    return {**key, "jobs": 1, "config": {"block_m": 16}, **changes}


def file(**changes: Any) -> dict[str, Any]:
    head = {"format": configs.FORMAT, "version": 1, "gpu": "X", "arch": 90, "origin": "model", "configs": [entry()]}
    return {**head, **changes}


def test_absent_fields_take_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(file()))
    assert list(configs.read_table(tmp_path / "x.json").configs.values()) == [ConvConfig(block_m=16)]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ([], "does not hold kernel configurations"),
        (file(format="other"), "does not hold kernel configurations"),
        (file(version=2), "of version 2"),
        (file(version=None), "of version None"),
        (file(more=1), "unknown entry 'more'"),
        (file(origin="guess"), "origin 'guess'"),
        (file(arch="90"), "arch '90'"),
        (file(gpu=""), "gpu ''"),
        (file(configs={}), "not a list"),
        (file(configs=[1]), "entry 0: 1 is not an object"),
        (file(configs=[entry(extra=1)]), "entry 0: has the fields"),
        (file(configs=[entry(family="gemm")]), "family 'gemm'"),
        (file(configs=[entry(cells=17)]), "cells is 17"),
        (file(configs=[entry(taps=0)]), "taps is 0"),
        (file(configs=[entry(jobs=True)]), "jobs is True"),
        (file(configs=[entry(config=[])]), "not an object"),
        (file(configs=[entry(config={"block_m": 48})]), "block_m is 48, not a power of two"),
        (file(configs=[entry(config={"block_m": 1024})]), "not within"),
        (file(configs=[entry(config={"warps": 4.0})]), "warps is 4.0"),
        (file(configs=[entry(config={"swap": 1})]), "swap is 1"),
        (file(configs=[entry(config={"blocks": 1})]), "unknown field 'blocks'"),
        (file(configs=[entry(micros=-1)]), "micros is -1"),
        (file(configs=[entry(), entry()]), "is there twice"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, data: Any, problem: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=problem.replace("(", r"\(")):
        configs.read_table(tmp_path / "x.json")


@pytest.mark.parametrize("text", ["", "{", "\ufeff{}", "nul\0"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        configs.read_table(tmp_path / "x.json")


def test_shipped_tables_cover_the_network_and_fit() -> None:
    tables = {table.arch: table for table in configs.shipped_tables() if table.origin == "model"}
    assert tables.keys() == REPRESENTATIVES.keys()
    for arch, table in tables.items():
        assert table.gpu == PARTS[REPRESENTATIVES[arch]].name
        for key, config in table.configs.items():
            assert fits(key, config, arch), (arch, key)
        missing = {layer.key("float16") for layer in LAYERS} - table.configs.keys()
        assert len(missing) <= 2, missing


@settings(max_examples=20)
@given(
    dtype=st.sampled_from(["float32", "float16", "int8"]),
    cells=st.integers(1, 1 << 16),
    inputs=st.integers(1, 2048),
    outputs=st.integers(1, 2048),
    taps=st.sampled_from([1, 9, 49]),
    jobs=st.integers(1, 5),
    name=st.sampled_from(sorted(PARTS)),
)
def test_the_model_gives_what_fits_and_is_deterministic(
    dtype: str, cells: int, inputs: int, outputs: int, taps: int, jobs: int, name: str
) -> None:
    key = ConvKey("conv2d", dtype, bucket(cells), inputs, outputs, taps, jobs)
    config = model_config(key, PARTS[name])
    assert config == model_config(key, PARTS[name])
    assert fits(key, config, PARTS[name].arch)
    assert config.split_k <= max(1, taps * -(-inputs // config.block_k))


def test_sums_are_split_until_every_multiprocessor_has_a_program() -> None:
    key = ConvKey("conv2d", "float16", 16, 2048, 64, 9)
    assert model_config(key, PARTS["h100"]).split_k > 1
    assert model_config(ConvKey("conv2d", "float16", 65536, 64, 64, 9), PARTS["h100"]).split_k == 1


def test_parts_and_limits_are_found_by_name_and_by_neighbour() -> None:
    assert part("h200").multiprocessors == part("NVIDIA H200").multiprocessors == 132
    assert nearest_part("NVIDIA H200", 90).bandwidth == 4.8e12
    assert nearest_part("Who knows", 87) is PARTS["orin"]
    assert nearest_part("Who knows", 89).arch == 87
    assert limits(88) == LIMITS[87]
    assert limits(75) == LIMITS[80]
    half = PARTS["h100"].resized(90, 66)
    assert half.rate("float16") == pytest.approx(PARTS["h100"].rate("float16") / 2)
