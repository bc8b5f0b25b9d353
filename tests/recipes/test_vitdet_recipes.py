"""The detectors' recipes: published values, images per step, the Faster form, and what a federated loss is told."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from saccade.errors import UsageError
from saccade.models.systems import build
from saccade.recipes import get_recipe
from saccade.samples import ClassList
from saccade.tasks import Task
from saccade.training.start import use_image_counts

# Recipe: steps, milestones, warm-up, rate, decay per layer, drop path (specs/vitdet.md 8, 9 and 11).
PUBLISHED = {
    "mask_rcnn_vit_b": (184_375, (163_889, 177_546), 250, 1e-4, 0.7, 0.1),
    "cascade_rcnn_vit_l": (184_375, (163_889, 177_546), 250, 1e-4, 0.8, 0.4),
    "mask_rcnn_vit_h": (138_281, (122_916, 133_159), 187, 1e-4, 0.9, 0.5),
    "lvis_mask_rcnn_vit_b": (156_250, (138_889, 150_463), 250, 2e-4, 0.7, 0.1),
    "lvis_cascade_rcnn_vit_l": (156_250, (138_889, 150_463), 250, 2e-4, 0.8, 0.4),
    "lvis_mask_rcnn_vit_h": (156_250, (138_889, 150_463), 250, 1e-4, 0.9, 0.4),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_values(name: str) -> None:
    config = get_recipe(f"vitdet.{name}")()
    optim = config.optim
    assert optim.layer_rates is not None
    found = (
        config.steps, optim.milestones, optim.warmup_steps, optim.lr, optim.layer_rates.rate, config.model.vit.drop_path
    )  # fmt: skip
    assert found == PUBLISHED[name]
    roi = config.model.roi
    lvis = name.startswith("lvis")
    assert (roi.num_classes, roi.max_detections, roi.min_score) == ((1203, 300, 0.02) if lvis else (80, 100, 0.05))
    assert (roi.federated_classes, roi.sigmoid) == ((50, True) if lvis else (0, False))
    assert config.train[0].repeat_threshold == (0.001 if lvis else 0.0)


def test_a_step_has_64_images_however_many_processes_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, together in (({}, 1), ({"processes": 8}, 8), ({"processes": 8, "images": 4}, 32)):
        config = get_recipe("vitdet.mask_rcnn_vit_b")(**words)
        assert config.accumulate * together == 64
        assert config.train[0].batch_size == words.get("images", 1)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert get_recipe("vitdet.vitae_repo_vit-b")().accumulate == 2
    for words in ({"processes": 3}, {"processes": 128}, {"processes": 1, "images": 3}):
        with pytest.raises(UsageError, match="do not make a step of 64"):
            get_recipe("vitdet.lvis_mask_rcnn_vit_b")(**words)


@pytest.mark.parametrize("name", ["vitdet.cascade_rcnn_vit_b", "vitdet.vitae_repo_vitae-s"])
def test_the_faster_form(name: str) -> None:
    config = get_recipe(name)(masks=False)
    assert config.model.roi.mask == "none" and config.monitor == "detection/AP"
    assert {source.task for source in (*config.train, *config.val)} == {Task.DETECTION}


class Counted:
    """A source that knows how often its classes occur."""

    name, task, skipped = "counted", Task.INSTANCE, {}

    def __init__(self, classes: ClassList, present: list[set[int]] | None = None) -> None:
        self.classes, self._present = classes, present or []

    def __len__(self) -> int:
        return len(self._present)

    def class_ids_of(self, index: int) -> set[int]:
        return self._present[index]


def test_a_federated_loss_draws_by_the_root_of_the_image_counts() -> None:
    config = get_recipe("vitdet.lvis_mask_rcnn_vit_b")()
    names = ("a", "b", "c")
    model = dataclasses.replace(
        config.model,
        classes=names,
        category_ids=(1, 2, 3),
        backbone=dataclasses.replace(config.model.vit, width=16, heads=2, depth=2, global_blocks=(1,), mlp_width=16),
        roi=dataclasses.replace(config.model.roi, num_classes=3, hidden=8, conv_channels=8),
    )
    net = build(model)
    assert net.roi.class_weights.tolist() == [1, 1, 1]
    stated = ClassList(names=("c", "a", "b"), category_ids=(3, 1, 2), image_counts=(9, 16, 0))
    use_image_counts(net, [Counted(stated)])
    assert net.roi.class_weights.tolist() == [4, 0, 3]
    plain = ClassList(names=names, category_ids=(1, 2, 3))
    use_image_counts(net, [Counted(plain, [{0}, {0, 2}, {0}, {0}])])
    assert net.roi.class_weights.tolist() == [2, 0, 1]
    use_image_counts(build(dataclasses.replace(model, roi=dataclasses.replace(model.roi, federated_classes=0))), [])
    assert torch.isfinite(net.roi.class_weights).all()
