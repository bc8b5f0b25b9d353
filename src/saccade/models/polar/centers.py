"""The centre predictor: stacked hourglasses draw a heatmap, whose highest place is the centre.

Shape legend: B images, S stacks, h w heatmap.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.labels import centers_of, label_map, object_mask
from saccade.layers.heatmaps import draw_heatmap, read_heatmap, read_peaks
from saccade.layers.hourglass import StackedHourglass
from saccade.models.polar.config import CentersConfig
from saccade.results import Centers, Prediction
from saccade.samples import Batch, ClassList, Preprocess
from saccade.tasks import Task, require_task


class CenterPredictor(nn.Module):
    """Says where the objects of a picture have their centres.

    Args:
        config: The network and its target.
    """

    system = "centers"

    def __init__(self, config: CentersConfig) -> None:
        super().__init__()
        self.config = config
        self.network = StackedHourglass(config.network)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Centres."""
        return (Task.CENTER,)

    @property
    def classes(self) -> ClassList:
        """The classes of the data, among which objects are."""
        return ClassList.from_names(self.config.classes)

    def preprocess(self, task: Task) -> Preprocess:
        """Pictures squeezed to the square network input, bilinearly."""
        require_task(self.tasks, task)
        size = self.config.input_size
        return Preprocess(size_hw=(size, size), mean=self.config.mean, std=self.config.std)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of the heatmaps of every stack."""
        require_task(self.tasks, batch.task)
        said_BS1hw = self.heatmaps(batch.images)
        wanted_B1hw = self.targets(batch).to(said_BS1hw.device)
        return {f"{batch.task}_loss_heatmap": (said_BS1hw - wanted_B1hw[:, None]).square().mean()}

    def predict(self, batch: Batch) -> list[Prediction]:
        """The centres in the frame of the original pictures, at least one each, the surest first."""
        require_task(self.tasks, batch.task)
        with torch.inference_mode():
            last_Bhw = self.heatmaps(batch.images)[:, -1, 0].cpu()
            return [self._read(one, origin.size_hw) for one, origin in zip(last_Bhw, batch.origins, strict=True)]

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Nothing to do: the maps are small."""

    def heatmaps(self, images_B3HW: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to heatmaps ``[B, S, 1, h, w]`` float32, the last stack's the answer.

        A network of one channel reads the first.
        """
        return self.network(images_B3HW[:, : self.config.network.channels]).float()

    def targets(self, batch: Batch) -> Tensor:
        """The heatmaps of a batch, ``[B, 1, h, w]``: drawn at the size of the input and resized bilinearly.

        Raises:
            DataError: A sample has no label map.
        """
        drawn = []
        size_hw = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
        for target, origin in zip(batch.targets, batch.origins, strict=True):
            mask = object_mask(label_map(target, origin), batch.classes)
            centers = centers_of(mask, self.config.objects, self.config.least_region)
            drawn.append(draw_heatmap(centers, size_hw, self.config.sigma))
        return shrink_heatmaps(torch.stack(drawn), self.config.network.stride)

    def _read(self, heatmap_hw: Tensor, size_hw: tuple[int, int]) -> Centers:
        if self.config.objects == "one":
            places, heights = read_heatmap(heatmap_hw, size_hw)[None], heatmap_hw.max()[None]
        else:
            apart = max(1, round(2 * self.config.sigma / self.config.network.stride))
            places, heights = read_peaks(heatmap_hw, size_hw, apart=apart, least=self.config.least_peak)
        return Centers(points_xy=places, scores=heights.clamp(0, 1), size_hw=size_hw)


def shrink_heatmaps(heatmaps_BHW: Tensor, stride: int) -> Tensor:
    """Heatmaps of the input at the size that the network draws, ``[B, 1, h, w]``."""
    size_hw = (heatmaps_BHW.shape[-2] // stride, heatmaps_BHW.shape[-1] // stride)
    return F.interpolate(heatmaps_BHW[:, None], size=size_hw, mode="bilinear", align_corners=False)
