"""The contrastive pair: exact to a plain re-statement of EVA-CLIP, and its files there and back."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import CheckpointError, ConfigError, DataError, UsageError
from saccade.layers.vit import ViTConfig
from saccade.models.visft.clip import CLIPPair, CLIPPairConfig, TextTowerConfig, contrastive_loss
from saccade.models.visft.clip_convert import from_eva_clip, to_eva_clip
from saccade.samples import Batch, Origin, Target
from saccade.tasks import Task
from saccade.tokens.clip_pieces import CLIPPieces

MANIFEST = (
    Path(__file__).resolve().parents[4] / "shared/manifests/visft/expected_EVA02_CLIP_E_psz14_plus_s9B_visual.json"
)
MERGES = ["#version: 0.2", "a t</w>", "c at</w>", "d o", "do g</w>", "r e", "re d</w>"]


def pair_config(norm: str = "post", **text: int) -> CLIPPairConfig:
    vit = ViTConfig(
        width=32,
        depth=2,
        heads=2,
        mlp_width=48,
        patch_size=14,
        image_size=56,
        global_blocks=(0, 1),
        rel_pos=False,
        qkv_bias="qv",
        norm=norm,
        final_norm=True,
        class_token=True,
        drop_path=0.0,
    )
    sizes = {"vocab_size": 600, "positions": 16, "width": 24, "layers": 2, "heads": 2} | text
    return CLIPPairConfig(vit=vit, text=TextTowerConfig(**sizes), joint_width=12)


def random_pair(config: CLIPPairConfig, vocabulary: CLIPPieces | None = None) -> CLIPPair:
    torch.manual_seed(0)
    pair = CLIPPair(config, vocabulary).eval()
    for parameter in pair.parameters():
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.3)
    return pair


@pytest.fixture
def pieces(tmp_path: Path) -> CLIPPieces:
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(gzip.compress("\n".join(MERGES).encode()))
    return CLIPPieces(path)


class PlainEvaClip:
    """EVA-CLIP written down once more from its published names, without any of our layers."""

    def __init__(self, state: dict[str, Tensor], *, post_norm: bool, heads: int) -> None:
        self.state, self.post_norm, self.heads = state, post_norm, heads

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def attention(self, x: Tensor, weight: Tensor, bias: Tensor, out: str, mask: Tensor | None) -> Tensor:
        b, n, c = x.shape
        q, k, v = ((x @ weight.T + bias).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)).unbind(0)
        logits = (q * (c // self.heads) ** -0.5) @ k.transpose(-1, -2)
        logits = logits if mask is None else logits + mask
        return self.linear((logits.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c), out)

    def image(self, pixels: Tensor) -> Tensor:
        s = self.state
        x = F.conv2d(pixels, s["visual.patch_embed.proj.weight"], s["visual.patch_embed.proj.bias"], stride=14)
        x = torch.cat([s["visual.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + s["visual.pos_embed"]
        for index in range(2):
            name = f"visual.blocks.{index}"
            bias = torch.cat([s[f"{name}.attn.q_bias"], 0 * s[f"{name}.attn.q_bias"], s[f"{name}.attn.v_bias"]])
            weight = s[f"{name}.attn.qkv.weight"]

            def attend(y: Tensor, weight: Tensor = weight, bias: Tensor = bias, name: str = name) -> Tensor:
                return self.attention(y, weight, bias, f"{name}.attn.proj", None)

            def mlp(y: Tensor, name: str = name) -> Tensor:
                return self.linear(F.gelu(self.linear(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")

            for part, branch in ((f"{name}.norm1", attend), (f"{name}.norm2", mlp)):
                x = x + (self.norm(branch(x), part, 1e-6) if self.post_norm else branch(self.norm(x, part, 1e-6)))
        return self.linear(self.norm(x, "visual.norm", 1e-6)[:, 0], "visual.head")

    def text(self, ids: Tensor) -> Tensor:
        s = self.state
        x = s["text.token_embedding.weight"][ids] + s["text.positional_embedding"]
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        for index in range(2):
            name = f"text.transformer.resblocks.{index}"
            weight, bias = s[f"{name}.attn.in_proj_weight"], s[f"{name}.attn.in_proj_bias"]
            x = x + self.attention(self.norm(x, f"{name}.ln_1", 1e-5), weight, bias, f"{name}.attn.out_proj", mask)
            hidden = F.gelu(self.linear(self.norm(x, f"{name}.ln_2", 1e-5), f"{name}.mlp.c_fc"))
            x = x + self.linear(hidden, f"{name}.mlp.c_proj")
        x = self.norm(x, "text.ln_final", 1e-5)
        return x[torch.arange(len(x)), ids.argmax(1)] @ s["text.text_projection"]


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_both_towers_equal_a_plain_statement_of_eva_clip(norm: str) -> None:
    pair = random_pair(pair_config(norm))
    plain = PlainEvaClip(to_eva_clip(pair.state_dict(), pair.config), post_norm=norm == "post", heads=2)
    pixels = torch.randn(3, 3, 56, 56)
    ids = torch.randint(1, 500, (3, 16))
    ids[0, 5], ids[1, 15], ids[2, 1] = 599, 599, 599  # the end is the greatest id
    for row, end in zip(ids, (5, 15, 1), strict=True):
        row[end + 1 :] = 0
    mask = torch.arange(16) <= torch.tensor([5, 15, 1])[:, None]
    with torch.no_grad():
        torch.testing.assert_close(
            pair.project(pair.backbone.tokens(pixels)[:, 0]), plain.image(pixels), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(pair.text(ids, mask), plain.text(ids), rtol=1e-5, atol=1e-5)
        # Cut to the longest text of a batch: the rest is padding that nobody sees.
        torch.testing.assert_close(pair.text(ids[:1, :6], mask[:1, :6]), plain.text(ids[:1]), rtol=1e-5, atol=1e-5)


def test_a_file_goes_in_and_out_unchanged_and_may_be_half_precision() -> None:
    pair = random_pair(pair_config())
    official = to_eva_clip(pair.state_dict(), pair.config)
    assert official["visual.pos_embed"].shape == (1, 17, 32)
    assert official["text.transformer.resblocks.1.attn.in_proj_bias"].shape == (72,)
    shapes = {key: tuple(value.shape) for key, value in pair.state_dict().items()}
    mapped, report = from_eva_clip(official | {"text.attn_mask": torch.zeros(16, 16)}, shapes)
    assert report.complete and list(report.dropped) == ["text.attn_mask"]
    assert all(torch.equal(mapped[key], value) for key, value in pair.state_dict().items())
    half, report = from_eva_clip({key: value.half() for key, value in official.items()}, shapes)
    report.check()
    fresh = CLIPPair(pair_config())
    fresh.load_state_dict(half)
    assert fresh.project.weight.dtype == torch.float32


def test_a_file_that_lacks_a_key_or_has_another_size_is_refused() -> None:
    pair = random_pair(pair_config())
    official = to_eva_clip(pair.state_dict(), pair.config)
    shapes = {key: tuple(value.shape) for key, value in pair.state_dict().items()}
    del official["text.ln_final.bias"]
    with pytest.raises(CheckpointError, match=r"text\.tower\.final_layer_norm\.bias"):
        from_eva_clip(official, shapes)[1].check()
    official["text.ln_final.bias"] = torch.zeros(24)
    official["visual.pos_embed"] = torch.zeros(1, 26, 32)
    with pytest.raises(CheckpointError, match="wrong shape"):
        from_eva_clip(official, shapes)[1].check()


@pytest.mark.skipif(not MANIFEST.is_file(), reason="../shared/manifests is absent")
def test_the_released_image_tower_has_a_place_for_every_key() -> None:
    listed = json.loads(MANIFEST.read_text())["tensors"]
    vit = ViTConfig(
        width=1792, depth=64, heads=16, mlp_width=15360, patch_size=14, image_size=224, rel_pos=False, qkv_bias="qv",
        global_blocks=tuple(range(64)), norm="post", final_norm=True, class_token=True, drop_path=0.0,
    )  # fmt: skip
    with torch.device("meta"):
        pair = CLIPPair(CLIPPairConfig(vit=vit, text=TextTowerConfig(vocab_size=8, width=64, layers=1, heads=1)))
        state = {entry["key"]: torch.empty(entry["shape"]) for entry in listed}
    shapes = {key: tuple(value.shape) for key, value in pair.state_dict().items()}
    _, report = from_eva_clip(state, shapes)
    assert not report.unexpected and not report.wrong_shape
    assert all(key.startswith("text.") or key == "log_scale" for key in report.missing)


def test_pieces_are_those_of_clip(pieces: CLIPPieces) -> None:
    ids, mask = pieces.encode(["A  cat", "dog &amp; cat's", ""], max_length=6)
    first = 512
    assert pieces.start_id == first + 6 and pieces.end_id == first + 7 and len(pieces) == first + 8
    a = 256 + ord("a") - ord("!")
    assert ids[0].tolist() == [518, a, first + 1, 519, 0, 0]
    assert ids[1].tolist()[:3] == [518, first + 3, 256 + ord("&") - ord("!")]
    assert ids[1, -1] == 519 and mask.sum(1).tolist() == [4, 6, 2]  # cut at six, the end kept


def test_pieces_are_kept_and_bad_files_are_refused(pieces: CLIPPieces, tmp_path: Path) -> None:
    again = CLIPPieces(pieces.save(tmp_path))
    texts = ["a red dog", "Ünïcode 12 ½ don't"]
    assert torch.equal(again.encode(texts, max_length=77)[0], pieces.encode(texts, max_length=77)[0])
    assert len(CLIPPieces(tmp_path)) == len(pieces)
    for content in (b"", b"#version\n", b"#version\na b c\n", b"\xff\xfe", b"#version\nx1 y2\n", b"#v\na t\na t\n"):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(CheckpointError):
            CLIPPieces(tmp_path / "bad.txt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        CLIPPieces(tmp_path / "nothing.txt")


def batch_of(captions: list[tuple[str, ...]]) -> Batch:
    return Batch(
        images=torch.randn(len(captions), 3, 56, 56),
        task=Task.CAPTION,
        origins=[Origin(dataset="x", image_id=i, path=None, size_hw=(56, 56)) for i in range(len(captions))],
        input_sizes_hw=[(56, 56)] * len(captions),
        targets=[Target(captions=texts) for texts in captions],
    )


def test_the_pair_learns_which_caption_belongs_to_which_image(pieces: CLIPPieces) -> None:
    torch.manual_seed(0)
    pair = CLIPPair(pair_config(), pieces)
    batch = batch_of([("a cat",), ("a dog",), ("red",), ("a red cat", "a red cat")])
    optimizer = torch.optim.AdamW(pair.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        (loss,) = pair.loss(batch).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in pair.parameters())
    assert losses[-1] < 0.2 < 1.0 < losses[0]
    with torch.no_grad():
        scores = pair.encode_images(batch.images) @ pair.encode_texts(["a cat", "a dog", "red", "a red cat"]).T
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]


def test_the_map_is_taught_only_where_it_has_a_weight(pieces: CLIPPieces) -> None:
    batch = batch_of([("a cat",), ("a dog",), ("red",)])
    plain = random_pair(pair_config(), pieces)
    assert set(plain.loss(batch)) == {"caption_contrastive"}
    both = random_pair(dataclasses.replace(pair_config(), map_weight=0.5), pieces)
    assert {*both.state_dict()} == {*plain.state_dict()}, "nothing is added to the weights"
    losses = both.loss(batch)
    assert torch.equal(losses["caption_contrastive"], plain.loss(batch)["caption_contrastive"])
    points = both.joint(both.backbone(batch.images).mean((1, 2)))
    told = both.encode_texts(["a cat", "a dog", "red"])
    torch.testing.assert_close(
        losses["caption_contrastive_map"], 0.5 * contrastive_loss(points, told, both.scale), rtol=1e-5, atol=1e-5
    )
    # The queries of the last block at the patches are learned through it alone.
    kept = []
    for pair in (plain, both):
        last = torch.zeros(())
        pair.backbone.norm.register_forward_hook(lambda _, __, out: out.retain_grad() or kept.append(out))
        sum(pair.loss(batch).values(), last).backward()
    assert not kept[0].grad[..., 1:, :].any() and kept[1].grad[..., 1:, :].any()
    with pytest.raises(ConfigError, match="negative"):
        dataclasses.replace(pair_config(), map_weight=-1.0)


def test_the_contrastive_loss_is_symmetric() -> None:
    images, texts = F.normalize(torch.randn(4, 6), dim=1), F.normalize(torch.randn(4, 6), dim=1)
    scale = torch.tensor(7.0)
    torch.testing.assert_close(contrastive_loss(images, texts, scale), contrastive_loss(texts, images, scale))
    torch.testing.assert_close(contrastive_loss(images, images, torch.tensor(0.0)), torch.tensor(4.0).log())


def test_what_a_pair_cannot_do_is_said(pieces: CLIPPieces) -> None:
    pair = random_pair(pair_config())
    with pytest.raises(UsageError, match="no vocabulary"):
        pair.encode_texts(["a"])
    with pytest.raises(UsageError, match="--suite"):
        pair.predict(batch_of([("a",)]))
    with pytest.raises(ConfigError, match="word table"):
        CLIPPair(pair_config(vocab_size=100), pieces)
    with pytest.raises(DataError, match="no caption"):
        random_pair(pair_config(), pieces).loss(batch_of([()]))
    with pytest.raises(ConfigError, match="class token"):
        CLIPPairConfig(vit=ViTConfig())
