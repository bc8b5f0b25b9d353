"""Makes the committed fixture folder of a system from a full one: the same layout, less of what lies in between.

Usage: python tests/parity/compact.py {ait,git,gsva,polar,visft,vitdet} SOURCE TARGET

Kept: weights, configuration, inputs, targets, tokens, final outputs, losses and gradients, and for GiT the states after
the last layer. Left out: states of other layers and steps, and cases and tensors that only repeat what others show. Of
ViTDet one family is kept, detectron2's; of AiT two solvers, one VQ-VAE and two files of functions; of GSVA the network;
of the polar code all but its networks, which are too large; of ViSFT the backbone g with its updates, the caption head,
and a step of the second stage through it (the weights of the other two heads alone would be 1.3 MB). The rest is
compared where ../shared is at hand. Tensors are compressed; ``check.py`` reads them so.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

DROPPED = (
    "io_pure.safetensors",
    "io_detection_square_predict.safetensors",
)
LAYER = re.compile(r"(?:img|text|tok)(?:_step\d+)?_layer_?(\d+)$")
LARGE = {"last_hidden", "seg_logits", "outputs_polygons"}


def keep(name: str, last_layer: int) -> bool:
    layer = LAYER.match(name)
    if layer:
        return int(layer[1]) == last_layer and "_step" not in name
    return name not in LARGE


def compact_git(source: Path, target: Path) -> None:
    (target / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "weights.safetensors", "tokenizer/vocab.txt"):
        shutil.copyfile(source / name, target / name)
    meta = json.loads((source / "meta.json").read_text())
    meta = {name: meta[name] for name in ("cases", "losses", "grad_norms", "versions")}
    (target / "meta.json").write_text(json.dumps(meta) + "\n")
    model = json.loads((source / "config.json").read_text())["model"]
    last_layer = model["num_layers"] + len(model["new_more_layers"]) - 1
    for path in sorted(source.glob("io_*.safetensors")):
        if path.name not in DROPPED:
            tensors = {name: value for name, value in load_file(path).items() if keep(name, last_layer)}
            save_file(tensors, target / path.name)
            (target / path.name).chmod(0o644)


VITDET_FOLDERS = ("d2_vit", "d2_cascade", "d2_functions")
VITDET_DROPPED = re.compile(r"block_[0-4]_|patch_embed|feat_p[235]|rpn_(logits|deltas)_[0-2]$|box_roi_feats")


def compact_vitdet(source: Path, target: Path) -> None:
    for folder in VITDET_FOLDERS:
        (target / folder).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / folder).iterdir()):
            if path.suffix == ".json":
                (target / folder / path.name).write_text(json.dumps(json.loads(path.read_text())) + "\n")
            else:
                whole = "weights" in path.name
                kept = {k: v for k, v in load_file(path).items() if whole or not VITDET_DROPPED.match(k)}
                save_file(kept, target / folder / path.name)


# Per folder of AiT: the files that are kept, and the tensors that are left out of them.
AIT_KEPT: dict[str, tuple[str, ...]] = {
    "vqvae_insseg": ("io_eval", "io_solver", "io_train", "io_fresh"),
    "solver_insseg": ("io_test", "io_nucleus", "io_train", "io_train_hard", "io_train_empty"),
    "solver_depth_ar": ("io_test", "io_train", "io_train_hard"),
    "functions": ("seq", "nucleus"),
}
AIT_DROPPED = re.compile(
    r"relative_|.*\.relative_|\w+_head\.transformer\."  # weights that are computed, or copies
    r"|softvae_only\.|depth_gt$|.*(encoder_in|encoder_out|crop_depth)$|hard\.(step_logits|result\d\.masks)"
    r"|(grad_clipped|param_after)\.(backbone\.layers\.3|transformer\.dec_embed)"
    r"|step2\.(grad|param_after)|corrupted\.(rand|real)"
)


def compact_ait(source: Path, target: Path) -> None:
    for folder, files in AIT_KEPT.items():
        (target / folder).mkdir(parents=True, exist_ok=True)
        meta = json.loads((source / folder / "meta.json").read_text())
        for stem in ("weights", *files):
            path = source / folder / f"{stem}.safetensors"
            if not path.is_file():
                continue
            kept = {name: value for name, value in load_file(path).items() if not AIT_DROPPED.match(name)}
            save_file(kept, target / folder / path.name)
            (target / folder / path.name).chmod(0o644)
        told = {
            name: {key: {"desc": value["desc"]} for key, value in values.items() if not AIT_DROPPED.match(key)}
            for name, values in meta["files"].items()
            if name.removesuffix(".safetensors") in files
        }
        meta = {"files": told, "notes": meta["notes"]}
        (target / folder / "meta.json").write_text(json.dumps(meta) + "\n")
        for path in (source / folder).glob("*.json"):
            if path.name == "config.json" or path.name.endswith("_param_groups.json"):
                (target / folder / path.name).write_text(json.dumps(json.loads(path.read_text())) + "\n")


GSVA_KEPT = (
    "weights",
    "io_sam_encoder",
    "io_sam_decoder",
    "io_clip",
    "io_train",
    "io_infer_gres",
    "io_infer_reason",
    "io_generate",
    "io_losses",
    "io_train_steps_params",
)
GSVA_DROPPED = re.compile(
    r"io_\w+/((block[01]|patch_embed|hidden_[0-2])$|n1\.|fc_in$|pass\d\.slot_logits|last_hidden)"
    r"|io_train/(conv[0-4]\.|img[1-4]\.|grad_rows\.|grad\..*(layers\.1|hypernetworks_mlps\.[1-3]|norm\d))"
)


def compact_gsva(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for stem in GSVA_KEPT:
        tensors = load_file(source / f"{stem}.safetensors")
        kept = {name: value for name, value in tensors.items() if not GSVA_DROPPED.match(f"{stem}/{name}")}
        save_file(kept, target / f"{stem}.safetensors")
        (target / f"{stem}.safetensors").chmod(0o644)
    for name in ("config.json", "train_steps.json"):
        (target / name).write_text(json.dumps(json.loads((source / name).read_text())) + "\n")


POLAR_DROPPED = re.compile(r"hourglass|unet|polar[01]\.image")


def compact_polar(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    tensors = load_file(source / "io.safetensors")
    save_file({k: v for k, v in tensors.items() if not POLAR_DROPPED.match(k)}, target / "io.safetensors")
    (target / "io.safetensors").chmod(0o644)
    meta = json.loads((source / "meta.json").read_text())
    kept = {name: value for name, value in meta.items() if not POLAR_DROPPED.match(name)}
    (target / "meta.json").write_text(json.dumps(kept) + "\n")


# Per file of ViSFT: what is kept. Of the images the smallest, which is neither square nor of whole patches.
VISFT_KEPT = {
    "weights": re.compile(r"visft_heads\.(backbone|caption_decoder)\."),
    "io_backbone_eva_g": re.compile(r"2/"),
    "io_caption": re.compile(r"e2e/(?!image|pooled|alphas|grad_features|scores_padded)"),
    "io_stage2": re.compile(
        r"caption/(?!grad)|caption/grad/.*(blocks\.1\.attn\.qkv\.lora|patch_embed\.proj\.bias)"
        r"|traj/step0/(loss_total|grad_norm|.*blocks\.2\.attn\.qkv\.lora_B)"
    ),
}
VISFT_META = "lr_multiplier_at_update(0-based) warmup 2000 total 100000"


def compact_visft(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for stem, kept in VISFT_KEPT.items():
        tensors = load_file(source / f"{stem}.safetensors")
        save_file({k: v for k, v in tensors.items() if kept.match(k)}, target / f"{stem}.safetensors")
    meta = json.loads((source / "meta.json").read_text())
    for name, content in (
        ("config.json", json.loads((source / "config.json").read_text())),
        ("meta.json", {VISFT_META: meta[VISFT_META]}),
    ):
        (target / name).write_text(json.dumps(content) + "\n")


# Numbers of four bytes, the last of which (sign and exponent) is the only one that repeats itself.
FLOATS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 2, "lp": 2, "pb": 2}]


def main() -> None:
    systems = {
        "ait": compact_ait,
        "git": compact_git,
        "gsva": compact_gsva,
        "polar": compact_polar,
        "visft": compact_visft,
        "vitdet": compact_vitdet,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=sorted(systems))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    systems[arguments.system](arguments.source, arguments.target)
    for path in arguments.target.rglob("*.safetensors"):
        path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), filters=FLOATS))
        path.unlink()


if __name__ == "__main__":
    main()
