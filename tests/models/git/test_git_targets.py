"""Grid points, target assignment, target tokens, and what training keeps of them."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers_git import CLASSES, VIT, make_batch, tiny_git
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from saccade.errors import DataError, UsageError
from saccade.models.git import detection, semantic
from saccade.models.git.config import DetectionConfig
from saccade.models.git.grid import PointGrid, ResponseLayout, point_grid
from saccade.models.git.matching import assign_points, choose_points, point_costs
from saccade.results import decode_masks
from saccade.samples import ClassList, Target
from saccade.tasks import Task
from saccade.tokens.contours import encode_contours

CPU = torch.device("cpu")
HW = (64, 96)
BOXES = DetectionConfig(num_bins=64)
RAYS = DetectionConfig(num_bins=64, num_rays=8)
grids = st.builds(
    lambda windows, window, per_window: point_grid((windows[0] * window, windows[1] * window), window, per_window, CPU),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(2, 4),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)


def small_grid() -> PointGrid:
    """3x3 points in each of 2x3 windows."""
    return point_grid((8, 12), 4, (3, 3), CPU)


def make_target(boxes: list[list[float]], class_ids: list[int], **fields: object) -> Target:
    return Target(
        boxes=tv_tensors.BoundingBoxes(torch.tensor(boxes).view(-1, 4), format="XYXY", canvas_size=HW),
        class_ids=torch.tensor(class_ids, dtype=torch.long),
        **fields,
    )


# ---------------------------------------------------------------------- grid


@settings(max_examples=40, deadline=None)
@given(grid=grids)
def test_window_major_lists_every_point_by_its_window(grid: PointGrid) -> None:
    rows, cols = grid.shape
    assert torch.equal(grid.window_major.sort().values, torch.arange(rows * cols))
    assert torch.equal(grid.window_major[grid.row_major], torch.arange(rows * cols))
    # Windows tile the image: the points of one window fill one rectangle, row by row.
    for members in grid.window_major.view(grid.windows, grid.per_window):
        xy = grid.points_xy[members]
        assert bool((members.diff() > 0).all())
        corners = (xy.amax(0) - xy.amin(0)) * torch.tensor([cols, rows])
        assert float((corners + 1).prod()) == pytest.approx(grid.per_window, rel=1e-3)


def test_points_stand_in_the_middle_of_their_cells() -> None:
    grid = small_grid()
    assert grid.shape == (6, 9)
    assert grid.points_xy[0].tolist() == pytest.approx([0.5 / 9, 0.5 / 6])
    assert grid.points_xy[10].tolist() == pytest.approx([1.5 / 9, 1.5 / 6])


@settings(max_examples=25, deadline=None)
@given(
    windows=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    window=st.integers(1, 4),
    per_window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_features_equal_grid_sample(windows: tuple[int, int], window: int, per_window: tuple[int, int]) -> None:
    size_hw = (windows[0] * window, windows[1] * window)
    grid = point_grid(size_hw, window, per_window, CPU)
    x = torch.randn(2, *size_hw, 3)
    places = (grid.points_xy * 2 - 1).expand(2, 1, -1, 2)
    plain = F.grid_sample(x.permute(0, 3, 1, 2), places, padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(grid.sample(x), plain[:, :, 0].mT, rtol=1e-4, atol=1e-5)


def test_a_map_that_is_no_whole_number_of_windows_is_refused() -> None:
    with pytest.raises(UsageError, match="whole number of 4x4 windows"):
        point_grid((8, 10), 4, (1, 1), CPU)


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_layout_spreads_and_collects(counts: list[int]) -> None:
    window_of = torch.tensor([window for window, count in enumerate(counts) for _ in range(count)], dtype=torch.long)
    layout = ResponseLayout(window_of, len(counts))
    assert layout.width == max(counts)
    if not len(window_of):
        return
    x = torch.arange(len(window_of))
    spread = layout.spread(x)
    assert spread.shape == (len(counts), max(counts))
    for window, count in enumerate(counts):
        assert torch.equal(spread[window, :count], x[window_of == window])
    assert torch.equal(layout.collect(spread), x)


# ---------------------------------------------------------------------- assignment


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 4), seed=st.integers(0, 1000))
def test_assignment_is_the_cheapest_one(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid = point_grid((2, 2), 2, (2, 3), CPU)
    corners = torch.rand(count, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 20 * torch.rand(count, 2, generator=generator)], dim=1)
    points, objects = assign_points(grid, boxes, HW)
    assert len(set(points.tolist())) == len(set(objects.tolist())) == count
    cost = point_costs(grid.points_xy * torch.tensor([96, 64]), boxes, HW)
    best = min(
        float(sum(cost[p, g] for g, p in enumerate(chosen)))
        for chosen in itertools.permutations(range(len(grid)), count)
    )
    assert float(cost[points, objects].sum()) == pytest.approx(best, abs=1e-5)


def test_cost_is_five_times_the_distance_in_image_sizes() -> None:
    cost = point_costs(torch.tensor([[48.0, 32.0]]), torch.tensor([[0.0, 0.0, 48.0, 32.0]]), HW)
    assert cost.tolist() == [[pytest.approx(5 * (0.25 + 0.25))]]


def test_with_more_boxes_than_points_every_point_has_one() -> None:
    grid = point_grid((2, 2), 2, (1, 2), CPU)
    boxes = [[0, 0, 10, 10], [40, 20, 50, 40], [20, 20, 28, 44], [80, 20, 90, 40], [70, 30, 74, 34]]
    tokens, matched = detection.encode_target(make_target(boxes, [0, 1, 2, 0, 1]), grid, HW, 3, BOXES)
    assert matched.tolist() == [True, True]
    # The points stand at (24, 32) and (72, 32).
    assert tokens[:, 0].tolist() == [65 + 2, 65 + 1]


# ---------------------------------------------------------------------- tokens of boxes and contours


def test_a_box_is_told_by_the_nearest_point() -> None:
    grid = small_grid()
    target = make_target([[40.0, 20.0, 56.0, 36.0]], [2])
    tokens, matched = detection.encode_target(target, grid, HW, 3, BOXES)
    point = int(matched.nonzero()[0, 0])
    distance = (grid.points_xy - torch.tensor([48 / 96, 28 / 64])).abs().sum(-1)
    assert point == int(distance.argmin())
    x, y = grid.points_xy[point].tolist()
    expected = [65 + 2, (0.5 - x + 0.5) * 64, (28 / 64 - y + 0.5) * 64, 16 / 96 * 64, 16 / 64 * 64]
    assert tokens[point].tolist() == [round(value) for value in expected]
    # Everyone else is background in every place, because these rows are fed as inputs too.
    assert bool((tokens[~matched] == 65 + 3).all())
    assert tokens.shape == (54, 5)


def test_no_boxes_is_all_background() -> None:
    tokens, matched = detection.encode_target(make_target([], []), small_grid(), HW, 3, BOXES)
    assert not bool(matched.any())
    assert bool((tokens == 68).all())


def test_crowds_are_neither_targets_nor_shift_the_others() -> None:
    masks = torch.zeros(3, *HW, dtype=torch.bool)
    masks[0, 10:30, 10:30] = True
    masks[1, :, 50:] = True
    masks[2, 30:60, 60:80] = True
    boxes = [[10.0, 10, 30, 30], [50, 0, 96, 64], [60, 30, 80, 60]]
    crowd = torch.tensor([False, True, False])
    whole = make_target(boxes, [0, 1, 2], masks=tv_tensors.Mask(masks), is_crowd=crowd)
    without = make_target(boxes[::2], [0, 2], masks=tv_tensors.Mask(masks[::2]))
    for ours, plain in zip(
        detection.encode_target(whole, small_grid(), HW, 3, RAYS),
        detection.encode_target(without, small_grid(), HW, 3, RAYS),
        strict=True,
    ):
        assert torch.equal(ours, plain)


def test_contours_of_the_workers_equal_those_of_the_masks() -> None:
    masks = torch.zeros(2, *HW, dtype=torch.bool)
    masks[0, 10:30, 10:40] = True
    masks[1, 30:60, 60:80] = True
    boxes = [[10.0, 10, 40, 30], [60, 30, 80, 60]]
    traced = make_target(boxes, [0, 1], masks=tv_tensors.Mask(masks))
    given_ = make_target(boxes, [0, 1], contours=encode_contours(masks, 8))
    tokens, matched = detection.encode_target(traced, small_grid(), HW, 3, RAYS)
    assert torch.equal(tokens, detection.encode_target(given_, small_grid(), HW, 3, RAYS)[0])
    assert tokens.shape == (54, 15)
    # The rays of unmatched points hold the highest bin: the original clamps what it meant as background.
    assert bool((tokens[~matched][:, 7:] == 64).all())
    assert bool((tokens[~matched][:, :7] == 68).all())
    with pytest.raises(DataError, match="no masks"):
        detection.encode_target(make_target(boxes, [0, 1]), small_grid(), HW, 3, RAYS)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 5), back=st.floats(0.5, 3.0))
def test_boxes_come_back_in_the_frame_of_the_original_image(seed: int, count: int, back: float) -> None:
    """Encode and decode are inverse up to half a bin, for an original of another size and aspect."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([60.0, 40.0])
    boxes = torch.cat([corners, corners + 2 + 22 * torch.rand(count, 2, generator=generator)], dim=1)
    grid = small_grid()
    class_ids = torch.arange(count) % 3
    tokens, matched = detection.encode_target(make_target(boxes.tolist(), class_ids.tolist()), grid, HW, 3, BOXES)
    original = (round(64 * back), round(96 / back))
    answer = detection.decode_instances(
        tokens[matched],
        grid.points_xy[matched],
        torch.ones(count),
        tokens[matched][:, 0] - 65,
        classes=CLASSES,
        input_hw=HW,
        network_hw=HW,
        original_hw=original,
        config=BOXES,
    )
    factor = torch.tensor([original[1] / 96, original[0] / 64] * 2)
    bin_size = torch.tensor([original[1], original[0]] * 2) / 64
    for box, label in zip(boxes * factor, class_ids, strict=True):
        near = ((answer.boxes_xyxy - box).abs() <= bin_size).all(1) & (answer.class_ids == label)
        assert bool(near.any())


