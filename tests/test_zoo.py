"""The zoo of architectures: each model is captured and agrees with torch, and is what its file says it is."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from opgraft.backends.onnxruntime.executor import Executor  # noqa: E402
from opgraft.ir.capture_torch import capture_torch  # noqa: E402
from opgraft.ir.capture_torch_reference import quiet_torch  # noqa: E402
from opgraft.ir.errors import InputError  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from zoo import COLLIDING_BATCH, ZOO, ZooEntry  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.parametrize("name", ZOO)]
HIDING_MASKS = {"causal", "block-causal", "block-diagonal", "sparse", "padding", "border", "shift"}


@pytest.fixture(scope="module", autouse=True)
def _uncollected() -> Iterator[None]:
    """Tracing makes so many objects that the collector walks all of torch again and again: a third of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor() as started:
        yield started


def shallow(entry: ZooEntry) -> dict[str, int]:
    """One block (of each kind) instead of two: to the exporter, which takes nearly all of the time, all are alike."""
    return {"depth": 1} if any(field.name == "depth" for field in fields(entry.file.Sizes)) else {}


def arrays(entry: ZooEntry, batch: int, **sizes: int) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in entry.example(batch=batch, seed=batch, **sizes).items()}


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Indices of codes are equal; floats differ by rounding, relative to the largest.

    Other orders of additions in width 16 to 48 cost some 1e-7, which sharp attention, norms and gates enlarge; 1e-5
    leaves a factor of four over the worst of all models at two blocks (xAR, 2.4e-6).
    """
    assert list(found) == list(wanted)
    for name, want in wanted.items():
        assert found[name].shape == want.shape
        assert found[name].dtype == want.dtype
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(found[name], want)
            continue
        scale = np.abs(want).max()
        assert scale > 1e-2, "a vanishing output proves nothing"
        assert np.abs(found[name] - want).max() <= 1e-5 * scale


def test_capture_agrees_with_torch(name: str, executor: Executor) -> None:
    """At the batch and the sizes of the example, and at others along every dim declared dynamic."""
    entry = ZOO[name]
    module, example = entry.build(**shallow(entry)), entry.example(batch=2)
    if entry.export_fails:
        with pytest.raises(InputError, match=entry.export_fails):
            capture_torch(module, example, dynamic_shapes=entry.dynamic)
        return
    capture = capture_torch(module, example, dynamic_shapes=entry.dynamic)
    assert capture.warnings == ()
    model = executor.load(ir.to_proto(capture.model).SerializeToString())
    for inputs in (arrays(entry, 2), arrays(entry, 3, **entry.resized)):
        wanted = capture.reference(inputs)
        assert_close(executor.run(model, inputs), wanted)
        exact = capture.reference_float64(inputs)
        assert_close(wanted, {key: value.astype(wanted[key].dtype) for key, value in exact.items()})


def test_exports_at_the_lowest_opset(name: str, executor: Executor) -> None:
    """By PyTorch's exporter, with its own optimizer on the graph, which `capture_torch` leaves off."""
    entry = ZOO[name]
    if entry.export_fails:
        pytest.skip("known not to export; the message is checked above")
    module, example = entry.build(**shallow(entry)), entry.example(batch=2)
    with quiet_torch(), torch.no_grad():
        exported = torch.onnx.export(module, kwargs=example, dynamo=True, opset_version=18, verbose=False)
        wanted = torch.utils._pytree.tree_leaves(module(**example))
    assert exported.model.opset_imports[""] == 18
    inputs = {key: tensor.numpy() for key, tensor in example.items()}
    found = executor.run_once(exported.model_proto.SerializeToString(), inputs)
    assert_close(found, dict(zip(found, (tensor.numpy() for tensor in wanted), strict=True)))


@dataclass
class AttentionCall:
    """One softmax over keys, as it ran: shapes of the scores, and the width of a head."""

    path: str
    scores: tuple[int, ...]
    kv_heads: int | None
    head_dims: set[int]
    hides: bool
    """Some keys get no weight at all."""


