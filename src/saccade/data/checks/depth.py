"""Defects of depth maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from saccade.data.checks.pairs import check_maps, check_partners
from saccade.data.checks.report import UNDIVIDED, ImageEntry, Report
from saccade.data.sources.depth_folder import DepthLayout
from saccade.data.sources.depth_maps import read_depth
from saccade.data.sources.nyu import nyu_pairs
from saccade.data.sources.spec import SourceSpec
from saccade.errors import DataError, ImageError

_PLAUSIBLE_M = (0.1, 300.0)  # middle depth of a map: between an object on a desk and a landscape


def nyu_files(spec: SourceSpec, root: Path) -> list[tuple[Path, Path]]:
    """Images and depth maps of a list of NYU Depth v2, whether they exist or not."""
    found = nyu_pairs(spec, root)
    return [(found.folder / image, found.folder / depth) for image, depth in found.names]


def check_nyu(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at every pair of the list.

    Returns:
        The images.
    """
    return _check_pairs(spec, nyu_files(spec, root), report)


def check_folder(spec: SourceSpec, root: Path, report: Report) -> list[ImageEntry]:
    """Looks at every image and depth map of a split.

    Returns:
        The images, with or without a depth map.
    """
    layout = DepthLayout(spec, root, must_exist=False)
    for stem in layout.missing_images:
        report.add("missing_image", f"{stem} (in the split file)")
    check_partners(layout.unmatched_images, layout.unmatched_depths, report, what="depth")
    if layout.undivided and spec.split != "all":
        report.note(UNDIVIDED)
    alone = [ImageEntry(path=path, declared_hw=None, label=path.name) for path in layout.unmatched_images]
    return _check_pairs(spec, layout.pairs, report) + alone


def _check_pairs(spec: SourceSpec, pairs: list[tuple[Path, Path]], report: Report) -> list[ImageEntry]:
    unknown, counted = 0, 0

    def look(path: Path) -> tuple[int, ...] | None:
        nonlocal unknown, counted
        if not path.is_file():
            report.add("missing_depth", path.name)
            return None
        try:
            depth_m = read_depth(path, spec.depth_scale)
        except ImageError:
            raise
        except DataError as error:
            report.add("depth_number_type", f"{path.name}: {error.what}" + (f" ({error.why})" if error.why else ""))
            return None
        known = depth_m[depth_m > 0]
        unknown, counted = unknown + depth_m.size - known.size, counted + depth_m.size
        if not known.size:
            report.add("unknown_depth", path.name)
        elif not _PLAUSIBLE_M[0] <= (middle := float(np.median(known))) <= _PLAUSIBLE_M[1]:
            report.add(
                "implausible_depth", f"{path.name}: {known.min():.3g} to {known.max():.3g} m, middle {middle:.3g} m"
            )
        return depth_m.shape

    entries = check_maps(pairs, look, report, what="depth")
    report.counts |= {"depth_maps": len(pairs)}
    if counted:
        report.counts["percent_unknown"] = round(100 * unknown / counted)
    return entries
