"""Miniatures of test sets in the official layouts, written by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers_layouts import save_image, write_json
from scipy.io import savemat


def write_word_sets(root: Path, words: tuple[str, str] = ("HELLO", "World")) -> None:
    """The six test sets, two words each (three in ICDAR 2013, one of which is out)."""
    first, second = words
    table = np.array(
        [(f"test/{i}.png", word, []) for i, word in enumerate(words)],
        dtype=[("ImgName", object), ("GroundTruth", object), ("smallLexi", object)],
    )
    for i in range(2):
        save_image(root / f"iiit5k/test/{i}.png", (20, 60), i)
    savemat(root / "iiit5k/testdata.mat", {"testdata": table})
    save_image(root / "svt/img/14_03.jpg", (60, 160))
    (root / "svt/test.xml").write_text(
        "<?xml version='1.0'?><tagset><image><imageName>img/14_03.jpg</imageName><lex>A,B</lex><taggedRectangles>"
        f'<taggedRectangle height="20" width="60" x="10" y="5"><tag>{first}</tag></taggedRectangle>'
        f'<taggedRectangle height="20" width="60" x="80" y="30"><tag>{second}</tag></taggedRectangle>'
        "</taggedRectangles></image></tagset>"
    )
    for name, challenge, images in (
        ("ic13", "Challenge2", "Challenge2_Test_Task3_Images"),
        ("ic15", "Challenge4", "ch4_test_word_images_gt"),
    ):
        for i in (1, 2, 3):
            save_image(root / name / images / f"word_{i}.png", (20, 60), i)
        lines = [f'word_1.png, "{first}"', f'word_2.png, "{second}"']
        lines += ['word_3.png, "a \\"b\\", c!"'] if name == "ic13" else []
        (root / name / f"{challenge}_Test_Task3_GT.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    for name, file in (("svtp", "imagelist.txt"), ("cute", "label.txt")):
        for i in range(2):
            save_image(root / name / f"image/{i}.jpg", (20, 60), i)
        (root / name / file).write_text(f"image/0.jpg {first} A,B,C\nimage/1.jpg {second} A\n")


def write_questions(root: Path, *, ok: bool = False) -> None:
    """Two questions about one picture, in the layout of VQA v2 (or OK-VQA)."""
    save_image(root / "val2014/COCO_val2014_000000000042.jpg")
    prefix = "" if ok else "v2_"
    questions = [
        {"image_id": 42, "question": "What is it?", "question_id": 421},
        {"image_id": 42, "question": "Is it red?", "question_id": 420},
    ]
    annotations = [
        {
            "question_id": 420,
            "image_id": 42,
            "question_type": "is it",
            "answer_type": "yes/no",
            "answers": [{"answer": "yes", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
        },
        {
            "question_id": 421,
            "image_id": 42,
            "question_type": "what is",
            "answer_type": "other",
            "answers": [
                {"answer": "ball" if i < 9 else "sphere", "answer_confidence": "yes", "answer_id": i}
                for i in range(1, 11)
            ],
        },
    ]
    write_json(root / f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(root / f"{prefix}mscoco_val2014_annotations.json", {"annotations": annotations})


def write_nocaps(root: Path, domains: tuple[str, ...] = ("in-domain", "out-domain", "near-domain")) -> None:
    """Three pictures with two captions each."""
    images = [
        {
            "id": i,
            "open_images_id": f"{i:016x}",
            "file_name": f"{i:016x}.jpg",
            "domain": domain,
            "height": 30,
            "width": 40,
        }
        for i, domain in enumerate(domains)
    ]
    for image in images:
        save_image(root / "val" / str(image["file_name"]), seed=int(str(image["id"])))
    captions = [
        {"id": 2 * i + j, "image_id": i, "caption": f"A thing number {i}, said {j}."} for i in range(3) for j in (0, 1)
    ]
    write_json(root / "nocaps_val_4500_captions.json", {"images": images, "annotations": captions})
