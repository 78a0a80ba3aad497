"""Capture a ``torch.nn.Module`` as a :class:`Graph` through ``torch.export``.

The exported program is functionalised but not decomposed, so that a convolution stays one node. Tuple-valued
operations are rewritten to single-output nodes, and whatever does not depend on an input is computed once.
"""

from __future__ import annotations

import operator
import re
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from tracenet.graph.graph import CONSTANT, INPUT, Graph, Node, map_nodes
from tracenet.graph.refusals import changed_number, check_state, explain, line_of, numbers_of, quiet
from tracenet_kernels.errors import CaptureError, InputError

_aten = torch.ops.aten


def capture(model: nn.Module, example_inputs: Tensor | tuple[Any, ...]) -> Graph:
    """Export ``model`` at the size of ``example_inputs`` and convert it to a :class:`Graph`.

    Args:
        model: in evaluation mode; its Python may be anything ``torch.export`` can follow.
        example_inputs: one tensor or a tuple of tensors; only shapes, dtypes and devices matter.

    Raises:
        InputError: the model is in training mode, or the example inputs are not tensors.
        CaptureError: the export failed, control flow depends on data, or the model changes its own buffers or numbers.
            The message names the node or the line of the model's code.
    """
    args = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    _check(model, args)
    exported = _export(model, args)
    return _Converter(exported, args).convert()


def _check(model: nn.Module, args: tuple[Any, ...]) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"trace got a {type(model).__name__}; pass a torch.nn.Module")
    check_state(model)
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    if training:
        raise InputError(
            f"{len(training)} modules are in training mode (first: {training[0]}); call model.eval() before tracing, "
            "batch statistics and dropout depend on the whole batch"
        )
    if not args:
        raise InputError("trace got no example inputs; pass at least one tensor")
    for position, arg in enumerate(args):
        if not isinstance(arg, Tensor):
            raise InputError(
                f"example input {position} is a {type(arg).__name__}; pass tensors. What is no tensor is fixed for a "
                "captured network: wrap the model in a module whose forward passes it on"
            )
        if arg.ndim >= 3 and 0 in arg.shape:
            raise InputError(f"example input {position} has shape {tuple(arg.shape)}; every size must be positive")
        if arg.is_complex():
            raise InputError(f"example input {position} is complex ({arg.dtype}); pass real tensors")


def _export(model: nn.Module, args: tuple[Any, ...]) -> torch.export.ExportedProgram:
    before, after = numbers_of(model), numbers_of(model)
    hook = model.register_forward_hook(lambda *_: after.update(numbers_of(model)))  # torch.export puts them back
    try:
        with torch.no_grad(), warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, _distinct(args), strict=False)
            if any(_is_to_be_decomposed(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})
    except Exception as error:
        raise CaptureError(explain(error, model)) from error
    finally:
        hook.remove()
    if changed := changed_number(before, after):
        raise CaptureError(
            f"the model changes its attribute {changed} while it runs, and the graph would hold one of its values. "
            "Make the forward pass free of side effects; if it only remembers a size, run the model once before tracing"
        )
    return exported


def _distinct(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """One tensor that comes twice would be captured as one input."""
    seen: set[int] = set()
    distinct = []
    for arg in args:
        distinct.append(arg.clone() if id(arg) in seen else arg)
        seen.add(id(arg))
    return tuple(distinct)


def _is_to_be_decomposed(node: fx.Node) -> bool:
    """Whether an operation writes to its operand, or belongs to a transform of functions such as ``torch.vmap``."""
    if node.op != "call_function":
        return False
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable) or "_functorch" in getattr(node.target, "__module__", "")


