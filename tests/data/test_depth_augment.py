"""The depth pipeline gives the original's pixels (albumentations 1.3, OpenCV 4.5), and depth follows the picture."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import make_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torchvision import tv_tensors

from saccade.data.depth_augment import DepthAugment, cut_depth, lose_depth
from saccade.data.photometric import (
    change_brightness_contrast,
    change_gamma,
    from_hsv,
    shift_hsv,
    to_hsv,
)
from saccade.errors import DataError
from saccade.samples import Origin, Sample, Target
from saccade.tasks import Task

COMMITTED = Path(__file__).parents[1] / "fixtures/data/nyu_augment.npz"
SHARED = Path(__file__).resolve().parents[3] / "shared/parity/ait/functions"
PLAIN = DepthAugment(flip=0.0, cut_depth=0.0, light=0.0)

Arrays = dict[str, np.ndarray]


def _committed() -> Arrays:
    with np.load(COMMITTED) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _shared() -> Arrays:
    """The shared fixture in the integers of the committed one."""
    if not SHARED.is_dir():
        pytest.skip("../shared/parity/ait is absent")
    values = json.loads((SHARED / "values.json").read_text())
    arrays = load_file(SHARED / "nyu.safetensors")
    for name, array in arrays.items():
        if array.dtype == np.float32:
            arrays[name] = np.rint(array * (255 if name.endswith(".img") else 1000)).astype(np.uint16)
    for name, value in values.items():
        if name.startswith("nyu_train"):
            arrays[f"{name.removeprefix('nyu_')}.draws"] = np.array([value["count_before"], value["seed"]])
    return arrays


@pytest.fixture(params=[_committed, _shared], ids=["committed", "shared"])
def recorded(request: pytest.FixtureRequest) -> Arrays:
    load: Callable[[], Arrays] = request.param
    return load()


def _chw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def depth_sample(image: np.ndarray, depth_m: np.ndarray) -> Sample:
    size_hw = (int(depth_m.shape[0]), int(depth_m.shape[1]))
    return Sample(
        image=tv_tensors.Image(torch.from_numpy(image)),
        task=Task.DEPTH,
        origin=Origin(dataset="made", image_id="a room", path=None, size_hw=size_hw),
        target=Target(depth_m=torch.from_numpy(depth_m)),
    )


def ramp(height: int, width: int) -> Sample:
    """Every pixel has a depth of its own, and the picture says it, too."""
    numbers = np.arange(height * width).reshape(height, width)
    image = np.stack([numbers // 256, numbers % 256, numbers * 0]).astype(np.uint8)
    return depth_sample(image, (numbers / 1000 + 0.5).astype(np.float32))


def of_picture(image: np.ndarray) -> np.ndarray:
    """The depth that a ramp's pixels stand for."""
    return (image[0].astype(int) * 256 + image[1]) / 1000 + 0.5


# ------------------------------------------------------------------------------------------ the original's numbers


def test_light_and_colour_are_exact(recorded: Arrays) -> None:
    image = _chw(recorded["img"])
    seen = 0
    for name, want in recorded.items():
        if found := re.fullmatch(r"brightness_contrast\.a([-\d.]+)_b([-\d.]+)", name):
            got = change_brightness_contrast(image, gain=float(found[1]), shift=float(found[2]))
        elif found := re.fullmatch(r"gamma\.([\d.]+)", name):
            got = change_gamma(image, float(found[1]))
        elif found := re.fullmatch(r"hsv\.([-\d.]+)_([-\d.]+)_([-\d.]+)", name):
            got = shift_hsv(image, hue=float(found[1]), saturation=float(found[2]), value=float(found[3]))
        else:
            continue
        seen += 1
        assert np.array_equal(got, _chw(want)), name
    assert seen >= 6


class Replayed:
    """The original's draws in the order in which ours asks for them.

    The original has no draw for the strip (it counts), and two that are always met: for the chain, and for the crop.
    """

    def __init__(self, seed: int, *, pasted: bool) -> None:
        self._stream = random.Random(seed)
        self._first = [0.0 if pasted else 1.0]
        self._first += [self._stream.random() for _ in range(2 * pasted)]
        self._stream.random()
        self._first.append(self._stream.random())
        self._stream.random()

    def random(self) -> float:
        return self._first.pop(0) if self._first else self._stream.random()

    def uniform(self, low: float, high: float) -> float:
        return self._stream.uniform(low, high)


