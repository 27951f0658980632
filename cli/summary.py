"""The human summary of a run: what changed, what was done, what was proved, what was gained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from opgraft.cli.report import LatencyReport, PassReport, Report
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_MAX_OPERATORS = 14
# Piped output is read in files and tickets.
_WIDTH_IN_A_PIPE = 100


def print_summary(report: Report, console: Console | None = None) -> None:
    """Print what was done, verified and gained. Colours only on a terminal."""
    out = console or _console()
    before, after = sum(report.nodes_before.values()), sum(report.nodes_after.values())
    _line(out, f"[bold]{escape(report.source)}[/bold]: {before} -> {after} nodes{_sizes(report)}")
    _print_operators(report, out)
    _print_passes(report, out)
    _print_evidence(report, out)
    _print_gains(report, out)
    for note in report.notes:
        _line(out, f"note: {escape(note)}")
    if report.output:
        _line(out, f"wrote [bold]{escape(report.output)}[/bold]")


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = shutil.get_terminal_size((_WIDTH_IN_A_PIPE, 24)).columns
    return console


def _line(out: Console, text: str) -> None:
    """One line of prose: the terminal wraps it, so that paths can be copied whole."""
    out.print(text, soft_wrap=True)


def _sizes(report: Report) -> str:
    if not report.bytes_before or not report.bytes_after:
        return ""
    return f", {_mib(report.bytes_before)} -> {_mib(report.bytes_after)}"


def _mib(n_bytes: float) -> str:
    return f"{n_bytes / (1 << 20):.2f} MiB" if n_bytes >= 1 << 20 else f"{n_bytes / 1024:.1f} KiB"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        # A name gives way where the columns do not fit; numbers never do.
        style: dict[str, Any] = {"overflow": "ellipsis"} if index == 0 else {"justify": "right"}
        table.add_column(column, no_wrap=True, min_width=8 if index == 0 else len(column), **style)
    return table


def _print_operators(report: Report, out: Console) -> None:
    names = {*report.nodes_before, *report.nodes_after}
    rows = [(n, report.nodes_before.get(n, 0), report.nodes_after.get(n, 0)) for n in sorted(names)]
    changed = sorted((r for r in rows if r[1] != r[2]), key=lambda r: r[2] - r[1])
    if not changed:
        return
    table = _table("operator", "before", "after")
    for name, before, after in changed[:_MAX_OPERATORS]:
        table.add_row(escape(name), str(before), str(after))
    rest = len(changed) - _MAX_OPERATORS
    if rest > 0:
        table.add_row(f"({rest} more)", "", "")
    out.print(table)
    out.print()


def _print_passes(report: Report, out: Console) -> None:
    rows = [p for p in report.passes if p.n_rewrites or p.taken_back]
    if not rows:
        _line(out, "no rewrite applied")
        return
    table = _table("pass", "rewrites", "ms", "contract", "evidence")
    for row in rows:
        evidence = _evidence_of(row, report.outcome)
        table.add_row(row.name, str(row.n_rewrites), f"{row.seconds * 1000:.0f}", row.contract, evidence)
    out.print(table)
    out.print()
    refuted = {entry["pass"]: entry for entry in report.refuted}
    for row in rows:
        if row.taken_back:
            _line(out, f"taken back: [bold]{row.name}[/bold]: {escape(row.taken_back)}")
            for kind, path in refuted.get(row.name, {}).get("reproducer", {}).items():
                _line(out, f"  {kind}: {escape(path)}")


def _evidence_of(row: PassReport, outcome: str) -> str:
    if row.taken_back:
        return "taken back"
    if row.n_regions_checked:
        return f"{row.n_regions_checked} local"
    return "end to end" if outcome == "verified" else "none"


def _print_evidence(report: Report, out: Console) -> None:
    for stage in report.evidence.get("stages", []):
        _line(out, escape(f"stage {stage['stage']}: {stage['outcome']} ({stage['contract']})"))
    cases = report.evidence.get("cases", [])
    is_exact = report.evidence.get("contract") == "exact"
    text = report.outcome
    if cases:
        text += f" on {len(cases)} sets of inputs ({'exact: the same bits' if is_exact else 'numeric'})"
    if report.outcome_reason:
        text += f": {report.outcome_reason}"
    _line(out, escape(text))
    if cases and not is_exact:
        _line(
            out,
            f"  error {report.evidence['max_abs_error']:.2g}, allowed {report.evidence['tolerance']:.2g}; "
            f"the input's own float32 error {report.evidence['float32_error']:.2g}",
        )
    hidden = report.evidence.get("not_observable", [])
    if hidden:
        _line(out, f"not observable end to end, local evidence only: {', '.join(hidden)}")


def _print_gains(report: Report, out: Console) -> None:
    for row in report.latency:
        _line(out, escape(latency_line(row)))
    for side, footprint in report.footprint.items():
        _line(out, footprint_line(side, footprint))
    if report.estimate:
        _line(out, escape(_estimate_line(report.estimate)))
    if report.decision:
        _line(out, f"decision: {escape(report.decision)}")


def latency_line(row: LatencyReport) -> str:
    """Two lines, each below 80 columns."""
    noisy = ", noisy" if row.noisy else ""
    threads = "1 thread, CPU time" if row.clock == "cpu" else f"{row.threads} threads, wall time"
    return (
        f"latency ({threads}): {row.before_ms:.3f} -> {row.after_ms:.3f} ms\n"
        f"  ratio {row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}]; input against itself {row.self_ratio:.3f}{noisy}"
    )


def footprint_line(name: str, footprint: Mapping[str, float]) -> str:
    return f"{name}: loads in {footprint['load_ms']:.0f} ms, peak memory {_mib(footprint['peak_bytes'])}"


def _estimate_line(estimate: Mapping[str, Any]) -> str:
    if "reason" in estimate:
        return f"no estimate for the target: {estimate['reason']}"
    sizes = ", ".join(f"{name} {size}" for name, size in estimate["sizes"].items())
    unknown = estimate["before"]["n_unknown"], estimate["after"]["n_unknown"]
    left_out = f"\n  left out, of unknown cost: {unknown[0]} -> {unknown[1]} nodes" if any(unknown) else ""
    return (
        f"estimate for {estimate['target']}: {estimate['before']['ms']:.3f} -> {estimate['after']['ms']:.3f} ms\n"
        f"  (roofline, a lower bound{f', at {sizes}' if sizes else ''}){left_out}"
    )