def op_name(target: Any) -> str:
    """``aten.conv2d`` for ``torch.ops.aten.conv2d.default``; a plain function gives its qualified name."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target.overloadpacket.__name__}"
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"


class _Converter:
    """One conversion of an exported program; holds the map from fx nodes to ours."""

    def __init__(self, exported: torch.export.ExportedProgram, args: tuple[Any, ...]) -> None:
        self.exported = exported
        self.args = args
        self.nodes: list[Node] = []
        self.map: dict[fx.Node, Node] = {}

    def convert(self) -> Graph:
        self._refuse_mutation()
        inputs = self._placeholders()
        for fx_node in self.exported.graph.nodes:
            if fx_node.op == "call_function":
                self._call(fx_node)
            elif fx_node.op not in ("placeholder", "output"):
                raise CaptureError(_refused_part(fx_node))
        graph = Graph(self.nodes, inputs, self._outputs())
        graph.keep_reachable()
        _fold_constants(graph, self.args[0].device)
        _name_nodes(graph)
        return graph

    def _refuse_mutation(self) -> None:
        for spec in self.exported.graph_signature.output_specs:
            if spec.kind == OutputKind.BUFFER_MUTATION:
                raise CaptureError(
                    f"the model writes to its buffer {spec.target!r} while it runs; a traced run would lose that "
                    "state. Make the forward pass free of side effects"
                )
            if spec.kind == OutputKind.USER_INPUT_MUTATION:
                raise CaptureError(
                    f"the model overwrites its input {spec.target!r}; a traced run leaves inputs as they are. Clone it "
                    "first, or use an out-of-place operation (inplace=False)"
                )

    def _placeholders(self) -> list[Node]:
        inputs: list[Node] = []
        placeholders = {n.name: n for n in self.exported.graph.nodes if n.op == "placeholder"}
        for spec in self.exported.graph_signature.input_specs:
            fx_node = placeholders[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                value = fx_node.meta.get("val")
                if not isinstance(value, Tensor):
                    raise CaptureError(f"input {fx_node.name} is not a tensor; a traced graph takes tensors only")
                node = Node(fx_node.name, INPUT, None, (), {}, tuple(value.shape), value.dtype)
                inputs.append(node)
            else:
                node = self._stored(fx_node, spec)
            self.nodes.append(node)
            self.map[fx_node] = node
        return inputs

    def _stored(self, fx_node: fx.Node, spec: Any) -> Node:
        if spec.target in self.exported.state_dict:
            value = self.exported.state_dict[spec.target]
        elif spec.target in self.exported.constants:
            value = self.exported.constants[spec.target]
        else:
            raise CaptureError(f"{spec.target!r} ({spec.kind.name}) has no stored tensor; it cannot be traced")
        if not isinstance(value, Tensor):
            raise CaptureError(f"{spec.target!r} is a {type(value).__name__}, not a tensor; it cannot be traced")
        return _constant(str(spec.target), value.detach())

    def _call(self, fx_node: fx.Node) -> None:
        if fx_node.target is operator.getitem:
            self._getitem(fx_node)
            return
        value = fx_node.meta.get("val")
        if isinstance(value, (tuple, list)) or value is None:
            return  # converted where its elements are taken; assertions have no value and no user
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"{_named(fx_node)} yields a {type(value).__name__}: a number computed "
                "from tensor data or sizes. Its value would be frozen into the graph; compute it outside the model"
            )
        self._add(fx_node, fx_node, value, item=None)

    def _getitem(self, fx_node: fx.Node) -> None:
        source, item = fx_node.args
        assert isinstance(source, fx.Node) and isinstance(item, int)
        value = fx_node.meta["val"]
        op = op_name(source.target)
        if op in _SPLITS:
            dim: Any = source.args[2] if len(source.args) > 2 else source.kwargs.get("dim", 0)
            if op in ("aten.hsplit", "aten.vsplit"):
                dim = min(value.ndim - 1, 1) if op == "aten.hsplit" else 0
            sizes = [part.shape[dim] for part in source.meta["val"]]
            start = sum(sizes[:item])
            args = (self._translate(source.args[0]), dim, start, start + sizes[item], 1)
            self._append(fx_node, source, _aten.slice.Tensor, args, {}, value, None)
        elif op == "aten.unbind":
            dim = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
            index = (self._translate(source.args[0]), dim, item)
            self._append(fx_node, source, _aten.select.int, index, {}, value, None)
        else:
            self._add(fx_node, source, value, item)

    def _add(self, fx_node: fx.Node, source: fx.Node, value: Tensor, item: int | None) -> None:
        args, kwargs = self._translate(source.args), self._translate(dict(source.kwargs))
        self._append(fx_node, source, source.target, args, kwargs, value, item)

    def _append(
        self, fx_node: fx.Node, source: fx.Node, target: Any, args: Any, kwargs: Any, value: Tensor, item: int | None
    ) -> None:
        if any(not isinstance(size, int) for size in value.shape):
            raise CaptureError(
                f"{_named(source)} has a data-dependent shape {tuple(value.shape)}; it cannot be traced. End the "
                "traced part before it"
            )
        if value.is_complex():
            raise CaptureError(
                f"{_named(source)} is complex; only real tensors can be traced. Wrap the complex part in a custom "
                "operation with real inputs and outputs and register a rule for it"
            )
        shape = tuple(value.shape)
        node = Node("", op_name(target), target, tuple(args), kwargs, shape, value.dtype, _module(source), item)
        node.source = line_of(source.meta)
        self.nodes.append(node)
        self.map[fx_node] = node

    def _translate(self, value: Any) -> Any:
        def replace(fx_node: fx.Node) -> Any:
            if fx_node not in self.map:
                raise CaptureError(f"the graph uses {fx_node.name} in a way that cannot be traced")
            return self.map[fx_node]

        return fx.node.map_arg(value, replace) if not isinstance(value, dict) else dict(fx.node.map_arg(value, replace))

    def _outputs(self) -> dict[str, Node]:
        output = next(n for n in self.exported.graph.nodes if n.op == "output")
        results: list[Any] = list(output.args[0])
        spec = self.exported.call_spec.out_spec
        assert spec is not None
        paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(len(results))), spec))
        outputs: dict[str, Node] = {}
        for path, position in paths:
            result = results[position]
            if isinstance(result, fx.Node):
                outputs[_output_name(path)] = self.map[result]
        if not outputs:
            raise CaptureError("the model returns no tensors; there is nothing to request")
        return outputs


def _named(fx_node: fx.Node) -> str:
    """A node of the exported graph in words: its name, its operation, the line of the model's code."""
    line = line_of(fx_node.meta)
    return f"node {fx_node.name} ({op_name(fx_node.target)}{f', at {line}' if line else ''})"


