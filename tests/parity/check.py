"""Runs one folder of parity fixtures: what the original code computed against what ours computes.

Usage: python tests/parity/check.py SYSTEM DIR [--all]

Prints the greatest error per tensor and exits 1 when one is past its tolerance, or when a tensor was not compared.
Tolerances: ../shared/parity/README.md.
"""

from __future__ import annotations

import argparse
import importlib
import lzma
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

SYSTEMS = {
    "ait": "ait_checks",
    "git": "git_checks",
    "gsva": "gsva_checks",
    "polar": "polar_checks",
    "visft": "visft_checks",
    "vitdet": "vitdet_checks",
}


MEASURED_ROUNDING = {"ait"}
"""Systems of which a fixture amplifies rounding beyond the tolerance: the cosine attention of AiT multiplies products
by up to 100 before a softmax, and its recorded gradients are up to 1e-2 from the exact ones."""


@dataclass
class Row:
    """One comparison."""

    name: str
    kind: str
    norm_error: float
    peak_error: float
    tolerance: float
    rounding: float = 0.0  # how far a float32 of ours is from the exact value, where that was measured

    @property
    def passed(self) -> bool:
        # Two roundings lie between two computations in float32: the original's, and ours of the same size.
        return max(self.norm_error, self.peak_error) <= max(self.tolerance, 2 * self.rounding)


@dataclass
class Report:
    """All comparisons of a folder, the tensors that are still to be compared, and those that nothing of ours makes."""

    rows: list[Row] = field(default_factory=list)
    pending: set[str] = field(default_factory=set)
    not_yet: dict[str, str] = field(default_factory=dict)
    watched: set[int] = field(default_factory=set)  # rows whose values are kept, whether they fail or not
    kept: dict[int, Tensor] = field(default_factory=dict)

    def expect(self, file: str, names: list[str]) -> None:
        self.pending.update(f"{file}/{name}" for name in names)

    def skip(self, name: str) -> None:
        """Marks an input: it was used, there is nothing to compare."""
        self.pending.discard(name)

    def later(self, name: str, reason: str) -> None:
        """Marks what no code of ours computes so far; it is counted and printed."""
        self.pending.discard(name)
        self.not_yet[name] = reason

    def close(self, name: str, ours: Tensor, reference: Tensor, tolerance: float) -> None:
        """Float tensors: relative norm of the difference, and greatest difference over greatest magnitude."""
        self.pending.discard(name)
        ours, reference = ours.detach().double(), reference.double()
        if ours.shape != reference.shape:
            self.rows.append(Row(f"{name} {tuple(ours.shape)} != {tuple(reference.shape)}", "shape", 1.0, 1.0, 0.0))
            return
        # Infinities are right where both have the same one; any other meeting with one is NaN below.
        endless = reference.isinf() & (ours == reference)
        ours, reference = ours.masked_fill(endless, 0.0), reference.masked_fill(endless, 0.0)
        difference = ours - reference
        scale = reference.abs().max().clamp(min=1e-30) if reference.numel() else torch.tensor(1.0)
        norm = float(difference.norm() / reference.norm().clamp(min=1e-30))
        peak = float(difference.abs().max() / scale) if reference.numel() else 0.0
        # NaN would compare as "not greater": count it as wrong.
        norm, peak = (value if value == value else float("inf") for value in (norm, peak))
        row = Row(name, "float", norm, peak, tolerance)
        if not row.passed or len(self.rows) in self.watched:
            self.kept[len(self.rows)] = ours.clone()
        self.rows.append(row)

    def same(self, name: str, ours: Tensor, reference: Tensor, *, allowed: float = 0.0) -> None:
        """Integers, labels, tokens: equal; ``allowed`` is the share of places that may differ (masks)."""
        self.pending.discard(name)
        if tuple(ours.shape) != tuple(reference.shape):
            self.rows.append(Row(f"{name} {tuple(ours.shape)} != {tuple(reference.shape)}", "shape", 1.0, 1.0, 0.0))
            return
        wrong = float((ours.long() != reference.long()).double().mean()) if reference.numel() else 0.0
        self.rows.append(Row(name, "exact", wrong, wrong, allowed))

    def equal(self, name: str, ours: object, reference: object) -> None:
        """Strings and lists."""
        self.pending.discard(name)
        wrong = 0.0 if ours == reference else 1.0
        self.rows.append(Row(name if not wrong else f"{name}: {ours!r} != {reference!r}", "equal", wrong, wrong, 0.0))

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if not row.passed]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and not self.failures and not self.pending


