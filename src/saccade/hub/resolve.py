"""From a name to a loaded model: an existing folder, a bundled checkpoint, or released weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from saccade.errors import CheckpointError, UsageError, nearest
from saccade.hub.checkpoint import CONFIG, LoadedModel, load_folder, read_card
from saccade.hub.convert import convert_file
from saccade.hub.shards import file_sha256
from saccade.hub.zoo import ZOO
from saccade.hub.zoo_entry import ZooEntry

ASSETS = Path(__file__).resolve().parent.parent / "assets"
_VOCABULARY_REPO, _VOCABULARY_FILE = "google-bert/bert-base-uncased", "vocab.txt"
_VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def load_model(
    name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Loads a model by the name of a folder, a bundled checkpoint or released weights.

    Args:
        name: See :func:`resolve`.
        device: Where the model goes.
        dtype: Type that the weights are converted to, whatever they are stored in.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or cannot be fetched.
        UsageError: Nothing has this name.
    """
    return load_folder(resolve(name), device=device, dtype=dtype)


def resolve(name: str | Path) -> Path:
    """The checkpoint folder of a name; released weights are downloaded and converted at first use.

    Args:
        name: An existing folder, the name of a bundled checkpoint (``git-nano``), or of released weights
            (:data:`saccade.hub.zoo.ZOO`, ``git-base``).

    Raises:
        CheckpointError: A file instead of a folder, or released weights that cannot be fetched.
        UsageError: Nothing has this name; the message offers the nearest one.
    """
    text = str(name)
    bundled = bundled_checkpoints()
    if text in bundled and not Path(text).exists():
        return bundled[text]
    if text in ZOO and not Path(text).exists():
        return fetch_checkpoint(ZOO[text])
    path = Path(text).expanduser()
    if path.exists() or path.suffix or path.parent != Path():
        return path
    known = [*bundled, *(entry.name for entry in ZOO.values() if entry.kind == "checkpoint")]
    raise UsageError(
        f"no model is called '{text}'",
        why="it is no folder, no bundled checkpoint and no released one",
        fix=f"{nearest(text, known)}; `saccade models list` shows all",
    )


def bundled_checkpoints() -> dict[str, Path]:
    """Name to folder of the checkpoints inside the package."""
    return {file.parent.name: file.parent for file in sorted(ASSETS.glob(f"*/{CONFIG}"))}


def bundled_summaries() -> dict[str, str]:
    """Name to one line about each bundled checkpoint: its tasks and its recipe."""
    lines = {}
    for name, folder in bundled_checkpoints().items():
        card = read_card(folder)
        run = card.provenance.get("recipe") or card.provenance.get("run")
        lines[name] = f"{', '.join(card.tasks)}" + (f"; trained by {run}" if run else "")
    return lines


def cache_folder() -> Path:
    """Where converted weights are kept: ``$SACCADE_CACHE``, or ``saccade`` in the user's cache folder."""
    own = os.environ.get("SACCADE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "saccade"


def fetch_checkpoint(entry: ZooEntry) -> Path:
    """The checkpoint folder of released weights; at first use the file is downloaded, checked and converted.

    Raises:
        CheckpointError: No connection (the message says which file to fetch by hand, and how to convert it), or a
            damaged file.
        UsageError: The entry is not a whole model.
    """
    if entry.kind != "checkpoint":
        raise UsageError(f"'{entry.name}' is not a whole model", fix=f"use it {entry.use}")
    folder = cache_folder() / entry.name
    if (folder / CONFIG).is_file():
        return folder
    source = fetch_file(entry)
    vocabulary = fetch_vocabulary(entry) if entry.system == "git" else None
    convert_file(source, out=folder, preset=entry.preset, vocabulary=vocabulary)
    return folder


def fetch_file(entry: ZooEntry) -> Path:
    """The released file itself, from the cache or the network.

    Raises:
        CheckpointError: No connection, or a file whose SHA-256 is not the one that its name states.
    """
    if not entry.repo and not entry.url:
        raise CheckpointError(
            f"the file of '{entry.name}' can only be fetched by hand", where=entry.page, fix=_by_hand(entry)
        )
    if entry.repo:
        path = _from_hub(entry.repo, entry.file, what=f"the file of '{entry.name}'", fix=_by_hand(entry))
    else:
        path = cache_folder() / "files" / entry.file
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Downloads beside the target, compares the digest, and renames.
                torch.hub.download_url_to_file(
                    entry.url, str(path), hash_prefix=entry.sha256_prefix or None, progress=False
                )
            except (OSError, RuntimeError) as error:
                raise CheckpointError(
                    f"the file of '{entry.name}' cannot be fetched",
                    where=entry.url,
                    why=str(error),
                    fix=_by_hand(entry),
                ) from error
    if entry.sha256_prefix and not (digest := file_sha256(path)).startswith(entry.sha256_prefix):
        raise CheckpointError(
            "the released file is damaged",
            where=path,
            why=f"its SHA-256 starts with {digest[:8]}, not {entry.sha256_prefix}",
            fix="delete it and fetch it again",
        )
    return path


def fetch_vocabulary(entry: ZooEntry) -> Path:
    """The WordPiece vocabulary of the released GiT models, from the cache or the network.

    Raises:
        CheckpointError: No connection, or another file than the models were trained with.
    """
    path = _from_hub(
        _VOCABULARY_REPO, _VOCABULARY_FILE, what="the vocabulary of the released GiT models", fix=_by_hand(entry)
    )
    if file_sha256(path) != _VOCABULARY_SHA256:
        raise CheckpointError(
            "not the vocabulary that the released GiT models were trained with",
            where=path,
            why=f"its SHA-256 is not {_VOCABULARY_SHA256[:16]}...",
            fix=_by_hand(entry),
        )
    return path


def _from_hub(repo: str, file: str, *, what: str, fix: str) -> Path:
    try:
        return Path(hf_hub_download(repo, file))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise CheckpointError(
            f"{what} cannot be fetched",
            where=f"{repo}/{file} on the Hugging Face hub",
            why=str(error).split("\n", maxsplit=1)[0],
            fix=fix,
        ) from error


def _by_hand(entry: ZooEntry) -> str:
    if entry.kind != "checkpoint":
        use = entry.use.replace(f"={entry.name}", f"=PATH/{entry.file}").removeprefix("in training: ")
        way = use if entry.kind == "lora" else f"train with {use}"
        if entry.kind == "backbone" and entry.system == "visft":
            way += f", or evaluate PATH/{entry.file}"
        return f"fetch {entry.source} on a machine with network, and {way}"
    if entry.system != "git":
        words = " --vocabulary tokenizer.model" if entry.system == "gsva" else ""
        return (
            f"fetch {entry.source}, then run `saccade convert {entry.file} --preset {entry.preset}{words} "
            f"--out {entry.name}` and use the folder {entry.name}"
        )
    return (
        f"fetch {entry.source} and the vocab.txt of {_VOCABULARY_REPO} on a machine with network, then run "
        f"`saccade convert {entry.file} --vocabulary vocab.txt --out {entry.name}` and use the folder {entry.name}"
    )
