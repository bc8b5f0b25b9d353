"""GiT: a plain ViT whose image tokens and short text responses run through the same blocks.

Shape legend: B images, H W patch grid, C width, n heads, d head channels, T text tokens, W windows of the whole batch,
N observation keys of a window (image, then text), Q grid points, P responses in window-major order, L response tokens
(the grid token first), V vocabulary rows. Source: GiT, ECCV 2024; facts in docs/git.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saccade.errors import UsageError
from saccade.layers.decoding import KVCache
from saccade.layers.kept import stamp_of
from saccade.layers.vit import Block, PlainViT, from_windows, resize_position, to_windows
from saccade.models.git import caption, detection, grounding, semantic
from saccade.models.git.config import CaptionConfig, GiTConfig, GroundingConfig, TaskConfig
from saccade.models.git.grid import PointGrid, ResponseLayout, point_grid
from saccade.models.label_maps import resize_scores
from saccade.results import Prediction
from saccade.samples import Batch, Preprocess
from saccade.tasks import Task, require_task
from saccade.tokens.vocabulary import TextVocabulary

_INTERFACES = {
    Task.DETECTION: detection,
    Task.INSTANCE: detection,
    Task.SEMANTIC: semantic,
    Task.CAPTION: caption,
    Task.GROUNDING: grounding,
}
# Tasks whose single response per image passes through every block; the others skip the global blocks.
_WHOLE_IMAGE = (Task.CAPTION, Task.GROUNDING)
_CONCEPT_LENGTH = 20


class TextEmbedding(nn.Module):
    """Rows plus positions, normalised, as BERT does; the rows are given, not looked up.

    Args:
        config: Sizes and dropout.
    """

    def __init__(self, config: GiTConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.vit.width)
        self.positions = nn.Embedding(config.max_positions, config.vit.width)
        self.norm = nn.LayerNorm(config.vit.width, eps=1e-12)
        self.dropout = nn.Dropout(config.text_dropout)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, rows: Tensor, positions: Tensor) -> Tensor:
        """``[..., C]`` rows and ``[...]`` positions (broadcast) to ``[..., C]``."""
        return self.dropout(self.norm(rows + self.positions(positions)))


@dataclass
class Text:
    """The phrases of grounding.

    Attributes:
        x_BTC: Text tokens.
        observation_mask: ``[B, 1, H * W + T, H * W + T]`` additive mask of image and text among themselves.
        key_mask: ``[B, 1, 1, H * W + T]`` additive mask of padding, for responses.
    """

    x_BTC: Tensor
    observation_mask: Tensor
    key_mask: Tensor


@dataclass
class Observation:
    """An encoded batch: what responses need to know of images and text.

    Attributes:
        grid: The grid points of an image.
        batch: Images B.
        keys_values: Keys and values per active layer, each ``[W, n, N, d]``.
        start: ``[B * Q, C]`` start embedding of the points, window-major.
        task_row: ``[C]`` concept of the task name.
        key_mask: Additive mask of padded text, or None.
    """

    grid: PointGrid
    batch: int
    start: Tensor
    task_row: Tensor
    key_mask: Tensor | None = None
    keys_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def layout(self) -> ResponseLayout:
        """All points of all images."""
        return ResponseLayout.even(self.batch * self.grid.windows, self.grid.per_window, self.start.device)

    def read_by(self, window_of: Tensor) -> tuple[Observation, ResponseLayout]:
        """What a choice of responses reads: the windows without any of them are left out.

        Args:
            window_of: ``[P]`` window of every response, ascending.

        Returns:
            The observation of the windows that are left, and the layout of the responses.
        """
        windows = len(self.keys_values[0][0])
        kept, renumbered = window_of.unique(return_inverse=True)
        if len(kept) == windows:
            return self, ResponseLayout(window_of, windows)
        keys_values = [(keys[kept], values[kept]) for keys, values in self.keys_values]
        key_mask = None if self.key_mask is None else self.key_mask[kept]
        left = dataclasses.replace(self, keys_values=keys_values, key_mask=key_mask)
        return left, ResponseLayout(renumbered, len(kept))


class GiT(nn.Module):
    """The generalist vision transformer.

    Args:
        config: Sizes and task interfaces.
        vocabulary: The WordPiece vocabulary; its length must be ``config.vocab_size``.

    Raises:
        UsageError: Vocabulary and config disagree.
    """

    system = "git"

    def __init__(self, config: GiTConfig, vocabulary: TextVocabulary) -> None:
        super().__init__()
        if len(vocabulary) != config.vocab_size:
            raise UsageError(
                f"the vocabulary has {len(vocabulary)} pieces but the model has {config.vocab_size} word rows",
                where=vocabulary.path,
                fix="use the vocabulary file that belongs to the checkpoint",
            )
        self.config = config
        self.vocabulary = vocabulary
        width = config.vit.width
        self.backbone = PlainViT(config.vit)
        self.text_embed = TextEmbedding(config)
        self.concept_positions = nn.Embedding(config.max_positions, width)
        nn.init.xavier_uniform_(self.concept_positions.weight)
        self.concept_attention = nn.MultiheadAttention(width, config.concept_heads, batch_first=True)
        self._ids: dict[tuple[str, ...], Tensor] = {}
        self._matrices: dict[tuple[str, tuple[str, ...]], tuple[tuple[object, ...], Tensor]] = {}

    # ------------------------------------------------------------------ the contract of every model

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that this model offers."""
        return tuple(task for task in _INTERFACES if getattr(self.config, task.value) is not None)

    def task_config(self, task: Task) -> TaskConfig:
        """The config of a task interface.

        Raises:
            UsageError: The model does not offer the task.
        """
        require_task(self.tasks, task)
        config: TaskConfig = getattr(self.config, task.value)
        return config

    def preprocess(self, task: Task) -> Preprocess:
        """How images are brought to the network input of a task (specs, section 6)."""
        size = self.task_config(task).input_size
        return Preprocess(
            size_hw=(size, size),
            interpolation="bicubic" if task in _WHOLE_IMAGE else "bilinear",
            resize_as_float=task is Task.INSTANCE,
            pad_multiple=self.config.vit.patch_size * self.config.vit.window_size,
        )

    def loss(self, batch: Batch, *, select: Tensor | None = None) -> dict[str, Tensor]:
        """Training losses of one batch of one task; their plain sum is what is minimised.

        Args:
            batch: Network inputs with targets.
            select: ``[B, kept]`` row-major grid points to train on; None draws them (torch's CPU generator).

        Returns:
            Named scalars, e.g. ``detection_loss_cls``.
        """
        self.task_config(batch.task)
        return _INTERFACES[batch.task].loss(self, batch, select=select)

    def predict(self, batch: Batch) -> list[Prediction]:
        """Answers in the frame of the original images, one per image."""
        self.task_config(batch.task)
        with torch.inference_mode():
            return _INTERFACES[batch.task].predict(self, batch)

    def class_scores(self, batch: Batch) -> Tensor:
        """Scores 0..1 of the classes of every pixel of the network input, ``[B, n, H, W]`` (semantic segmentation)."""
        scores, _ = semantic.label_scores(self, batch)
        size_hw = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
        return torch.stack([resize_scores(one, size_hw) for one in scores])

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of every block in the backward pass (saves memory, costs a third more time)."""
        self.backbone.activation_checkpointing = enabled

    # ------------------------------------------------------------------ language

    def concepts(self, names: Sequence[str]) -> Tensor:
        """Concept vectors ``[n, C]``: a name's word row, or for several pieces an attention over them (specs 4)."""
        names = tuple(names)
        if names not in self._ids:
            with torch.inference_mode(False):  # kept tensors of an evaluation must serve the next training step too
                ids, _ = self.vocabulary.encode(names, max_length=_CONCEPT_LENGTH)
                ids[ids == self.vocabulary.sep_id] = 0
                self._ids[names] = F.pad(ids, (0, max(0, 3 - ids.shape[1])))
        table = self.text_embed.words.weight
        ids = self._ids[names].to(table.device)
        several = ids[:, 2] != 0
        rows = table[ids[:, 1]]
        if not bool(several.any()):
            return rows
        ids = ids[several]
        value = table[ids]
        key = value + self.concept_positions.weight[: ids.shape[1]]
        hidden = ids == 0
        hidden[:, 0] = True
        joined, _ = self.concept_attention(key[:, 1:2], key, value, key_padding_mask=hidden, need_weights=False)
        return rows.index_put((several.nonzero()[:, 0],), joined[:, 0].to(rows.dtype))

    def vocabulary_matrix(self, task: Task, classes: Sequence[str]) -> Tensor:
        """The task vocabulary ``[V, C]``: input rows and output classifier in one (specs, section 4).

        It is rebuilt at every training step, because gradients flow through it, and kept as long as the weights stand
        still otherwise.
        """
        if torch.is_grad_enabled():
            # The step that follows may change weights without a trace: fused optimisers raise no version.
            self._matrices.clear()
            return _INTERFACES[task].vocabulary(self, task, classes)
        key = (task.value, tuple(classes))
        weights = [self.text_embed.words.weight, self.concept_positions.weight, *self.concept_attention.parameters()]
        stamp = stamp_of(weights)
        held = self._matrices.get(key)
        if held is None or held[0] != stamp:
            if len(self._matrices) >= 16:
                self._matrices.clear()
            held = (stamp, _INTERFACES[task].vocabulary(self, task, classes))
            self._matrices[key] = held
        return held[1]

    def embed_phrases(self, phrases: Sequence[str], pixels: int, *, max_length: int) -> Text:
        """Embeds phrases and builds their attention masks (specs, section 3.2)."""
        device = self.text_embed.words.weight.device
        ids, present = self.vocabulary.encode(phrases, max_length=max_length)
        ids, present = ids.to(device), present.to(device)
        length = ids.shape[1]
        x_BTC = self.text_embed(self.text_embed.words(ids), torch.arange(length, device=device))
        total = pixels + length
        key_mask = torch.zeros(len(ids), 1, 1, total, device=device)
        key_mask[:, 0, 0, pixels:].masked_fill_(~present, -torch.inf)
        causal = torch.zeros(total, total, device=device)
        causal[pixels:, pixels:] = torch.full((length, length), -torch.inf, device=device).triu(1)
        return Text(x_BTC=x_BTC, observation_mask=key_mask + causal, key_mask=key_mask)

    # ------------------------------------------------------------------ observation: images and text

    def grid(self, task: Task, patches_hw: tuple[int, int]) -> PointGrid:
        """The grid points of a task over a patch map."""
        config = self.task_config(task)
        if isinstance(config, CaptionConfig | GroundingConfig):
            per_window = (1, 1)
        else:
            per_window = config.grid_shape(self.config.vit)
        grid = point_grid(patches_hw, self.config.vit.window_size, per_window, self.backbone.pos_embed.device)
        if task in _WHOLE_IMAGE and grid.windows != 1:
            side = self.config.vit.patch_size * self.config.vit.window_size
            raise UsageError(
                f"{task} reads exactly one window", where=f"input of {patches_hw} patches", fix=f"use {side} px"
            )
        return grid

    def _start(self, task: Task, x_BHWC: Tensor) -> Observation:
        """The observation before the first layer."""
        grid = self.grid(task, (x_BHWC.shape[1], x_BHWC.shape[2]))
        task_row = self.concepts([task.value])[0]
        position = resize_position(self.backbone.pos_embed, grid.shape).flatten(1, 2)[0]
        start = (task_row + position)[grid.window_major]
        batch = x_BHWC.shape[0]
        return Observation(grid=grid, batch=batch, start=start.repeat(batch, 1), task_row=task_row)

    def _observe_layer(
        self,
        block: Block,
        x_BHWC: Tensor,
        text: Text | None,
        factors: Tensor | None = None,
        *,
        keys_only: bool = False,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """One block over images (and text): the new map, the new text, and the keys and values that responses read.

        With ``keys_only`` map and text are returned as they came: nobody reads them after the last block.
        """
        size_hw = (x_BHWC.shape[1], x_BHWC.shape[2])
        window = size_hw if block.window_size is None else (block.window_size, block.window_size)
        x = to_windows(x_BHWC, window)
        if text is not None:
            x = torch.cat([x, text.x_BTC], dim=1)
        q, k, v = block.attn.split_heads(block.attention_input(x))
        if keys_only:
            return x_BHWC, None if text is None else text.x_BTC, (k, v)
        mask = None if text is None else text.observation_mask.to(q.dtype)
        x = block.add_attention(x, block.attn.merge_heads(block.attn.attend(q, k, v, window, mask=mask)))
        x = block.add_mlp(x, factors)
        pixels = window[0] * window[1]
        new_text = None if text is None else x[:, pixels:]
        return from_windows(x[:, :pixels], window, size_hw), new_text, (k, v)

    def _is_active(self, task: Task, block: Block) -> bool:
        """Whether responses of the task pass through the block."""
        return task in _WHOLE_IMAGE or block.window_size is not None

    def _has_features(self, task: Task) -> bool:
        return task not in _WHOLE_IMAGE

    # ------------------------------------------------------------------ responses

    def _respond_layer(
        self,
        block: Block,
        x_PLC: Tensor,
        keys_values: tuple[Tensor, Tensor],
        layout: ResponseLayout,
        *,
        key_mask: Tensor | None = None,
        cache: tuple[KVCache, int] | None = None,
        factors: Tensor | None = None,
    ) -> Tensor:
        """One block over responses: each sees its window's observation and, causally, itself."""
        q, k, v = block.attn.split_heads(block.attention_input(x_PLC))
        if cache is not None:
            k, v = cache[0].append(cache[1], k, v)
        out_PLC = response_attention(q, k, v, *keys_values, layout, key_mask)
        x_PLC = block.add_attention(x_PLC, block.attn.proj(out_PLC))
        return block.add_mlp(x_PLC, factors)

    def begin(
        self,
        images_B3HW: Tensor,
        task: Task,
        length: int,
        *,
        text: Text | None = None,
        position: int = 0,
    ) -> tuple[Tensor, Observation, KVCache, ResponseLayout]:
        """Runs images (and text) through all layers once, and behind them grid and task token of every point.

        Both pass each block together, while its weights are at hand.

        Args:
            images_B3HW: Network input.
            task: The task.
            length: Tokens to predict; decides the size of the cache.
            text: Phrases of grounding.
            position: Position of the task token.

        Returns:
            ``[P, C]`` state of the task token (it predicts the first token); what later tokens read: the observation,
            the cache of the responses, and their layout.
        """
        x_BHWC = self.backbone.embed(images_B3HW)
        seen = self._start(task, x_BHWC)
        seen.key_mask = None if text is None else text.key_mask
        layout = seen.layout()
        token = self.text_embed(seen.task_row, torch.tensor(position, device=seen.start.device))
        x_PLC = torch.stack([torch.zeros_like(token), token]).expand(len(seen.start), 2, -1)
        active = [block for block in self.backbone if self._is_active(task, block)]
        cache: KVCache | None = None
        last = self.config.vit.depth - 1
        for index, block in enumerate(self.backbone):
            before_BHWC = x_BHWC
            x_BHWC, new_text, (keys, values) = self._observe_layer(block, x_BHWC, text, keys_only=index == last)
            if text is not None and new_text is not None:
                text = Text(new_text, text.observation_mask, text.key_mask)
            if block not in active:
                continue
            # Laid out once: every decoding step multiplies by them, and strided ones would be copied each time.
            seen.keys_values.append((keys.contiguous(), values.contiguous()))
            if cache is None:
                cache = KVCache(
                    layers=len(active),
                    rows=len(seen.start),
                    heads=keys.shape[1],
                    length=length + 1,
                    head_dim=keys.shape[3],
                    like=keys,
                )
            extra = seen.start
            if self._has_features(task):
                features = seen.grid.sample(before_BHWC)[:, seen.grid.window_major]
                extra = extra + features.flatten(0, 1)
            x_PLC = torch.cat([x_PLC[:, :1] + extra[:, None], x_PLC[:, 1:]], dim=1)
            x_PLC = self._respond_layer(
                block,
                x_PLC,
                seen.keys_values[-1],
                layout,
                key_mask=seen.key_mask,
                cache=(cache, len(seen.keys_values) - 1),
            )
        assert cache is not None
        cache.advance(2)
        return x_PLC[:, 1], seen, cache, layout

    def respond(self, seen: Observation, task: Task, x_PLC: Tensor, cache: KVCache, layout: ResponseLayout) -> Tensor:
        """Runs the next tokens of every response through the active layers.

        Args:
            seen: The observation.
            task: The task.
            x_PLC: Embedded tokens.
            cache: Keys and values of earlier tokens.
            layout: Where the P responses stand.

        Returns:
            ``[P, L, C]`` states after the last layer.
        """
        active = (block for block in self.backbone if self._is_active(task, block))
        for index, block in enumerate(active):
            x_PLC = self._respond_layer(
                block, x_PLC, seen.keys_values[index], layout, key_mask=seen.key_mask, cache=(cache, index)
            )
        cache.advance(x_PLC.shape[1])
        return x_PLC

    def training_states(
        self,
        batch: Batch,
        rows_BQLC: Tensor,
        select: Tensor,
        *,
        text: Text | None = None,
        position: int = 0,
    ) -> Tensor:
        """Teacher forcing: all response tokens of the selected points at once.

        Args:
            batch: Network inputs.
            rows_BQLC: Embedding rows of the input tokens after the task token, ``[B, kept, L - 1, C]``.
            select: ``[B, kept]`` row-major grid points; equally many of every window, window-major.
            text: Phrases of grounding.
            position: Position of the task token.

        Returns:
            ``[B, kept, L, C]`` states that predict the L tokens.
        """
        task = batch.task
        x_BHWC = self.backbone.embed(batch.images)
        seen = self._start(task, x_BHWC)
        b, kept, _, c = rows_BQLC.shape
        device = x_BHWC.device
        layout = ResponseLayout.even(b * seen.grid.windows, kept // seen.grid.windows, device)
        task_rows = seen.task_row.expand(b, kept, 1, c)
        rows = torch.cat([task_rows, rows_BQLC], dim=2)
        tokens = self.text_embed(rows, torch.arange(rows.shape[2], device=device) + position).flatten(0, 1)
        picked = seen.grid.row_major[select]
        start = seen.start.unflatten(0, (b, -1)).gather(1, picked[..., None].expand(-1, -1, c)).flatten(0, 1)
        x_PLC = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1)
        key_mask = None if text is None else text.key_mask

        def layer(
            block: Block, x_BHWC: Tensor, text_BTC: Tensor | None, x_PLC: Tensor
        ) -> tuple[Tensor, Tensor | None, Tensor]:
            active = self._is_active(task, block)
            windows = layout.windows if block.window_size is not None else b
            factors = block.drop_path.draw(windows, x_BHWC)
            if active:
                extra = start
                if self._has_features(task):
                    features = seen.grid.sample(x_BHWC)
                    extra = extra + features.gather(1, select[..., None].expand(-1, -1, c)).flatten(0, 1)
                x_PLC = torch.cat([x_PLC[:, :1] + extra[:, None], x_PLC[:, 1:]], dim=1)
            now = None if text is None or text_BTC is None else Text(text_BTC, text.observation_mask, text.key_mask)
            x_BHWC, text_BTC, keys_values = self._observe_layer(block, x_BHWC, now, factors)
            if active:
                each = None if factors is None else factors[layout.window_of]
                x_PLC = self._respond_layer(block, x_PLC, keys_values, layout, key_mask=key_mask, factors=each)
            return x_BHWC, text_BTC, x_PLC

        text_BTC = None if text is None else text.x_BTC
        for block in self.backbone:
            if self.backbone.activation_checkpointing:
                x_BHWC, text_BTC, x_PLC = checkpoint(layer, block, x_BHWC, text_BTC, x_PLC, use_reentrant=False)
            else:
                x_BHWC, text_BTC, x_PLC = layer(block, x_BHWC, text_BTC, x_PLC)
        return x_PLC[:, 1:].unflatten(0, (b, kept))


def response_attention(
    q_PnLd: Tensor,
    k_PnTd: Tensor,
    v_PnTd: Tensor,
    k_WnNd: Tensor,
    v_WnNd: Tensor,
    layout: ResponseLayout,
    key_mask: Tensor | None,
) -> Tensor:
    """Attention of every response over [its window's observation | its own tokens up to itself].

    It equals the original's attention over all responses of the window under a block-diagonal mask, without the
    products that the mask throws away.

    Args:
        q_PnLd: Queries of the L newest tokens.
        k_PnTd: Own keys, the L newest last (T >= L).
        v_PnTd: Own values.
        k_WnNd: Observation keys.
        v_WnNd: Observation values.
        layout: Where the responses stand.
        key_mask: Additive ``[W, 1, 1, N]`` for padded text, or None.

    Returns:
        ``[P, L, n * d]``, not yet projected.
    """
    _, _, new, d = q_PnLd.shape
    total = k_PnTd.shape[2]
    q_PnLd = q_PnLd * d**-0.5
    own = q_PnLd @ k_PnTd.mT
    if new > 1:
        ahead = torch.ones(new, total, dtype=torch.bool, device=own.device).triu(total - new + 1)
        own = own.masked_fill(ahead, -torch.inf)
    # [W, w, n, L, *] -> [W, n, w * L, *]
    q_WnRd = layout.spread(q_PnLd).transpose(1, 2).flatten(2, 3)
    seen = q_WnRd @ k_WnNd.mT
    if key_mask is not None:
        seen = seen + key_mask.to(seen.dtype)
    own_WnRT = layout.spread(own).transpose(1, 2).flatten(2, 3)
    weights = torch.cat([seen, own_WnRT], dim=-1).softmax(dim=-1)
    observed = (weights[..., :-total] @ v_WnNd).unflatten(2, (layout.width, new))
    own_weights = layout.collect(weights[..., -total:].unflatten(2, (layout.width, new)).transpose(1, 2))
    # [W, n, w, L, d] -> [P, L, n, d]
    observed_PLnd = layout.collect(observed.permute(0, 2, 3, 1, 4))
    own_PLnd = (own_weights @ v_PnTd).transpose(1, 2)
    return (observed_PLnd + own_PLnd).flatten(2)
