"""The polar paper's weight files: which network a file holds, and the file that a checkpoint of ours becomes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from saccade.errors import CheckpointError, UsageError, nearest
from saccade.hub.shards import WEIGHTS
from saccade.hub.unpickle import TensorFile
from saccade.mapping import MappingReport
from saccade.models.polar import convert as polar
from saccade.models.polar.config import CentersConfig, PolarConfig, SegmenterConfig
from saccade.models.polar.presets import AnyConfig, config_of
from saccade.models.systems import build


def map_polar(file: TensorFile, preset: str | None) -> tuple[str, AnyConfig, dict[str, Tensor], MappingReport]:
    """Maps a U-Net or a centre predictor; the file does not say what pictures a U-Net was shown.

    Args:
        file: One for which :func:`saccade.models.polar.convert.network_of` finds a network.
        preset: ``unet`` (taken where none is named) or ``unet-polar``; ``centers``.

    Returns:
        The preset, the configuration, our names to tensors, and the report of every key.

    Raises:
        UsageError: The preset is that of another network.
    """
    network = polar.network_of(file.tensors)
    assert network is not None
    known = ("centers",) if network == "hourglass" else ("unet", "unet-polar")
    name = preset or known[0]
    if name not in known:
        raise UsageError(f"the preset '{name}' does not fit the file", where=file.path, fix=nearest(name, known))
    config = config_of(file.tensors, network, polar=name == "unet-polar")
    prefix = _prefix(config)
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
    expected = {key.removeprefix(prefix): shape for key, shape in shapes.items()}
    state, report = polar.from_official(file.tensors, expected, network, source=str(file.path))
    if preset is None and name == "unet":
        report.notes.append("taken for a U-Net of plain pictures; one of unrolled pictures: --preset unet-polar")
    return name, config, {f"{prefix}{key}": value for key, value in state.items()}, report


def polar_official(
    state: dict[str, Tensor], config: AnyConfig, source: Path
) -> tuple[dict[str, Tensor], MappingReport]:
    """The network under official names, alone: the paper's files hold neither what unrolls nor what finds centres.

    Raises:
        CheckpointError: The paper has no such network.
    """
    prefix = _prefix(config)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    network: polar.Network = "hourglass" if isinstance(config, CentersConfig) else "unet"
    try:
        official = polar.to_official(own, network)
    except KeyError as error:
        raise CheckpointError(
            "the code of the polar paper has no such network",
            where=source / WEIGHTS,
            why=f"it knows no tensor {error}",
            fix="only its U-Net and its centre predictor have files of their own",
        ) from error
    report = MappingReport(source=str(source), matched=dict(zip(own, official, strict=True)))
    report.dropped = {key: "not a part of the network" for key in state if not key.startswith(prefix)}
    return official, report


def _prefix(config: AnyConfig) -> str:
    """What stands before the names of the network."""
    if isinstance(config, PolarConfig):
        return "segmenter.network." if isinstance(config.segmenter, SegmenterConfig) else "segmenter."
    return "network."
