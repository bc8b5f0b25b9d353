"""Soft tokens: a VQ-VAE turns small dense maps (masks, depth) into codes and back (AiT, section 3.1).

Under autocast codes are chosen and maps are drawn in float32: eight bits of a mantissa would show in a depth map.

Shape legend: B maps, H W their side, D channels of the latent map, h w its size, K codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import ConfigError, UsageError
from saccade.layers.losses import scale_invariant_log_error, valid_squared_error
from saccade.layers.precision import full_precision

Reconstruction: TypeAlias = Literal["squared", "valid_squared", "scale_invariant_log"]

_COMMITMENT = 0.25
_EPS = 1e-5


@dataclass(kw_only=True)
class CodebookConfig:
    """A codebook learned by moving averages.

    Attributes:
        codes: Entries K.
        width: Channels D of an entry.
        decay: Of the moving averages.
        revive_below: Entries with fewer (averaged) uses become latents of the batch; 0 = never, as in the original,
            where an entry that is not used in the first step never is.
        sync: Latents of all processes move the entries, as if one process had seen them; otherwise those of the first
            do, whose codebook is the one that the original keeps. Either way all processes have the same one.
    """

    codes: int = 128
    width: int = 512
    decay: float = 0.99
    revive_below: float = 0.0
    sync: bool = False


class Codebook(nn.Module):
    """Nearest-entry quantisation with moving averages instead of gradients (van den Oord et al., 2017, appendix A).

    Args:
        config: Sizes and rules.
    """

    entries: Tensor
    uses: Tensor
    sums: Tensor

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("entries", torch.randn(config.codes, config.width))
        self.register_buffer("uses", torch.zeros(config.codes))
        self.register_buffer("sums", torch.randn(config.codes, config.width))

    def distances(self, latents_ND: Tensor) -> Tensor:
        """Squared distances to every entry, ``[N, K]``; in float32 under autocast, too: codes are near each other."""
        with full_precision(latents_ND.device):
            return self._distances(latents_ND.to(self.entries.dtype))

    def _distances(self, latents_ND: Tensor) -> Tensor:
        squares = latents_ND.square().sum(1, keepdim=True) + self.entries.square().sum(1)
        return squares - 2 * latents_ND @ self.entries.T

    def nearest(self, latents_ND: Tensor) -> Tensor:
        """Codes ``[N]`` of latent vectors."""
        return self.distances(latents_ND).argmin(1)

    @torch.no_grad()
    def begin(self, latents_ND: Tensor) -> None:
        """Where dead entries are revived, the first batch gives all of them their places: random ones are far away.

        Far entries push the decoder into a corner (all its ReLUs dead) before it has learned anything.
        """
        if self.config.revive_below and not self.uses.any():
            self._revive(latents_ND.detach().float())

    @torch.no_grad()
    def update(self, latents_ND: Tensor, codes_N: Tensor) -> None:
        """Moves the entries towards the latents that chose them.

        Args:
            latents_ND: Latents of the step.
            codes_N: What they chose with the entries as they stand.
        """
        config = self.config
        latents_ND = latents_ND.detach().float()
        counts = torch.bincount(codes_N, minlength=config.codes).to(self.uses.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, codes_N, latents_ND)
        if dist.is_initialized():
            for tensor in (counts, sums):
                if config.sync:
                    dist.all_reduce(tensor)
                else:
                    dist.broadcast(tensor, src=0)
        self.uses.mul_(config.decay).add_(counts, alpha=1 - config.decay)
        total = self.uses.sum()
        self.uses.copy_((self.uses + _EPS) / (total + config.codes * _EPS) * total)
        self.sums.mul_(config.decay).add_(sums, alpha=1 - config.decay)
        self.entries.copy_(self.sums / self.uses[:, None])
        if config.revive_below:
            self._revive(latents_ND)

    def _revive(self, latents_ND: Tensor) -> None:
        """Gives entries that nothing uses a latent of the batch, drawn at random."""
        dead = (self.uses < self.config.revive_below).nonzero()[:, 0]
        drawn = torch.randint(len(latents_ND), (len(dead),), device=latents_ND.device)
        chosen = latents_ND[drawn]
        if dist.is_initialized():
            dist.broadcast(chosen, src=0)
        self.entries[dead] = chosen
        self.sums[dead] = chosen * self.config.revive_below
        self.uses[dead] = self.config.revive_below


@dataclass(kw_only=True)
class VQVAEConfig:
    """A VQ-VAE of one-channel square maps.

    Attributes:
        size: Side of the maps in pixels.
        downsample: Pixels per code along an axis; a power of 2 from 4 on.
        base_width: Channels after the first convolution; they double with every further halving.
        residual_blocks: At the finest latent resolution, in the encoder and in the decoder.
        codebook: The codebook.
        signed: Maps of 0..1 are brought to -1..1 inside (masks); depth in metres stays as it is.
        scale: Values of the maps are divided by it inside; 1 as published, more where they are far from 1.
        reconstruction: The reconstruction loss; those of depth leave out what is 0.
    """

    size: int = 64
    downsample: int = 16
    base_width: int = 16
    residual_blocks: int = 2
    codebook: CodebookConfig
    signed: bool = True
    scale: float = 1.0
    reconstruction: Reconstruction = "squared"

    def __post_init__(self) -> None:
        if self.downsample < 4 or self.downsample & (self.downsample - 1):
            raise ConfigError(f"downsample must be a power of 2 from 4 on, not {self.downsample}", where="vqvae")
        if self.signed and self.scale != 1:
            raise ConfigError("maps of 0..1 are not divided by a scale", where="vqvae.scale", fix="signed=false")
        if self.size % self.downsample:
            raise ConfigError(f"size {self.size} is not a multiple of downsample {self.downsample}", where="vqvae.size")

    @property
    def grid(self) -> int:
        """Codes along an axis."""
        return self.size // self.downsample

    @property
    def tokens(self) -> int:
        """Codes of a map."""
        return self.grid**2


class ResidualConvs(nn.Module):
    """Two 3x3 convolutions and a 1x1 one, added to their input; no activation behind the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        return x_BCHW + self.layers(x_BCHW)