def unpack(folder: Path, target: Path) -> Path:
    """Copies a folder; what lies compressed in it (``NAME.xz``, as it is committed) is whole in the copy."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    for path in target.rglob("*.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    return target


def run(system: str, folder: Path) -> Report:
    """Compares every tensor of the folder."""
    if any(folder.rglob("*.xz")):
        with tempfile.TemporaryDirectory() as temporary:
            return run(system, unpack(folder, Path(temporary)))
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        checks = importlib.import_module(SYSTEMS[system])
    finally:
        sys.path.pop(0)
    report = Report()
    checks.check(folder, report)
    if system in MEASURED_ROUNDING and report.failures:
        _measure_rounding(checks, folder, report)
    return report


def _measure_rounding(checks: ModuleType, folder: Path, report: Report) -> None:
    """Computes what missed its tolerance once more in float64: how far off is a float32, whoever computes it?

    Processors add in other orders. Where a model amplifies the last bit, two right answers in float32 are further apart
    than the tolerance; a wrong answer is wrong in float64, too, by more than its own rounding. Folders that cannot be
    computed in float64 keep their failures.
    """
    for part in sorted({report.rows[index].name.partition("/")[0] for index in report.kept}):
        places = [index for index, row in enumerate(report.rows) if row.name.startswith(f"{part}/")]
        exact = Report(watched={place for place, index in enumerate(places) if index in report.kept})
        try:
            with _exactly():
                checks.check(folder if folder.name == part else folder / part, exact)
        except RuntimeError:
            continue
        if [row.name for row in exact.rows] != [report.rows[index].name for index in places]:
            continue
        for place in exact.watched:
            distance = Report()
            distance.close("", report.kept[places[place]], exact.kept[place], 0.0)
            (row,) = distance.rows
            report.rows[places[place]].rounding = max(row.norm_error, row.peak_error)


@contextmanager
def _exactly() -> Iterator[None]:
    """What is computed in float32 is computed in float64."""
    to_float = Tensor.float
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Tensor.float = to_float  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=sorted(SYSTEMS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--all", action="store_true", help="print every row, not only the worst and the failed ones")
    arguments = parser.parse_args()
    if not any((*arguments.folder.glob("config.json"), *arguments.folder.rglob("meta.json"))):
        parser.error(f"{arguments.folder} is not a fixture folder: it has no config.json")
    report = run(arguments.system, arguments.folder)
    worst = sorted(report.rows, key=lambda row: (row.passed, -max(row.norm_error, row.peak_error)))
    for row in worst if arguments.all else [row for row in worst if not row.passed] + worst[:20]:
        mark = "ok  " if row.passed else "FAIL"
        bound = f"{row.tolerance:.0e}" + (f" or 2 x {row.rounding:.1e}" if row.rounding else "")
        print(f"{mark} {row.norm_error:.2e} {row.peak_error:.2e} (<= {bound}) {row.kind:5s} {row.name}")
    for name in sorted(report.pending):
        print(f"FAIL not compared: {name}")
    for reason, number in Counter(report.not_yet.values()).items():
        print(f"not yet: {number:3d} {reason}")
    rounded = sum(row.rounding > 0 and row.passed for row in report.rows)
    if rounded:
        print(f"{rounded} miss their tolerance on this processor, by no more than two roundings as measured in float64")
    failed = len(report.failures) + len(report.pending)
    print(
        f"{len(report.rows)} comparisons, {failed} failed, {len(report.pending)} tensors not compared"
        + (f", {len(report.not_yet)} without code yet" if report.not_yet else "")
    )
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
