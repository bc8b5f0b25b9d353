"""How many scenes one core draws in a second, every truth included.

python benchmarks/scenes.py --size 224 --count 200
"""

from __future__ import annotations

import argparse
import os
import platform
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from saccade.data.scenes import draw_scene


def draw_everything(seed: tuple[int, ...], size: int) -> None:
    """Draws a scene and reads every truth that is worked out on demand."""
    scene = draw_scene(seed, (size, size))
    _ = scene.masks, scene.panoptic, scene.segments, scene.captions, scene.phrases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many is printed")
    options = parser.parse_args()
    draw_everything((9, 0), options.size)
    best = float("inf")
    for _ in range(options.repeats):
        start = time.process_time()
        for index in range(options.count):
            draw_everything((9, index), options.size)
        best = min(best, time.process_time() - start)
    machine = platform.processor() or platform.machine()
    print(f"{options.count / best:.1f} images/s per core at {options.size} px, all truths ({machine})")


if __name__ == "__main__":
    main()
