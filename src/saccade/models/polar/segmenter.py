"""A network that scores every pixel: the paper's U-Net, a plain ViT with a light head, U-Net++, DeepLabV3+.

Shape legend: B images, K classes, H W network input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import require
from saccade.labels import background_of
from saccade.layers.losses import dice_error
from saccade.layers.unet import UNet, UNetConfig
from saccade.layers.vit import PlainViT
from saccade.models.classes import KnownClasses
from saccade.models.label_maps import answers, as_asked, own_labels
from saccade.models.polar.config import LibraryConfig, SegmenterConfig, ViTPixelsConfig
from saccade.results import Prediction
from saccade.samples import IGNORE_LABEL, Batch, ClassList, Preprocess
from saccade.tasks import Task, require_task


class ViTPixels(nn.Module):
    """A plain ViT and a linear map of its last features, resized bilinearly.

    Args:
        config: The backbone.
        outputs: Channels of the answer.
    """

    def __init__(self, config: ViTPixelsConfig, outputs: int) -> None:
        super().__init__()
        self.backbone = PlainViT(config.vit)
        self.norm = nn.LayerNorm(config.vit.width)
        self.head = nn.Linear(config.vit.width, outputs)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to logits ``[B, outputs, H, W]``."""
        logits_BhwK = self.head(self.norm(self.backbone(images_B3HW)))
        size_hw = images_B3HW.shape[-2:]
        return F.interpolate(logits_BhwK.permute(0, 3, 1, 2).float(), size=size_hw, mode="bilinear")


class Segmenter(nn.Module):
    """Segments by scoring every pixel.

    Args:
        config: The network, the classes and the input.

    Raises:
        MissingExtraError: The network is one of the library's, which is not installed.
    """

    system = "segmenter"

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        outputs = 1 if len(config.classes) == 2 else len(config.classes)
        if isinstance(config.network, UNetConfig):
            self.network: nn.Module = UNet(config.network, inputs=config.channels, outputs=outputs)
        elif isinstance(config.network, ViTPixelsConfig):
            self.network = ViTPixels(config.network, outputs)
        else:
            self.network = _library_network(config.network, config.channels, outputs)
        self.to(memory_format=torch.channels_last)  # a quarter of the time less on a CPU

    # ------------------------------------------------------------------ the contract of every model

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Semantic segmentation."""
        return (Task.SEMANTIC,)

    @property
    def classes(self) -> ClassList:
        """The classes that the head knows."""
        return self._known.listed

    @property
    def _known(self) -> KnownClasses:
        return KnownClasses(self.config.classes, self.config.category_ids, len(self.config.classes))

    def preprocess(self, task: Task) -> Preprocess:
        """Pictures squeezed to the network input, bilinearly."""
        require_task(self.tasks, task)
        return Preprocess(size_hw=self.config.input_hw, mean=self.config.mean, std=self.config.std)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The soft Dice error, per class over the whole batch, averaged over classes; ignored pixels count nowhere."""
        require_task(self.tasks, batch.task)
        probabilities = self.logits(batch.images).float().sigmoid()
        labels_BHW = own_labels(self._known, batch)
        known_B1HW = (labels_BHW != IGNORE_LABEL)[:, None]
        wanted = torch.stack([labels_BHW == class_id for class_id in self._scored], dim=1)
        said, truth = probabilities * known_B1HW, (wanted & known_B1HW).float()
        # A class of the whole batch is a row, as one mask would be.
        return {f"{batch.task}_loss_dice": dice_error(said.transpose(0, 1), truth.transpose(0, 1)).mean()}

    def predict(self, batch: Batch) -> list[Prediction]:
        """One label map per picture, in the frame of the original picture."""
        require_task(self.tasks, batch.task)
        with torch.inference_mode():
            return answers(self.class_scores(batch), batch, batch.classes or self.classes)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of a plain ViT in the backward pass; the others have no such blocks."""
        if isinstance(self.network, ViTPixels):
            self.network.backbone.activation_checkpointing = enabled

    # ------------------------------------------------------------------ the network

    def logits(self, images_B3HW: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to logits ``[B, 1 or K, H, W]``."""
        pictures = images_B3HW[:, : self.config.channels]
        return self.network(pictures.contiguous(memory_format=torch.channels_last))

    def class_scores(self, batch: Batch) -> Tensor:
        """Scores 0..1 of the classes that are asked for, in their order: ``[B, K, H, W]`` in the frame of the input.

        Raises:
            UsageError: Not all classes of the model are asked for.
        """
        probabilities = self.logits(batch.images).float().sigmoid()
        if len(self._scored) == 1:
            pair = [probabilities, 1 - probabilities] if self._scored[0] == 0 else [1 - probabilities, probabilities]
            probabilities = torch.cat(pair, dim=1)
        return as_asked(self._known, probabilities, batch.classes)

    @property
    def _scored(self) -> tuple[int, ...]:
        """The classes that have a logit."""
        if len(self.config.classes) > 2:
            return tuple(range(len(self.config.classes)))
        return (1 - background_of(self.classes),)


def _library_network(config: LibraryConfig, inputs: int, outputs: int) -> nn.Module:
    smp = require("segmentation_models_pytorch", extra="medical", purpose=f"the network {config.architecture}")
    kind = {"unetplusplus": smp.UnetPlusPlus, "deeplabv3plus": smp.DeepLabV3Plus}[config.architecture]
    network: nn.Module = kind(
        encoder_name=config.encoder, encoder_weights=None, in_channels=inputs, classes=outputs, activation=None
    )
    return network
