"""The first stage of AiT: a VQ-VAE of masks or of depth, trained and scored by itself (docs/ait.md).

Shape legend: B maps, H W their side, S side that the VQ-VAE reads, G ground truths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, DataError, UsageError
from saccade.layers.precision import full_precision
from saccade.models.ait.config import mask_vqvae
from saccade.results import DepthMap, Instances, Prediction, encode_masks
from saccade.samples import Batch, Preprocess, Sample
from saccade.tasks import Task
from saccade.tokens.codebook import VQVAE, VQVAEConfig, mask_patches

_LEAST_SIDE = 2  # pixels; smaller boxes are left out, as in the original
_LEAST_DEPTH_M = 1e-3


@dataclass(kw_only=True)
class MapVQVAEConfig:
    """A VQ-VAE and what it is trained on.

    Attributes:
        task: ``instance_segmentation`` (masks in their boxes) or ``depth``.
        vqvae: The network.
        hide_patch: Side in pixels of the patches that are hidden from the encoder in training.
        hide_ratio: Share of them; 0 = nothing is hidden.
    """

    task: Task = Task.INSTANCE
    vqvae: VQVAEConfig = field(default_factory=mask_vqvae)
    hide_patch: int = 16
    hide_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.task not in (Task.INSTANCE, Task.DEPTH):
            raise ConfigError(f"a VQ-VAE is of masks or of depth, not of {self.task}", where="task")
        if self.hide_ratio and (self.hide_patch < 1 or self.vqvae.size % self.hide_patch):
            raise ConfigError(
                f"maps of {self.vqvae.size} pixels are no whole number of patches of {self.hide_patch}",
                where="hide_patch",
                fix="choose a divisor of the size, or hide_ratio=0",
            )


class MapVQVAE(nn.Module):
    """Learns codes of truths; it looks at masks or depth maps, not at pictures.

    Args:
        config: The network and its data.
    """

    system = "vqvae"

    def __init__(self, config: MapVQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.vqvae = VQVAE(config.vqvae)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The one whose truths it learns."""
        return (self.config.task,)

    def preprocess(self, task: Task) -> Preprocess:
        """Maps at the side that the network reads: crops of masks as pictures of 0..1, depth as the target."""
        self._require(task)
        size = self.config.vqvae.size
        return Preprocess(
            size_hw=(size, size), keep_ratio=True, cover=True, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Reconstruction and commitment; in training mode the codebook moves."""
        self._require(batch.task)
        wanted = depth_maps(batch)[:, None] if self.config.task is Task.DEPTH else self._mask_crops(batch)
        read = wanted
        if self.training and self.config.hide_ratio:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            read = mask_patches(wanted, patch=self.config.hide_patch, ratio=self.config.hide_ratio, generator=generator)
        found = self.vqvae.reconstruct(read, wanted)
        return {f"{batch.task}_{name}": value for name, value in found.losses.items()}

    def predict(self, batch: Batch) -> list[Prediction]:
        """Refuses: a picture says nothing to a VQ-VAE.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "a VQ-VAE turns truths into codes and back; it cannot look at a picture",
            where=batch.origins[0].dataset,
            fix="evaluate it (`saccade eval`), or train a solver with its codes",
        )

    def reconstruct(self, samples: Sequence[Sample]) -> list[Prediction]:
        """The truths of samples after the way into codes and back, as predictions with score 1.

        In float32 under autocast, which is how a solver uses the codes.
        """
        device = self.vqvae.codebook.entries.device
        restore = self._restore_depth if self.config.task is Task.DEPTH else self._restore_masks
        with torch.inference_mode(), full_precision(device):
            return [restore(sample, device) for sample in samples]

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Nothing to do: the network is small."""

    def _mask_crops(self, batch: Batch) -> Tensor:
        """``[B, 1, S, S]`` in 0..1: the pictures themselves, which are crops of masks.

        Raises:
            DataError: The pictures are photographs with their objects.
        """
        for target, origin in zip(batch.targets, batch.origins, strict=True):
            if target.boxes is not None or target.masks is not None:
                raise DataError(
                    "a VQ-VAE of masks learns from masks that are cut out, not from pictures",
                    where=origin.path or origin.image_id,
                    fix="train with MaskCropAugment, or on crops that `saccade data convert --to mask_crops` wrote",
                )
        return batch.images[:, :1].float()

    def _restore_depth(self, sample: Sample, device: torch.device) -> DepthMap:
        truth = sample.target.depth_m
        if truth is None:
            raise DataError("a sample has no depth", where=sample.origin.path or sample.origin.image_id)
        depth = _known(truth.as_subclass(Tensor).float().to(device))[None, None]
        step = self.config.vqvae.downsample
        height, width = depth.shape[2:]
        padded = F.pad(depth, (0, -width % step, 0, -height % step))
        drawn = self.vqvae.reconstruct(padded, padded).maps_B1HW[0, 0, :height, :width]
        return DepthMap(depth_m=drawn.clamp(min=_LEAST_DEPTH_M).cpu())

    def _restore_masks(self, sample: Sample, device: torch.device) -> Instances:
        """Every mask inside its rounded box; what is drawn is pasted back."""
        target, classes = sample.target, sample.classes
        if target.masks is None or target.boxes is None or target.class_ids is None or classes is None:
            raise DataError("a sample has no masks", where=sample.origin.path or sample.origin.image_id)
        size, kept, restored = self.config.vqvae.size, [], []
        masks = target.masks.as_subclass(Tensor)
        for number, box in enumerate(target.boxes.as_subclass(Tensor).round().long().tolist()):
            x0, y0, x1, y1 = (max(side, 0) for side in box)
            inside = masks[number, y0:y1, x0:x1]
            if min(inside.shape) < _LEAST_SIDE:
                continue
            small = F.interpolate(inside[None, None].float(), size=(size, size), mode="bilinear") >= 0.5
            drawn = self.vqvae.reconstruct(small.float().to(device), small.float().to(device)).maps_B1HW
            whole = torch.zeros_like(masks[number])
            back = F.interpolate(drawn, size=tuple(inside.shape), mode="bilinear")[0, 0] >= 0.5
            whole[y0:y1, x0:x1] = back.cpu()
            kept.append(number)
            restored.append(whole)
        stacked = torch.stack(restored) if restored else masks[:0]
        return Instances(
            boxes_xyxy=target.boxes.as_subclass(Tensor)[kept].float(),
            scores=torch.ones(len(kept)),
            class_ids=target.class_ids[kept],
            classes=classes,
            size_hw=sample.size_hw,
            masks=encode_masks(stacked),
        )

    def _require(self, task: Task) -> None:
        if task is not self.config.task:
            raise UsageError(f"this VQ-VAE is of {self.config.task}, not of {task}", fix=f"task={self.config.task}")


def depth_maps(batch: Batch) -> Tensor:
    """The depth of training samples, ``[B, H, W]`` metres; what is no positive number is unknown, which is 0.

    Raises:
        DataError: A sample has no depth, or one of another size than its picture.
    """
    size_hw = tuple(batch.images.shape[2:])
    maps = []
    for target, origin in zip(batch.targets, batch.origins, strict=True):
        where = origin.path or origin.image_id
        if target.depth_m is None:
            raise DataError("a training sample has no depth", where=where)
        if tuple(target.depth_m.shape) != size_hw:
            raise DataError(
                "a depth map has another size than its picture",
                where=where,
                why=f"{tuple(target.depth_m.shape)} and {size_hw} pixels after augmentation",
                fix="let the augmentation change both alike",
            )
        maps.append(target.depth_m.as_subclass(Tensor).float())
    return _known(torch.stack(maps))


def _known(depth_m: Tensor) -> Tensor:
    """Depth with 0 where it is unknown, which is where a truth holds no positive number."""
    return torch.where(depth_m.isfinite() & (depth_m > 0), depth_m, 0.0)
