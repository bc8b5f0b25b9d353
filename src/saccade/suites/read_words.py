"""Scene-text recognition: a shallow decoder reads words from frozen features.

The form of the decoder, its training and the input size are ours: the authors have published none. Shape legend: B
pictures, H W map, N its cells, T signs, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.data.benchmarks.words import WORD_SETS, WordSet, open_training_words
from saccade.errors import MissingDataError
from saccade.layers.attention import MapAttention
from saccade.layers.precision import autocast
from saccade.layers.vit import MLP
from saccade.metrics.words import ALPHABET, bare, word_accuracy
from saccade.suites.base import SuiteOptions, SuiteResult, training_root
from saccade.suites.features import extract
from saccade.suites.pictures import Files, Squash
from saccade.suites.probes import Schedule, about_probe, endless, fit_probe, keep_probe, kept_probe, schedule
from saccade.suites.towers import Tower

GRID = (4, 16)
"""Rows and columns of the map that a word becomes: words are wide."""

LONGEST = 25
"""Signs of a word; longer words are not trained on, and cannot be read."""

_END = len(ALPHABET)  # both ends of a word: what is read first, and said last
_STEPS, _RATE, _DECAY = 20_000, 3e-4, 0.05


@dataclass(kw_only=True, frozen=True)
class WordReaderConfig:
    """The decoder.

    Attributes:
        width: Channels.
        layers: Pre-norm layers: attention over the signs so far, attention over the map, MLP.
        heads: Attention heads.
    """

    width: int = 384
    layers: int = 2
    heads: int = 6


class _Layer(nn.Module):
    def __init__(self, config: WordReaderConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.signs = MapAttention(width, config.heads)
        self.map = MapAttention(width, config.heads)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x_BTC: Tensor, map_BNC: Tensor) -> Tensor:
        seen = self.norm1(x_BTC)
        own = self.signs.keys_values(seen)
        x_BTC = x_BTC + self.signs.attend(self.signs.queries(seen), *own, causal=True)
        x_BTC = x_BTC + self.map(self.norm2(x_BTC), map_BNC, map_BNC)
        return x_BTC + self.mlp(self.norm3(x_BTC))


class WordReader(nn.Module):
    """Signs one after the other, from the map of a frozen tower.

    Args:
        config: Sizes.
        in_width: Channels of the map.
        cells: Cells N of the map.
    """

    def __init__(self, config: WordReaderConfig, in_width: int, cells: int) -> None:
        super().__init__()
        width = config.width
        self.map_norm, self.map_in = nn.LayerNorm(in_width), nn.Linear(in_width, width)
        self.cells = nn.Parameter(0.02 * torch.randn(1, cells, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, LONGEST + 1, width))
        self.signs = nn.Embedding(_END + 1, width)
        nn.init.normal_(self.signs.weight, std=0.02)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, _END + 1)

    def forward(self, map_BNC: Tensor, signs_BT: Tensor) -> Tensor:
        """Logits ``[B, T, 37]`` of the sign behind each of those given (the first of which is the end mark)."""
        return self._say(self._look(map_BNC), signs_BT)

    def loss(self, map_BNC: Tensor, words: Sequence[str]) -> Tensor:
        """Mean cross entropy of every sign and of the end, each behind the true signs before it."""
        rows = [[ALPHABET.index(sign) for sign in bare(word)] for word in words]
        length = max(map(len, rows)) + 1
        given = torch.full((len(rows), length), _END)
        wanted = torch.full((len(rows), length), -100)
        for row, signs in enumerate(rows):
            given[row, 1 : len(signs) + 1] = torch.tensor(signs, dtype=torch.long)
            wanted[row, : len(signs) + 1] = torch.tensor([*signs, _END])
        device = map_BNC.device
        return F.cross_entropy(self(map_BNC, given.to(device)).flatten(0, 1), wanted.to(device).flatten())

    @torch.inference_mode()
    def read(self, map_BNC: Tensor) -> list[str]:
        """The words, greedily."""
        seen = self._look(map_BNC)
        signs = torch.full((len(map_BNC), 1), _END, device=map_BNC.device)
        going = torch.ones(len(map_BNC), dtype=torch.bool, device=map_BNC.device)
        for _ in range(LONGEST):
            best = self._say(seen, signs)[:, -1].argmax(-1)
            going = going & (best != _END)
            if not bool(going.any()):
                break
            signs = torch.cat([signs, torch.where(going, best, _END)[:, None]], dim=1)
        return ["".join(ALPHABET[sign] for sign in row if sign != _END) for row in signs.tolist()]

    def _look(self, map_BNC: Tensor) -> Tensor:
        return self.map_in(self.map_norm(map_BNC)) + self.cells

    def _say(self, seen_BNC: Tensor, signs_BT: Tensor) -> Tensor:
        x_BTC = self.signs(signs_BT) + self.places[:, : signs_BT.shape[1]]
        for layer in cast("list[_Layer]", self.layers):
            x_BTC = layer(x_BTC, seen_BNC)
        return self.out(self.norm(x_BTC))


def read_words(tower: Tower, options: SuiteOptions) -> SuiteResult:
    """Word accuracy on the test sets that lie in the root, each in a folder of its name, and their mean by words."""
    present = [name for name in WORD_SETS if (options.root / name).is_dir()]
    if not present:
        raise MissingDataError(
            "no set of words", where=options.root, why=f"looked for the folders {', '.join(WORD_SETS)}"
        )
    sets = {name: WORD_SETS[name](options.root / name) for name in present}
    patch = tower.vit.config.patch_size
    fit = Squash(size_hw=(GRID[0] * patch, GRID[1] * patch), mean=tower.mean, std=tower.std)
    torch.manual_seed(options.seed)
    reader = WordReader(WordReaderConfig(), tower.vit.config.width, GRID[0] * GRID[1]).to(tower.device)
    about = about_probe(
        "words",
        tower.identity,
        options,
        train_root=options.train_root,
        train_limit=options.train_limit,
        **_schedule(options),
    )
    if not (note := kept_probe(options.probe, reader, about)):
        note = _train(reader, tower, fit, options)
        keep_probe(options.probe, reader.state_dict(), about, note)
    notes = [note]
    metrics: dict[str, float] = {}
    right, total = 0.0, 0
    left_out: dict[str, int] = {}
    for name, words in sets.items():
        pictures = words.pictures[: options.limit or None]
        maps = extract(
            lambda images: tower.vit(images).flatten(1, 2),
            _files(words, len(pictures)),
            fit,
            options=options,
            device=tower.device,
            about={"tower": tower.identity, "data": f"{name} {options.root.resolve()}", "what": "map"},
            what=name,
        )
        said = [
            word
            for start in range(0, len(maps), options.batch_size)
            for word in reader.read(maps[start : start + options.batch_size].to(tower.device))
        ]
        metrics[name] = word_accuracy(said, [one.word for one in pictures])
        right, total = right + metrics[name] * len(pictures), total + len(pictures)
        left_out |= {f"{name}: {why}": count for why, count in words.skipped.items()}
    if missing := [name for name in WORD_SETS if name not in sets]:
        notes.append(f"not there, and not in the mean: {', '.join(missing)}")
    return SuiteResult(metrics=metrics | {"mean": right / total}, items=total, notes=notes, left_out=left_out)


def _train(reader: WordReader, tower: Tower, fit: Squash, options: SuiteOptions) -> str:
    found = open_training_words(training_root(options, what="pictures of words"))
    kept = [one for one in found.pictures if 0 < len(bare(one.word)) <= LONGEST][: options.train_limit or None]
    words = WordSet(name=found.name, pictures=kept)
    files, chosen = _files(words, len(kept)), _schedule(options)

    def item(index: int) -> tuple[Tensor, str]:
        return fit(files[index]), kept[index].word

    def losses() -> Iterator[Tensor]:
        for images, said in endless(item, len(kept), options):
            with torch.no_grad(), autocast(options.precision, tower.device):
                maps = tower.vit(images.to(tower.device)).flatten(1, 2).float()
            yield reader.loss(maps, said)

    fit_probe(
        reader,
        losses(),
        **chosen,
        weight_decay=_DECAY,
        progress=options.progress,
        what="word reader",
    )
    steps = chosen["steps"]
    return f"read by a decoder trained {steps} steps of {options.batch_size} on {len(kept)} words of {found.name}"


def _schedule(options: SuiteOptions) -> Schedule:
    return schedule(options, steps=_STEPS, learning_rate=_RATE)


def _files(words: WordSet, count: int) -> Files:
    pictures = words.pictures[:count]
    return Files(paths=[one.path for one in pictures], boxes_xyxy=[one.box_xyxy for one in pictures])
