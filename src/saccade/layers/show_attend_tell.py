"""A recurrent speaker that attends to the cells of a map at every word.

Source: Show, Attend and Tell, ICML 2015, soft attention with a gate; the form of ViSFT (docs/visft.md).

Shape legend: B rows (images), N cells of the map, C channels, A attention width, S state width, V vocabulary, T steps,
P words of all rows, k beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(kw_only=True, frozen=True)
class SpeakerConfig:
    """Sizes of the speaker.

    Attributes:
        attention_width: Channels A in which cells and state are compared.
        embed_width: Channels of a word.
        state_width: Channels S of the recurrent state.
        vocabulary: Words V.
        dropout: On the state that the words are read from.
    """

    attention_width: int = 384
    embed_width: int = 384
    state_width: int = 384
    vocabulary: int = 9490
    dropout: float = 0.5


class Seen(NamedTuple):
    """What is spoken about: the cells, and their projection for the attention, the same for every word."""

    cells_BNC: Tensor
    keys_BNA: Tensor

    def rows(self, index: Tensor | slice) -> Seen:
        """Some of the rows."""
        return Seen(self.cells_BNC[index], self.keys_BNA[index])


class State(NamedTuple):
    """The recurrent state of every row, ``[B, S]`` both."""

    hidden: Tensor
    cell: Tensor

    def rows(self, index: Tensor | slice) -> State:
        """Some of the rows."""
        return State(self.hidden[index], self.cell[index])


class Taught(NamedTuple):
    """What a speaker says when it is told the right words so far.

    Attributes:
        order: ``[B]`` rows by descending length; of equal ones the first comes first.
        logits_PV: Of all steps of all rows: step by step, the rows of a step in that order.
        attention_BTN: Attention weights in that order, 0 after the end of a row.
    """

    order: Tensor
    logits_PV: Tensor
    attention_BTN: Tensor


class Speaker(nn.Module):
    """The attention, the recurrent cell and the words.

    Args:
        config: Sizes.
        in_width: Channels C of a cell.
    """

    def __init__(self, config: SpeakerConfig, in_width: int) -> None:
        super().__init__()
        self.config = config
        width = config.state_width
        self.key = nn.Linear(in_width, config.attention_width)
        self.query = nn.Linear(width, config.attention_width)
        self.score = nn.Linear(config.attention_width, 1)
        self.embed = nn.Embedding(config.vocabulary, config.embed_width)
        self.cell = nn.LSTMCell(config.embed_width + in_width, width)
        self.first_hidden = nn.Linear(in_width, width)
        self.first_cell = nn.Linear(in_width, width)
        self.gate = nn.Linear(width, in_width)
        self.logits = nn.Linear(width, config.vocabulary)
        for table in (self.embed.weight, self.logits.weight):
            nn.init.uniform_(table, -0.1, 0.1)
        nn.init.zeros_(self.logits.bias)
        # A step multiplies single rows: it reads weights of this layout in order, which is what it takes time for.
        for module, name in (
            (self.logits, "weight"),
            (self.cell, "weight_ih"),
            (self.cell, "weight_hh"),
            (self.gate, "weight"),
            (self.query, "weight"),
        ):
            weight = getattr(module, name)
            setattr(module, name, nn.Parameter(weight.detach().mT.contiguous().mT))

    def look(self, cells_BNC: Tensor) -> tuple[Seen, State]:
        """What is spoken about, and the state before the first word."""
        mean = cells_BNC.mean(dim=1)
        return Seen(cells_BNC, self.key(cells_BNC)), State(self.first_hidden(mean), self.first_cell(mean))

    def step(self, seen: Seen, state: State, words_B: Tensor) -> tuple[State, Tensor]:
        """Hears a word; gives the new state, and the attention weights ``[B, N]`` that it was reached with."""
        compared = F.relu(seen.keys_BNA + self.query(state.hidden)[:, None])
        weights_BN = self.score(compared)[..., 0].softmax(dim=1)
        context = torch.bmm(weights_BN[:, None], seen.cells_BNC)[:, 0]
        context = self.gate(state.hidden).sigmoid() * context
        hidden, cell = self.cell(torch.cat([self.embed(words_B), context], dim=1), state)
        return State(hidden, cell), weights_BN

    def teach(self, cells_BNC: Tensor, words_BT: Tensor, lengths: Sequence[int]) -> Taught:
        """Says every next word, told the right ones before it.

        Args:
            cells_BNC: What is spoken about.
            words_BT: The words that are told, padded; the first starts a sentence.
            lengths: How many of them each row is told, at least 1.
        """
        ordered = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        order = torch.tensor(ordered, device=cells_BNC.device)
        seen, state = self.look(cells_BNC[order])
        words_BT = words_BT[order]
        hidden, attention = [], []
        for step in range(max(lengths)):
            going = slice(sum(length > step for length in lengths))
            state, weights = self.step(seen.rows(going), state.rows(going), words_BT[going, step])
            hidden.append(state.hidden)
            attention.append(F.pad(weights, (0, 0, 0, len(lengths) - len(weights))))
        states_PS = F.dropout(torch.cat(hidden), self.config.dropout, self.training)
        return Taught(order, self.logits(states_PS), torch.stack(attention, dim=1))

    def greedy(self, cells_BNC: Tensor, *, start: int, end: int, most: int) -> tuple[list[list[int]], Tensor]:
        """Says the likeliest word at every step.

        Args:
            cells_BNC: What is spoken about.
            start: The word before the first.
            end: The word that ends a sentence.
            most: Greatest number of words, the end not counted.

        Returns:
            The words of every row without start and end, and the summed log-probabilities ``[B]``, the end's included.
        """
        seen, state = self.look(cells_BNC)
        word = torch.full((len(cells_BNC),), start, device=cells_BNC.device)
        total, ended = (
            cells_BNC.new_zeros(len(cells_BNC), dtype=torch.float32),
            torch.zeros_like(word, dtype=torch.bool),
        )
        said: list[Tensor] = []
        while len(said) <= most and not bool(ended.all()):
            state, _ = self.step(seen, state, word)
            best, word = self.logits(state.hidden).float().log_softmax(dim=1).max(dim=1)
            total = total + best.masked_fill(ended, 0.0)
            ended = ended | (word == end)
            said.append(word)
        rows = torch.stack(said, dim=1).tolist()
        return [_until(row, end)[:most] for row in rows], total

    def beam(self, cells_BNC: Tensor, *, beams: int, start: int, end: int, most: int) -> tuple[list[list[int]], Tensor]:
        """Beam search by summed log-probability, without regard to length.

        A sentence that ends leaves the beam, which is narrower from then on; the best that ended wins, or the best so
        far where none did.

        Args:
            cells_BNC: What is spoken about.
            beams: Beams k at the start.
            start: The word before the first.
            end: The word that ends a sentence.
            most: Greatest number of words, the end not counted.

        Returns:
            See :meth:`greedy`.
        """
        images, device = len(cells_BNC), cells_BNC.device
        seen, state = self.look(cells_BNC)
        repeat = torch.arange(images, device=device).repeat_interleave(beams)
        seen, state = seen.rows(repeat), state.rows(repeat)
        # Only the first beam is real before the first word; one that has left is as unlikely as the others then.
        scores = torch.full((images, beams), -torch.inf, device=device)
        scores[:, 0] = 0.0
        said = torch.full((images, beams, 1), start, device=device)
        left = torch.full((images, 1), beams, device=device)
        best = torch.full((images,), -torch.inf, device=device)
        winners: list[list[int]] = [[] for _ in range(images)]
        offset = torch.arange(images, device=device)[:, None] * beams
        for _ in range(most + 1):
            state, _ = self.step(seen, state, said[:, :, -1].flatten())
            steps = self.logits(state.hidden).float().log_softmax(dim=1)
            total = (scores.flatten()[:, None] + steps).view(images, -1)
            scores, picks = total.topk(beams, dim=1)
            parents, words = picks // steps.shape[1], picks % steps.shape[1]
            said = torch.cat(
                [said.gather(1, parents[..., None].expand(-1, -1, said.shape[2])), words[..., None]], dim=2
            )
            real = torch.arange(beams, device=device) < left
            ended = real & (words == end)
            for image, beam in ended.nonzero().tolist():
                if scores[image, beam] > best[image]:
                    best[image] = scores[image, beam]
                    winners[image] = said[image, beam, 1:-1].tolist()
            left = left - ended.sum(dim=1, keepdim=True)
            scores = scores.masked_fill(~real | ended, -torch.inf)
            if not bool(left.any()):
                break
            state = state.rows((parents + offset).flatten())
        for image in best.isinf().nonzero()[:, 0].tolist():
            beam = int(scores[image].argmax())
            best[image], winners[image] = scores[image, beam], said[image, beam, 1 : most + 1].tolist()
        return winners, best


def _until(words: list[int], end: int) -> list[int]:
    return words[: words.index(end)] if end in words else words
