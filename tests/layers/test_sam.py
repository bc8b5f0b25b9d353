"""Segment Anything against ``transformers``' own, and its contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from saccade.errors import ConfigError, UsageError
from saccade.layers.sam import SAM, SAMConfig, resize_masks, sam_vit
from saccade.layers.sam_decoder import MaskDecoderConfig
from saccade.layers.vit import ViTConfig
from saccade.models.gsva.convert import from_sam

SIDE, WIDTH = 64, 32


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small() -> SAM:
    vit = ViTConfig(
        width=24, depth=3, heads=2, mlp_width=48, image_size=SIDE, window_size=3, global_blocks=(2,), drop_path=0.0
    )
    decoder = MaskDecoderConfig(heads=2, mlp_width=40, iou_width=16)
    return SAM(SAMConfig(vit=vit, width=WIDTH, mask_width=8, decoder=decoder)).eval()


@pytest.fixture
def pair() -> tuple[SAM, SamModel]:
    """Ours and that of transformers, with the same weights."""
    theirs = SamModel(
        SamConfig(
            vision_config=SamVisionConfig(
                hidden_size=24,
                num_hidden_layers=3,
                num_attention_heads=2,
                mlp_dim=48,
                image_size=SIDE,
                window_size=3,
                global_attn_indexes=[2],
                output_channels=WIDTH,
                num_pos_feats=WIDTH // 2,
            ),
            prompt_encoder_config=SamPromptEncoderConfig(
                hidden_size=WIDTH, image_size=SIDE, mask_input_channels=8, image_embedding_size=SIDE // 16
            ),
            mask_decoder_config=SamMaskDecoderConfig(
                hidden_size=WIDTH, mlp_dim=40, num_attention_heads=2, iou_head_hidden_dim=16, layer_norm_eps=1e-5
            ),
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        theirs.prompt_encoder.shared_embedding.positional_embedding.copy_(
            theirs.shared_image_embedding.positional_embedding
        )
    ours = small()
    expected = {f"sam.{key}": tuple(value.shape) for key, value in ours.state_dict().items()}
    state, report = from_sam(theirs.state_dict(), expected)
    report.check()
    ours.load_state_dict({key.removeprefix("sam."): value for key, value in state.items()})
    return ours, theirs


def near(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


@pytest.mark.parametrize("prompt", ["points", "box", "points and box", "points and mask"])
def test_the_same_weights_and_prompts_give_the_same_masks(pair: tuple[SAM, SamModel], prompt: str) -> None:
    ours, theirs = pair
    images = torch.randn(1, 3, SIDE, SIDE)
    points, labels = torch.tensor([[[10.0, 20.0], [40.0, 5.0]]]), torch.tensor([[1, 0]])
    boxes, earlier = torch.tensor([[4.0, 6.0, 50.0, 60.0]]), torch.randn(1, 1, 16, 16)
    asked: dict[str, Tensor] = {"points": None, "box": None}  # type: ignore[dict-item]
    parts = []
    with torch.no_grad():
        prompts = ours.prompt_encoder
        if "points" in prompt:
            parts.append(prompts.points(points, labels, closed="box" in prompt))
        if "box" in prompt:
            parts.append(prompts.boxes(boxes))
        dense = prompts.masks(earlier) if "mask" in prompt else None
        features = ours.encode(images)
        masks, iou = ours.decode(features, torch.cat(parts, dim=1), dense)
        asked = theirs(
            pixel_values=images,
            input_points=points[:, None] if "points" in prompt else None,
            input_labels=labels[:, None] if "points" in prompt else None,
            input_boxes=boxes[:, None] if "box" in prompt else None,
            input_masks=earlier if "mask" in prompt else None,
            multimask_output=True,
        )
        assert near(features, theirs.get_image_embeddings(images))
    assert near(masks[:, 1:], asked.pred_masks[:, 0]) and near(iou[:, 1:], asked.iou_scores[:, 0])


def test_prompts_of_several_images_are_asked_together() -> None:
    net = small()
    images = torch.randn(2, 3, SIDE, SIDE)
    prompts = torch.randn(3, 1, WIDTH)
    with torch.no_grad():
        features = net.encode(images)
        together, _ = net.decode(features[[0, 1, 1]], prompts)
        for row, image in enumerate((0, 1, 1)):
            alone, _ = net.decode(features[image : image + 1], prompts[row : row + 1])
            assert near(together[row : row + 1], alone)
        shared, _ = net.decode(features[1:], prompts[1:])
    assert near(together[1:], shared)


def test_no_prompts() -> None:
    net = small()
    with torch.no_grad():
        masks, iou = net.decode(net.encode(torch.randn(1, 3, SIDE, SIDE)), torch.zeros(0, 1, WIDTH))
    assert masks.shape == (0, 4, 16, 16) and iou.shape == (0, 4)
    assert resize_masks(masks, image_size=SIDE, input_hw=(64, 40), original_hw=(10, 7)).shape == (0, 4, 10, 7)


def test_masks_come_back_to_the_picture() -> None:
    # A mask that is positive where x < 32 of the network input; the picture fills 64x40 of it and has 128x80 pixels.
    low = torch.where(torch.arange(16) < 8, 5.0, -5.0).expand(1, 1, 16, 16)
    masks = resize_masks(low, image_size=SIDE, input_hw=(64, 40), original_hw=(128, 80))
    assert masks.shape == (1, 1, 128, 80) and masks.dtype == torch.float32
    assert bool((masks[..., :64] > 0).all()) and bool((masks[..., 64:] < 0).all())
    with pytest.raises(UsageError, match="in a network input of 64"):
        resize_masks(low, image_size=SIDE, input_hw=(65, 40), original_hw=(10, 7))


def test_a_padding_point_has_no_position() -> None:
    prompts = small().prompt_encoder
    points, none = torch.tensor([[[3.0, 4.0]], [[50.0, 60.0]]]), torch.full((2, 1), -1)
    tokens = prompts.points(points, none, closed=True)
    assert torch.equal(tokens, prompts.not_a_point.weight.expand(2, 1, -1))
    assert torch.equal(prompts.points(points, none)[:, 1:], tokens)


def test_positions_keep_their_precision_under_autocast() -> None:
    prompts = small().prompt_encoder
    exact = prompts.grid((4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prompts.grid((4, 4)), exact)


def test_its_parts_compile_without_breaks() -> None:
    net = small()
    images, prompts = torch.randn(1, 3, SIDE, SIDE), torch.randn(2, 1, WIDTH)
    with torch.no_grad():
        features = net.encode(images)
        encode = torch.compile(net.encode, fullgraph=True, backend="aot_eager")
        decode = torch.compile(net.decode, fullgraph=True, backend="aot_eager")
        assert near(encode(images), features)
        assert near(decode(features, prompts)[0], net.decode(features, prompts)[0])


def test_sizes() -> None:
    assert sam_vit("h").global_blocks == (7, 15, 23, 31)
    assert sam_vit("l").global_blocks == (5, 11, 17, 23)
    assert sam_vit("b").global_blocks == (2, 5, 8, 11)
    for field, value in (("width", 20), ("mask_width", 6)):
        with pytest.raises(ConfigError, match=field):
            SAMConfig(**{field: value})
    with pytest.raises(ConfigError, match="heads"):
        SAM(SAMConfig(vit=small().config.vit, width=WIDTH, decoder=MaskDecoderConfig(heads=5)))
