"""The project's pages as the tests read them: examples, commands and links of README, CONTRIBUTING and docs/.

The Python of a page runs from top to bottom as one story. A block that cannot run here has ``<!-- not run: why -->`` on
the line before it; it is compiled and its imports are run. What a page takes for granted (a model, a photo, a file) is
in :data:`SETUPS`, what its comments claim in :data:`CLAIMS`.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import tracenet
from tracenet.data import CocoDataset
from tracenet.demo import photo_path
from tracenet.rft.rules import Local
from tracenet_kernels.errors import ExactnessError

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tracenet/assets/MODEL_CARD.md", *ROOT.glob("docs/**/*.md")]
)
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n+)?^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
ON_CPU = () if torch.cuda.is_available() else (('"cuda"', '"cpu"'),)
"""Where there is no GPU, Triton's interpreter runs its kernels on the CPU."""
SMALLER = {
    "docs/gpu.md": (("Window(40, 72, 40, 72)", "Window(2, 5, 3, 6)"), *ON_CPU),
    "README.md": (("768, 1024", "256, 320"), ("384 >> k, 512 >> k", "128 >> k, 160 >> k")),
    "docs/index.md": (("768, 1024", "256, 320"), ("384 >> k, 512 >> k", "128 >> k, 160 >> k")),
}
"""Replacements that make an example quick; each of them must be found."""

Scope = dict[str, Any]


class Block(NamedTuple):
    """A fenced block of code: its language, its text without indentation, and why it is not run."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None


def name_of(page: Path) -> str:
    """Path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        why, indent, language, code = match.groups()
        plain = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
        line = text.count("\n", 0, match.start(4)) + 1
        yield Block(name_of(page), line, language, plain, why)


def python_blocks(page: Path) -> list[Block]:
    """The page's Python, made quick where the page has replacements."""
    found = [block for block in blocks(page) if block.language == "python"]
    for long, short in SMALLER.get(name_of(page), ()):
        assert any(long in block.text for block in found), f"{name_of(page)} has no {long!r} any more"
        found = [block._replace(text=block.text.replace(long, short)) for block in found]
    return found


def shell_lines(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command of the page's unmarked, console and bash blocks: the line, and its words without comments."""
    for block in blocks(page):
        if block.language in ("", "bash", "sh", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    yield line, words


def run(block: Block, scope: Scope) -> None:
    """Execute a block, statement by statement, and compare values with those its comments show."""
    lines = block.text.splitlines()
    for statement in ast.parse(block.text, block.page).body:
        ast.increment_lineno(statement, block.line - 1)
        shown = lines[(statement.end_lineno or 0) - block.line].partition("  # => ")[2]
        if shown and isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), block.page, "eval"), scope)
            assert _as_shown(value, shown), f"{block.page}, line {statement.lineno}: {value!r} is not {shown}"
        else:
            assert not shown, f"{block.page}, line {statement.lineno}: only an expression has a value to show"
            exec(compile(ast.Module([statement], []), block.page, "exec"), scope)


def _as_shown(value: Any, shown: str) -> bool:
    if isinstance(value, float):
        return f"{value:.{len(shown.partition('.')[2])}f}" == shown
    return repr(value) == shown


class Gated(nn.Module):
    """A convolution, a squeeze-and-excitation gate, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))))


def _predictor() -> Scope:
    return {"tracenet": tracenet, "photo": photo_path("coffee"), "x": 300, "y": 190}


def _barriers() -> Scope:
    return {"tracenet": tracenet, "model": Gated().eval(), "image": torch.rand(1, 3, 64, 96)}


def _gpu() -> Scope:
    """A network of two convolutions and an image for it."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"P3": self.body(x)}

    image = torch.rand(1, 3, 32, 40)
    return {"model": Small().eval(), "inputs": image, "image": image}


def _onnx() -> Scope:
    """``network.onnx`` in the current folder: two convolutions, stride 8; and an image for it."""
    weights = [numpy_helper.from_array(np.ones((4, 3, 8, 8), np.float32), "w1")]
    weights.append(numpy_helper.from_array(np.ones((2, 4, 3, 3), np.float32), "w2"))
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], "stem", kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Relu", ["a"], ["b"], "act"),
        helper.make_node("Conv", ["b", "w2"], ["logits"], "head", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", [1, 3, 768, 1024]), ("logits", [1, 2, 96, 128]))
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), "network.onnx")
    return {"tracenet": tracenet, "image": torch.rand(1, 3, 768, 1024)}


