"""Emitted torch modules against recorded outputs and torch references.

    python tests/evidence_emit_fx.py [--models bert,llama] [--no-backend] [--no-models]

Every ONNX backend test in five forms and in float64, and models captured from torch, as captured, read from a file,
after passes, exported again and compiled. One JSON row per cell in `evidence/emit_fx.jsonl`; prints the failures and a
table.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
import transformers
from opgraft.backends.onnxruntime.evaluator import ConstantEvaluator
from opgraft.ir.capture import capture
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.capture_torch_reference import to_numpy, to_torch
from opgraft.ir.emit_fx import emit_fx
from opgraft.ir.errors import InputError
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes
from opgraft.passes._pass import PassContext
from opgraft.passes._pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).parent))
import opset_backend as backend
from backend_forms import FORMS, Case, NotApplicable, is_random, load_cases, nodes_of
from make_models import Cnn, sharpen

ROOT = Path(__file__).resolve().parent.parent
PASSED, UNSUPPORTED, FAILED = "passed", "unsupported", "failed"
FLOAT64 = "as is, float64"
TOLERANCE = 1e-10
"""Of the largest output in float64: some hundreds of roundings of 2e-16 stay far below, a constant or a weight that was
rounded to float32 on the way is far above."""
FLOAT32_WEIGHTS = 1e-7
"""After passes that compute new float32 weights (a norm folded into a convolution, exp of a weight): a rounding of 6e-8
each."""
ROUNDED_IN_FLOAT32 = ("test_dynamicquantizelinear", "test_dynamicquantizelinear_expanded")
"""Recorded integers that a rounding in float32 decided: 2.5 times the scale is a tie there and none in float64."""

# -- backend tests -----------------------------------------------------------------------------------------------------


def given(value: Any) -> Any:
    """A recorded value as torch takes it; integers of 2 and 4 bits travel in bytes."""
    if value is None or isinstance(value, list):
        return value if value is None else [given(v) for v in value]
    array = np.asarray(value)
    if array.dtype.kind in "OSU" or array.dtype.name.startswith("float4"):
        raise InputError(f"torch has no tensors of {array.dtype}")
    if array.dtype.name == "float8_e5m2":
        return torch.from_numpy(array.view(np.uint8).copy()).view(torch.float8_e5m2)
    return to_torch(_in_bytes(array), like=torch.empty(0))


def _in_bytes(array: np.ndarray) -> np.ndarray:
    small = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}.get(array.dtype.name)
    return array if small is None else array.astype(small)


def returned(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [returned(v) for v in value]
    return None if value is None else to_numpy(value)


def run_emitted(program: Program, feed: Mapping[str, Any], dtype: Any = None) -> dict[str, Any]:
    module = emit_fx(program, dtype=dtype)
    arguments = [given(feed[v.name]) if v.name in feed else None for v in program.graph.inputs]
    with torch.no_grad():
        result = module(*arguments)
    results = [result] if len(program.graph.outputs) == 1 else list(result)
    return {v.name: returned(r) for v, r in zip(program.graph.outputs, results, strict=True)}


def difference(want: Any, got: Any, case: Case, *, widened: bool) -> str:
    """What differs from a recorded value, or nothing.

    The runner's tolerance is relative to each element, which allows nothing to sums that cancel: four units in the last
    place of the largest element are allowed too.
    """
    if isinstance(want, (list, tuple)):
        if len(want) != len(got):
            return f"length {len(want)} against {len(got)}"
        return next((d for w, g in zip(want, got, strict=True) if (d := difference(w, g, case, widened=widened))), "")
    if want is None or got is None:
        return backend.compare(want, got, 0, 0)
    wanted, atol = _in_bytes(np.asarray(want)), case.atol
    if wanted.dtype.name in ("bfloat16", "float16", "float32", "float64"):
        magnitudes = np.abs(wanted.astype(np.float64))
        largest = magnitudes[np.isfinite(magnitudes)].max(initial=0.0)
        atol = max(atol, 4 * float(ml_dtypes.finfo(wanted.dtype).eps) * largest)
        wanted = wanted.astype(np.float64) if widened else wanted
    return backend.compare(wanted, got, case.rtol, atol)


def backend_row(case: Case, form_name: str) -> dict[str, Any]:
    """What became of one backend test in one form."""
    row = {"test": case.name, "form": form_name}
    widened = form_name == FLOAT64
    try:
        form = FORMS["as is" if widened else form_name](case)
        program = capture_onnx(form.model)
        outputs = run_emitted(program, form.feeds[0] if form.feeds else {}, "float64" if widened else None)
    except NotApplicable as why:
        return row | {"outcome": "not applicable", "detail": str(why)}
    except InputError as error:
        return row | {"outcome": UNSUPPORTED, "detail": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever else is raised is a failure
        return row | {"outcome": FAILED, "detail": f"{type(error).__name__}: {error}"[:600]}
    for copy in form.unwrap(outputs):
        found = difference(case.expected, copy[: len(case.expected or [])], case, widened=widened)
        if found:
            return row | {"outcome": FAILED, "detail": found}
    return row | {"outcome": PASSED}


def backend_cases() -> list[Case]:
    """All tests whose outputs are determined."""
    return [c for c in load_cases(light=False) if not any(is_random(n) for n in nodes_of(c.model))]


# -- models ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A torch module, its inputs for two sizes, and which dims are dynamic."""

    module: torch.nn.Module
    inputs: Callable[[int, int], dict[str, torch.Tensor]]
    dims: dict[str, dict[int, str]]
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((2, 7), (3, 5))


