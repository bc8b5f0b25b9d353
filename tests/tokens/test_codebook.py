"""VQ-VAEs: the codebook against plain formulas, gradients, soft and hard codes, masked patches."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.errors import ConfigError, UsageError
from saccade.models.ait.config import depth_vqvae, mask_vqvae
from saccade.tokens import codebook
from saccade.tokens.codebook import VQVAE, Codebook, CodebookConfig, VQVAEConfig, mask_patches

SMALL = CodebookConfig(codes=6, width=4)
TINY = VQVAEConfig(size=16, downsample=8, base_width=2, residual_blocks=1, codebook=SMALL)
DEPTH = dataclasses.replace(TINY, signed=False, reconstruction="valid_squared")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def maps(count: int = 3, size: int = 16) -> Tensor:
    return (torch.rand(count, 1, size, size) < 0.4).float()


def codes_of(net: VQVAE, image: Tensor) -> Tensor:
    grid = net.config.grid
    return net.encode(image[:, 0]).view(-1, grid, grid)


def vqvae(config: VQVAEConfig = TINY, seed: int = 0) -> VQVAE:
    """A VQ-VAE whose codes are all near some latent."""
    torch.manual_seed(seed)
    net = VQVAE(config)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.5)
    with torch.no_grad():
        rows = net.latents(maps(8)).permute(0, 2, 3, 1).flatten(0, 2)
        chosen = rows[torch.randperm(len(rows))[: config.codebook.codes]]
        net.codebook.entries.copy_(chosen + 0.05 * torch.randn_like(chosen))
    return net


# ---------------------------------------------------------------------- the codebook


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), seed=st.integers(0, 1000))
def test_the_nearest_entry_is_the_nearest(rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    book = Codebook(SMALL)
    latents = torch.randn(rows, 4)
    plain = [[float(((row - entry) ** 2).sum()) for entry in book.entries] for row in latents]
    torch.testing.assert_close(book.distances(latents), torch.tensor(plain), rtol=1e-4, atol=1e-4)
    for code, distances in zip(book.nearest(latents).tolist(), plain, strict=True):
        assert distances[code] == pytest.approx(min(distances), abs=1e-4)


@pytest.mark.parametrize("decay", [0.99, 0.5])
def test_moving_averages_are_their_formulas(decay: float) -> None:
    """N_k and W_k are averaged, N_k is smoothed and kept so, an entry is W_k / N_k."""
    book = Codebook(dataclasses.replace(SMALL, decay=decay))
    uses, sums = book.uses.tolist(), book.sums.tolist()
    for step in range(4):
        torch.manual_seed(step)
        latents = torch.randn(10, 4)
        codes = book.nearest(latents)
        book.update(latents, codes)
        counts = [0] * 6
        added = [[0.0] * 4 for _ in range(6)]
        for code, row in zip(codes.tolist(), latents.tolist(), strict=True):
            counts[code] += 1
            added[code] = [a + b for a, b in zip(added[code], row, strict=True)]
        uses = [decay * n + (1 - decay) * count for n, count in zip(uses, counts, strict=True)]
        total = sum(uses)
        uses = [(n + 1e-5) / (total + 6 * 1e-5) * total for n in uses]
        sums = [
            [decay * w + (1 - decay) * a for w, a in zip(*pair, strict=True)] for pair in zip(sums, added, strict=True)
        ]
        entries = [[w / n for w in row] for row, n in zip(sums, uses, strict=True)]
        for ours, plain in ((book.uses, uses), (book.sums, sums), (book.entries, entries)):
            torch.testing.assert_close(ours, torch.tensor(plain), rtol=1e-5, atol=1e-7)


def test_an_entry_that_the_first_step_does_not_use_is_lost_as_in_the_original() -> None:
    book = Codebook(SMALL)
    book.update(torch.randn(10, 4), torch.zeros(10, dtype=torch.long))
    assert bool((book.entries[1:].norm(dim=1) > 1e4).all())
    assert float(book.entries[0].norm()) < 1e3


def test_entries_that_are_not_used_come_back_as_latents() -> None:
    threshold = 0.02
    book = Codebook(dataclasses.replace(SMALL, revive_below=threshold))
    latents = torch.randn(10, 4)
    book.update(latents, torch.tensor([0] * 5 + [3] * 5))
    for index in range(6):
        distance = (latents - book.entries[index]).norm(dim=1)
        if index in (0, 3):
            # N_k is 0.05 now: above the threshold, the average of before and the latents.
            assert float(book.uses[index]) > threshold and float(distance.min()) > 0
        else:
            assert float(distance.min()) == 0.0
            assert float(book.uses[index]) == pytest.approx(threshold)
        torch.testing.assert_close(book.sums[index] / book.uses[index], book.entries[index])
    # They stand among the latents now: what is quantised uses more than two of them.
    assert len(set(book.nearest(latents).tolist()) - {0, 3}) > 1


@pytest.mark.parametrize("sync", [True, False])
def test_processes_have_one_codebook(sync: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that see the same are one that sees it twice, or the first of them decides."""
    latents, codes = torch.randn(7, 4), torch.tensor([0, 1, 2, 2, 4, 5, 0])
    theirs, their_codes = torch.randn(7, 4), torch.tensor([5, 5, 3, 1, 0, 0, 2])
    ours = Codebook(dataclasses.replace(SMALL, sync=sync))
    alone = copy.deepcopy(ours)
    alone.update(
        torch.cat([latents, theirs]) if sync else theirs, torch.cat([codes, their_codes]) if sync else their_codes
    )
    # What the other process, the first, brings: uses, then sums.
    other = [torch.bincount(their_codes, minlength=6).float(), torch.zeros(6, 4).index_add_(0, their_codes, theirs)]
    monkeypatch.setattr(codebook.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(codebook.dist, "all_reduce", lambda tensor: tensor.add_(other.pop(0)))
    monkeypatch.setattr(codebook.dist, "broadcast", lambda tensor, src: tensor.copy_(other.pop(src)))
    ours.update(latents, codes)
    assert not other
    for name, tensor in alone.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), tensor, msg=name)