@dataclass
class Reconstructed:
    """A training pass.

    Attributes:
        maps_B1HW: What came out, in the units of the input.
        losses: ``loss_reconstruction`` and ``loss_commitment``.
    """

    maps_B1HW: Tensor
    losses: dict[str, Tensor]


class VQVAE(nn.Module):
    """Maps to codes and codes to maps.

    Args:
        config: Sizes and rules.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.base_width * 2**step for step in range(config.downsample.bit_length() - 1)]
        latent, widest = config.codebook.width, widths[-1]
        down: list[nn.Module] = []
        for before, width in zip([1, *widths], widths, strict=False):
            down += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.ReLU()]
        blocks = [ResidualConvs(widest) for _ in range(config.residual_blocks)]
        self.encoder = nn.Sequential(*down, *blocks, nn.Conv2d(widest, latent, 1))
        up: list[nn.Module] = []
        for before, width in zip([widest, *widths[::-1]], widths[::-1], strict=False):
            up += [nn.ConvTranspose2d(before, width, 4, stride=2, padding=1), nn.ReLU()]
        blocks = [ResidualConvs(widest) for _ in range(config.residual_blocks)]
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, widest, 1), nn.ReLU(), *blocks, *up, nn.Conv2d(config.base_width, 1, 1)
        )
        self.codebook = Codebook(config.codebook)

    def start_alive(self) -> None:
        """Fresh weights in which no channel begins dead: He's variances, no biases, residual blocks that add nothing.

        With torch's own start (the original's) biases are greater than signals, so that half of the ReLUs are shut for
        every input; a narrow network may never come out of it.
        """
        for module in self.modules():
            if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                continue
            # Of the taps of a transposed convolution every output meets one in stride^2.
            taps = module.in_channels * math.prod(module.kernel_size)
            if isinstance(module, nn.ConvTranspose2d):
                taps //= math.prod(module.stride)
            nn.init.normal_(module.weight, std=math.sqrt(2 / taps))
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        for block in self.modules():
            if isinstance(block, ResidualConvs):
                nn.init.zeros_(cast(nn.Conv2d, block.layers[-1]).weight)

    def latents(self, maps_B1HW: Tensor) -> Tensor:
        """The continuous latent map, ``[B, D, h, w]``.

        Raises:
            UsageError: More than one channel, or a side that is no multiple of ``downsample``.
        """
        step = self.config.downsample
        channels, height, width = maps_B1HW.shape[1:]
        if channels != 1 or height % step or width % step:
            raise UsageError(
                f"a map of shape {tuple(maps_B1HW.shape[1:])} cannot be made into codes",
                where="VQ-VAE",
                fix=f"bring it to one channel, with sides that are multiples of {step} pixels",
            )
        return self.encoder(2 * (maps_B1HW - 0.5) if self.config.signed else maps_B1HW / self.config.scale)

    def encode(self, maps_BHW: Tensor) -> Tensor:
        """Codes ``[B, tokens]`` of maps, row-major; no gradient.

        Raises:
            UsageError: The maps do not have the side that a sequence stands for.
        """
        size = self.config.size
        if tuple(maps_BHW.shape[1:]) != (size, size):
            raise UsageError(
                f"maps of {maps_BHW.shape[1]}x{maps_BHW.shape[2]} pixels are no {self.config.tokens} codes",
                where="VQ-VAE",
                fix=f"bring them to {size}x{size}",
            )
        with torch.no_grad(), full_precision(maps_BHW.device):
            latents = self.latents(maps_BHW[:, None].to(self.codebook.entries.dtype))
            return self.codebook.nearest(_rows(latents)).view(len(maps_BHW), -1)

    def decode(self, codes_BN: Tensor) -> Tensor:
        """Maps ``[B, H, W]`` of codes ``[B, tokens]``."""
        grid = self.config.grid
        latents = self.codebook.entries[codes_BN].mT.unflatten(2, (grid, grid))
        with full_precision(latents.device):
            return self._draw(latents)[:, 0]

    def decode_soft(self, logits_BKhw: Tensor, *, sharpness: float = 1.0) -> Tensor:
        """Maps ``[B, H, W]`` of mixtures of codes.

        Args:
            logits_BKhw: Of every code at every place of the grid.
            sharpness: Multiplies the logits before the softmax (tau in the original).
        """
        with full_precision(logits_BKhw.device):
            shares = (sharpness * logits_BKhw).softmax(1).to(self.codebook.entries.dtype)
            return self._draw(torch.einsum("bkhw,kd->bdhw", shares, self.codebook.entries))[:, 0]

    def _draw(self, latents_BDhw: Tensor) -> Tensor:
        drawn = self.decoder(latents_BDhw)
        return 0.5 * drawn + 0.5 if self.config.signed else drawn * self.config.scale

    def reconstruct(self, maps_B1HW: Tensor, wanted_B1HW: Tensor) -> Reconstructed:
        """One pass with its losses; in training mode the codebook moves, after it was used.

        Args:
            maps_B1HW: What is read (masked, where masking is trained).
            wanted_B1HW: What should come out.
        """
        latents = self.latents(maps_B1HW)
        rows = _rows(latents)
        if self.training:
            self.codebook.begin(rows)
        codes = self.codebook.nearest(rows)
        entries = self.codebook.entries[codes].view(latents.shape[0], *latents.shape[2:], -1).permute(0, 3, 1, 2)
        commitment = _COMMITMENT * F.mse_loss(latents, entries)
        drawn = self._draw(latents + (entries - latents).detach())
        losses = {"loss_reconstruction": self._reconstruction(drawn, wanted_B1HW), "loss_commitment": commitment}
        if self.training:
            self.codebook.update(rows, codes)
        return Reconstructed(drawn, losses)

    def _reconstruction(self, drawn: Tensor, wanted: Tensor) -> Tensor:
        match self.config.reconstruction:
            case "squared":
                unit = 2.0 if self.config.signed else 1.0
                return F.mse_loss(unit * drawn, unit * wanted)
            case "valid_squared":
                return valid_squared_error(drawn, wanted)
            case "scale_invariant_log":
                return scale_invariant_log_error(drawn, wanted)


def mask_patches(maps_B1HW: Tensor, *, patch: int = 16, ratio: float = 0.5, generator: torch.Generator) -> Tensor:
    """Sets a share of the patches of every map to 0 (AiT's mask augmentation of depth).

    Args:
        maps_B1HW: Whole patches.
        patch: Side in pixels.
        ratio: Share of the patches of each map, rounded up.
        generator: A CPU generator; one permutation per map.
    """
    b, _, height, width = maps_B1HW.shape
    rows, columns = height // patch, width // patch
    hidden = -int(-ratio * rows * columns // 1)
    keep = torch.ones(b, rows * columns, dtype=maps_B1HW.dtype)
    for one in keep:
        one[torch.randperm(rows * columns, generator=generator)[:hidden]] = 0
    keep_B1HW = keep.view(b, 1, rows, columns).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return maps_B1HW * keep_B1HW.to(maps_B1HW.device)


def _rows(latents_BDhw: Tensor) -> Tensor:
    return latents_BDhw.permute(0, 2, 3, 1).flatten(0, 2)
