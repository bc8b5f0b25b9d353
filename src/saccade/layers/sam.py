"""Segment Anything: an image is encoded once, then asked often with points, boxes, masks, or vectors of another model.

Shape legend: B images, n prompts, T prompt tokens, C decoder width (256), h w feature map (64x64), M mask tokens.
Source: Segment Anything (ICCV 2023), section 3 and appendix A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, UsageError
from saccade.layers.convolution import ChannelNorm
from saccade.layers.precision import full_precision
from saccade.layers.sam_decoder import MaskDecoder, MaskDecoderConfig
from saccade.layers.vit import PlainViT, ViTConfig

_MAP_EPS = 1e-6
_PADDING_LABEL = -1


def sam_vit(size: str) -> ViTConfig:
    """The published image encoders: ``b``, ``l`` or ``h``, at 1024 px."""
    width, depth, heads = {"b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}[size]
    return ViTConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        image_size=1024,
        window_size=14,
        global_blocks=tuple(depth // 4 * part - 1 for part in (1, 2, 3, 4)),
        drop_path=0.0,
    )


@dataclass(kw_only=True)
class SAMConfig:
    """Segment Anything.

    Attributes:
        vit: The image encoder; its nominal image size is the side of the network input.
        width: Channels of the image features and the prompts.
        mask_width: Channels inside the embedding of mask prompts.
        decoder: The mask decoder.
    """

    vit: ViTConfig = field(default_factory=lambda: sam_vit("h"))
    width: int = 256
    mask_width: int = 16
    decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)

    def __post_init__(self) -> None:
        if self.width % 8:
            raise ConfigError(f"width {self.width} is no multiple of 8", where="sam.width")
        if self.mask_width % 4:
            raise ConfigError(f"mask_width {self.mask_width} is no multiple of 4", where="sam.mask_width")


class SAM(nn.Module):
    """Image encoder, prompt encoder and mask decoder.

    Args:
        config: Sizes.
    """

    def __init__(self, config: SAMConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config.decoder, config.width)

    def encode(self, images_B3SS: Tensor) -> Tensor:
        """Normalised, zero-padded images to features ``[B, C, h, w]``."""
        return self.image_encoder(images_B3SS)

    def decode(
        self, features_nChw: Tensor, sparse_nTC: Tensor, dense_nChw: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masks of prompts.

        Args:
            features_nChw: Features of the image of every prompt; ``[1, C, h, w]`` where all ask about one.
            sparse_nTC: Prompt tokens.
            dense_nChw: Embedded mask prompts; None = the embedding of no mask.

        Returns:
            Logits ``[n, M, 4h, 4w]`` (token 0 is the single best mask, 1.. are the three of an ambiguous prompt), and
            the believed overlap of each with the truth ``[n, M]``.
        """
        size_hw = (features_nChw.shape[2], features_nChw.shape[3])
        dense = self.prompt_encoder.no_mask(size_hw) if dense_nChw is None else dense_nChw
        return self.mask_decoder(features_nChw, self.prompt_encoder.grid(size_hw), sparse_nTC, dense)


class ImageEncoder(nn.Module):
    """A plain ViT and the neck that narrows its map to the decoder's width."""

    def __init__(self, config: SAMConfig) -> None:
        super().__init__()
        self.vit = PlainViT(config.vit)
        self.neck = nn.Sequential(
            nn.Conv2d(config.vit.width, config.width, 1, bias=False),
            ChannelNorm(config.width, eps=_MAP_EPS),
            nn.Conv2d(config.width, config.width, 3, padding=1, bias=False),
            ChannelNorm(config.width, eps=_MAP_EPS),
        )

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """``[B, 3, S, S]`` to ``[B, C, h, w]``."""
        return self.neck(self.vit(images_B3SS).permute(0, 3, 1, 2))