class One(torch.nn.Module):
    """One tensor of what a transformers model returns."""

    def __init__(self, model: torch.nn.Module, key: str, **options: Any) -> None:
        super().__init__()
        self.model, self.key, self.options = model, key, options


class Text(One):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options)[self.key]


class Image(One):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels, **self.options)[self.key]


class Convolutions(Cnn):
    """With 1/8 where the test model has 0.1, which is another number in float32."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = x + self.depthwise(x)
        x = torch.cat([self.wide(x), torch.sigmoid(self.narrow(x))], dim=1)
        return self.head(torch.nn.functional.max_pool2d(x, 2).mean((2, 3)) - 0.125)


class Recurrent(torch.nn.Module):
    """A bidirectional LSTM and a GRU; sizes of their states are fixed when torch exports them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.LSTM(8, 16, bidirectional=True, batch_first=True)
        self.second = torch.nn.GRU(32, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, _ = self.first(x)
        return self.second(states)


def _text(model: str, key: str, config: dict[str, Any], **options: Any) -> Sample:
    """Heads of width 16: the scale 1/4 is the same number in float32 and float64."""
    shared = {"vocab_size": 50, "attn_implementation": "eager", "num_hidden_layers": 2}
    cls = getattr(transformers, model)
    made = cls(cls.config_class(**(shared | config)))

    def inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[-1, -2:] = 0
        return {"input_ids": torch.arange(batch * length).reshape(batch, length) % 50, "attention_mask": mask}

    dims = {0: "batch", 1: "length"}
    return Sample(Text(made, key, **options), inputs, {"input_ids": dims, "attention_mask": dims})


def _image(model: str, size: int, config: dict[str, Any]) -> Sample:
    cls = getattr(transformers, model)
    made = cls(cls.config_class(image_size=size, **config))
    return Sample(
        Image(made, "last_hidden_state"),
        lambda batch, _: {"pixels": torch.randn(batch, 3, size, size)},
        {"pixels": {0: "batch"}},
    )


_WIDTHS = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
_GQA = _WIDTHS | {"num_key_value_heads": 1}
MODELS: dict[str, Callable[[], Sample]] = {
    "bert": partial(_text, "BertModel", "last_hidden_state", _WIDTHS),
    # Its own activation has constants that are rounded to float32 in the graph.
    "gpt2": partial(
        _text, "GPT2LMHeadModel", "logits",
        {"n_embd": 32, "n_head": 2, "n_positions": 64, "activation_function": "gelu"}, use_cache=False,
    ),
    "llama": partial(_text, "LlamaForCausalLM", "logits", _GQA, use_cache=False),
    "llama-sdpa": partial(_text, "LlamaForCausalLM", "logits", _GQA | {"attn_implementation": "sdpa"}, use_cache=False),
    "qwen3": partial(_text, "Qwen3ForCausalLM", "logits", _GQA | {"head_dim": 16}, use_cache=False),
    "t5": partial(
        _text, "T5EncoderModel", "last_hidden_state", {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_heads": 2}
    ),
    "vit": partial(_image, "ViTModel", 32, _WIDTHS | {"patch_size": 8, "num_hidden_layers": 2}),
    "swin": partial(
        _image, "SwinModel", 32,
        {"patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4},
    ),
    "convnext": partial(_image, "ConvNextModel", 64, {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}),
    "cnn": lambda: Sample(
        Convolutions(), lambda batch, _: {"image": torch.randn(batch, 3, 16, 16)}, {"image": {0: "batch"}}
    ),
    "lstm": lambda: Sample(
        Recurrent(), lambda batch, length: {"x": torch.randn(batch, length, 8)}, {}, ((2, 7), (2, 7))
    ),
    # Its scan in Python fixes the length when torch exports it.
    "mamba": lambda: _fixed_length(
        _text("MambaForCausalLM", "logits", {"hidden_size": 16, "state_size": 4, "use_cache": False})
    ),
}  # fmt: skip


def _fixed_length(sample: Sample) -> Sample:
    return Sample(sample.module, sample.inputs, {k: {0: "batch"} for k in sample.dims}, ((2, 7), (3, 7)))


class Subject:
    """One model with its program and its reference in float64."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.sample = MODELS[name]()
        self.module = sharpen(self.sample.module, 1)
        self.feeds = [self.sample.inputs(*size) for size in self.sample.sizes]
        shapes = {"dynamic_shapes": self.sample.dims} if self.sample.dims else {}
        self.program = capture(self.module, (), self.feeds[0], **shapes)
        self.names = [v.name or "" for v in self.program.graph.inputs]

    def error(self, module: Callable[..., Any]) -> float:
        """The largest difference from the torch reference, as a fraction of the largest output."""
        worst = 0.0
        for feed in self.feeds:
            reference = self.program.reference_float64
            assert reference is not None
            wanted = list(reference({n: v.numpy() for n, v in feed.items()}).values())
            with torch.no_grad():
                result = module(*self.arguments(feed))
            found = [result] if isinstance(result, torch.Tensor) else list(result)
            for want, got in zip(wanted, found, strict=True):
                assert got.dtype == torch.float64
                assert got.shape == want.shape
                worst = max(worst, float(np.abs(got.numpy() - want).max() / np.abs(want).max()))
        return worst

    def arguments(self, feed: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(feed[n].double() if feed[n].is_floating_point() else feed[n] for n in self.names)

    def exported(self, module: torch.fx.GraphModule) -> torch.nn.Module:
        """The emitted module through `torch.export`, dims dynamic as they were."""
        dims = {n: dict.fromkeys(self.sample.dims.get(n, {}), torch.export.Dim.AUTO) for n in self.names}
        placeholders = [n.target for n in module.graph.nodes if n.op == "placeholder"]
        shapes = dict(zip(placeholders, dims.values(), strict=True))
        with torch.no_grad():
            return torch.export.export(module, self.arguments(self.feeds[0]), dynamic_shapes=shapes).module()

    def after(self, pipeline: str) -> Program:
        program = self.program.clone()
        with ConstantEvaluator() as evaluate:
            context = PassContext(program, evaluate=evaluate, newest_opset=26)
            Pipeline.parse(pipeline).run(program, context)
        return program


def compiled(module: torch.nn.Module) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="eager", dynamic=True)


STAGES: dict[str, tuple[Callable[[Subject], Callable[..., Any]], float]] = {
    "emitted": (lambda s: emit_fx(s.program, dtype="float64"), TOLERANCE),
    "from a file": (lambda s: emit_fx(capture_onnx(model_bytes(s.program)), dtype="float64"), TOLERANCE),
    "simplify": (lambda s: emit_fx(s.after("simplify"), dtype="float64"), FLOAT32_WEIGHTS),
    "upgrade-opset": (lambda s: emit_fx(s.after("upgrade-opset{version=26}"), dtype="float64"), TOLERANCE),
    "exported again": (lambda s: s.exported(emit_fx(s.program, dtype="float64")), TOLERANCE),
    "compiled": (lambda s: compiled(emit_fx(s.program, dtype="float64")), TOLERANCE),
}


def model_rows(name: str, stages: Sequence[str] = tuple(STAGES)) -> Iterator[dict[str, Any]]:
    subject = Subject(name)
    for stage in stages:
        make, tolerance = STAGES[stage]
        row: dict[str, Any] = {"test": name, "form": stage}
        try:
            error = subject.error(make(subject))
        except Exception as problem:  # noqa: BLE001 - as above
            yield row | {"outcome": FAILED, "detail": f"{type(problem).__name__}: {problem}"[:600]}
            continue
        outcome = PASSED if error <= tolerance else FAILED
        yield row | {"outcome": outcome, "error": error, "detail": "" if outcome == PASSED else f"error {error:.2g}"}


# -- all of it ---------------------------------------------------------------------------------------------------------


def all_rows(models: Sequence[str], *, with_backend: bool) -> Iterator[dict[str, Any]]:
    for case in backend_cases() if with_backend else ():
        for form in (*FORMS, FLOAT64):
            if form != FLOAT64 or case.name not in ROUNDED_IN_FLOAT32:
                yield backend_row(case, form)
    for name in models:
        yield from model_rows(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--no-backend", action="store_true")
    parser.add_argument("--no-models", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    path = ROOT / "evidence" / "emit_fx.jsonl"
    path.parent.mkdir(exist_ok=True)
    counts: dict[str, Counter[str]] = {}
    with path.open("w") as sink, np.errstate(all="ignore"):
        models = [] if arguments.no_models else arguments.models.split(",")
        for row in all_rows(models, with_backend=not arguments.no_backend):
            print(json.dumps(row), file=sink, flush=True)
            counts.setdefault(row["form"], Counter())[row["outcome"]] += 1
            if row["outcome"] == FAILED or "error" in row:
                print(row["outcome"], row["test"], row["form"], row["detail"] or f"{row['error']:.1e}", flush=True)
    print(f"onnx {onnx.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    for form, found in counts.items():
        print(f"{form}: {', '.join(f'{count} {outcome}' for outcome, count in found.most_common())}")
    return 1 if any(found[FAILED] for found in counts.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
