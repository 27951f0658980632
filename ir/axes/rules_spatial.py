"""Relations of convolutions, pools, resizing and unfolding: dims along which a window slides."""

from __future__ import annotations

from collections.abc import Sequence

from opgraft.ir.axes.graph import Window
from opgraft.ir.axes.rule import AxisRule, NodeAxes
from opgraft.ir.dims import Size

_UNKNOWN = "the shape is not known"


def _convolution(data: int, weight: int, bias: int, *, transposed: bool = False) -> AxisRule:
    def rule(n: NodeAxes) -> None:
        ins, kernel, outs = n.operand(data), n.operand(weight), n.output()
        if ins is None or kernel is None or outs is None or len(ins) < 3:
            n.opaque(_UNKNOWN)
            return
        n.same(ins[0], outs[0])
        _relate_channels(n, ins[1], kernel, outs[1], transposed)
        for number in kernel[2:]:
            n.reduced(number)
        sizes: Sequence[Size] = n.ints_attribute("kernel_shape") or [n.size(d) for d in kernel[2:]]
        _relate_windows(n, ins[2:], outs[2:], sizes, transposed)
        bias_dims = n.operand(bias)
        if bias_dims:
            n.same(bias_dims[0], outs[1])

    return rule


def _relate_channels(n: NodeAxes, channel: int, kernel: range, out: int, transposed: bool) -> None:
    groups = n.int_attribute("group", 1)
    made, read = (kernel[1], kernel[0]) if transposed else (kernel[0], kernel[1])
    if groups == 1:
        n.same(made, out)
        n.contracted(channel, read)
        return
    if groups == n.size(channel) == n.size(out):
        # Depthwise: every channel on its own.
        n.same(channel, out)
        n.same(read if transposed else made, out)
        n.reduced(made if transposed else read)
        return
    n.mixed(channel, out)
    if transposed:
        n.mixed(made, out)
    else:
        n.same(made, out)
    n.reduced(read)


def _relate_windows(
    n: NodeAxes, ins: Sequence[int], outs: Sequence[int], kernel: Sequence[Size], transposed: bool = False
) -> None:
    rank = len(ins)
    strides = n.ints_attribute("strides") or [1] * rank
    dilations = n.ints_attribute("dilations") or [1] * rank
    pads = n.ints_attribute("pads") or [0] * (2 * rank)
    auto = n.text_attribute("auto_pad", "NOTSET")
    for index, (source, target) in enumerate(zip(ins, outs, strict=True)):
        size = kernel[index] if index < len(kernel) else None
        if size == 1 and strides[index] == 1 and pads[index] == pads[index + rank] == 0 and auto in ("NOTSET", "VALID"):
            n.same(source, target)
        elif not isinstance(size, int) or auto not in ("NOTSET", "VALID"):
            n.window(source, target, None)
        else:
            before = 0 if auto == "VALID" else pads[index]
            n.window(source, target, Window(size, strides[index], before, dilations[index], transposed))


def _pool(n: NodeAxes) -> None:
    ins = n.operand(0)
    if ins is None:
        n.opaque(_UNKNOWN)
        return
    for index in range(len(n.node.outputs)):
        outs = n.output(index)
        if outs is None:
            if n.node.outputs[index].name:
                n.opaque(_UNKNOWN)
            continue
        n.all_same(ins[:2], outs[:2])
        _relate_windows(n, ins[2:], outs[2:], n.ints_attribute("kernel_shape") or [])


def _global_pool(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    n.all_same(ins[:2], outs[:2])
    for source, target in zip(ins[2:], outs[2:], strict=True):
        n.reduced(source)
        n.created(target, "a dim of size 1")


def _resize(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    axes = n.ints_attribute("axes")
    for index, (source, target) in enumerate(zip(ins, outs, strict=True)):
        untouched = axes is not None and index not in [a % len(ins) for a in axes]
        if untouched or (index < 2 and n.size(source) == n.size(target)):
            n.same(source, target)
        else:
            n.mixed(source, target)


def _col2im(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    n.same(ins[0], outs[0])
    # [N, C * prod(block), L]: the channel is the leading digit of dim 1.
    for target in outs[1:]:
        n.scrambled(ins[1], target)
    for target in outs[2:]:
        n.scrambled(ins[2], target)


def _grid_sample(n: NodeAxes) -> None:
    ins, grid, outs = n.operand(0), n.operand(1), n.output()
    if ins is None or grid is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    n.all_same(ins[:2], outs[:2])
    n.same(grid[0], outs[0])
    n.all_same(grid[1:-1], outs[2:])
    for source in ins[2:]:
        for target in outs[2:]:
            n.scrambled(source, target)
    n.reduced(grid[-1])


SPATIAL_AXIS_RULES: dict[str, AxisRule] = {
    "Conv": _convolution(0, 1, 2),
    "ConvInteger": _convolution(0, 1, 9),
    "QLinearConv": _convolution(0, 3, 8),
    "ConvTranspose": _convolution(0, 1, 2, transposed=True),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    "Resize": _resize,
    "Upsample": _resize,
    "Col2Im": _col2im,
    "GridSample": _grid_sample,
}
