"""The outline of a program as an SVG picture: boxes from top to bottom, repeated runs once, residual paths beside them.

Between boxes stands the shape of what flows, where it changes: each dim with its role and size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opgraft.ir.sites.outline import Part, Repeat

_WIDTH, _BOX_WIDTH, _BOX_HEIGHT, _ADD_SIZE = 760, 360, 46, 24
_GAP, _SHAPE_GAP, _GROUP_MARGIN, _LEFT = 20, 38, 18, 120
_COLORS = {
    "attention": "#dbe7ff",
    "mlp": "#ffe8cc",
    "norm": "#eef3e6",
    "embedding": "#f3e3f7",
    "convolution": "#d9f2ee",
    "recurrence": "#ffe0e0",
    "router": "#fff3b8",
    "pool": "#e6e6e6",
    "linear": "#fbe4d5",
    "add": "#ffffff",
}
_STYLE = (
    "text{font-family:Helvetica,Arial,DejaVu Sans,sans-serif;font-size:13px;fill:#222}"
    ".title{font-weight:bold}.detail{font-size:12px}.shape{font-size:11px;fill:#555}.count{font-size:15px;font-weight:bold}"
    ".box{stroke:#444;stroke-width:1}.group{fill:none;stroke:#888;stroke-dasharray:5 4}"
    ".flow{stroke:#444;fill:none;stroke-width:1.2;marker-end:url(#tip)}.past{stroke:#777;fill:none;stroke-width:1.2;marker-end:url(#tip)}"
)


@dataclass
class _Placed:
    part: Part
    top: float
    bottom: float


def draw_blocks(
    title: str, inputs: Sequence[tuple[str, str]], repeats: Sequence[Repeat], outputs: Sequence[tuple[str, str]]
) -> str:
    """The picture as SVG text. `inputs` and `outputs`: name and shape."""
    canvas = _Canvas()
    canvas.text(_LEFT + _BOX_WIDTH / 2, 28, title, "title")
    canvas.y = 48
    for name, shape in inputs:
        canvas.terminal(name, shape)
    for repeat in repeats:
        canvas.repeat(repeat)
    for name, shape in outputs:
        canvas.terminal(name, shape)
    return canvas.svg()


class _Canvas:
    def __init__(self) -> None:
        self.y = 0.0
        self._items: list[str] = []
        self._placed: list[_Placed] = []
        self._shape = ""
        self._has_flow = False
        self._extra = 0
        self._group_top: float | None = None
        """Where the frame of the repeated run being drawn begins."""

    def svg(self) -> str:
        height = int(self.y + 20)
        marker = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>'
        )
        size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
        body = "\n".join(self._items)
        return (
            f'{head}\n<style>{_STYLE}</style>{marker}\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
        )

    def text(self, x: float, y: float, words: str, kind: str, anchor: str = "middle") -> None:
        self._items.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>')

    def terminal(self, name: str, shape: str) -> None:
        """An input or output of the model."""
        centre = _LEFT + _BOX_WIDTH / 2
        if self._has_flow:
            self._flow("")
        self.text(centre, self.y + 14, f"{name}  {shape}", "detail")
        self.y += 22

    def repeat(self, repeat: Repeat) -> None:
        if repeat.count == 1:
            for part in repeat.parts:
                self._part(part)
            return
        if self._has_flow:
            # The frame crosses the arrow into its first box.
            self._extra = _GROUP_MARGIN
        top = self.y + _GAP / 2
        self._group_top = top
        for part in repeat.parts:
            self._part(part)
        self._group_top = None
        self.y += _GROUP_MARGIN
        x, width = _LEFT - _GROUP_MARGIN, _BOX_WIDTH + 2 * _GROUP_MARGIN + 110
        self._items.append(
            f'<rect class="group" rx="8" x="{x}" y="{top:g}" width="{width}" height="{self.y - top:g}"/>'
        )
        self.text(x + width - 12, top + 20, f"\u00d7 {repeat.count}", "count", "end")

    def _flow(self, shape: str) -> None:
        centre, gap = _LEFT + _BOX_WIDTH / 2, (_SHAPE_GAP if shape else _GAP) + self._extra
        self._extra = 0
        self._items.append(f'<path class="flow" d="M{centre:g} {self.y:g}v{gap}"/>')
        if shape:
            self.text(centre + 10, self.y + gap / 2 + 4, shape, "shape", "start")
        self.y += gap

    def _part(self, part: Part) -> None:
        if self._has_flow or self._placed:
            self._flow(self._shape if self._shape_changed(part) else "")
        top, centre = self.y, _LEFT + _BOX_WIDTH / 2
        if part.kind == "add":
            self._items.append(
                f'<circle class="box" fill="#fff" cx="{centre:g}" cy="{top + _ADD_SIZE / 2:g}" r="{_ADD_SIZE / 2:g}"/>'
            )
            self.text(centre, top + _ADD_SIZE / 2 + 5, "+", "title")
            self.y += _ADD_SIZE
            self._past(part, top + _ADD_SIZE / 2)
        else:
            fill = _COLORS.get(part.kind, "#f4f4f4")
            self._items.append(
                f'<rect class="box" rx="6" fill="{fill}" x="{_LEFT}" y="{top:g}" '
                f'width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}"/>'
            )
            middle = top + _BOX_HEIGHT / 2
            self.text(centre, middle - 3 if part.detail else middle + 5, part.title, "title")
            if part.detail:
                self.text(centre, middle + 14, part.detail, "detail")
            self.y += _BOX_HEIGHT
        self._placed.append(_Placed(part, top, self.y))
        self._shape = part.shape
        self._has_flow = True

    def _shape_changed(self, part: Part) -> bool:
        """Whether what flows into the part was not written before."""
        before = [placed.part.shape for placed in self._placed[-2:]]
        return len(before) < 2 or before[0] != before[1]

    def _past(self, part: Part, y: float) -> None:
        """The path around the branch: from behind the part that made what is carried on."""
        start = self._start_of(part)
        if start is None:
            return
        right, centre = _LEFT + _BOX_WIDTH + 34, _LEFT + _BOX_WIDTH / 2
        edge = centre + _ADD_SIZE / 2
        self._items.append(
            f'<path class="past" d="M{centre:g} {start:g}H{right - 8}q8 0 8 8V{y - 8:g}q0 8 -8 8H{edge + 2:g}"/>'
        )

    def _start_of(self, part: Part) -> float | None:
        for placed in reversed(self._placed):
            if placed.part.output is part.stream:
                inside = self._group_top is None or placed.top > self._group_top
                # What is carried into a repeated run comes from before it only the first time.
                return placed.bottom + 6 if inside else (self._group_top or 0.0) + 6
        return None if self._group_top is None else self._group_top + 6