class AttentionRecorder(torch.overrides.TorchFunctionMode):
    """Sees the softmaxes and fused attentions of a module's forward pass, and which part of it runs each."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.calls: list[AttentionCall] = []
        self.running = [""]
        self.head_dims: set[int] = set()
        for path, part in module.named_modules():
            part.register_forward_pre_hook(lambda *_, path=path: self._enter(path))
            part.register_forward_hook(lambda *_: self._leave())

    def _enter(self, path: str) -> None:
        self.running.append(path)
        self.head_dims = set()

    def _leave(self) -> None:
        self.running.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        path = self.running[-1]
        if name == "scaled_dot_product_attention":
            query, key = args[:2]
            hides = kwargs.get("attn_mask") is not None or kwargs.get("is_causal", False)
            scores = (*query.shape[:-1], key.shape[-2])
            self.calls.append(AttentionCall(path, scores, key.shape[-3], {query.shape[-1]}, hides))
        elif name == "softmax" and kwargs.get("dim", args[-1]) in (-1, result.ndim - 1):
            # Swin's masks are -100: what they leave is e^-100.
            hides = bool((result < 1e-30).any())
            self.calls.append(AttentionCall(path, tuple(result.shape), None, set(self.head_dims), hides))
        elif name in ("matmul", "__matmul__", "bmm", "einsum"):
            tensors = [part for part in args if isinstance(part, torch.Tensor)]
            self.head_dims.add(tensors[0].shape[-1])
        return result


def is_site(site: dict[str, Any], call: AttentionCall, batch: int) -> bool:
    folded = len(call.scores) == 3 and call.scores[0] == batch * site["heads"]
    return (
        call.path == site["path"]
        and (folded or call.scores[-3] == site["heads"])
        and call.kv_heads in (None, site["kv_heads"])
        and site["head_dim"] in call.head_dims
        and call.hides == bool(HIDING_MASKS & set((site["mask"] or "").split("+")))
        and (site["kind"] != "self" or call.scores[-1] == call.scores[-2])
    )


def assert_truth(entry: ZooEntry, batch: int, **sizes: int) -> None:
    """Every softmax over keys is a stated site, with its heads, width, kind and mask; no other runs."""
    module, example, truth = entry.build(**sizes), entry.example(batch=batch, **sizes), entry.truth(**sizes)
    recorder = AttentionRecorder(module)
    with torch.no_grad(), recorder:
        outputs = module(**example)
    assert all(torch.isfinite(tensor).all() for tensor in torch.utils._pytree.tree_leaves(outputs))
    calls = list(recorder.calls)
    for site in truth["attention"]:
        for _ in range(site["calls"]):
            match = next((call for call in calls if is_site(site, call, batch)), None)
            assert match is not None, (site, calls)
            calls.remove(match)
    assert not calls, "attention that the file does not state"
    for site in truth["mlp"]:
        shapes = [tuple(parameter.shape) for parameter in module.get_submodule(site["path"]).parameters()]
        assert any(site["width"] in shape for shape in shapes), (site, shapes)


def test_truth(name: str) -> None:
    entry = ZOO[name]
    assert entry.truth() == entry.file.TRUTH
    assert_truth(entry, batch=3)


def test_sizes_can_collide(name: str) -> None:
    """As many dims as the architecture allows are as large as the batch: equal sizes must not identify axes."""
    assert_truth(ZOO[name], batch=COLLIDING_BATCH, **ZOO[name].colliding)


def test_weights_show(name: str) -> None:
    """No parameter is all one number, no two are equal, and a seed gives the same weights again."""
    parameters = dict(ZOO[name].build(seed=1).named_parameters())
    again = dict(ZOO[name].build(seed=1).named_parameters())
    for key, parameter in parameters.items():
        assert torch.equal(parameter, again[key])
        assert parameter.numel() == 1 or parameter.std() > 0, key
    for (first, left), (second, right) in itertools.combinations(parameters.items(), 2):
        assert left.shape != right.shape or not torch.equal(left, right), (first, second)