def test_whole_training_samples_are_exact(recorded: Arrays) -> None:
    sample = depth_sample(_chw(recorded["file.rgb"]), recorded["file.depth_mm"].astype(np.float32) / np.float32(1000))
    numbers = sorted({name.split(".")[0] for name in recorded if name.startswith("train")})
    pasted = 0
    for name in numbers:
        count, seed = recorded[f"{name}.draws"].tolist()
        want_image, want_depth = recorded[f"{name}.img"], recorded[f"{name}.depth"][0]
        draws = Replayed(seed, pasted=count % 4 == 0)
        got = DepthAugment(resize=False).build(len(want_depth))(sample, draws)  # type: ignore[arg-type]
        assert np.array_equal(got.image.numpy(), want_image), name
        assert got.target.depth_m is not None and got.target.depth_m.dtype == torch.float32
        assert np.array_equal(got.target.depth_m.numpy(), want_depth.astype(np.float32) / np.float32(1000)), name
        pasted += count % 4 == 0
    assert len(numbers) >= 3 and pasted


def test_colours_survive_the_way_through_hsv_within_its_steps() -> None:
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij")).reshape(3, 18, -1).astype(np.uint8)
    back = from_hsv(to_hsv(colours))
    assert np.abs(back.astype(int) - colours).max() <= 6  # hue has 180 steps only, and the fraction is dropped
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 8, 32), 3, axis=0)
    assert (to_hsv(grey)[:2] == 0).all() and np.abs(from_hsv(to_hsv(grey)).astype(int) - grey).max() <= 1


@pytest.mark.parametrize(
    ("rgb", "hsv"),
    [
        ((255, 0, 0), (0, 255, 255)),
        ((0, 255, 0), (60, 255, 255)),
        ((0, 0, 255), (120, 255, 255)),
        ((9, 9, 9), (0, 0, 9)),
    ],
)
def test_hsv_of_known_colours(rgb: tuple[int, ...], hsv: tuple[int, ...]) -> None:
    colour = np.full((3, 1, 32), np.array(rgb)[:, None, None], np.uint8)
    assert to_hsv(colour)[:, 0, 0].tolist() == list(hsv)
    assert from_hsv(to_hsv(colour))[:, 0, 0].tolist() == list(rgb)


# ------------------------------------------------------------------------------------------ the pipeline


def test_the_strip_is_the_depth_in_millimetres_modulo_256() -> None:
    sample = ramp(10, 40)
    image, depth_m = sample.image.numpy(), sample.target.depth_m.numpy()
    cut = cut_depth(image, depth_m, alpha=0.25, beta=0.5)  # columns 10 to 10 + int(30 * 0.5 * 0.75)
    strip = slice(10, 21)
    assert (cut[:, :, strip] == (np.rint(depth_m[:, strip] * 1000) % 256).astype(np.uint8)).all()
    cut[:, :, strip] = image[:, :, strip]
    assert np.array_equal(cut, image)
    least = cut_depth(image, depth_m, alpha=0.999, beta=0.0)
    assert (least != image).any(axis=(0, 1)).sum() == 1


@settings(deadline=None, max_examples=60)
@given(
    size_hw=st.tuples(st.integers(16, 60), st.integers(16, 60)),
    size=st.integers(4, 16),
    seed=st.integers(0, 10**6),
    flip=st.booleans(),
)
def test_depth_follows_flip_and_crop(size_hw: tuple[int, int], size: int, seed: int, flip: bool) -> None:
    augment = dataclasses.replace(PLAIN, flip=float(flip), resize=False)
    out = augment.build(size)(ramp(*size_hw), np.random.default_rng(seed))
    assert out.size_hw == (size, size) and out.target.depth_m.shape == (size, size)
    assert np.allclose(out.target.depth_m.numpy(), of_picture(out.image.numpy()), atol=1e-4)