def _refused_part(fx_node: fx.Node) -> str:
    """Why a graph inside the graph cannot be held: what uses it, and what to do."""
    user = next(iter(fx_node.users), fx_node)
    kind = str(getattr(user.target, "__name__", user.target))
    if "autocast" in kind:
        advice = "Take autocast out of the forward pass, and trace model.half() or model.bfloat16() for lower precision"
    elif "grad" in kind:
        advice = "Take the switch of gradients out of the forward pass; traced runs need none"
    else:
        advice = "Compute both ways and choose with torch.where, or end the traced part before it"
    line = line_of(user.meta)
    return f"node {user.name} ({kind}{f', at {line}' if line else ''}) holds a graph of its own. {advice}"


def _output_name(path: Any) -> str:
    keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
    return ".".join(keys) or "output"


def _constant(name: str, value: Tensor) -> Node:
    return Node(name, CONSTANT, None, (), {}, tuple(value.shape), value.dtype, value=value)


def _module(fx_node: fx.Node) -> str:
    """Qualified module path, ``@k`` for further calls of a shared module, ``!`` if it is one of torch's own layers."""
    stack = list(fx_node.meta.get("nn_module_stack", {}).items())
    if not stack:
        return ""
    key, (path, kind) = stack[-1]
    call = re.search(r"@(\d+)$", key)
    kind_name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    leaf = "!" if kind_name.startswith("torch.nn.modules.") and not kind_name.endswith("container.Sequential") else ""
    path = re.sub(r"@\d+$", "", path)
    return f"{path}{call.group(0) if call else ''}{leaf}"


def run_node(node: Node, args: Any, kwargs: Any) -> Tensor:
    """Call a node's operation on concrete arguments and take its element if it is tuple-valued."""
    assert node.target is not None
    result = node.target(*args, **kwargs)
    return result if node.item is None else result[node.item]


_SHAPE_ONLY = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
"""Operators that read the shape, dtype and device of their operand and no value."""


_SPLITS = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.hsplit", "aten.vsplit")


def _draws_random_numbers(node: Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    if "dropout" in node.op:
        return bool(node.arg(2, "train", True)) and node.args[1] != 0
    if node.op == "aten.scaled_dot_product_attention":
        return bool(node.arg(4, "dropout_p", 0.0))
    if node.op in ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"):
        return bool(node.args[6]) and node.args[5] != 0  # training, dropout
    return not (node.op.startswith("aten.rrelu") and not node.arg(3, "training", False))


def _one_value(node: Node, device: torch.device) -> Tensor:
    """What a shape-only operator yields: one value, expanded."""
    pattern = node.args[0]
    value = torch.zeros((), dtype=pattern.dtype, device=device).expand(pattern.shape)
    result = run_node(node, (value, *node.args[1:]), node.kwargs)
    return result.flatten()[:1].clone().view([1] * node.ndim).expand(node.shape)


def _fold_constants(graph: Graph, device: torch.device) -> None:
    """Replace every node that depends on no input value by its own value."""
    for node in graph.nodes:
        if node.op in (INPUT, CONSTANT):
            continue
        if _draws_random_numbers(node):
            raise CaptureError(
                f"{node.module.rstrip('!') or 'the model'} draws random numbers ({node.op}); a traced run cannot "
                "repeat them. Pass them in as an input, or switch the layer off"
            )
        if node.op.removeprefix("aten.") in _SHAPE_ONLY and 0 not in node.shape:
            node.value = _one_value(node, device)
        elif all(operand.is_constant for operand in node.operands):
            with torch.no_grad():
                args, kwargs = map_nodes((node.args, node.kwargs), lambda n: n.value)
                node.value = run_node(node, args, kwargs)
        else:
            continue
        node.op, node.target, node.args, node.kwargs, node.item = CONSTANT, None, (), {}, None
    graph.keep_reachable()


def _name_nodes(graph: Graph) -> None:
    per_module: dict[str, int] = {}
    for node in graph.nodes:
        if node.op not in (INPUT, CONSTANT):
            per_module[node.module] = per_module.get(node.module, 0) + 1
    taken = {node.name for node in graph.nodes if node.name}
    for node in graph.nodes:
        if node.name:
            continue
        path, single = node.module.rstrip("!"), node.module.endswith("!") and per_module.get(node.module) == 1
        base = path if single and path else f"{path}.{_short(node)}" if path else _short(node)
        name, count = base, 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        node.name = name
        node.module = path
    graph.renumber()


def _short(node: Node) -> str:
    return node.op.rpartition(".")[2] if node.op != CONSTANT else "constant"
