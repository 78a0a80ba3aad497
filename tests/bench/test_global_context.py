"""The benchmark of global vectors: what its rows say of each mode."""

from __future__ import annotations

from rich.console import Console

from bench import global_context as bench


def test_cached_vectors_save_and_stay_exact() -> None:
    rows = {row["mode"]: row for row in bench.measure("MobileNetV3", (256, 192))}
    whole = rows["cached, of the whole image"]
    assert [row["exact"] for row in rows.values()] == [True, True, False, False, False]
    assert whole["mac_share"] < 0.6 * rows["exact"]["mac_share"]
    assert max(whole["max_rel_error"], rows["exact"]["max_rel_error"]) <= bench.TOLERANCE
    assert all(rows[mode]["max_rel_error"] > bench.TOLERANCE for mode in rows if not rows[mode]["exact"])
    assert rows["cached, at scale 0.5"]["mac_share_once"] < 0.3 * whole["mac_share_once"]
    console = Console(width=120)
    with console.capture():
        bench.show({"size": [256, 192], "commit": "abc", "rows": list(rows.values())})
