"""A contrastive pair: the plain ViT with a class token, and CLIP's text tower; EVA-CLIP is one.

The pair is what ViSFT's zero-shot evaluations measure. Source: Learning Transferable Visual Models From Natural
Language Supervision, ICML 2021, section 2; EVA-CLIP, arXiv 2303.15389. Shape legend: B images, N texts, T word ids,
J joint channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from saccade.errors import ConfigError, DataError, UsageError
from saccade.layers.vit import PlainViT, ViTConfig
from saccade.results import Prediction
from saccade.samples import Batch, Preprocess
from saccade.tasks import Task, require_task

CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321375, 70.32316125)
"""CLIP's statistics, RGB, 0..255."""

_FIRST_SCALE, _MOST_SCALE = 1 / 0.07, 100.0


class Words(Protocol):
    """What makes ids of words: CLIP's own pieces (:class:`saccade.tokens.clip_pieces.CLIPPieces`), or a WordPiece."""

    def __len__(self) -> int: ...

    def encode(self, texts: list[str], *, max_length: int) -> tuple[Tensor, Tensor]:
        """Ids ``[N, T]`` int64 padded with 0, and mask ``[N, T]`` (True = a token); each ends with its end token."""
        ...


@dataclass(kw_only=True)
class TextTowerConfig:
    """CLIP's text tower.

    Attributes:
        vocab_size: Rows of the word table.
        positions: Greatest number of ids.
        width: Channels.
        layers: Blocks; they are causal, pre-norm, with an exact GELU.
        heads: Attention heads.
        norm_eps: LayerNorm epsilon.
    """

    vocab_size: int = 49408
    positions: int = 77
    width: int = 1280
    layers: int = 32
    heads: int = 20
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}", where="text.width")


@dataclass(kw_only=True)
class CLIPPairConfig:
    """Two towers that meet in one space.

    Attributes:
        vit: The image tower; it must have a class token and a final norm.
        text: The text tower.
        joint_width: Channels J of the space.
        map_weight: Weight of the same loss on the mean of the map (ours). The published pair reads the class token
            alone (0), so that nothing teaches the last patches, which are what heads and probes read.
        mean: RGB mean of the network input, 0..255.
        std: RGB standard deviation, likewise.
    """

    vit: ViTConfig
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    joint_width: int = 1024
    map_weight: float = 0.0
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if not (self.vit.class_token and self.vit.final_norm):
            raise ConfigError("the image tower of a pair needs a class token and a final norm", where="vit")
        if self.map_weight < 0:
            raise ConfigError(f"the weight must not be negative, got {self.map_weight}", where="map_weight")


