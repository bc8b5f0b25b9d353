"""AiT, All in Tokens: detection, instance segmentation and depth as sequences over one vocabulary.

Under autocast the transformer still computes in float32, as in the original: its logits tell thousands of tokens apart.

Shape legend: B images, N memory tokens, C width, V vocabulary, O objects of a sequence, t tokens of an object (5 + m),
m mask codes, K codes, h w the grid of codes. Source: All in Tokens (ICCV 2023); facts in docs/ait.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import DataError, UsageError
from saccade.layers.boxes import paste_masks
from saccade.layers.decoding import Nucleus, sample_nucleus
from saccade.layers.distributed import mean_over_ranks
from saccade.layers.losses import dice_error, scale_invariant_log_error
from saccade.layers.precision import full_precision
from saccade.layers.roi import Frame, frames_of, mask_targets
from saccade.layers.swin import SwinV2
from saccade.layers.vit import PlainViT, ViTConfig
from saccade.models.ait.config import TASK_ROWS, AiTConfig, DepthConfig, ObjectsConfig
from saccade.models.ait.sequences import (
    IGNORED,
    Draws,
    Vocabulary,
    check_count,
    corrupt_classes,
    noise_objects,
    object_tokens,
    sequence_error,
    sequence_targets,
)
from saccade.models.ait.transformer import Transformer
from saccade.models.ait.vqvae import depth_maps
from saccade.models.classes import KnownClasses
from saccade.results import DepthMap, Instances, Prediction, encode_masks
from saccade.samples import Batch, ClassList, Preprocess
from saccade.tasks import Task, require_task
from saccade.tokens.codebook import VQVAE

_CLASS, _CODES = 4, 5  # places of an object's class and first mask code
_MASKS_AT_ONCE = 16
_LEAST_DEPTH_M = 1e-3


@dataclass
class SaidObjects:
    """Decoded sequences of objects.

    Attributes:
        tokens_BOt: Relative to the range of each place: bins, class ids, codes.
        scores_BO: Probability of the class among all classes and noise.
        mask_logits_BOmK: Of every mask code; None without masks.
    """

    tokens_BOt: Tensor
    scores_BO: Tensor
    mask_logits_BOmK: Tensor | None


class AiT(nn.Module):
    """The task solver.

    Args:
        config: Sizes, rules and classes.
    """

    system = "ait"

    def __init__(self, config: AiTConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone: SwinV2 | PlainViT = (
            PlainViT(config.backbone) if isinstance(config.backbone, ViTConfig) else SwinV2(config.backbone)
        )
        self.transformer = Transformer(config.transformer, config.map_width, config.vocabulary)
        self.mask_vqvae = VQVAE(config.instance.masks) if config.instance and config.instance.masks else None
        self.depth_vqvae = VQVAE(config.depth.depth) if config.depth else None
        for vqvae in (self.mask_vqvae, self.depth_vqvae):
            if vqvae is not None:
                vqvae.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As usual, but the codebooks stand still: they were trained before."""
        super().train(mode)
        for vqvae in (self.mask_vqvae, self.depth_vqvae):
            if vqvae is not None:
                vqvae.eval()
        return self

    # ------------------------------------------------------------------ the contract of every model

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Those that have a config."""
        return tuple(self.config.lengths)

    @property
    def classes(self) -> ClassList:
        """The classes that the vocabulary knows, numbered where they have no names."""
        return self._known.listed

    @property
    def _known(self) -> KnownClasses:
        return KnownClasses(self.config.classes, self.config.category_ids, self.config.num_classes)

    def preprocess(self, task: Task) -> Preprocess:
        """Objects: the longer side to ``input_size``, padded. Depth: 0..1 pixels, the shorter side to its windows."""
        require_task(self.tasks, task)
        if task is Task.DEPTH:
            size = self._depth.depth.size
            declared = Preprocess(size_hw=(size, size), keep_ratio=True, cover=True)
            if self._depth.normalised:
                return declared
            return dataclasses.replace(declared, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
        size = self._objects(task).input_size
        return Preprocess(size_hw=(size, size), keep_ratio=True, pad_multiple=size)

    def loss(self, batch: Batch, *, draws: Draws | None = None) -> dict[str, Tensor]:
        """Training losses; their plain sum is what is minimised.

        Args:
            batch: Network inputs with targets.
            draws: Random draws of the sequences.

        Returns:
            Named scalars, e.g. ``depth_loss_codes``.
        """
        require_task(self.tasks, batch.task)
        losses = self._depth_loss(batch) if batch.task is Task.DEPTH else self._objects_loss(batch, draws or Draws())
        return {f"{batch.task}_{name}": value for name, value in losses.items()}

    def count_targets(self, batch: Batch) -> int:
        """The tokens of a batch that :meth:`loss` is a mean over: of a noise object only its class."""
        require_task(self.tasks, batch.task)
        if batch.task is Task.DEPTH:
            return len(batch) * self._depth.depth.tokens
        config = self._objects(batch.task)
        real = sum(len(target.class_ids) for target in batch.targets if target.class_ids is not None)
        crowds = sum(int(target.is_crowd.sum()) for target in batch.targets if target.is_crowd is not None)
        return len(batch) * config.objects + (real - crowds) * (config.tokens_per_object - 1)

    def predict(self, batch: Batch) -> list[Prediction]:
        """Answers in the frame of the original images, one per image."""
        require_task(self.tasks, batch.task)
        with torch.inference_mode():
            if batch.task is Task.DEPTH:
                return list(self._predict_depth(batch))
            frames = frames_of(batch)
            memory = self.encode(batch.images)
            with full_precision(batch.images.device):
                said = self.say_objects(memory, batch.task)
            return list(self._instances(said, frames, batch))

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of every block of the backbone in the backward pass."""
        self.backbone.activation_checkpointing = enabled

    # ------------------------------------------------------------------ the network

    def encode(self, images_B3HW: Tensor, *, pad_to: int = 0) -> Tensor:
        """The memory ``[B, N, C]`` of normalised images, padded with zeros to a side where that is asked for."""
        height, width = images_B3HW.shape[2:]
        if pad_to:
            images_B3HW = F.pad(images_B3HW, (0, pad_to - width, 0, pad_to - height))
        features = self.backbone(images_B3HW).permute(0, 3, 1, 2).float()
        with full_precision(features.device):
            return self.transformer.encode(features)

    def _logits(self, memory_BNC: Tensor, tokens_BT: Tensor, task: Task) -> Tensor:
        """Logits of a whole sequence, ``[B, T + 1, V]``, from all its tokens but the last."""
        tasks = torch.full((len(memory_BNC),), TASK_ROWS[task], device=memory_BNC.device)
        with full_precision(memory_BNC.device):
            return self.transformer.decode(memory_BNC, self.transformer.embed(tasks, tokens_BT))

    # ------------------------------------------------------------------ objects: training

    def _objects_loss(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        config = self._objects(batch.task)
        tokens, real, masks = self.object_sequences(batch, draws)
        targets = sequence_targets(tokens, real)
        vocabulary = self._vocabulary(config)
        read = corrupt_classes(tokens, vocabulary, draws).flatten(1)[:, :-1]
        logits = self._logits(self.encode(batch.images), read, batch.task)
        count = mean_over_ranks(self.count_targets(batch), logits)
        per_place = logits.view(*targets.shape, -1)
        losses = {
            "loss_box": sequence_error(per_place[..., :_CLASS, :].flatten(1, 2), targets[..., :_CLASS].flatten(1)),
            "loss_cls": sequence_error(per_place[..., _CLASS, :], targets[..., _CLASS]),
        }
        if config.masks is not None:
            codes = targets[..., _CODES:]
            error = sequence_error(per_place[..., _CODES:, :].flatten(1, 2), codes.flatten(1))
            losses["loss_mask"] = config.mask_weight * error
            if config.auxiliary:
                spoken = (codes != IGNORED).sum() * config.mask_weight
                seen = real & (torch.arange(config.objects, device=real.device) < config.auxiliary_objects)
                said = per_place[..., _CODES:, self.config.mask_tokens][seen]
                drawn = self._drawn_mask_error(said, masks[seen[real]], config)
                losses["loss_drawn"] = config.auxiliary * spoken * drawn
        return {name: config.weight * value / count for name, value in losses.items()}

    def object_sequences(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder learns to say.

        Args:
            batch: Network inputs with targets.
            draws: Random draws.

        Returns:
            Tokens ``[B, O, t]``, which objects are real ``[B, O]``, and the masks of the real ones in their boxes,
            ``[R, s, s]`` (empty without masks).
        """
        config = self._objects(batch.task)
        vocabulary = self._vocabulary(config)
        orders = [draws.permutation(0 if t.class_ids is None else len(t.class_ids)) for t in batch.targets]
        images, reals, cut = [], [], []
        for index, order in enumerate(orders):
            boxes, class_ids, masks = self._truth(batch, index, order)
            check_count(len(boxes), config.objects, batch.origins[index].path or batch.origins[index].image_id)
            noise = noise_objects(boxes, batch.input_sizes_hw[index], config.objects - len(boxes), draws)
            every = torch.cat([boxes, noise.boxes_xyxy])
            classes = torch.full((config.objects,), vocabulary.noise, device=boxes.device)
            classes[: len(boxes)] = class_ids + vocabulary.classes
            if self.mask_vqvae is not None and masks is not None and config.masks is not None:
                owner = torch.cat([torch.arange(len(boxes)), noise.source]).to(boxes.device)
                inside = torch.zeros(len(every), config.masks.size, config.masks.size, device=boxes.device)
                has = (owner >= 0).nonzero()[:, 0]
                inside[has] = mask_targets(masks, every[has], owner[has], config.masks.size)
                cut.append(inside)
            images.append((every, classes))
            reals.append(torch.arange(config.objects, device=boxes.device) < len(boxes))
        real = torch.stack(reals)
        crops = torch.stack(cut) if cut else None
        codes: list[Tensor | None] = [None] * len(images)
        if crops is not None and self.mask_vqvae is not None:
            codes = list(self.mask_vqvae.encode(crops.flatten(0, 1)).unflatten(0, crops.shape[:2]))
        sequences = [object_tokens(*pair, said, vocabulary) for pair, said in zip(images, codes, strict=True)]
        return torch.stack(sequences), real, real.new_zeros(0, 1, 1) if crops is None else crops[real]

    def _truth(self, batch: Batch, index: int, order: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Boxes, class ids and masks of an image in the given order, crowds left out."""
        target, where = batch.targets[index], batch.origins[index].path or batch.origins[index].image_id
        if target.boxes is None or target.class_ids is None:
            raise DataError("a training sample has no boxes", where=where)
        order = order.to(target.class_ids.device)
        if target.is_crowd is not None:
            order = order[~target.is_crowd[order]]
        masks = None
        if batch.task is Task.INSTANCE:
            if target.masks is None:
                raise DataError("a training sample has no masks", where=where)
            masks = target.masks.as_subclass(Tensor)[order]
        return (
            target.boxes.as_subclass(Tensor)[order].float(),
            self._known.own_ids(batch, target.class_ids[order]),
            masks,
        )

    def _drawn_mask_error(self, logits_RmK: Tensor, masks_Rss: Tensor, config: ObjectsConfig) -> Tensor:
        """Dice and squared error of the masks that the model would draw of its mixtures, mean over real objects."""
        if not len(masks_Rss):
            return logits_RmK.sum() * 0.0
        assert self.mask_vqvae is not None and config.masks is not None
        grid = config.masks.grid
        drawn = self.mask_vqvae.decode_soft(logits_RmK.mT.unflatten(2, (grid, grid)), sharpness=config.sharpness)
        return dice_error(drawn, masks_Rss).mean() + F.mse_loss(drawn, masks_Rss)

    # ------------------------------------------------------------------ objects: prediction

    def say_objects(self, memory_BNC: Tensor, task: Task) -> SaidObjects:
        """Decodes the objects of images, all of them step by step.

        Args:
            memory_BNC: Of :meth:`encode`.
            task: Detection or instance segmentation.
        """
        config, net = self._objects(task), self.transformer
        nucleus = Nucleus(top_p=config.top_p, seed=config.seed)
        generator = torch.Generator().manual_seed(nucleus.seed)
        ranges = [self.config.coordinate_tokens] * 4 + [self.config.class_tokens]
        ranges += [self.config.mask_tokens] * (config.tokens_per_object - len(ranges))
        row = TASK_ROWS[task]
        positions = net.position_embed[row]
        decoding = net.start(memory_BNC, config.length)
        x = net.task_embed[row].expand(len(memory_BNC), 1, -1)
        picked, scores, mask_logits = [], [], []
        noise = slice(self.config.noise_token, self.config.noise_token + 1)
        for step in range(config.length):
            allowed = ranges[step % len(ranges)]
            state = decoding.step(x + positions[step])
            logits = net.logits(state, allowed)[:, 0]
            token = sample_nucleus(logits, nucleus, generator)
            picked.append(token)
            if step % len(ranges) == _CLASS:
                against = torch.cat([logits, net.logits(state, noise)[:, 0]], dim=-1).float().softmax(-1)
                scores.append(against.gather(1, token[:, None])[:, 0])
            if allowed == self.config.mask_tokens:
                mask_logits.append(logits)
                if config.soft_tokens:
                    x = (logits.softmax(-1) @ net.token_embed[allowed])[:, None]
                    continue
            x = net.token_embed[token + allowed.start][:, None]
        tokens = torch.stack(picked, dim=1).unflatten(1, (config.objects, -1))
        masks = None
        if mask_logits:
            masks = torch.stack(mask_logits, dim=1).unflatten(1, (config.objects, -1))
        return SaidObjects(tokens, torch.stack(scores, dim=1), masks)

    def draw_masks(self, tokens_Ot: Tensor, logits_OmK: Tensor) -> Tensor:
        """Masks ``[O, s, s]`` in 0..1 of said objects of one image."""
        config = self._objects(Task.INSTANCE)
        assert self.mask_vqvae is not None and config.masks is not None
        if not config.soft_masks:
            return self.mask_vqvae.decode(tokens_Ot[:, _CODES:])
        grid = config.masks.grid
        return self.mask_vqvae.decode_soft(logits_OmK.mT.unflatten(2, (grid, grid)), sharpness=config.sharpness)

    def _instances(self, said: SaidObjects, frames: list[Frame], batch: Batch) -> list[Instances]:
        config = self._objects(batch.task)
        classes, places = self._known.wanted(batch.classes)
        found = []
        for index, frame in enumerate(frames):
            tokens, scores = said.tokens_BOt[index], said.scores_BO[index]
            scale = torch.tensor([*frame.scale_xy, *frame.scale_xy], device=tokens.device)
            boxes = tokens[:, :_CLASS] * config.input_size / self.config.bins / scale
            class_ids = tokens[:, _CLASS]
            if places is not None:
                class_ids = places.to(class_ids.device)[class_ids]
            keep = (class_ids >= 0).nonzero()[:, 0]
            keep = keep[scores[keep].argsort(descending=True, stable=True)]
            masks = None
            if batch.task is Task.INSTANCE and said.mask_logits_BOmK is not None:
                drawn = self.draw_masks(tokens[keep], said.mask_logits_BOmK[index][keep])
                parts = zip(drawn.split(_MASKS_AT_ONCE), boxes[keep].split(_MASKS_AT_ONCE), strict=True)
                masks = [
                    rle
                    for part, box in parts
                    for rle in encode_masks(paste_masks(part, box, frame.original_hw, anywhere=True))
                ]
            found.append(
                Instances(
                    boxes_xyxy=boxes[keep].cpu(),
                    scores=scores[keep].cpu(),
                    class_ids=class_ids[keep].cpu(),
                    classes=classes,
                    size_hw=frame.original_hw,
                    masks=masks,
                )
            )
        return found

    # ------------------------------------------------------------------ depth

    def _depth_loss(self, batch: Batch) -> dict[str, Tensor]:
        config = self._depth
        assert self.depth_vqvae is not None
        depth = depth_maps(batch)
        codes = self.depth_vqvae.encode(depth) + self.config.depth_tokens.start
        logits = self._logits(self.encode(batch.images, pad_to=config.pad_to), codes[:, :-1], Task.DEPTH)
        count = mean_over_ranks(self.count_targets(batch), logits)
        losses = {"loss_codes": sequence_error(logits, codes)}
        if config.auxiliary:
            drawn = self.draw_depth(logits[..., self.config.depth_tokens])
            losses["loss_drawn"] = config.auxiliary * codes.numel() * scale_invariant_log_error(drawn, depth)
        return {name: config.weight * value / count for name, value in losses.items()}

    def draw_depth(self, logits_BTK: Tensor) -> Tensor:
        """Depth ``[B, S, S]`` in metres of mixtures of codes."""
        assert self.depth_vqvae is not None
        grid = self._depth.depth.grid
        return self.depth_vqvae.decode_soft(logits_BTK.mT.unflatten(2, (grid, grid)), sharpness=self._depth.sharpness)

    def say_depth(self, memory_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes the depth codes of windows.

        Args:
            memory_BNC: Of :meth:`encode`.

        Returns:
            Codes ``[B, T]`` and their logits ``[B, T, K]``.
        """
        config, net, allowed = self._depth, self.transformer, self.config.depth_tokens
        row, length, b = TASK_ROWS[Task.DEPTH], config.depth.tokens, len(memory_BNC)
        positions = net.position_embed[row]
        nucleus = Nucleus(top_p=config.top_p, seed=config.seed)
        generator = torch.Generator().manual_seed(nucleus.seed)
        x = net.task_embed[row].expand(b, 1, -1)
        if net.parallel_embed is not None:
            whole = torch.cat([x, net.parallel_embed.expand(b, length - 1, -1)], dim=1) + positions[:length]
            logits = net.logits(net.states(memory_BNC, whole), allowed)
            tokens = [sample_nucleus(logits[:, step], nucleus, generator) for step in range(length)]
            return torch.stack(tokens, dim=1), logits
        decoding = net.start(memory_BNC, length)
        picked, every = [], []
        for step in range(length):
            logits = net.logits(decoding.step(x + positions[step]), allowed)[:, 0]
            token = sample_nucleus(logits, nucleus, generator)
            picked.append(token)
            every.append(logits)
            if config.soft_tokens:
                x = (logits.softmax(-1) @ net.token_embed[allowed])[:, None]
            else:
                x = net.token_embed[token + allowed.start][:, None]
        return torch.stack(picked, dim=1), torch.stack(every, dim=1)

    def depth_of_windows(self, images_B3SS: Tensor) -> Tensor:
        """Depth ``[B, S, S]`` in metres of square windows."""
        assert self.depth_vqvae is not None
        memory = self.encode(images_B3SS, pad_to=self._depth.pad_to)
        with full_precision(images_B3SS.device):
            codes, logits = self.say_depth(memory)
        return self.draw_depth(logits) if self._depth.soft_maps else self.depth_vqvae.decode(codes)

    def depth_of(self, images_B3HW: Tensor) -> Tensor:
        """Depth ``[B, H, W]`` in metres of images whose shorter side is that of the windows.

        Windows side by side, and their mirror images, are averaged (the original's test protocol).
        """
        config = self._depth
        side, (height, width) = config.depth.size, images_B3HW.shape[2:]
        if min(height, width) != side:
            raise UsageError(
                f"the shorter side of a picture must have {side} pixels, not {min(height, width)}",
                where=f"a picture of {height}x{width}",
                fix="bring it to what preprocess() declares",
            )
        spare = max(height, width) - side
        # A panorama needs more of them: no pixel is to lie between two.
        count = max(config.windows, -(-max(height, width) // side)) if spare else 1
        if spare and config.windows < 2:
            raise UsageError("one window does not cover a picture that is not square", fix="depth.windows=2")
        starts = [spare * number // max(1, count - 1) for number in range(count)]
        boxes = [(0, start) if width >= height else (start, 0) for start in starts]
        windows = torch.cat([images_B3HW[:, :, top : top + side, left : left + side] for top, left in boxes])
        depth = self.depth_of_windows(torch.cat([windows, windows.flip(3)]) if config.flip else windows)
        if config.flip:
            plain, mirrored = depth.chunk(2)
            depth = (plain + mirrored.flip(2)) / 2
        total = images_B3HW.new_zeros(len(images_B3HW), height, width)
        seen = images_B3HW.new_zeros(height, width)
        for (top, left), part in zip(boxes, depth.split(len(images_B3HW)), strict=True):
            total[:, top : top + side, left : left + side] += part
            seen[top : top + side, left : left + side] += 1
        return (total / seen).clamp(min=_LEAST_DEPTH_M)

    def _predict_depth(self, batch: Batch) -> list[DepthMap]:
        together: dict[tuple[int, int], list[int]] = {}
        for index, size_hw in enumerate(batch.input_sizes_hw):
            together.setdefault(size_hw, []).append(index)
        found: dict[int, DepthMap] = {}
        for (height, width), members in together.items():
            maps = self.depth_of(batch.images[members, :, :height, :width])
            for index, depth in zip(members, maps.split(1), strict=True):
                original_hw = batch.origins[index].size_hw
                if (height, width) != original_hw:
                    depth = F.interpolate(depth[None], size=original_hw, mode="bilinear", align_corners=False)[0]
                found[index] = DepthMap(depth_m=depth[0].cpu())
        return [found[index] for index in range(len(batch))]

    # ------------------------------------------------------------------ what was asked for

    def _objects(self, task: Task) -> ObjectsConfig:
        config = self.config.detection if task is Task.DETECTION else self.config.instance
        assert config is not None
        return config

    @property
    def _depth(self) -> DepthConfig:
        assert self.config.depth is not None
        return self.config.depth

    def _vocabulary(self, config: ObjectsConfig) -> Vocabulary:
        return Vocabulary(
            bins=self.config.bins,
            classes=self.config.class_tokens.start,
            num_classes=self.config.num_classes,
            noise=self.config.noise_token,
            codes=self.config.mask_tokens.start,
            side=config.input_size,
        )
