"""Pictures and phrases in, masks and rejections out: the predictor, dialogues, smaller weights, the command line."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_gsva import model as tiny_model
from PIL import Image
from torchvision import tv_tensors

import saccade
from saccade.cli import main
from saccade.data.sources.scenes import ScenesSource
from saccade.data.transforms import collate, preprocess
from saccade.errors import DataError, MissingExtraError, UsageError
from saccade.hub.checkpoint import load_folder, save_model
from saccade.layers.offload import _changed, _inner, place, weight_bytes
from saccade.layers.quantize import quantize_linears
from saccade.models.gsva.conversation import Conversation
from saccade.models.gsva.model import GSVA
from saccade.models.gsva.presets import nano
from saccade.models.systems import extra_of
from saccade.predictor import Answer, Predictor
from saccade.results import Referral
from saccade.samples import Batch, Origin, Sample
from saccade.tasks import Task
from saccade.training.config import TrainConfig
from saccade.training.evaluation import evaluate
from saccade.training.start import build_model

PHRASES = ("the red ball", "all boxes", "The Cyan Star.", "你好", "a\tb\x07")


def sample_of(picture: Image.Image, phrases: tuple[str, ...]) -> Sample:
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    origin = Origin(dataset="", image_id=0, path=None, size_hw=(picture.height, picture.width))
    return Sample(image=tv_tensors.Image(image), task=Task.REFERRING, origin=origin, phrases=phrases)


def plain_batch(model: GSVA, sample: Sample) -> Batch:
    declared = model.preprocess(Task.REFERRING)
    return collate([preprocess(sample, declared, with_target=False)], declared)


def _split(model: GSVA, picture: Image.Image) -> None:
    """Output rows by which the first phrase about the picture is rejected, and the second one is not."""
    sample, extra = sample_of(picture, PHRASES), extra_of(model, answer="own")
    batch = extra.join(plain_batch(model, sample), [extra.prepare(sample)], training=False)
    with torch.no_grad():
        reading = model.read(batch, model.encode(batch.images, batch.images_clip))
        one, other = reading.slots.of(reading.states_NTC)[:2]
        middle, apart = (one + other) / 2, one - other
        row = apart - (apart @ middle) / (middle @ middle) * middle
        model.language.lm_head.weight[model.config.rej_id] = 30 * row / row.norm()
        model.language.lm_head.weight[model.config.seg_id] = 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, picture: Image.Image) -> Path:
    config = nano(64)
    config = dataclasses.replace(
        config, language=dataclasses.replace(config.language, layers=2), max_length=320, max_new_tokens=12
    )
    torch.manual_seed(4)
    model, _ = build_model(TrainConfig(name="x", model=config, train=(), steps=0, initialise="local"))
    assert isinstance(model, GSVA)
    _split(model.eval(), picture)
    return save_model(model, tmp_path_factory.mktemp("gsva") / "tiny", classes={}, provenance={})


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (48, 80, 3), dtype=np.uint8))


def predictor(checkpoint: Path, **options) -> Predictor:
    return saccade.load(checkpoint, device="cpu", **options)


def same(one: Referral, other: Referral) -> None:
    assert one.phrases == other.phrases and one.size_hw == other.size_hw
    assert torch.equal(one.rejected, other.rejected)
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(one.dense_masks(), other.dense_masks())


def test_every_phrase_gets_a_mask_or_a_rejection(checkpoint: Path, picture: Image.Image) -> None:
    found = predictor(checkpoint).predict(picture, phrases=PHRASES)
    assert isinstance(found, Referral) and found.phrases == PHRASES and found.size_hw == (48, 80)
    assert {True, False} == set(found.rejected.tolist())
    for rejected, mask, score in zip(found.rejected.tolist(), found.masks, found.scores.tolist(), strict=True):
        assert (mask is None) == rejected and (score < 0.5) == rejected


def test_own_choices_are_those_that_the_judged_answer_would_keep(checkpoint: Path, picture: Image.Image) -> None:
    """Filled slot by slot with cached keys and values, or read at once with the same choices in it: the same."""
    loaded = predictor(checkpoint)
    model = loaded.model
    assert isinstance(model, GSVA)
    found = loaded.predict(picture, phrases=PHRASES[:3])
    sample, extra = sample_of(picture, PHRASES[:3]), extra_of(model, answer="own")
    said, plain = extra.prepare(sample), plain_batch(model, sample)
    open_batch = extra.join(plain, [said], training=False)
    ((question, text),) = said.conversations[0].rounds
    for rejected in found.rejected.tolist():
        text = text.replace(":[SEG]", ":[rej]" if rejected else ":[seg]", 1)
    text = text.replace("[rej]", "[REJ]").replace("[seg]", "[SEG]")
    filled = Conversation(rounds=((question, text),), expressions=PHRASES[:3])
    given = extra_of(model, answer="given").join(
        plain, [dataclasses.replace(said, conversations=[filled])], training=False
    )
    (own,), (judged,) = model.answer(open_batch), model.answer(given)
    seg, rej = model.config.seg_id, model.config.rej_id
    assert [token == rej for token in own.chosen_K.tolist()] == found.rejected.tolist()
    torch.testing.assert_close(own.rejection_K, judged.rejection_K, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.logits_MHW, judged.logits_MHW, rtol=1e-3, atol=1e-4)
    assert own.has_mask_K.tolist() == [token == seg for token in own.chosen_K.tolist()]


def test_what_else_is_asked_changes_nothing_where_conversations_are_apart(
    checkpoint: Path, picture: Image.Image
) -> None:
    """500 phrases are asked in several conversations about one look at the picture."""
    loaded = predictor(checkpoint)
    many = tuple(f"the {colour} ball" for colour in ("red", "cyan")) * 250
    found = loaded.predict(picture, phrases=many)
    assert isinstance(found, Referral) and found.phrases == many
    extra = extra_of(loaded.model, answer="own")
    sample = sample_of(picture, many)
    parts = extra.prepare(sample).conversations
    assert len(parts) > 10 and sum((part.expressions for part in parts), ()) == many
    lengths = [len(extra.vocabulary.encode_with_image(part.text("llava_v1"))) + extra.image_tokens for part in parts]
    assert max(lengths) <= extra.max_length < 2 * min(lengths[:-1])
    at = 0
    for part in parts[:5] + parts[-1:]:  # several are read together; alone each says the same
        at = len(many) - len(part.expressions) if part is parts[-1] else at
        alone = loaded.predict(picture, phrases=part.expressions)
        assert torch.equal(alone.rejected, found.rejected[at : at + len(alone)])
        torch.testing.assert_close(alone.scores, found.scores[at : at + len(alone)], rtol=1e-4, atol=1e-5)
        at += len(alone)


def test_conversations_of_different_length_are_filled_together(checkpoint: Path, picture: Image.Image) -> None:
    loaded = predictor(checkpoint)
    extra, asked = extra_of(loaded.model, answer="own"), (PHRASES[:1], PHRASES[1:5], PHRASES[2:4])
    said = [extra.prepare(sample_of(picture, phrases)) for phrases in asked]
    conversations = [conversation for one in said for conversation in one.conversations]
    plain = plain_batch(loaded.model, sample_of(picture, PHRASES))
    whole = dataclasses.replace(said[0], conversations=conversations)
    together = loaded.model.answer(extra.join(plain, [whole], training=False))
    assert [len(answer.chosen_K) for answer in together] == [1, 4, 2]
    for answer, one in zip(together, said, strict=True):
        (alone,) = loaded.model.answer(extra.join(plain, [one], training=False))
        assert torch.equal(answer.chosen_K, alone.chosen_K)
        torch.testing.assert_close(answer.rejection_K, alone.rejection_K, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.logits_MHW, alone.logits_MHW, rtol=1e-3, atol=1e-4)


def test_batches_and_folders(checkpoint: Path, picture: Image.Image) -> None:
    loaded = predictor(checkpoint)
    other = picture.rotate(180).resize((40, 70))
    alone = [loaded.predict(one, phrases=PHRASES[:2]) for one in (picture, other)]
    together = loaded.predict([picture, other], phrases=PHRASES[:2], batch_size=2)
    for one, answer in zip(alone, together, strict=True):
        assert isinstance(answer, Answer)
        same(answer.prediction, one)


def test_a_picture_is_looked_at_once(checkpoint: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = predictor(checkpoint)
    looks = []
    encode = GSVA.encode
    monkeypatch.setattr(GSVA, "encode", lambda self, *images: looks.append(1) or encode(self, *images))
    dialogue = loaded.encode(picture)
    first = dialogue.find(*PHRASES[:3])
    said = dialogue.ask("Segment everything one can sit on.")
    again = dialogue.ask("And the rest?")
    assert looks == [1]
    same(first, loaded.predict(picture, phrases=PHRASES[:3]))
    same(dialogue.find(*PHRASES[1:4]), loaded.predict(picture, phrases=PHRASES[1:4]))
    assert said.text and dialogue.rounds == [
        ("Segment everything one can sit on.", said.text),
        ("And the rest?", again.text),
    ]
    assert len(said) == said.text.count("[SEG]") + said.text.count("[REJ]")
    alone = loaded.predict(picture, ask="Segment everything one can sit on.")
    same(alone, said)
    assert alone.text == said.text and alone.to_dict()["text"] == said.text
    fresh = loaded.encode(picture)
    fresh.rounds.append(dialogue.rounds[0])
    assert fresh.ask("And the rest?").text == again.text


def test_a_dialogue_reads_on_where_it_stopped(checkpoint: Path, picture: Image.Image) -> None:
    loaded = predictor(checkpoint)
    image_tokens = loaded.model.config.clip.tokens
    read: list[int] = []
    loaded.model.language.model.register_forward_pre_hook(
        lambda _module, _args, given: read.append(
            next(given[name] for name in ("inputs_embeds", "input_ids") if given.get(name) is not None).shape[1]
        ),
        with_kwargs=True,
    )
    dialogue, counts = loaded.encode(picture), []
    for ask in (
        lambda: dialogue.find("the red ball", "a dog"),
        lambda: dialogue.find("the blue cube", "a dog"),
        lambda: dialogue.ask("What is there?"),
        lambda: dialogue.ask("And behind it?"),
    ):
        read.clear()
        ask()
        counts.append(list(read))
    assert counts[0][0] > image_tokens
    # The picture, and the words before it, were read before each of the others.
    assert counts[0][0] - counts[1][0] >= image_tokens and counts[2][0] < image_tokens
    other, whole = loaded.encode(picture), []
    for question in ("What is there?", "And behind it?"):
        read.clear()
        fresh = loaded.encode(picture)
        fresh.rounds += other.rounds
        fresh.ask(question)
        whole.append(read[0])
        other.rounds.append(dialogue.rounds[len(other.rounds)])
    assert whole[1] - counts[3][0] >= whole[0]  # all that stood before the first answer, at least


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phrases": ""}, "a phrase without words"),
        ({"phrases": "the [SEG] ball"}, r"a phrase with '\[SEG\]' in it\n  where: the \[SEG\] ball"),
        ({"phrases": ["a dog", " ", "a cat"]}, "a phrase without words\n  where: phrase 2"),
        ({"phrases": ["a dog", 3]}, "a phrase is a text, not 3\n  where: phrase 2"),
        ({"ask": ""}, "a question without words\n  fix"),
        ({"ask": 3}, "a question is a text, not 3"),
    ],
)
def test_words_that_somebody_typed_are_wrong_use(
    checkpoint: Path, picture: Image.Image, options: dict, message: str
) -> None:
    loaded = predictor(checkpoint)
    with pytest.raises(UsageError, match=message):
        loaded.stream(picture, **options)  # before any picture is read
    dialogue = loaded.encode(picture)
    given = next(iter(options.values()))
    with pytest.raises(UsageError, match=message):
        if "ask" in options:
            dialogue.ask(given)
        else:
            dialogue.find(*([given] if isinstance(given, str) else given))
    assert dialogue.rounds == []


def test_a_dialogue_names_no_picture_by_a_number(checkpoint: Path, picture: Image.Image) -> None:
    with pytest.raises(DataError, match="is too long\n  where: the picture: word word"):
        predictor(checkpoint).encode(picture).find("word " * 400)


def test_data_whose_phrases_cannot_be_asked_name_the_phrase(checkpoint: Path, picture: Image.Image) -> None:
    extra = extra_of(predictor(checkpoint).model)
    with pytest.raises(DataError, match=r"a phrase without words\n  where: .*, phrase 2"):
        extra.prepare(sample_of(picture, ("a dog", " ")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phrases": ()}, "no phrase is given"),
        ({"phrases": ("a dog", " .")}, "a phrase without words"),
        ({"phrases": "say [SEG]"}, "a phrase with '\\[SEG\\]' in it"),
        ({"phrases": "the <S> ball"}, "a phrase with '<s>' in it"),
        ({"phrases": "an <IMAGE>"}, "a phrase with '<image>' in it"),
        ({"phrases": "ASSISTANT: ball"}, "a phrase with 'ASSISTANT:' in it"),
        *(({"phrases": blank}, "a phrase without words") for blank in ("\r", "\x0b", "\xa0", ".\u3000.", "\u200b")),
        ({"phrases": "caf\udce9"}, "no Unicode text"),
        ({"ask": "caf\udce9?"}, "no Unicode text"),
        ({"phrases": "word " * 400}, "2000 characters is too long"),
        *(({"ask": blank}, r"a question without words\n  fix:   ask in words") for blank in ("", "  ")),
        ({"ask": "<image>?"}, "a question with '<image>' in it"),
        ({"ask": "word " * 2000}, r"tokens, image included(.|\n)*ask in fewer words; of a dialogue"),
        ({"ask": "what", "phrases": "a dog"}, "by itself"),
        ({"phrases": "a dog", "classes": "dog"}, "takes no class names"),
        ({"phrases": "a dog", "score": 0.5}, "no scores to filter by"),
        ({"task": "detection", "phrases": "a dog"}, "does not offer the task"),
    ],
)
def test_requests_that_make_no_sense(checkpoint: Path, picture: Image.Image, options: dict, message: str) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        predictor(checkpoint).predict(picture, **options)


def test_a_picture_that_was_looked_at_is_asked_for_something(checkpoint: Path, picture: Image.Image) -> None:
    with pytest.raises(UsageError, match="no phrase is given"):
        predictor(checkpoint).encode(picture).find()


def test_other_models_do_not_converse(picture: Image.Image) -> None:
    git = saccade.load("git-nano", device="cpu")
    with pytest.raises(UsageError, match="does not converse"):
        git.encode(picture)
    with pytest.raises(UsageError, match="a model that converses"):
        git.predict(picture, ask="what?")
    with pytest.raises(UsageError, match="no language model to make smaller"):
        saccade.load("git-nano", device="cpu", gpu_memory_gb=1.0)
    with pytest.raises(UsageError, match="a phrase is a text, not 3"):
        git.predict(picture, phrases=[3])
    with pytest.raises(UsageError, match="does not converse"):
        evaluate(git.model, ScenesSource(task=Task.GROUNDING, split="val", size=64, limit=1), answer="own")


@pytest.mark.parametrize("amount", ["nan", "inf", "-1", "0", "much"])
def test_memory_is_a_positive_finite_number(checkpoint: Path, amount: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "a.png", "--model", str(checkpoint), "--phrase", "a dog", f"--gpu-memory={amount}"]
    assert main(words) == 2
    assert f"'{amount}' is not a number above 0" in capsys.readouterr().err
    if amount != "much":
        with pytest.raises(UsageError, match=r"above 0, not (.|\n)*where: gpu_memory_gb"):
            predictor(checkpoint, gpu_memory_gb=float(amount))


def test_half_precision(checkpoint: Path, picture: Image.Image) -> None:
    half = predictor(checkpoint, precision="bf16")
    assert isinstance(half.model, GSVA)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.model.language.model.rotary_emb.inv_freq.dtype == torch.float32
    found, exact = half.predict(picture, phrases=PHRASES), predictor(checkpoint).predict(picture, phrases=PHRASES)
    torch.testing.assert_close(found.scores, exact.scores, rtol=0, atol=0.1)
    assert half.encode(picture).ask("What is there?").text


# ---------------------------------------------------------------------- smaller weights


def test_eight_bits(checkpoint: Path, picture: Image.Image) -> None:
    pytest.importorskip("torchao")
    small = predictor(checkpoint, quantize="int8")
    assert isinstance(small.model, GSVA)
    weight = small.model.language.model.layers[0].mlp.up_proj.weight
    assert type(weight).__name__ == "Int8Tensor" and small.model.language.lm_head.weight.dtype == torch.float32
    found, exact = small.predict(picture, phrases=PHRASES), predictor(checkpoint).predict(picture, phrases=PHRASES)
    torch.testing.assert_close(found.scores, exact.scores, rtol=0, atol=0.05)
    # What is counted is what is held: a byte per weight, and a scale and an offset per row.
    layer = small.model.language.model.layers[0]
    rows, columns = layer.mlp.up_proj.weight.shape
    assert rows * columns < weight_bytes(layer.mlp.up_proj) <= rows * (columns + 8)
    # Packed blocks visit, too; their room is what they hold.
    apart = weight_bytes(small.model) - sum(map(weight_bytes, small.model.blocks))
    with pytest.raises(UsageError, match="must stay on the device"):
        predictor(checkpoint, quantize="int8", gpu_memory_gb=(apart - 1) / 1e9)
    visiting = predictor(checkpoint, quantize="int8", gpu_memory_gb=(apart + weight_bytes(layer) + 1) / 1e9)
    assert (
        len([block for block in visiting.model.blocks if block._forward_pre_hooks]) == len(list(small.model.blocks)) - 1
    )
    same(visiting.predict(picture, phrases=PHRASES), found)


def test_low_rank_updates_stay_exact() -> None:
    pytest.importorskip("torchao")
    net = tiny_model()
    quantize_linears(net.language.model.layers, "int8", torch.device("cpu"))
    queries = net.language.model.layers[0].self_attn.q_proj
    assert type(queries.base_layer.weight).__name__ == "Int8Tensor"
    assert {type(update.weight.data) for update in (queries.lora_A.default, queries.lora_B.default)} == {torch.Tensor}


def test_packed_weights_change_part_by_part(checkpoint: Path) -> None:
    """As pinning does, which needs a GPU: every tensor inside is changed, and the weight stands for the same."""
    pytest.importorskip("torchao")
    small = predictor(checkpoint, quantize="int8")
    assert isinstance(small.model, GSVA)
    weight = small.model.language.model.layers[0].mlp.up_proj.weight
    seen: list[torch.dtype] = []
    copied = _changed(weight.detach(), lambda part: seen.append(part.dtype) or part.clone())
    assert torch.int8 in seen and len(seen) == len(list(_inner(weight))) > 1
    assert type(copied) is type(weight.data) and torch.equal(copied.dequantize(), weight.dequantize())
    assert {part.data_ptr() for part in _inner(copied)}.isdisjoint({part.data_ptr() for part in _inner(weight)})


def test_a_missing_library_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingExtraError, match=r"saccade\[quantize\]"):
        predictor(checkpoint, quantize="int8")
    for device in ("cpu", "cuda"):  # there is no kernel for float32 either
        with pytest.raises(UsageError, match=f"weights of 4 bits need a GPU and bf16\\n.*device {device}, float32"):
            quantize_linears([torch.nn.Linear(8, 8)], "int4", torch.device(device))


def test_blocks_visit_the_device(checkpoint: Path, picture: Image.Image) -> None:
    """On a processor both memories are one; what is moved where shows in the tensors themselves."""
    exact = predictor(checkpoint).predict(picture, phrases=PHRASES)
    model = load_folder(checkpoint).model
    assert isinstance(model, GSVA)
    sizes = {block: sum(p.numel() * 4 for p in block.parameters()) for block in model.blocks}
    whole = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    layers = list(model.language.model.layers)
    room = whole - sum(sizes.values()) + sum(sizes[layer] for layer in layers)
    homes = dict(model.named_parameters())
    seen: list[bool] = []
    first = next(iter(model.sam.image_encoder.vit))
    first.norm1.register_forward_hook(lambda module, *_: seen.append(module.weight is homes[_name(model, module)]))
    waiting = place(model, torch.device("cpu"), blocks=list(model.blocks), room_bytes=room + 1)
    assert waiting == len(sizes) - len(layers)  # those of the language model run most often, and stay
    loaded = load_folder(checkpoint)
    same(Predictor(dataclasses.replace(loaded, model=model)).predict(picture, phrases=PHRASES), exact)
    assert seen == [False]  # a visiting copy has run
    for name, parameter in model.named_parameters():
        if name.startswith("sam.image_encoder.vit.blocks."):
            assert parameter is homes[name], name  # and has gone
    same(predictor(checkpoint, gpu_memory_gb=room / 1e9).predict(picture, phrases=PHRASES), exact)
    with pytest.raises(UsageError, match=r"must stay on the device, 0\.0 GB are allowed"):
        predictor(checkpoint, gpu_memory_gb=1e-6)


def _name(model: GSVA, module: torch.nn.Module) -> str:
    return next(name for name, one in model.named_modules() if one is module) + ".weight"


# ---------------------------------------------------------------------- the command line


def test_the_command_line(
    checkpoint: Path, picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "photo.png", tmp_path / "out"
    picture.save(file)
    asked = ["predict", str(file), "--model", str(checkpoint), "--device", "cpu"]
    assert main([*asked, "--phrases", *PHRASES[:3], "--save", "json,overlay,png,npy,coco", "--out", str(out)]) == 0
    assert "'the red ball': " in capsys.readouterr().out
    told = json.loads((out / "photo.json").read_text())
    assert [answer["phrase"] for answer in told["answers"]] == list(PHRASES[:3])
    assert main([*asked, "--phrase", "a dog", "--phrase", "a cat", "--precision", "bf16"]) == 0
    assert "'a cat'" in capsys.readouterr().out
    assert main([*asked, "--ask", "What is there?"]) == 0
    assert "photo.png: " in capsys.readouterr().out
    assert main(asked) == 2 and "no phrase is given" in capsys.readouterr().err
    for typed in (["--phrases", ""], ["--phrases", "the [SEG] ball"], ["--ask", ""]):
        assert main([*asked, *typed]) == 2


def test_drawn_dialogues_need_no_folder(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(checkpoint), "--data", "scene_dialogues", "--task", "referring", "--limit", "1"]
    assert main([*words, "--device", "cpu"]) == 0
    assert "gIoU" in capsys.readouterr().out
