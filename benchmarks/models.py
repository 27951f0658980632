"""The models that benchmarks run on, made from seeds into a folder: `python benchmarks/models.py FOLDER [NAME ...]`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def chain(path: Path, n_nodes: int = 16_000) -> None:
    """Elementwise chain on [N, 8]: a quarter Identity, a half with a constant of their own, a quarter Relu."""
    rng = np.random.default_rng(0)
    nodes, initializers, current = [], [], "x"
    for index in range(n_nodes):
        operator = ("Add", "Relu", "Mul", "Identity")[index % 4]
        operands = [current]
        if operator in ("Add", "Mul"):
            initializers.append(numpy_helper.from_array(rng.standard_normal(8).astype(np.float32), f"c{index}"))
            operands.append(f"c{index}")
        current = f"t{index}"
        nodes.append(helper.make_node(operator, operands, [current]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["N", 8])],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def _export(module: Any, examples: dict[str, Any], dynamic: dict[str, dict[int, str]], path: Path) -> None:
    import torch

    dims: dict[str, Any] = {}
    shapes = {
        name: {axis: dims.setdefault(label, torch.export.Dim(label, max=512)) for axis, label in axes.items()}
        for name, axes in dynamic.items()
    }
    program = torch.onnx.export(
        module.eval(),
        kwargs=examples,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=list(examples),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    program.save(path)


def minilm(path: Path) -> None:
    """The packaged MiniLM sentence encoder (6 layers, width 384)."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from sentence_encoder import export_encoder

    export_encoder(path)


def vit_base(path: Path) -> None:
    """ViT-B/16, random weights, dynamic batch."""
    import torch
    import transformers

    torch.manual_seed(0)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = transformers.ViTForImageClassification(transformers.ViTConfig())

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.vit(pixel_values).logits
            return logits

    _export(Logits(), {"pixel_values": torch.randn(2, 3, 224, 224)}, {"pixel_values": {0: "batch"}}, path)


def _llama(path: Path, hidden: int, intermediate: int, vocabulary: int) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=32,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=vocabulary,
    )

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = transformers.LlamaForCausalLM(config)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.decoder(input_ids=input_ids, use_cache=False).logits
            return logits

    ids = torch.randint(0, vocabulary, (2, 9))
    _export(Logits(), {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}}, path)


def llama_32(path: Path) -> None:
    """A 32-layer Llama-shaped graph, width 512, about 0.5 GB of weights."""
    _llama(path, 512, 1408, 32_000)


def llama_32_thin(path: Path) -> None:
    """The same graph with next to no weights (width 64): only nodes cost."""
    _llama(path, 64, 128, 256)


MODELS: dict[str, Callable[[Path], None]] = {
    "minilm": minilm,
    "vit-b": vit_base,
    "llama-32": llama_32,
    "llama-32-thin": llama_32_thin,
    "chain-16000": chain,
}


def model_path(folder: Path, name: str) -> Path:
    """The model's file, made when it is not there yet."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        warnings.filterwarnings("ignore")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"making-{name}.onnx"
        MODELS[name](temporary)
        temporary.replace(path)
    return path


if __name__ == "__main__":
    for wanted in sys.argv[2:] or MODELS:
        print(model_path(Path(sys.argv[1]), wanted))
