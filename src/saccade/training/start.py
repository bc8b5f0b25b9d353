"""What a run starts from: fresh weights, a whole model (``weights``), or a pre-trained backbone (``init_from``)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from saccade.data.sources.base import Source, class_counts
from saccade.errors import CheckpointError, ConfigError, UsageError
from saccade.hub.checkpoint import VOCABULARY, load_folder
from saccade.hub.convert import map_file
from saccade.hub.convert_gsva import load_parts
from saccade.hub.resolve import ASSETS, bundled_checkpoints, fetch_file, load_model, resolve
from saccade.hub.shards import fill, no_weights
from saccade.hub.starts import load_backbone, load_head, load_text_embedding, require_same_words
from saccade.hub.zoo import ZOO
from saccade.layers.local_start import start_local
from saccade.layers.lora import fold
from saccade.layers.vit import PlainViT
from saccade.mapping import MappingReport
from saccade.models.ait.adapt import ROWS, adapted_state
from saccade.models.ait.initialise import initialise_local as initialise_ait_local
from saccade.models.ait.model import AiT
from saccade.models.ait.vqvae import MapVQVAE, MapVQVAEConfig
from saccade.models.git.config import GiTConfig
from saccade.models.git.initialise import initialise_local
from saccade.models.git.model import GiT
from saccade.models.gsva.config import GSVAConfig
from saccade.models.gsva.initialise import initialise_local as initialise_gsva_local
from saccade.models.gsva.model import GSVA
from saccade.models.polar.centers import CenterPredictor
from saccade.models.polar.config import PolarConfig
from saccade.models.polar.model import PolarSegmenter
from saccade.models.polar.segmenter import Segmenter, ViTPixels
from saccade.models.systems import Model, Vocabulary, build, reading_config, system_of
from saccade.models.visft.clip import CLIPPair, CLIPPairConfig
from saccade.models.visft.config import PUBLISHED_HEADS, ViSFTConfig
from saccade.models.visft.initialise import initialise_local as initialise_eva_local
from saccade.models.visft.initialise import initialise_published as initialise_eva
from saccade.models.visft.model import ViSFT
from saccade.models.vitdet.initialise import initialise_published
from saccade.models.vitdet.model import ViTDet
from saccade.tasks import Task
from saccade.tokens.clip_pieces import FILE as MERGES
from saccade.tokens.clip_pieces import CLIPPieces
from saccade.tokens.codebook import VQVAEConfig
from saccade.tokens.pieces import FILE as PIECES
from saccade.tokens.pieces import PieceVocabulary
from saccade.tokens.vocabulary import TextVocabulary
from saccade.tokens.words import FILE as WORDS
from saccade.tokens.words import WordMap
from saccade.training.config import TrainConfig
from saccade.training.lora_start import host_of, start_lora

# What a detector must learn anew for other classes: outputs per class, and mask heads that only one of two models has.
_OF_CLASSES = re.compile(r"roi\.(box_heads\.\d+\.(cls|box)\.|mask_heads\.|class_weights)")


def build_model(config: TrainConfig, *, resumed: Path | None = None) -> tuple[Model, list[MappingReport]]:
    """Builds the model of a run on the CPU and fills it with its starting weights.

    Fresh weights depend on torch's random generator: the caller seeds it.

    Args:
        config: ``model``, ``vocabulary`` and what names the starting weights are read.
        resumed: The checkpoint that a run goes on from; its model is taken, and what the run once started from is not
            read, and may be gone.

    Returns:
        The model, and one report per file that was read for it.

    Raises:
        CheckpointError: A file is missing or damaged, or does not fit the model.
        ConfigError: ``weights`` names a model of another shape, no bundled vocabulary fits the model, or low-rank
            updates are asked for where nothing is trained yet.
    """
    if resumed is not None:
        return load_folder(resumed).model, []
    if config.weights:
        model, filled = _whole_model(config)
        reports: list[MappingReport] = []
    else:
        model, reports = _started(config)
        host = host_of(model)
        filled = {f"{host}{key}" for report in reports for key in report.matched.values()}
    _load_vqvaes(model, config)
    _load_finder(model, config)
    if config.lora is not None:
        start_lora(model, config.lora, filled)
    return model, reports


def _started(config: TrainConfig) -> tuple[Model, list[MappingReport]]:
    """The model of a new run that starts fresh, or from parts of others."""
    model = build(config.model, vocabulary_of(config))
    if config.initialise == "local":
        _start_local(model)
    else:
        _start_as_published(model)
    reports: list[MappingReport] = []
    if isinstance(model, GSVA):
        given = {"sam": config.init_from, "llava": config.language_init, "clip": config.clip_init}
        given |= {"llama": config.language_base}
        if any(given.values()):
            reports.append(load_parts(model, **{part: _file(name) for part, name in given.items() if name}))
    elif config.init_from:
        reports.append(load_backbone(model, _file(config.init_from)))
    if config.text_init:
        if not isinstance(model, GiT):
            raise ConfigError(f"a {model.system} model has no text embedding", where="text_init")
        reports.append(load_text_embedding(model, _file(config.text_init)))
    if isinstance(model, ViSFT):
        heads = {"detection": config.detection_init, "instance": config.instance_init, "caption": config.caption_init}
        reports += [load_head(model, head, _file(heads[head])) for head in PUBLISHED_HEADS if heads[head]]
    return model, reports


def start_of(config: TrainConfig) -> str:
    """What a run starts from, as its checkpoints tell it: a whole model, parts of one, or fresh weights."""
    parts = [config.language_init, config.language_base, config.clip_init, config.init_from, config.text_init]
    parts += [config.detection_init, config.instance_init, config.caption_init]
    return config.weights or ", ".join(filter(None, parts)) or "fresh weights"


def _load_vqvaes(model: Model, config: TrainConfig) -> None:
    """The trained VQ-VAEs whose codes a solver says.

    Raises:
        ConfigError: One cannot be loaded, is of another task, or of another form than the configured one.
    """
    for task, field in ((Task.INSTANCE, "mask_vqvae"), (Task.DEPTH, "depth_vqvae")):
        source = getattr(config, field)
        if not source:
            continue
        assert isinstance(model, AiT)  # validated
        into = model.mask_vqvae if task is Task.INSTANCE else model.depth_vqvae
        assert into is not None
        where = f"{field}={source}"
        loaded = _vqvae(source, where)
        if not isinstance(loaded, MapVQVAE) or loaded.config.task is not task:
            raise ConfigError(f"it is no VQ-VAE of {task}", where=where, why=f"it is {_kind(loaded)}")
        odd = [
            f"{name} {found} -> {expected}"
            for (name, found), expected in zip(
                _form(loaded.config.vqvae).items(), _form(into.config).values(), strict=True
            )
            if found != expected
        ]
        if odd:
            raise ConfigError(
                "the VQ-VAE has another form than the model expects",
                where=where,
                why=", ".join(odd),
                fix="train one of that form, or configure the model's as it is",
            )
        into.load_state_dict(loaded.vqvae.state_dict())


def _load_finder(model: Model, config: TrainConfig) -> None:
    """The trained model that finds centres for a polar segmenter.

    Raises:
        ConfigError: It cannot be loaded, or is not the configured one.
    """
    if not config.finder:
        return
    assert isinstance(model, PolarSegmenter) and isinstance(config.model, PolarConfig)  # validated
    where = f"finder={config.finder}"
    try:
        loaded = load_model(config.finder).model
    except (CheckpointError, UsageError) as error:
        raise ConfigError(error.what, where=where, why=error.why, fix=error.fix) from error
    if loaded.config != config.model.finder or model.finder is None:
        raise ConfigError(
            "it is not the model that is configured to find centres",
            where=where,
            why=f"it is a {loaded.system} model",
            fix="let the recipe configure it (finder=FOLDER of the polar recipes does)",
        )
    model.finder.load_state_dict(loaded.state_dict())


def _form(vqvae: VQVAEConfig) -> dict[str, Any]:
    """What decides the shapes and the meaning of the weights."""
    names = ("size", "downsample", "base_width", "residual_blocks", "signed", "scale")
    own = {name: getattr(vqvae, name) for name in names}
    return own | {f"codebook.{name}": getattr(vqvae.codebook, name) for name in ("codes", "width")}


def _vqvae(source: str, where: str) -> Model:
    """Of a checkpoint folder, a zoo name, or a released file as it is."""
    try:
        if not Path(source).is_file():
            return load_model(source).model
        found = map_file(source)
        found.report.check(allow=found.allowed)
    except (CheckpointError, UsageError) as error:
        raise ConfigError(error.what, where=where, why=error.why, fix=error.fix) from error
    if not isinstance(found.config, MapVQVAEConfig):
        system = system_of(found.config)
        raise ConfigError("it is no VQ-VAE", where=where, why=f"it has the weights of a {system} model")
    model = build(found.config)
    model.load_state_dict(found.state)
    return model


def _kind(model: Model) -> str:
    return f"a VQ-VAE of {model.config.task}" if isinstance(model, MapVQVAE) else f"a {model.system} model"


def _start_as_published(model: Model) -> None:
    if isinstance(model, ViTDet):
        initialise_published(model)
    elif isinstance(model, ViSFT | CLIPPair):
        initialise_eva(model.backbone)
    elif isinstance(model, PolarSegmenter):
        _start_as_published(cast(Model, model.segmenter))


def _start_local(model: Model) -> None:
    if isinstance(model, GiT):
        initialise_local(model)
    elif isinstance(model, AiT):
        initialise_ait_local(model)
    elif isinstance(model, GSVA):
        initialise_gsva_local(model)
    elif isinstance(model, MapVQVAE):
        model.vqvae.start_alive()
    elif isinstance(model, Segmenter) and isinstance(model.network, ViTPixels):
        start_local(model.network.backbone)
    elif isinstance(model, PolarSegmenter):
        _start_local(cast(Model, model.segmenter))
    elif isinstance(model, Segmenter | CenterPredictor):
        raise ConfigError("a local start is for vision transformers", where="initialise", fix="set initialise=plain")
    elif isinstance(model, ViSFT | CLIPPair):
        initialise_eva_local(model.backbone)
    elif isinstance(model.backbone, PlainViT):
        start_local(model.backbone)
    else:
        raise ConfigError("no local start is known for this backbone", where="initialise", fix="set initialise=plain")


def _whole_model(config: TrainConfig) -> tuple[Model, set[str]]:
    """``weights``: every tensor must find its place in the configured model. Names what is filled as a whole, too.

    Low-rank updates of the loaded one become part of its weights. A detector with other classes than those of
    ``weights`` keeps fresh what depends on the classes; AiT keeps what both
    know (:func:`saccade.models.ait.adapt.adapted_state`).
    """
    if isinstance(config.model, GSVAConfig):
        model = _large_model(config)
        return model, set(model.state_dict())
    loaded = load_model(config.weights).model
    fold(loaded)
    model = build(config.model, vocabulary_of(config))
    if isinstance(model, ViSFT) and isinstance(loaded, ViSFT):
        require_same_words(loaded.vocabulary, model.vocabulary, where=config.weights)
    state = loaded.state_dict()
    if isinstance(model, AiT) and isinstance(loaded, AiT):
        state = adapted_state(loaded, model)
    elif isinstance(model, PolarSegmenter) and not isinstance(loaded, PolarSegmenter):
        # What looks at unrolled pictures starts from it; the finder has a start of its own.
        state = {f"segmenter.{key}": value for key, value in state.items()}
        state |= {key: value for key, value in model.state_dict().items() if key.startswith("finder.")}
    found = {key: tuple(value.shape) for key, value in state.items()}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    odd = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    if isinstance(model, ViTDet) and isinstance(loaded, ViTDet):
        odd = [key for key in odd if not _OF_CLASSES.match(key)]
    if odd:
        raise ConfigError(
            "the configured model is not the one that weights names",
            where=config.weights,
            why=f"{len(odd)} tensors differ in name or shape, e.g. {', '.join(odd[:3])}",
            fix="use that model's own configuration (recipe=finetune does), or start its backbone only, with init_from",
        )
    fitting = {key: value for key, value in state.items() if found[key] == expected.get(key)}
    model.load_state_dict(fitting, strict=False)
    filled = set(fitting)
    if isinstance(model, AiT) and isinstance(loaded, AiT) and set(model.classes.names) - set(loaded.classes.names):
        filled -= set(ROWS)  # those of new classes are fresh
    return model, filled


def _large_model(config: TrainConfig) -> Model:
    """The same, tensor by tensor: a second copy of a language model may not fit into memory."""
    folder = resolve(config.weights)
    with no_weights():
        model = build(config.model, vocabulary_of(config))
    try:
        fill(model, folder, device="cpu", dtype=torch.float32)
    except CheckpointError as error:
        raise ConfigError(
            "the configured model is not the one that weights names",
            where=config.weights,
            why=error.why or error.what,
            fix="use that model's own configuration",
        ) from error
    return model


def use_image_counts(model: Model, sources: Sequence[Source]) -> None:
    """Tells a federated loss how many training images hold each class; its draw of other classes goes by the root.

    The counts are those that the data set states (LVIS), else they are counted. A source that cannot be counted, as
    drawn scenes, leaves all classes alike.

    Args:
        model: Changed in place, where it has such a loss.
        sources: What it is trained on.
    """
    if not isinstance(model, ViTDet) or model.roi.class_weights is None:
        return
    totals: Counter[str] = Counter()
    for source in sources:
        if source.classes is None:
            continue
        if source.classes.image_counts:
            counts = Counter(dict(enumerate(source.classes.image_counts)))
        elif (counted := class_counts(source)) is not None:
            counts = counted
        else:
            return
        totals.update({source.classes.names[id_]: count for id_, count in counts.items()})
    names = model.config.classes or next(one.classes.names for one in sources if one.classes is not None)
    weights = torch.tensor([float(totals[name]) for name in names]).sqrt()
    model.roi.class_weights.copy_(weights)


def vocabulary_of(config: TrainConfig) -> Vocabulary | None:
    """The vocabulary of a run: the file it names, that of ``weights``, or the bundled one that fits the model.

    None where the model reads and writes no text.

    Raises:
        ConfigError: None is named, and no bundled one fits.
        CheckpointError: The file is missing, or no vocabulary of the kind that the model reads.
    """
    if isinstance(config.model, GSVAConfig):
        return _pieces_of(config, config.model.language.vocab_size)
    reading = reading_config(config.model)
    if isinstance(reading, ViSFTConfig):
        assert reading.caption is not None  # only its captions are words
        return _words_of(config, reading.caption.speaker.vocabulary)
    if isinstance(reading, CLIPPairConfig):
        return _pair_vocabulary(config, reading.text.vocab_size)
    if not isinstance(reading, GiTConfig):
        return None
    if config.vocabulary:
        return TextVocabulary(config.vocabulary)
    if config.weights:
        return TextVocabulary(resolve(config.weights) / VOCABULARY)
    return _bundled_pieces(
        reading.vocab_size,
        fix="pass vocabulary=PATH/vocab.txt (for the published sizes of GiT: that of bert-base-uncased)",
    )


def _bundled_pieces(rows: int, *, fix: str) -> TextVocabulary:
    for path in sorted(ASSETS.rglob(VOCABULARY)):
        bundled = TextVocabulary(path)
        if len(bundled) == rows:
            return bundled
    raise ConfigError(f"no bundled vocabulary has {rows} pieces", where="vocabulary", fix=fix)


def _words_of(config: TrainConfig, words: int) -> WordMap:
    """The words of a caption head: those named, those it was trained with, or the bundled ones."""
    named = config.vocabulary or config.weights or config.caption_init
    if config.vocabulary:
        return WordMap.load(config.vocabulary)
    if named:
        file = resolve(named)
        folder = file.parent if file.is_file() else file
        if not (folder / WORDS).is_file():
            raise ConfigError(
                "nothing tells the words of the caption head",
                where=named,
                why=f"there is no {WORDS} beside it" if file.is_file() else f"there is no {folder / WORDS}",
                fix="pass vocabulary=PATH/WORDMAP_....json (visft.lora_g and the like call it words=), that which the "
                "head was trained with",
            )
        return WordMap.load(folder)
    for path in sorted(ASSETS.rglob(WORDS)):
        bundled = WordMap.load(path)
        if len(bundled) == words:
            return bundled
    raise ConfigError(
        f"no bundled map has {words} words",
        where="vocabulary",
        fix="pass vocabulary=PATH/WORDMAP_....json, that which the captions were written with",
    )


def _pair_vocabulary(config: TrainConfig, rows: int) -> CLIPPieces | TextVocabulary:
    """Word pieces, or CLIP's byte pairs, of a pair of towers."""
    given = config.vocabulary or config.weights
    if not given:
        return _bundled_pieces(rows, fix="pass vocabulary=PATH/bpe_simple_vocab_16e6.txt.gz, or a vocab.txt")
    path = Path(config.vocabulary) if config.vocabulary else resolve(config.weights)
    if path.is_dir():
        path = path / (MERGES if (path / MERGES).is_file() else VOCABULARY)
    return TextVocabulary(path) if path.name == VOCABULARY else CLIPPieces(path)


def _pieces_of(config: TrainConfig, rows: int) -> PieceVocabulary:
    if config.vocabulary or config.weights:
        return PieceVocabulary(config.vocabulary or resolve(config.weights), rows)
    for path in sorted(ASSETS.rglob(PIECES)):
        bundled = PieceVocabulary(path)
        if len(bundled) == rows:
            return bundled
    raise ConfigError(
        f"no bundled vocabulary has {rows} rows",
        where="vocabulary",
        fix="pass vocabulary=PATH/tokenizer.model, that of the language model (LLaVA, Vicuna or Llama)",
    )


def _file(name: str) -> Path:
    """A path, or the name of a bundled checkpoint or of a zoo entry, which is fetched at first use."""
    if name in bundled_checkpoints() and not Path(name).exists():
        return bundled_checkpoints()[name]
    return fetch_file(ZOO[name]) if name in ZOO and not Path(name).exists() else Path(name)