class TextTower(nn.Module):
    """Texts to points of the joint space.

    Args:
        config: Sizes.
        joint_width: Channels J.
    """

    def __init__(self, config: TextTowerConfig, joint_width: int) -> None:
        super().__init__()
        whole = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocab_size,
                max_position_embeddings=config.positions,
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                hidden_act="gelu",
                layer_norm_eps=config.norm_eps,
                bos_token_id=None,
                eos_token_id=config.vocab_size - 1,
            )
        )
        # Some versions of transformers keep the tower one level deeper.
        self.tower = getattr(whole, "text_model", whole)
        self.project = nn.Linear(config.width, joint_width, bias=False)

    def forward(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """``[N, J]``, read at the last token of each text; no token sees a later one, so padding is seen by none."""
        states_NTC = self.tower(input_ids=ids_NT).last_hidden_state
        last_N = mask_NT.sum(1) - 1
        return self.project(states_NTC[torch.arange(len(states_NTC), device=states_NTC.device), last_N])


class CLIPPair(nn.Module):
    """The pair. It trains on images with captions, and is measured by the suites; by itself it says nothing.

    Args:
        config: Sizes.
        vocabulary: What makes ids of words; without it only ids and images can be encoded.
    """

    system = "clip_pair"

    def __init__(self, config: CLIPPairConfig, vocabulary: Words | None = None) -> None:
        super().__init__()
        if vocabulary is not None and len(vocabulary) > config.text.vocab_size:
            raise ConfigError(
                f"the vocabulary has {len(vocabulary)} ids, the word table {config.text.vocab_size} rows",
                where="text.vocab_size",
            )
        self.config, self.vocabulary = config, vocabulary
        self.backbone = PlainViT(config.vit)
        self.project = nn.Linear(config.vit.width, config.joint_width)
        self.text = TextTower(config.text, config.joint_width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))

    # ------------------------------------------------------------------ the contract of every model

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Captions are what it learns from."""
        return (Task.CAPTION,)

    def preprocess(self, task: Task) -> Preprocess:
        """The network input: the shorter side to the nominal size, bicubically; the suites cut out the centre."""
        require_task(self.tasks, task)
        side = self.config.vit.image_size
        return Preprocess(size_hw=(side, side), interpolation="bicubic", mean=self.config.mean, std=self.config.std)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The symmetric contrastive loss over the images of a batch and a caption of each.

        A caption is drawn where an image has several (torch's CPU generator).

        Returns:
            ``caption_contrastive``, and where the map has a weight ``caption_contrastive_map``.

        Raises:
            DataError: An image without a caption.
        """
        require_task(self.tasks, batch.task)
        tokens_BNC = self.backbone.tokens(batch.images)
        texts_BJ = self.encode_texts([_one_caption(batch, index) for index in range(len(batch))])
        losses = {"caption_contrastive": contrastive_loss(self.joint(tokens_BNC[:, 0]), texts_BJ, self.scale)}
        if weight := self.config.map_weight:
            map_BJ = self.joint(tokens_BNC[:, 1:].mean(1))
            losses["caption_contrastive_map"] = weight * contrastive_loss(map_BJ, texts_BJ, self.scale)
        return losses

    def predict(self, batch: Batch) -> list[Prediction]:
        """Always an error: two towers compare, they do not speak.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "a pair of towers compares images with texts, and predicts nothing",
            where=f"task {batch.task}",
            fix="measure it: saccade eval MODEL --suite visft.coco_retrieval --root DIR",
        )

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of every block of the image tower in the backward pass."""
        self.backbone.activation_checkpointing = enabled

    # ------------------------------------------------------------------ the towers

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by, at most 100."""
        return self.log_scale.exp().clamp(max=_MOST_SCALE)

    def encode_images(self, images_B3HW: Tensor) -> Tensor:
        """Normalised pixels to points ``[B, J]`` of length 1."""
        return self.joint(self.backbone.tokens(images_B3HW)[:, 0])

    def joint(self, states_BC: Tensor) -> Tensor:
        """States of the image tower (the class token's) to points ``[B, J]`` of length 1."""
        return F.normalize(self.project(states_BC), dim=-1)

    def encode_ids(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Word ids and their mask to points ``[N, J]`` of length 1."""
        return F.normalize(self.text(ids_NT, mask_NT), dim=-1)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Sentences to points ``[N, J]`` of length 1.

        Raises:
            UsageError: The pair has no vocabulary.
        """
        if self.vocabulary is None:
            raise UsageError(
                "the pair has no vocabulary",
                why="weights are released without one",
                fix="name CLIP's bpe_simple_vocab_16e6.txt.gz: --vocabulary FILE",
            )
        ids, mask = self.vocabulary.encode(texts, max_length=self.config.text.positions)
        device = self.log_scale.device
        return self.encode_ids(ids.to(device), mask.to(device))


def contrastive_loss(images_BJ: Tensor, texts_BJ: Tensor, scale: Tensor) -> Tensor:
    """Cross entropy of every image against all texts of the batch and of every text against all images, averaged."""
    logits_BB = scale * images_BJ @ texts_BJ.T
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2


def _one_caption(batch: Batch, index: int) -> str:
    captions = batch.targets[index].captions
    if not captions:
        origin = batch.origins[index]
        raise DataError("a training sample has no caption", where=origin.path or origin.image_id)
    return captions[int(torch.randint(len(captions), ())) if len(captions) > 1 else 0]