def _evaluation() -> Scope:
    """A folder with one photo, and one annotated object of it."""
    Path("photos").mkdir()
    shutil.copy(photo_path("coffee"), "photos")
    run(python_blocks(ROOT / "docs/training.md")[0], {})
    return {}


SETUPS: dict[str, Callable[[], Scope]] = {
    "README.md": _predictor,
    "docs/barriers.md": _barriers,
    "docs/evaluation.md": _evaluation,
    "docs/gpu.md": _gpu,
    "docs/onnx.md": _onnx,
}


def _eight_lines(scope: Scope) -> None:
    assert float(scope["error"]) <= 1e-4 * max(float(value.abs().max()) for value in scope["full"].values())


def _barriers_claims(scope: Scope) -> None:
    assert scope["click"].exact
    assert not scope["click"].barriers
    assert not scope["near"].exact
    assert not scope["window"].exact
    assert scope["click"].macs < 0.1 * scope["exact"].macs


def _evaluation_claims(scope: Scope) -> None:
    assert scope["report"]["instances"] == 1
    assert 0.2 < scope["report"]["one_click_miou"] < 0.5  # a disc of 60 pixels in a box of 230 x 150


def _gpu_claims(scope: Scope) -> None:
    full = scope["model"](scope["image"])["P3"][..., 2:5, 3:6]
    for part in (torch.from_numpy(scope["result"].outputs["P3"]), scope["views"]["P3"].cpu()):
        assert torch.allclose(part.float(), full, atol=1e-2)


def _training_claims(scope: Scope) -> None:
    Path("photos").mkdir()
    shutil.copy(photo_path("coffee"), "photos")
    dataset = CocoDataset("photos", "instances.json")
    (record,) = dataset.records
    assert (dataset.mask(record, record.instances[0]) == scope["mask"]).all()


def _start_claims(scope: Scope) -> None:
    assert scope["masks"].shape == (5, 400, 600)
    assert scope["masks"].dtype == np.bool_
    assert scope["predictor"].last_boxes.shape == (1, 4)
    full = scope["model"](scope["image"])[..., 60:68, 80:88]
    assert torch.allclose(scope["part"], full, atol=1e-5)


def _any_convnet_claims(scope: Scope) -> None:
    (shown,) = [b.text for b in blocks(ROOT / "docs/any_convnet.md") if b.language == "text"]
    table = scope["traced"].plan({0: tracenet.Window(20, 28, 30, 38)}).table()
    assert shown.splitlines() == table.splitlines()[:-1]


def _custom_rules_claims(scope: Scope) -> None:
    assert scope["found"].smallest_share < 0.01
    assert scope["share"] < 0.1
    full = scope["model"](*scope["images"])[0].detach()
    assert torch.allclose(scope["outputs"][0], full[..., 10:14, 12:18], atol=1e-5)
    for refuse, error in (
        (lambda: tracenet.export_onnx(scope["traced"], scope["plan"], "out.onnx"), "mylib.soft_clip"),
        (lambda: scope["traced"].run(scope["images"], scope["plan"], backend="triton"), "triton"),
    ):
        with pytest.raises(tracenet.TraceNetError, match=error):
            refuse()
    tracenet.register_rule(scope["local_maximum"], replace=True)(Local(1))
    with pytest.raises(
        ExactnessError, match=r"'1' \[0, 1\) x \[0, 1\) is off .* the first wrong node is 'local_maximum'"
    ):
        tracenet.check_exactness(scope["model"], scope["images"])


def _unions_claims(scope: Scope) -> None:
    full = scope["model"](scope["image"]).detach()
    for part, window in zip((scope["first"], scope["second"], scope["third"]), scope["clicks"], strict=True):
        assert torch.allclose(part, full[(..., *window.slices)], atol=1e-5)


CLAIMS: dict[str, Callable[[Scope], None]] = {
    "README.md": _eight_lines,
    "docs/any_convnet.md": _any_convnet_claims,
    "docs/barriers.md": _barriers_claims,
    "docs/custom_rules.md": _custom_rules_claims,
    "docs/evaluation.md": _evaluation_claims,
    "docs/gpu.md": _gpu_claims,
    "docs/index.md": _eight_lines,
    "docs/start.md": _start_claims,
    "docs/unions.md": _unions_claims,
    "docs/training.md": _training_claims,
}