def test_masks_come_back_as_polygons() -> None:
    """A disk told by 24 rays: its mask returns with an overlap above 0.9, in a frame of twice the size."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disk = ((x - 30) ** 2 + (y - 28) ** 2 <= 18**2)[None]
    config = DetectionConfig(num_bins=128, num_rays=24)
    grid = point_grid((8, 8), 8, (3, 3), CPU)
    target = Target(
        boxes=tv_tensors.BoundingBoxes(torch.tensor([[12.0, 10, 49, 47]]), format="XYXY", canvas_size=(64, 64)),
        class_ids=torch.zeros(1, dtype=torch.long),
        masks=tv_tensors.Mask(disk),
    )
    tokens, matched = detection.encode_target(target, grid, (64, 64), 1, config)
    answer = detection.decode_instances(
        tokens[matched],
        grid.points_xy[matched],
        torch.ones(1),
        torch.zeros(1, dtype=torch.long),
        classes=ClassList.from_names(["disk"]),
        input_hw=(64, 64),
        network_hw=(64, 64),
        original_hw=(128, 128),
        config=config,
    )
    assert answer.masks is not None
    found = decode_masks(answer.masks, answer.size_hw)[0]
    truth = disk[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    overlap = float((found & truth).sum()) / float((found | truth).sum())
    assert overlap > 0.9


# ---------------------------------------------------------------------- what training keeps


def window_of(grid: PointGrid) -> Tensor:
    windows = torch.empty(len(grid), dtype=torch.long)
    windows[grid.window_major] = torch.arange(grid.windows).repeat_interleave(grid.per_window)
    return windows


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1), per_window=st.integers(1, 12))
def test_choice_keeps_positives_first_in_window_order(seed: int, share: float, per_window: int) -> None:
    grid = small_grid()
    positive = torch.rand(2, len(grid), generator=torch.Generator().manual_seed(seed)) < share
    torch.manual_seed(seed)
    chosen = choose_points(positive, grid, per_window)
    kept = min(per_window, 9)
    assert chosen.shape == (2, grid.windows * kept)
    windows = window_of(grid)
    for image in range(2):
        assert torch.equal(windows[chosen[image]], torch.arange(grid.windows).repeat_interleave(kept))
        for window, ids in enumerate(chosen[image].view(grid.windows, kept)):
            assert len(set(ids.tolist())) == kept
            inside = int(positive[image][windows == window].sum())
            flags = positive[image][ids].tolist()
            # All positives where they fit, in front of the random rest; only positives where they do not.
            assert flags == [True] * min(inside, kept) + [False] * (kept - min(inside, kept))


def test_choice_is_random_among_equals_and_repeats_with_the_seed() -> None:
    grid = point_grid((4, 4), 4, (3, 3), CPU)
    positive = torch.zeros(1, 9, dtype=torch.bool)
    positive[0, :6] = True
    torch.manual_seed(0)
    counts = torch.zeros(9)
    for _ in range(600):
        counts[choose_points(positive, grid, 4)[0]] += 1
    assert counts[6:].tolist() == [0, 0, 0]
    assert counts[:6].tolist() == pytest.approx([400] * 6, abs=60)
    torch.manual_seed(1)
    first = choose_points(positive, grid, 8)
    torch.manual_seed(1)
    assert torch.equal(first, choose_points(positive, grid, 8))


@pytest.mark.parametrize("task", [Task.DETECTION, Task.INSTANCE, Task.SEMANTIC], ids=str)
def test_loss_on_given_points_equals_loss_on_drawn_ones(task: Task) -> None:
    model, batch = tiny_git(), make_batch(task)
    kept = 6 if task is Task.SEMANTIC else 4
    points = 16 if task is Task.SEMANTIC else 9
    torch.manual_seed(3)
    drawn = model.loss(batch)
    torch.manual_seed(3)
    grid = model.grid(task, (8, 8))
    if task is Task.SEMANTIC:
        positive = torch.ones(2, len(grid), dtype=torch.bool)
    else:
        config = model.task_config(task)
        positive = torch.stack([detection.encode_target(t, grid, (64, 64), 3, config)[1] for t in batch.targets])
    select = choose_points(positive, grid, kept)
    assert select.shape == (2, 4 * kept)
    assert grid.per_window == points
    given_ = model.loss(batch, select=select)
    for name, value in drawn.items():
        assert torch.equal(value, given_[name]), name


def test_box_losses_are_divided_by_kept_points_and_all_matched_ones() -> None:
    """Spelt out from the states: sums over kept points, divisor B * kept + 4 * matched points of the whole grid."""
    model, batch = tiny_git(), make_batch(Task.DETECTION)
    grid = model.grid(Task.DETECTION, (8, 8))
    config = model.task_config(Task.DETECTION)
    coded = [detection.encode_target(t, grid, (64, 64), 3, config) for t in batch.targets]
    # Keep two points of each window, so that some matched points are left out.
    select = grid.window_major.view(4, 9)[:, :2].flatten().expand(2, -1)
    losses = model.loss(batch, select=select)
    with torch.no_grad():
        table = model.vocabulary_matrix(Task.DETECTION, CLASSES.names)
        tokens = torch.stack([t for t, _ in coded]).gather(1, select[..., None].expand(-1, -1, 5))
        states = model.training_states(batch, table[tokens[..., :-1]], select)
        matched = torch.stack([m for _, m in coded])
        cls = reg = 0.0
        for image, place in itertools.product(range(2), range(8)):
            state, wanted = states[image, place], tokens[image, place]
            cls -= float((state[0] @ table[33:].T).log_softmax(-1)[wanted[0] - 33])
            if matched[image, select[image, place]]:
                reg -= sum(float((state[i] @ table[:33].T).log_softmax(-1)[wanted[i]]) for i in range(1, 5))
    assert 0 < int(matched.gather(1, select).sum()) < int(matched.sum()) == 5
    divisor = 2 * 8 + 4 * 5
    assert float(losses["detection_loss_cls"].detach()) == pytest.approx(cls / divisor, rel=1e-4)
    assert float(losses["detection_loss_reg"].detach()) == pytest.approx(reg / divisor, rel=1e-4)


def test_stochastic_depth_is_shared_by_a_window_and_its_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_git(vit=dataclasses.replace(VIT, drop_path=0.5)).train()
    seen: list[tuple[Tensor | None, Tensor | None]] = []
    observe, respond = model._observe_layer, model._respond_layer
    windows = torch.arange(8).repeat_interleave(4)

    def observe_layer(block: object, x: Tensor, text: object, factors: Tensor | None = None) -> object:
        seen.append((factors, None))
        return observe(block, x, text, factors)

    def respond_layer(*args: object, factors: Tensor | None = None, **kwargs: object) -> Tensor:
        seen[-1] = (seen[-1][0], factors)
        return respond(*args, factors=factors, **kwargs)

    monkeypatch.setattr(model, "_observe_layer", observe_layer)
    monkeypatch.setattr(model, "_respond_layer", respond_layer)
    model.loss(make_batch(Task.DETECTION))
    assert [None if image is None else len(image) for image, _ in seen] == [None, 2, 8, 8]  # block 1 is global
    for image, responses in seen[2:]:
        assert responses is not None and image is not None
        assert torch.equal(responses, image[windows])


# ---------------------------------------------------------------------- label maps


def test_labels_are_read_at_every_fourth_pixel_block_by_block() -> None:
    labels = torch.arange(32 * 48).view(32, 48) % 250
    tokens = semantic.encode_labels(labels, (2, 3), 4, 250)
    assert tokens.shape == (6, 16)
    small = labels[::4, ::4]
    for row, column in itertools.product(range(2), range(3)):
        block = small[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        assert torch.equal(tokens[row * 3 + column], block.flatten())


def test_ignored_pixels_have_a_token_of_their_own() -> None:
    labels = torch.zeros(8, 8, dtype=torch.long)
    labels[:4] = 255
    assert semantic.encode_labels(labels, (1, 1), 2, 7).tolist() == [[8, 8, 0, 0]]


@pytest.mark.parametrize("label", [3, 254, -1])
def test_labels_that_are_no_class_are_an_error(label: int) -> None:
    labels = torch.zeros(8, 8, dtype=torch.long)
    labels[4, 4] = label
    with pytest.raises(DataError, match=str(label)):
        semantic.encode_labels(labels, (1, 1), 2, 3)


def test_semantic_loss_is_divided_by_the_labelled_tokens_of_all_patches() -> None:
    model, batch = tiny_git(), make_batch(Task.SEMANTIC)
    grid = model.grid(Task.SEMANTIC, (8, 8))
    select = grid.window_major.view(4, 16)[:, :6].flatten().expand(2, -1)
    loss = float(model.loss(batch, select=select)["semantic_segmentation_loss_cls"].detach())
    maps = [t.semantic.as_subclass(Tensor) for t in batch.targets if t.semantic is not None]
    tokens = torch.stack([semantic.encode_labels(labels, (8, 8), 2, 3) for labels in maps])
    with torch.no_grad():
        table = model.vocabulary_matrix(Task.SEMANTIC, CLASSES.names)
        kept = tokens.gather(1, select[..., None].expand(-1, -1, 4))
        # An ignored pixel among the inputs is row n + 1, a background row; as a target it does not count.
        states = model.training_states(batch, table[kept[..., :-1]], select)
        chance = (states @ table[:4].T).log_softmax(-1)
        total = -sum(
            float(chance[b, q, i, kept[b, q, i]])
            for b, q, i in itertools.product(range(2), range(24), range(4))
            if kept[b, q, i] != 4
        )
    assert loss == pytest.approx(total / int((tokens != 4).sum()), rel=1e-4)