# ---------------------------------------------------------------------- training


def test_the_gradient_goes_straight_through() -> None:
    """The encoder gets the decoder's gradient as if nothing were quantised, and a pull towards the entries."""
    net = vqvae().eval().double()
    image = maps().double()
    found = net.reconstruct(image, image)
    ours = torch.autograd.grad(sum(found.losses.values()), list(net.encoder.parameters()))
    latents = net.latents(image)
    entries = net.codebook.entries[codes_of(net, image)].permute(0, 3, 1, 2).clone().requires_grad_()
    reconstruction = F.mse_loss(net.decoder(entries), 2 * image - 1)
    (through,) = torch.autograd.grad(reconstruction, entries)
    pull = 0.25 * 2 * (latents - entries).detach() / latents.numel()
    plain = torch.autograd.grad(latents, list(net.encoder.parameters()), through + pull)
    for one, other in zip(ours, plain, strict=True):
        assert float(one.abs().sum()) > 0
        torch.testing.assert_close(one, other)
    assert not any(tensor.requires_grad for tensor in net.codebook.buffers())
    assert not list(net.codebook.parameters())


def test_the_decoder_reads_entries() -> None:
    net = vqvae().eval().double()
    image = maps().double()
    found = net.reconstruct(image, image)
    torch.testing.assert_close(found.maps_B1HW[:, 0], net.decode(net.encode(image[:, 0])))
    loss = found.losses["loss_commitment"]
    latents = net.latents(image)
    entries = net.codebook.entries[codes_of(net, image)].permute(0, 3, 1, 2)
    assert float(loss.detach()) == pytest.approx(0.25 * float((latents - entries).square().mean().detach()), rel=1e-5)


def test_only_training_moves_the_codebook_and_only_after_it_was_used() -> None:
    net = vqvae()
    image = maps()
    before = {name: tensor.clone() for name, tensor in net.codebook.named_buffers()}
    still = net.eval().reconstruct(image, image)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.codebook.named_buffers())
    moved = net.train().reconstruct(image, image)
    assert torch.equal(still.maps_B1HW, moved.maps_B1HW)
    assert not any(torch.equal(before[name], tensor) for name, tensor in net.codebook.named_buffers())


def test_masks_are_trained_between_minus_1_and_1_and_depth_in_metres_where_it_is_known() -> None:
    net, image = vqvae().eval(), maps()
    found = net.reconstruct(image, image)
    raw = 2 * (found.maps_B1HW - 0.5)
    torch.testing.assert_close(net.latents(image), net.encoder(2 * image - 1))
    assert float(found.losses["loss_reconstruction"].detach()) == pytest.approx(
        float((raw - (2 * image - 1)).square().mean().detach()), rel=1e-5
    )
    depth = 8 * torch.rand(3, 1, 16, 16) * maps()
    metric = vqvae(DEPTH).eval()
    torch.testing.assert_close(metric.latents(depth), metric.encoder(depth))
    found = metric.reconstruct(torch.zeros_like(depth), depth)
    known = depth > 0
    assert float(found.losses["loss_reconstruction"].detach()) == pytest.approx(
        float((found.maps_B1HW - depth)[known].square().mean().detach()), rel=1e-5
    )
    logs = vqvae(dataclasses.replace(DEPTH, reconstruction="scale_invariant_log")).eval()
    found = logs.reconstruct(depth, depth)
    d = (depth[known].log() - found.maps_B1HW[known].clamp(min=1e-3).log()).detach()
    wanted = math.sqrt(float(d.square().mean() - 0.5 * d.mean() ** 2))
    assert float(found.losses["loss_reconstruction"].detach()) == pytest.approx(wanted, rel=1e-4)


