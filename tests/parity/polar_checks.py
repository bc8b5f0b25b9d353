"""The polar paper's code: transform, heatmaps, both networks with their gradients, metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import tv_tensors

from saccade.labels import centers_of, centroid, middle
from saccade.layers.heatmaps import draw_heatmap, read_heatmap
from saccade.layers.polar import from_polar, to_polar
from saccade.metrics.lesion import lesion_scores
from saccade.models.polar.centers import CenterPredictor
from saccade.models.polar.convert import Network, from_official, network_of, to_official
from saccade.models.polar.presets import config_of
from saccade.models.polar.segmenter import Segmenter
from saccade.models.systems import build
from saccade.samples import Batch, Origin, Target
from saccade.tasks import Task

if TYPE_CHECKING:
    from check import Report

FLOAT, LOSS, GRADIENT = 1e-4, 1e-4, 1e-3
NOISE = 1e-6  # of the greatest gradient: below it are biases before a batch norm, whose gradient is 0 but for rounding
CASE = re.compile(r"(polar\d+)\.center_xy$")
HEATMAP = re.compile(r"heatmap_sigma(\d+)$")


def check(folder: Path, report: Report) -> None:
    """Every tensor of the folder."""
    io, meta = load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())
    path = folder / "weights.safetensors"
    weights = load_file(path) if path.is_file() else {}
    report.expect("io", list(io))
    report.expect("weights", list(weights))
    for key in io:
        if case := CASE.match(key):
            check_transform(case[1], io, report)
    if "centroid_empty.center_xy" in io:
        check_empty(io, meta, report)
    if "center_from_heatmap.heatmap" in io:
        told = meta["center_from_heatmap"]
        found = read_heatmap(io["center_from_heatmap.heatmap"], (told["height"], told["width"]))
        report.skip("io/center_from_heatmap.heatmap")
        report.equal("meta/center_from_heatmap", found.long().tolist(), told["center_xy"])
    check_network("unet", io, weights, meta, report)
    check_network("hourglass", io, weights, meta, report)
    check_metrics(io, meta, report)


def check_transform(case: str, io: Mapping[str, Tensor], report: Report) -> None:
    """One picture: exact, because nothing is computed but places."""

    def given(name: str) -> Tensor:
        report.skip(f"io/{case}.{name}")
        return io[f"{case}.{name}"]

    label = given("label")
    center, shifted = io[f"{case}.center_xy"], given("shifted_center_xy")
    found = centroid(label > 0.5)
    assert found is not None
    report.close(f"io/{case}.center_xy", found, center, 0.0)
    if f"{case}.image" in io:
        image = given("image").permute(2, 0, 1)[None]
        image_polar = to_polar(image, center[None], mode="nearest")[0].permute(1, 2, 0)
        report.close(f"io/{case}.image_polar", image_polar, io[f"{case}.image_polar"], 0.0)
    polar = to_polar(label[None, None], center[None], mode="nearest")
    report.close(f"io/{case}.label_polar", polar[0, 0], io[f"{case}.label_polar"], 0.0)
    moved = to_polar(label[None, None], shifted[None], mode="nearest")
    report.close(f"io/{case}.label_polar_shifted", moved[0, 0], io[f"{case}.label_polar_shifted"], 0.0)
    back = from_polar(polar, center[None], mode="nearest")[0, 0]
    report.same(f"io/{case}.label_back", back, io[f"{case}.label_back"])
    for key, wanted in io.items():
        if key.startswith(f"{case}.") and (sigma := HEATMAP.search(key)):
            drawn = draw_heatmap(center[None], (label.shape[0], label.shape[1]), float(sigma[1]))
            report.close(f"io/{key}", drawn, wanted, FLOAT)


def check_empty(io: Mapping[str, Tensor], meta: Mapping[str, Any], report: Report) -> None:
    """No object: the original says (height // 2, width // 2) where x, y is meant; we say the middle."""
    del meta
    wanted = io["centroid_empty.center_xy"].long().tolist()
    size_hw = (2 * wanted[0], 2 * wanted[1])
    assert not len(centers_of(torch.zeros(size_hw), "one"))
    report.equal("io/centroid_empty.center_xy", middle(size_hw).flip(0).long().tolist(), wanted)


def check_network(
    network: Network, io: Mapping[str, Tensor], weights: Mapping[str, Tensor], meta: Mapping[str, Any], report: Report
) -> None:
    """Weights there and back, the answer in evaluation, the loss and its gradients in training."""
    state = {key.removeprefix(f"{network}."): value for key, value in weights.items() if key.startswith(network)}
    if not state:
        return
    assert network_of(state) == network
    model = build(config_of(state, network, polar=False))
    assert isinstance(model, Segmenter | CenterPredictor)
    shapes = {key: tuple(value.shape) for key, value in model.network.state_dict().items()}
    mapped, mapping = from_official(state, shapes, network)
    mapping.check()
    model.network.load_state_dict(mapped)
    back = to_official(model.network.state_dict(), network)
    for key, value in state.items():
        report.close(f"weights/{network}.{key}", back[key], value, 0.0)

    images, target = io[f"{network}.input"], io[f"{network}.target"]
    for name in ("input", "target"):
        report.skip(f"io/{network}.{name}")
    model.eval()
    with torch.no_grad():
        said = model.network(images)
    report.close(
        f"io/{network}.output_eval", said.sigmoid() if network == "unet" else said, io[f"{network}.output_eval"], FLOAT
    )

    model.train()
    loss = training_loss(model, images, target)
    report.close(f"io/{network}.loss_train", loss, io[f"{network}.loss_train"], LOSS)
    loss.backward()
    check_gradients(network, model.network, meta[f"{network}_grad_norms"], report)


def training_loss(model: Segmenter | CenterPredictor, images: Tensor, target: Tensor) -> Tensor:
    """The model's own loss; the heatmaps of the fixture take the place of drawn ones."""
    size_hw = (int(images.shape[-2]), int(images.shape[-1]))
    batch = Batch(
        images=images,
        task=model.tasks[0],
        origins=[Origin(dataset="", image_id=n, path=None, size_hw=size_hw) for n in range(len(images))],
        input_sizes_hw=[size_hw] * len(images),
    )
    if isinstance(model, CenterPredictor):
        model.targets = lambda batch: target  # type: ignore[method-assign]
    else:
        assert set(target.unique().tolist()) <= {0.0, 1.0}
        batch.task = Task.SEMANTIC
        batch.targets = [Target(semantic=tv_tensors.Mask(one[0].long())) for one in target]
    (loss,) = model.loss(batch).values()
    return loss


def check_gradients(network: Network, module: nn.Module, norms: Mapping[str, float], report: Report) -> None:
    """Norms of all gradients together and one by one."""
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    ours = to_official(gradients, network)
    report.equal(f"meta/{network} parameters with gradients", sorted(ours), sorted(norms))
    found = torch.stack([ours[name].double().norm() for name in norms])
    wanted = torch.tensor(list(norms.values()), dtype=torch.float64)
    report.close(f"meta/{network}_grad_norms", found, wanted, GRADIENT)
    floor = NOISE * float(wanted.max())
    for name, one, reference in zip(norms, found, wanted, strict=True):
        if float(reference) > floor:
            report.close(f"meta/{network}_grad_norms.{name}", one, reference, GRADIENT)
        else:
            report.equal(f"meta/{network}_grad_norms.{name} is nothing", bool(one <= 10 * floor), True)


def check_metrics(io: Mapping[str, Tensor], meta: Mapping[str, Any], report: Report) -> None:
    """Picture by picture."""
    pairs = zip(io["metrics.prediction"] > 0.5, io["metrics.target"] > 0.5, strict=True)
    rows = torch.tensor([lesion_scores(said, truth) for said, truth in pairs], dtype=torch.float64)
    for column, name in enumerate(("dsc", "iou", "precision", "recall")):
        report.close(f"meta/metrics.{name}", rows[:, column], torch.tensor(meta["metrics"][name]), 1e-7)
    for name in ("prediction", "target"):
        report.skip(f"io/metrics.{name}")
