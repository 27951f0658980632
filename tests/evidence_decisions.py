"""Two measured runs on MiniLM take the same decisions, and a replay gives the same bytes: `make evidence-decisions`.

The model is `benchmarks/models.py`'s `minilm`, made from a seed at the first use.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def optimize(model: Path, output: Path, decisions: Path) -> dict[str, object]:
    arguments = [str(model), "-o", str(output), "--decisions", str(decisions), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "opgraft.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"optimize ended with {done.returncode}: {done.stderr}")
    report: dict[str, object] = json.loads(done.stdout)
    return report


def main() -> None:
    sys.path.append(str(ROOT / "benchmarks"))
    from models import model_path

    model = model_path(ROOT / "benchmarks" / ".models", "minilm")
    with tempfile.TemporaryDirectory() as folder:
        taken: list[list[str]] = []
        for run in (1, 2):
            file = Path(folder, f"decisions-{run}.json")
            report = optimize(model, Path(folder, f"run-{run}.onnx"), file)
            decisions = json.loads(file.read_text())
            taken.append(sorted(decisions["taken_back"]))
            row = report["latency"][0] if report["latency"] else None  # type: ignore[index]
            print(f"run {run}: {report['decision']}; taken back: {', '.join(taken[-1]) or 'nothing'}")
            if row is not None:
                print(f"  1 thread, CPU time: ratio {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
            print(f"  fingerprint {decisions['fingerprint'][:16]}")
        replay = Path(folder, "replay.onnx")
        optimize(model, replay, Path(folder, "decisions-1.json"))
        same_bytes = replay.read_bytes() == Path(folder, "run-1.onnx").read_bytes()
    print(f"the same decisions: {taken[0] == taken[1]}; a replay gives the same bytes: {same_bytes}")
    if taken[0] != taken[1] or not same_bytes:
        sys.exit(1)


if __name__ == "__main__":
    main()