def test_nothing_known_is_no_loss() -> None:
    nothing = torch.zeros(2, 1, 16, 16)
    for reconstruction in ("valid_squared", "scale_invariant_log"):
        net = vqvae(dataclasses.replace(DEPTH, reconstruction=reconstruction))
        loss = net.reconstruct(nothing, nothing).losses["loss_reconstruction"]
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


def test_the_loss_falls() -> None:
    net = vqvae().train()
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    image, values = maps(4), []
    for _ in range(20):
        loss = sum(net.reconstruct(image, image).losses.values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert sum(values[-5:]) < 0.5 * sum(values[:5]), values


# ---------------------------------------------------------------------- codes and maps


def test_codes_are_row_major() -> None:
    net = vqvae().eval()
    codes = torch.tensor([[0, 1, 2, 3]])
    seen: list[Tensor] = []
    net.decoder.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    assert net.decode(codes).shape == (1, 16, 16)
    for place, code in enumerate(codes[0].tolist()):
        assert torch.equal(seen[0][0, :, place // 2, place % 2], net.codebook.entries[code])
    image = maps(1)
    latents = net.latents(image)[0]
    for place, code in enumerate(net.encode(image[:, 0])[0].tolist()):
        assert code == int(net.codebook.nearest(latents[None, :, place // 2, place % 2]))


def test_certain_mixtures_are_hard_codes_and_sharpness_multiplies_logits() -> None:
    net = vqvae().eval()
    codes = torch.randint(6, (2, 4))
    certain = 200.0 * F.one_hot(codes, 6).float().mT.unflatten(2, (2, 2))
    torch.testing.assert_close(net.decode_soft(certain), net.decode(codes), rtol=1e-5, atol=1e-5)
    logits = torch.randn(2, 6, 2, 2)
    torch.testing.assert_close(net.decode_soft(logits, sharpness=0.8), net.decode_soft(0.8 * logits))
    assert not torch.allclose(net.decode_soft(logits, sharpness=0.8), net.decode_soft(logits))
    # A mixture is a mean of entries, weighted by the softmax.
    seen: list[Tensor] = []
    net.decoder.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    net.decode_soft(logits)
    shares = logits[1, :, 0, 1].softmax(0)
    torch.testing.assert_close(seen[0][1, :, 0, 1], shares @ net.codebook.entries)


@pytest.mark.parametrize("shape", [(1, 1, 16, 24), (1, 1, 15, 15), (1, 1, 8, 8), (1, 1, 32, 32)])
def test_maps_of_another_size_are_no_sequence(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="16x16"):
        vqvae().encode(torch.zeros(shape)[:, 0])


def test_maps_that_the_network_cannot_read_are_refused() -> None:
    for shape in ((1, 1, 15, 16), (1, 2, 16, 16), (1, 1, 16, 20)):
        with pytest.raises(UsageError, match="cannot be made into codes"):
            vqvae().reconstruct(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample": 12}, "power of 2"),
        ({"downsample": 2}, "power of 2"),
        ({"size": 20}, "size 20 is not a multiple of downsample 8"),
        ({"scale": 10.0}, r"are not divided by a scale(.|\n)*vqvae\.scale(.|\n)*signed=false"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(("make", "tokens", "parameters"), [(mask_vqvae, 16, 1_985_393), (depth_vqvae, 225, 7_689_201)])
def test_the_published_sizes(make: object, tokens: int, parameters: int) -> None:
    assert callable(make)
    config = make()
    with torch.device("meta"):
        net = VQVAE(config)
    assert config.tokens == tokens
    assert sum(p.numel() for p in net.parameters()) == parameters


# ---------------------------------------------------------------------- hidden patches


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    patch=st.integers(1, 4),
    eighths=st.integers(0, 8),
    count=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_whole_patches_are_hidden_as_many_as_asked(
    grid: tuple[int, int], patch: int, eighths: int, count: int, seed: int
) -> None:
    whole = torch.rand(count, 1, grid[0] * patch, grid[1] * patch) + 0.1
    kept = whole.clone()
    generator = torch.Generator().manual_seed(seed)
    masked = mask_patches(whole, patch=patch, ratio=eighths / 8, generator=generator)
    assert torch.equal(whole, kept)
    cells = masked.unfold(2, patch, patch).unfold(3, patch, patch).flatten(1, 3).flatten(2)
    hidden = (cells == 0).all(2)
    assert hidden.sum(1).tolist() == [math.ceil(grid[0] * grid[1] * eighths / 8)] * count
    shown = ~hidden.view(count, 1, *grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    assert torch.equal(masked, whole * shown)
    again = mask_patches(whole, patch=patch, ratio=eighths / 8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(masked, again)


def test_every_map_hides_other_patches() -> None:
    masked = mask_patches(torch.ones(4, 1, 64, 64), patch=8, ratio=0.5, generator=torch.Generator().manual_seed(0))
    assert len({tuple(one.flatten().tolist()) for one in masked}) == 4
