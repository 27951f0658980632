"""The human summary of a run: four small tables' worth of lines."""

from __future__ import annotations

from opgraft.cli.report import LatencyReport, Report
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_MAX_OPERATORS = 14


def print_summary(report: Report, console: Console | None = None) -> None:
    """Print what was done, verified and gained. Colours only on a terminal."""
    out = console or Console(highlight=False, soft_wrap=False)
    before, after = sum(report.nodes_before.values()), sum(report.nodes_after.values())
    out.print(f"[bold]{escape(report.source)}[/bold]: {before} -> {after} nodes{_sizes(report)}")
    _print_operators(report, out)
    _print_passes(report, out)
    _print_evidence(report, out)
    _print_latency(report, out)
    for note in report.notes:
        out.print(f"note: {escape(note)}")
    if report.output:
        out.print(f"wrote [bold]{escape(report.output)}[/bold]")


def _sizes(report: Report) -> str:
    if not report.bytes_before or not report.bytes_after:
        return ""
    return f", {_mib(report.bytes_before)} -> {_mib(report.bytes_after)}"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):.2f} MiB" if n_bytes >= 1 << 20 else f"{n_bytes / 1024:.1f} KiB"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
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


def _print_passes(report: Report, out: Console) -> None:
    rows = [p for p in report.passes if p.n_rewrites or p.taken_back]
    if not rows:
        out.print("no rewrite applied")
        return
    table = _table("pass", "rewrites", "ms", "contract", "checked locally")
    for row in rows:
        checked = "taken back" if row.taken_back else str(row.n_regions_checked)
        table.add_row(row.name, str(row.n_rewrites), f"{row.seconds * 1000:.0f}", row.contract, checked)
    out.print(table)
    for row in rows:
        if row.taken_back:
            out.print(f"taken back: [bold]{row.name}[/bold]: {escape(row.taken_back)}")


def _print_evidence(report: Report, out: Console) -> None:
    cases = report.evidence.get("cases", [])
    text = f"{report.outcome}"
    if cases:
        text += f" on {len(cases)} sets of inputs ({report.evidence['contract']}"
        if report.evidence["contract"] == "exact":
            text += ": the same bits"
        else:
            text += (
                f": error {report.evidence['max_abs_error']:.2g}, allowed {report.evidence['tolerance']:.2g}; "
                f"the original's own float32 error {report.evidence['float32_error']:.2g}"
            )
        text += ")"
    if report.outcome_reason:
        text += f": {report.outcome_reason}"
    out.print(escape(text))


def _print_latency(report: Report, out: Console) -> None:
    for row in report.latency:
        out.print(_latency_line(row))
    if report.decision:
        out.print(f"decision: {escape(report.decision)}")


def _latency_line(row: LatencyReport) -> str:
    noisy = ", noisy" if row.noisy else ""
    threads = "1 thread, CPU time" if row.clock == "cpu" else f"{row.threads} threads, wall time"
    return (
        f"latency ({threads}): {row.before_ms:.3f} -> {row.after_ms:.3f} ms, "
        f"ratio {row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}]; input against itself {row.self_ratio:.3f}{noisy}"
    )
