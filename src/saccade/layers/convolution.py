"""Convolutional parts of vision transformers: channel norm, ViTAE's parallel branch, propagation across windows.

Shape legend: B images, H W map, C channels. Maps between blocks are ``[B, H, W, C]``, inside convolutions
``[B, C, H, W]``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Propagation: TypeAlias = Literal["bottleneck", "basic", "naive"]
"""Residual convolutions between windowed blocks (ViTDet, section 3 and table 2 of the paper)."""

_PARALLEL_GROUP = 4  # channels per group of ViTAE's grouped convolutions, at their narrow end


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every position of a ``[B, C, H, W]`` map."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NormedConv(nn.Module):
    """Convolution without bias, then channel norm.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Side of the kernel; the map keeps its size.
        eps: Epsilon of the norm.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = ChannelNorm(outputs, eps=eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, outputs, H, W]``."""
        return self.norm(self.conv(x_BCHW))


class ConvPropagation(nn.Module):
    """A residual convolution that carries information across windows; it starts as the identity.

    ``bottleneck`` is public code (detectron2); ``basic`` and ``naive`` follow the paper's description: two and one
    3x3 convolutions. A channel norm follows every convolution, a GELU stands between them, the last norm starts at 0.

    Args:
        width: Channels C.
        kind: Which of the three.
    """

    def __init__(self, width: int, kind: Propagation) -> None:
        super().__init__()
        inner = width // 2
        sizes = {
            "bottleneck": [(width, inner, 1), (inner, inner, 3), (inner, width, 1)],
            "basic": [(width, width, 3), (width, width, 3)],
            "naive": [(width, width, 3)],
        }[kind]
        self.convs = nn.ModuleList(NormedConv(*size) for size in sizes)
        for conv in self.convs:
            assert isinstance(conv, NormedConv)
            nn.init.kaiming_normal_(conv.conv.weight, mode="fan_out", nonlinearity="relu")
            last = conv.norm
        nn.init.zeros_(last.weight)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """``[B, H, W, C]`` to the same shape."""
        y = x_BHWC.permute(0, 3, 1, 2)
        for index, conv in enumerate(self.convs):
            y = conv(F.gelu(y) if index else y)
        return x_BHWC + y.permute(0, 2, 3, 1)


class ConvStack(nn.Sequential):
    """Convolutions, batch norms and activations in order.

    Prediction folds every batch norm into the convolution before it: a pass over the map less for each.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` through all layers."""
        if self.training or torch.is_grad_enabled():
            return super().forward(x_BCHW)
        layers, folded = list(self), False
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            if folded:
                folded = False
            elif isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                assert after.running_mean is not None and after.running_var is not None
                weight, bias = fuse_conv_bn_weights(
                    layer.weight, layer.bias, after.running_mean, after.running_var, after.eps, after.weight, after.bias
                )
                x_BCHW = F.conv2d(x_BCHW, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
                folded = True
            else:
                x_BCHW = layer(x_BCHW)
        return x_BCHW


class ParallelConv(nn.Module):
    """ViTAE's convolution branch, which reads the un-normed input of a block beside its attention (PCM).

    Args:
        width: Channels C of the block.
        hidden: Channels between the convolutions (those of the MLP).
        form: ``"two"``: 3x3, BatchNorm, SiLU, 3x3 (ViTAE-B); ``"three"``: 3x3, BatchNorm, SiLU, 3x3, BatchNorm, SiLU,
            3x3, SiLU (ViTAE-S). All grouped.
    """

    def __init__(self, width: int, hidden: int, form: Literal["two", "three"]) -> None:
        super().__init__()
        groups = width // _PARALLEL_GROUP
        layers: list[nn.Module] = [
            nn.Conv2d(width, hidden, 3, padding=1, groups=groups),
            nn.BatchNorm2d(hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, width, 3, padding=1, groups=groups),
        ]
        if form == "three":
            layers += [
                nn.BatchNorm2d(width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1, groups=groups),
                nn.SiLU(),
            ]
        self.layers = ConvStack(*layers)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """``[B, H, W, C]`` to the same shape."""
        return self.layers(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