class PromptEncoder(nn.Module):
    """Positions as random Fourier features, plus a learned vector for what stands there."""

    gaussian: Tensor

    def __init__(self, config: SAMConfig) -> None:
        super().__init__()
        width, inner = config.width, config.mask_width
        self.image_size = config.vit.image_size
        self.register_buffer("gaussian", torch.randn(2, width // 2))
        # Background point, foreground point, first and second corner of a box.
        self.point_kinds = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point = nn.Embedding(1, width)
        self.no_mask_embed = nn.Embedding(1, width)
        self.mask_layers = nn.Sequential(
            nn.Conv2d(1, inner // 4, 2, stride=2),
            ChannelNorm(inner // 4, eps=_MAP_EPS),
            nn.GELU(),
            nn.Conv2d(inner // 4, inner, 2, stride=2),
            ChannelNorm(inner, eps=_MAP_EPS),
            nn.GELU(),
            nn.Conv2d(inner, width, 1),
        )

    def positions(self, coordinates_xy: Tensor) -> Tensor:
        """Coordinates ``[..., 2]`` in 0..1 to ``[..., C]``: sine and cosine of random frequencies."""
        with full_precision(self.gaussian.device):  # half precision would shift phases of several turns
            phase = 2 * math.pi * ((2 * coordinates_xy.float() - 1) @ self.gaussian.float())
            return torch.cat([phase.sin(), phase.cos()], dim=-1).to(self.gaussian.dtype)

    def grid(self, size_hw: tuple[int, int]) -> Tensor:
        """Positions of the centres of a feature map: ``[1, C, h, w]``."""
        h, w = size_hw
        y, x = ((torch.arange(size, device=self.gaussian.device) + 0.5) / size for size in (h, w))
        centres_xy = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1)
        return self.positions(centres_xy).permute(2, 0, 1)[None]

    def points(self, points_xy: Tensor, labels: Tensor, *, closed: bool = False) -> Tensor:
        """Point prompts as tokens.

        Args:
            points_xy: ``[n, P, 2]`` pixels of the network input.
            labels: ``[n, P]``: 1 foreground, 0 background, -1 none (padding).
            closed: A box follows. Otherwise one token that says "no more points" is added, as SAM was trained.

        Returns:
            ``[n, P, C]``, or ``[n, P + 1, C]``.
        """
        if not closed:
            points_xy = F.pad(points_xy, (0, 0, 0, 1))
            labels = F.pad(labels, (0, 1), value=_PADDING_LABEL)
        positions = self.positions((points_xy + 0.5) / self.image_size)
        none = (labels == _PADDING_LABEL)[..., None]
        kinds = torch.stack([self._kind(kind) for kind in range(2)])[labels.clamp(min=0)]
        return torch.where(none, self.not_a_point.weight[0], positions + kinds)

    def boxes(self, boxes_xyxy: Tensor) -> Tensor:
        """Box prompts ``[n, 4]``, pixels of the network input, as the tokens of two corners ``[n, 2, C]``."""
        corners = self.positions((boxes_xyxy.unflatten(-1, (2, 2)) + 0.5) / self.image_size)
        return corners + torch.stack([self._kind(2), self._kind(3)])

    def masks(self, logits_n1hw: Tensor) -> Tensor:
        """Mask prompts: logits of an earlier answer, ``[n, 1, 4h, 4w]``, as a map ``[n, C, h, w]``."""
        return self.mask_layers(logits_n1hw)

    def no_mask(self, size_hw: tuple[int, int]) -> Tensor:
        """The map of a prompt without a mask: ``[1, C, h, w]``."""
        return self.no_mask_embed.weight[0][None, :, None, None].expand(1, -1, *size_hw)

    def _kind(self, kind: int) -> Tensor:
        return cast("nn.Embedding", self.point_kinds[kind]).weight[0]


def resize_masks(
    logits_nMhw: Tensor, *, image_size: int, input_hw: tuple[int, int], original_hw: tuple[int, int]
) -> Tensor:
    """Low-resolution logits in the frame of the original picture, in float32.

    Args:
        logits_nMhw: Of the decoder.
        image_size: Side of the padded network input.
        input_hw: Size of the picture inside the padding.
        original_hw: Size of the original picture.

    Returns:
        ``[n, M, H, W]``; both steps are bilinear, without antialiasing.

    Raises:
        UsageError: The picture is larger than the network input.
    """
    if max(input_hw) > image_size or min(*input_hw, *original_hw) < 1:
        raise UsageError(f"a picture of {input_hw} pixels in a network input of {image_size}", where="input_sizes_hw")
    size = (image_size, image_size)
    whole = F.interpolate(logits_nMhw.float(), size=size, mode="bilinear", align_corners=False)
    inside = whole[..., : input_hw[0], : input_hw[1]]
    return F.interpolate(inside, size=original_hw, mode="bilinear", align_corners=False)
