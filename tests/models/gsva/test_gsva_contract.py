"""GSVA keeps the contract of a model: losses, gradients, answers, batches, precision."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers_gsva import END, IMAGE, PICTURES, QUESTION, REJ, SEG, batch, config, mixed, model, total
from torch import Tensor

from saccade.errors import ConfigError
from saccade.models.gsva.config import Part
from saccade.models.gsva.inputs import IGNORED
from saccade.models.gsva.language import find_slots, generate, splice
from saccade.models.gsva.losses import mask_dice
from saccade.models.gsva.model import GSVA, Answer
from saccade.results import Referral, decode_masks
from saccade.tasks import Task


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ---------------------------------------------------------------------- training


def test_every_trainable_parameter_gets_a_gradient_and_no_other() -> None:
    net = model().train()
    total(net.loss(mixed())).backward()
    for name, parameter in net.named_parameters():
        # Attention does not see what all keys share: the gradient of its bias is rounding.
        moved = parameter.grad is not None and (
            bool(parameter.grad.any()) or ".filters." in name or name.endswith(("k_proj.bias", ".key.bias"))
        )
        assert moved == parameter.requires_grad, name
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert {"language.lm_head.weight", "language.model.embed_tokens.weight", "bridge.2.bias"} <= trained
    assert not any(name.startswith(("clip.", "projector.", "sam.image_", "sam.prompt_")) for name in trained)
    assert not any("iou_head" in name or "base_layer" in name for name in trained)


@pytest.mark.parametrize(
    "part", ["language", "clip", "projector", "image_encoder", "prompt_encoder", "mask_decoder", "bridge", "vocabulary"]
)
def test_parts_are_trained_by_name(part: Part) -> None:
    net = model(trainable=(part,)).train()
    total(net.loss(mixed())).backward()
    own = {id(parameter) for parameter in net.parameters_of(part)}
    assert own
    graded = {id(p) for p in net.parameters() if p.grad is not None}
    if part == "prompt_encoder":  # points, boxes and masks are not asked for here
        assert graded == {id(net.sam.prompt_encoder.no_mask_embed.weight)}
    else:
        assert graded == own


def test_without_low_rank_updates_the_language_model_is_bare() -> None:
    net = model(lora=dataclasses.replace(config().lora, rank=0))
    assert not any("lora" in key or "base_layer" in key for key in net.state_dict())
    total(net.loss(mixed())).backward()


def test_the_loss_falls() -> None:
    net, data = model(), mixed()
    adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=3e-3)
    seen = []
    for _ in range(25):
        loss = total(net.loss(data))
        adam.zero_grad()
        loss.backward()
        adam.step()
        seen.append(float(loss.detach()))
    assert all(map(math.isfinite, seen)) and seen[-1] < 0.7 * seen[0]


def test_rejected_rows_are_constants_that_count() -> None:
    net = model()
    one = net.loss(batch({0: [(SEG, END)]}))
    two = net.loss(batch({0: [(SEG, END, REJ)]}))
    name = f"{Task.REFERRING}_loss_mask_bce"
    # The mask of the first is the same: its row is now one of two, the other is ln 2.
    assert torch.allclose(two[name], (one[name] + 2 * math.log(2)) / 2, atol=1e-5)
    rejected = net.loss(batch({0: [(REJ, END)]}))
    assert torch.allclose(rejected[name], torch.tensor(2 * math.log(2)))


def test_words_alone_have_no_mask_error() -> None:
    net = model()
    losses = net.loss(batch({2: [(13, 14, END)]}))
    assert float(losses[f"{Task.REFERRING}_loss_mask_bce"].detach()) == 0
    total(losses).backward()
    # Every parameter takes part in every step, if only with zeros.
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)
    assert not any(bool(parameter.grad.any()) for parameter in net.bridge.parameters())
    assert float(losses[f"{Task.REFERRING}_loss_ce"].detach()) > 0
    nothing = batch({2: [(13, END)]})
    assert nothing.labels is not None
    silent = dataclasses.replace(nothing, labels=torch.full_like(nothing.labels, IGNORED))
    assert float(total(model().loss(silent)).detach()) == 0


def test_a_conversation_that_was_cut_keeps_its_rows() -> None:
    net, data = model(), batch({0: [(SEG, 13, SEG, END)]})
    assert data.labels is not None
    cut = len(QUESTION) + 2
    short = dataclasses.replace(
        data,
        input_ids=data.input_ids[:, :cut],
        labels=data.labels[:, :cut],
        attention_mask=data.attention_mask[:, :cut],
    )
    encoded = net.encode(short.images, short.images_clip)
    [packed] = net.pack(short, encoded, net.read(short, encoded))
    assert packed.shape == (2, *PICTURES[0]) and bool(packed[0].any()) and not bool(packed[1].any())


def test_recomputed_activations_change_nothing() -> None:
    plain, saving = model().train(), model().train()
    saving.set_activation_checkpointing(True)
    for net in (plain, saving):
        total(net.loss(mixed())).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6), name
    assert saving.language.model.gradient_checkpointing
    saving.set_activation_checkpointing(False)
    assert not saving.language.model.gradient_checkpointing


# ---------------------------------------------------------------------- the image among the words


def test_the_image_stands_in_the_place_of_its_placeholder() -> None:
    ids = torch.tensor([[1, IMAGE, 5, 6], [7, 8, IMAGE, 0]])
    words = torch.arange(4.0).view(1, 4, 1).expand(2, 4, 1)
    image = torch.tensor([[[10.0], [11.0], [12.0]], [[20.0], [21.0], [22.0]]])
    labels = torch.where(ids == 6, ids, IGNORED)
    read = splice(words, image, ids, ids != 0, labels)
    assert read.embeds_NTC[..., 0].tolist() == [[0, 10, 11, 12, 2, 3], [0, 1, 20, 21, 22, 3]]
    assert read.ids_NT.tolist() == [[1, 0, 0, 0, 5, 6], [7, 8, 0, 0, 0, 0]]
    assert read.attention_mask_NT.tolist() == [[True] * 6, [True] * 5 + [False]]
    assert read.labels_NT is not None
    assert read.labels_NT.tolist() == [[IGNORED] * 5 + [6], [IGNORED] * 6]


def test_a_slot_is_the_state_before_its_token() -> None:
    ids = torch.tensor([[1, IMAGE, SEG, 6, REJ], [7, 8, IMAGE, 5, SEG]])
    slots = find_slots(ids, 3, seg_id=SEG, rej_id=REJ)
    words = torch.zeros(2, 5, 1)
    read = splice(words, torch.ones(2, 3, 1), ids, ids != 0)
    assert slots.conversation_K.tolist() == [0, 0, 1] and slots.is_seg_K.tolist() == [True, False, True]
    assert read.ids_NT[slots.conversation_K, slots.position_K + 1].tolist() == [SEG, REJ, SEG]
    # The first [SEG] follows the image: the last image token says it.
    assert slots.of(read.embeds_NTC)[:, 0].tolist() == [1, 0, 0]


# ---------------------------------------------------------------------- company


def test_a_batch_is_its_conversations_one_by_one() -> None:
    net = model()
    answers = {0: [(13, SEG, 14, REJ, SEG, END)], 1: [(SEG, END), (15, 16, SEG, END)], 2: [(REJ, SEG, END)]}
    for reevaluate in (False, True):
        together = net.answer(batch(answers, reevaluate=reevaluate))
        alone = [a for image in answers for a in net.answer(batch({image: answers[image]}, reevaluate=reevaluate))]
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a.chosen_K, b.chosen_K) and torch.equal(a.has_mask_K, b.has_mask_K)
            assert torch.allclose(a.rejection_K, b.rejection_K, atol=1e-5)
            assert torch.allclose(a.logits_MHW, b.logits_MHW, atol=1e-4)


def test_a_second_reading_begins_at_the_first_rejection() -> None:
    net, read = model(), []
    net.language.model.register_forward_pre_hook(
        lambda _module, _args, given: read.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    answers = {0: [(13, SEG, 14, SEG, END)], 1: [(13, SEG, 14, REJ, 15, SEG, END)]}
    asked = batch(answers, reevaluate=True)
    length = asked.input_ids.shape[1] - 1 + net.config.clip.tokens
    rejected = find_slots(asked.input_ids, net.config.clip.tokens, seg_id=SEG, rej_id=REJ).position_K[3]
    kept, second = net.answer(asked)
    assert read == [(2, length), (1, length - int(rejected) - 1)]
    # A conversation that says [SEG] there is read as the original reads it: from the beginning.
    plain = batch({0: answers[0], 1: [tuple(SEG if token == REJ else token for token in answers[1][0])]})
    for answer, whole in zip((kept, second), net.answer(plain), strict=True):
        assert torch.allclose(answer.logits_MHW, whole.logits_MHW, atol=1e-4)
    net.answer(batch({0: answers[0]}, reevaluate=True))
    assert len(read) == 4


def test_free_answers_do_not_depend_on_their_company() -> None:
    net = model(seed=5)
    net.language.lm_head.weight.data[[SEG, REJ]] *= 12  # so that they are said
    prompts = {0: [()], 1: [(13, 14, 15, 16)], 2: [(17,)]}
    together = net.answer(batch(prompts, labels=None))
    for image, a in zip(prompts, together, strict=True):
        [b] = net.answer(batch({image: prompts[image]}, labels=None))
        assert a.ids_T.tolist() == b.ids_T.tolist()
        assert torch.allclose(a.logits_MHW, b.logits_MHW, atol=1e-4)
    said = [token for answer in together for token in answer.ids_T.tolist()]
    assert SEG in said or REJ in said


def test_cached_decoding_has_the_states_of_reading_again() -> None:
    net = model(seed=5)
    prompt = batch({0: [(13,)], 1: [(13, 14, 15)]}, labels=None)
    with torch.no_grad():
        encoded = net.encode(prompt.images, prompt.images_clip)
        read = net.read(prompt, encoded).sequence
        said = generate(net.language, read, end_id=END, most=5)
        for row, ids in enumerate(prompt.input_ids):
            whole = torch.cat([ids[ids != 0], said.ids_NT[row]])[None]
            one = dataclasses.replace(
                batch({row: [()]}, labels=None), input_ids=whole, attention_mask=torch.ones_like(whole).bool()
            )
            states = net.read(one, net.encode(one.images, one.images_clip)).states_NTC[0, -6:-1]
            assert torch.allclose(said.states_NTC[row], states, atol=1e-5)
            assert torch.equal(net.language.lm_head(states).argmax(-1), said.ids_NT[row])


def test_an_answer_ends_at_its_end() -> None:
    prompt = batch({0: [(13,)]}, labels=None)
    [whole] = model().answer(prompt)
    said = whole.ids_T.tolist()
    assert len(said) == config().max_new_tokens
    end = next(token for token in said[1:] if token not in (said[0], 0))
    [short] = model(end_id=end).answer(prompt)
    assert short.ids_T.tolist() == said[: said.index(end) + 1]


def test_a_free_answer_ends_where_the_positions_end() -> None:
    net, prompt = model(max_new_tokens=1000), batch({0: [(13,)]}, labels=None)
    net.language.lm_head.weight.data[END] = 0  # so that it is not said
    with torch.no_grad():
        read = net.read(prompt, net.encode(prompt.images, prompt.images_clip)).sequence
    length = read.ids_NT.shape[1]
    positions = net.config.language.positions
    [whole] = net.answer(prompt)
    assert len(whole.ids_T) == positions - length
    ids = torch.cat([prompt.input_ids, torch.full((1, positions - length - 1), 13)], dim=1)
    longer = dataclasses.replace(prompt, input_ids=ids, attention_mask=torch.ones_like(ids).bool())
    [last] = net.answer(longer)
    assert len(last.ids_T) == 1


def test_encoding_once_and_asking_often() -> None:
    net = model()
    first, second = batch({0: [(SEG, END)]}), batch({0: [(13, SEG, SEG, END)]})
    encoded = net.encode(first.images, first.images_clip)
    for asked in (first, second):
        [kept], [fresh] = net.answer(asked, encoded), net.answer(asked)
        assert torch.equal(kept.logits_MHW, fresh.logits_MHW)


# ---------------------------------------------------------------------- answers


def test_given_answers_are_judged_slot_by_slot() -> None:
    net, data = model(), batch({0: [(13, SEG, 14, REJ, SEG, REJ, END)]})
    with torch.no_grad():
        reading = net.read(data, net.encode(data.images, data.images_clip))
        said = net.language.lm_head(reading.slots.of(reading.states_NTC)).argmax(-1).tolist()
    [answer] = net.answer(data)
    given = [SEG, REJ, SEG, REJ]
    expected = [g if s == g else ({SEG: REJ, REJ: SEG}[g]) for g, s in zip(given, said, strict=True)]
    assert answer.chosen_K.tolist() == expected
    assert answer.has_mask_K.tolist() == [True, False, True, False] and len(answer.logits_MHW) == 2
    again = net.answer(dataclasses.replace(data, reevaluate=True))[0]
    assert again.has_mask_K.tolist() == [True] * 4 and len(again.logits_MHW) == 4
    assert again.chosen_K.tolist() == expected
    # Before the first [REJ] nothing changed, so that the first mask is the same.
    assert torch.allclose(again.logits_MHW[0], answer.logits_MHW[0], atol=1e-5)
    assert data.input_ids.eq(REJ).sum() == 2  # the batch is left as it was


def test_masks_are_enlarged_few_at_a_time_and_are_the_same() -> None:
    shapes: list[int] = []

    def enlarge(low: Tensor) -> Tensor:
        shapes.append(len(low))
        return torch.nn.functional.interpolate(low[:, None], size=(9, 7), mode="bilinear")[:, 0]

    nothing, low = torch.zeros(0), torch.randn(10, 4, 4).round()
    answer = Answer(nothing, nothing, nothing, nothing, low, enlarge)
    for zero in (True, False):
        drawn = list(answer.run_lengths(zero_is_foreground=zero))
        assert max(shapes) < 10
        whole = answer.logits_MHW
        shapes.clear()
        assert torch.equal(decode_masks(drawn, (9, 7)), whole >= 0 if zero else whole > 0)


def test_the_overlap_is_counted_in_float32_under_bfloat16() -> None:
    torch.manual_seed(0)
    truth = (torch.rand(3, 64, 64) > 0.5).float()
    logits = ((truth * 2 - 1) * 9 + torch.randn(3, 64, 64)).requires_grad_()
    exact = mask_dice(logits, truth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = mask_dice(logits, truth)
    assert torch.equal(said, exact) and bool((said >= 0).all())


def test_a_picture_without_a_conversation_has_an_empty_answer() -> None:
    net = model()
    none, one = net.predict(dataclasses.replace(batch({0: [], 1: [(13, SEG, END)]}, expressions=[("sky",)]), masks=[]))
    assert none.phrases == () and none.masks == [] and one.phrases == ("sky",)


def test_predictions_name_their_phrases() -> None:
    net = model()
    data = batch(
        {0: [(13, SEG, REJ, END)], 1: [(SEG, END), (13, END)]}, expressions=[("a dog", "a cat"), ("sky",), ("sea",)]
    )
    first, second = net.predict(data)
    assert isinstance(first, Referral) and isinstance(second, Referral)
    assert first.phrases == ("a dog", "a cat") and first.size_hw == PICTURES[0]
    assert [mask is not None for mask in first.masks] == [True, False]
    assert second.phrases == ("sky", "sea") and second.rejected.tolist()[1] is True
    assert second.scores.tolist()[1] == 0 and second.masks[1] is None
    assert bool(((first.scores >= 0) & (first.scores <= 1)).all())
    [unnamed] = net.predict(batch({0: [(13, SEG, REJ, END)]}))
    assert unnamed.phrases == ("answer 1", "answer 2")


@pytest.mark.parametrize("answers", [{2: [(13, 14, END)]}, {2: [(REJ, END)]}])
def test_nothing_to_segment(answers: dict[int, list[tuple[int, ...]]]) -> None:
    [answer] = model().answer(batch(answers))
    assert answer.logits_MHW.shape == (0, *PICTURES[2])


# ---------------------------------------------------------------------- precision, configuration


def test_half_precision() -> None:
    net, data = model(), mixed()
    exact = total(net.loss(data)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = total(net.loss(data))
        near.backward()
    assert abs(float(near.detach() - exact)) < 0.05 * float(exact)
    halved = model().to(torch.bfloat16)
    frequencies = halved.language.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    assert torch.equal(frequencies, model().language.model.rotary_emb.inv_freq)


def test_other_sizes_of_what_sam_sees() -> None:
    net = model()
    assert net.preprocess(Task.REFERRING).size_hw == (64, 64)
    assert net.tasks == (Task.REFERRING,)
    assert isinstance(net, GSVA)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seg_id": 40}, "seg_id"),
        ({"rej_id": SEG}, "rej_id"),
        ({"max_length": 97}, "max_length"),
    ],
)
def test_configurations_that_contradict_themselves(changes: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        config(**changes)