def test_the_resize_keeps_one_side_whole_and_no_depth_changes() -> None:
    sample = ramp(40, 60)
    out = PLAIN.build(20)(sample, np.random.default_rng(0))
    assert set(out.target.depth_m.unique().tolist()) <= set(sample.target.depth_m.unique().tolist())
    rows = ((out.target.depth_m.numpy() - 0.5) * 1000 / 60).astype(int)
    assert rows.min() == 0 and rows.max() >= 38
    official = PLAIN.build(40)(sample, np.random.default_rng(0))  # the picture has as many rows as the input
    assert np.allclose(official.target.depth_m.numpy(), of_picture(official.image.numpy()), atol=1e-4)
    small = dataclasses.replace(PLAIN, resize=False).build(90)(sample, np.random.default_rng(0))
    assert small.size_hw == (90, 90)


def test_the_shares_of_the_draws() -> None:
    sample = ramp(16, 16)
    cut = dataclasses.replace(PLAIN, cut_depth=0.25).build(16)
    pasted = sum(not torch.equal(cut(sample, np.random.default_rng(k)).image, sample.image) for k in range(400))
    assert 70 <= pasted <= 130
    lit = dataclasses.replace(PLAIN, light=0.5).build(16)
    changed = sum(not torch.equal(lit(sample, np.random.default_rng(k)).image, sample.image) for k in range(200))
    assert 150 <= changed <= 200
    unchanged = DepthAugment(light=0.0, cut_depth=0.0).build(16)(sample, np.random.default_rng(0)).target.depth_m
    assert unchanged.sum().item() == pytest.approx(sample.target.depth_m.sum().item())


def test_columns_of_nyu() -> None:
    augment = dataclasses.replace(PLAIN, columns="nyu", resize=False)
    depth_m = augment.build(560)(ramp(560, 640), np.random.default_rng(0)).target.depth_m.double()
    assert (((depth_m[0] - 0.5) * 1000).round() % 640).tolist() == list(range(41, 601))
    with pytest.raises(DataError, match="640 columns"):
        augment.build(20)(ramp(20, 600), np.random.default_rng(0))


def test_a_sample_without_depth_is_told() -> None:
    with pytest.raises(DataError, match="without a depth map"):
        PLAIN.build(16)(make_sample(0, Task.DETECTION), np.random.default_rng(0))


# ------------------------------------------------------------------------------------------ holes


@settings(deadline=None, max_examples=30)
@given(share=st.floats(0.05, 0.8), unknown=st.floats(0.0, 0.5), seed=st.integers(0, 10**6))
def test_so_much_of_what_was_known_is_lost(share: float, unknown: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    depth_m = (1 + generator.random((60, 80))).astype(np.float32)
    depth_m[: round(60 * unknown)] = 0
    before = depth_m.copy()
    lost = lose_depth(depth_m, share, np.random.default_rng(seed))
    assert np.array_equal(depth_m, before) and lost.dtype == np.float32
    known, kept = before > 0, lost > 0
    assert np.array_equal(lost[kept], before[kept]) and not (kept & ~known).any()
    gone = 1 - kept.sum() / known.sum()
    # At least the share, and at most one ellipse of 15 % half axes more.
    assert share <= gone <= share + np.pi * 0.15**2 / (1 - unknown) + 0.02
    again = lose_depth(depth_m, share, np.random.default_rng(seed))
    assert np.array_equal(again, lost)


def test_a_map_without_depth_has_nothing_to_lose() -> None:
    assert not lose_depth(np.zeros((6, 8), np.float32), 0.5, np.random.default_rng(0)).any()


def test_holes_are_of_the_depth_alone_and_none_without_a_share() -> None:
    sample = ramp(40, 60)
    whole = PLAIN.build(40)(sample, np.random.default_rng(3))
    holes = dataclasses.replace(PLAIN, holes=0.3).build(40)(sample, np.random.default_rng(3))
    assert torch.equal(whole.image, holes.image)
    assert float((whole.target.depth_m == 0).float().mean()) == 0
    lost = holes.target.depth_m == 0
    assert 0.3 <= float(lost.float().mean()) < 0.42
    assert torch.equal(holes.target.depth_m[~lost], whole.target.depth_m[~lost])
