"""Make the small models of `tests/models` from seeds: `python tests/make_models.py`. Needs torch and transformers.

They are sharpened: random weights of a fresh network make attention uniform and biases zero, so that a dropped mask or
bias moves the output by less than rounding does. Here every bias is non-zero, every gain away from one, no two tensors
equal, and query and key projections are large enough that attention picks few tokens.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

FOLDER = Path(__file__).parent / "models"


def sharpen(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Redraw every parameter and buffer of `module` in place."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if tensor.ndim >= 2:
                fan_in = tensor[0].numel()
                sharp = 2.5 if any(part in name for part in ("query", "key", "q_proj", "k_proj")) else 1.0
                tensor.copy_(draw(tensor.shape) * sharp / fan_in**0.5)
            elif name.endswith("bias"):
                tensor.copy_(0.3 * draw(tensor.shape))
            else:
                tensor.copy_(1.0 + 0.3 * draw(tensor.shape))
        for name, tensor in module.named_buffers():
            if name.endswith("running_mean"):
                tensor.copy_(0.3 * draw(tensor.shape))
            elif name.endswith("running_var"):
                tensor.copy_(1.0 + 0.5 * torch.rand(tensor.shape, generator=generator))
    return module.eval()


class Cnn(torch.nn.Module):
    """Residual block, depthwise convolution, pooling, branches that are concatenated; [B, 3, H, W] -> [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = torch.nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.narrow = torch.nn.Conv2d(8, 8, 1, stride=2)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = x + self.depthwise(x)
        x = torch.cat([self.wide(x), torch.sigmoid(self.narrow(x))], dim=1)
        x = torch.nn.functional.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)) - 0.1)


class Encoder(torch.nn.Module):
    """BERT, 2 layers of width 32, pooled over the tokens that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=40, attn_implementation="eager",
        )  # fmt: skip
        self.bert = transformers.BertModel(config)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.bert(input_ids, attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)


class Decoder(torch.nn.Module):
    """Llama, 2 layers of width 32, 4 heads, 2 kv-heads; logits [B, T, 50]."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.LlamaConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, max_position_embeddings=64, attn_implementation="eager",
        )  # fmt: skip
        self.llama = transformers.LlamaForCausalLM(config)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.llama(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def export(name: str, module: torch.nn.Module, examples: dict[str, torch.Tensor], dims: dict[int, str]) -> None:
    shapes = {axis: torch.export.Dim(label, max=40) for axis, label in dims.items()}
    program = torch.onnx.export(
        module,
        kwargs=examples,
        dynamo=True,
        dynamic_shapes=dict.fromkeys(examples, shapes),
        input_names=list(examples),
        output_names=["result"],
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(FOLDER / f"{name}.onnx", external_data=False)


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    FOLDER.mkdir(exist_ok=True)
    ids = torch.arange(14).reshape(2, 7)
    mask = torch.ones(2, 7, dtype=torch.int64)
    text = {0: "batch", 1: "length"}
    export("cnn", sharpen(Cnn(), 1), {"image": torch.randn(2, 3, 16, 16)}, {0: "batch"})
    export("encoder", sharpen(Encoder(), 2), {"input_ids": ids, "attention_mask": mask}, text)
    export("decoder", sharpen(Decoder(), 3), {"input_ids": ids, "attention_mask": mask}, text)


if __name__ == "__main__":
    main()
