"""A decoder -> an ExecuTorch program whose weights lie in a file per layer, and its bytes.

Runs only in the process that lowers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from toggle_edge.export.executorch.decoder import Decoder, Decoding, Signals

SHARED = "shared"
"""The file of what belongs to no layer: norms, biases, tables."""

FORWARD, SIGNALS = "forward", "signals"


class _Partitioner(XnnpackPartitioner):  # type: ignore[misc]
    """XNNPACK's, without what our graphs have no use for and what takes most of the time."""

    def __init__(self) -> None:
        super().__init__()
        # Of its seventeen passes over each part of a graph this asks for one: the others turn convolutions, norms and
        # attention, none of which are here, into what it has.
        self.delegation_spec = DelegationSpec(
            XnnpackBackend.__name__, [CompileSpec("dqlinear_partitioner", b"")]
        )

    def ops_to_not_decompose(self, program: Any) -> tuple[list[Any], None]:
        # Without a question for each operator: XNNPACK takes all of ours, and each answer traces the graph again.
        return super().ops_to_not_decompose(program)[0], None


class _Prepared(PassBase):
    """Names each delegated constant's file, and has the unknown size of a view inferred, as XNNPACK wants it."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__()
        self._files = files

    def call(self, graph_module: torch.fx.GraphModule) -> PassResult:
        for node in graph_module.graph.nodes:
            if node.op == "placeholder" and node.name in self._files:
                _tag(node, self._files[node.name])
            elif node.op == "call_function" and "view_copy" in str(node.target):
                shape = list(node.args[1])
                unknown = [place for place, size in enumerate(shape) if not isinstance(size, int)]
                if len(unknown) == 1 and -1 not in shape:
                    shape[unknown[0]] = -1
                    node.args = (node.args[0], shape)
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
        return PassResult(graph_module, True)


def _tag(node: Any, file: str) -> None:
    node.meta.setdefault("custom", {})["delegate_constant_tag"] = file
    for user in node.users:
        # XNNPACK takes the tag of a quantised weight from the node that dequantises it.
        if "dequantize" in str(user.target) and user.args[0] is node:
            user.meta.setdefault("custom", {})["delegate_constant_tag"] = file


def lowered(
    decoder: Decoder, owners: Mapping[str, str], signal_tokens: int
) -> tuple[bytes, dict[str, bytes]]:
    """The program, and the data files that it reads by name: one for each layer and `SHARED`.

    It has the methods `forward` (1 to `capacity` tokens) and `signals` (1 to `signal_tokens`), over the same data.
    """
    methods = {FORWARD: (Decoding(decoder), decoder.capacity), SIGNALS: (Signals(decoder), signal_tokens)}
    programs = {}
    with torch.no_grad():
        for name, (method, most) in methods.items():
            tokens = torch.export.Dim("tokens", min=1, max=most)
            example = (torch.zeros(1, min(7, most), dtype=torch.long), torch.arange(min(7, most)))
            programs[name] = torch.export.export(
                method.eval(), example, dynamic_shapes=({1: tokens}, {0: tokens}), strict=False
            )
        files = {}
        for kind, members in (("p", decoder.named_parameters()), ("b", decoder.named_buffers())):
            for path, _ in members:
                name = f"{kind}_decoder_{path.replace('.', '_')}"
                files[name] = owners.get(path, SHARED)
        edge = to_edge_transform_and_lower(
            programs,
            partitioner=[_Partitioner()],
            transform_passes=[_Prepared(files)],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
        program = edge.to_executorch(
            ExecutorchBackendConfig(external_constants=lambda node: files.get(node.name))
        )
    content = bytes(program.buffer)
    return content, {name: bytes(data) for name, data in (program._tensor_data or {}).items()}
