"""Writes photograph-like JPEG files and a parquet of triplets over them, for the benchmarks.

    python benches/peers/make_data.py FOLDER --images 64 --image-recurrence 1 --prompt-recurrence 1
    python benches/peers/make_data.py FOLDER --images 64 --image-recurrence 3.5 --prompt-recurrence 29

FOLDER/images/00000.jpg … are distinct: a natural 1/f spectrum, a few objects with edges, grain; saved by PIL at
quality 90 with 4:2:0. FOLDER/triplets.parquet (prompt, pos_path, neg_path, relative) has images x image-recurrence / 2
rows; each image occurs image-recurrence times and each prompt prompt-recurrence times on average. Seeded.
"""

import argparse
from pathlib import Path

import numpy
import pandas
from PIL import Image, ImageDraw

SUBJECTS = ["a lighthouse", "two foxes", "an old bicycle", "a city at night", "a bowl of cherries", "a paper dragon"]
STYLES = ["oil painting", "35mm photograph", "watercolour", "pencil sketch", "isometric render"]


def photograph(size: int, random: numpy.random.Generator) -> Image.Image:
    """A picture [size, size] whose JPEG is as large as a photograph's: 2.2 bits a pixel, where those that come with
    scikit-image and scikit-learn, saved alike, take 1.4 to 2.9."""
    frequency = numpy.hypot(numpy.fft.fftfreq(size)[:, None], numpy.fft.rfftfreq(size)[None])
    frequency[0, 0] = numpy.inf
    spectrum = numpy.fft.rfft2(random.standard_normal((3, size, size))) / frequency**1.5
    fields = numpy.fft.irfft2(spectrum, s=(size, size))
    luma, *chroma = fields / fields.std(axis=(1, 2), keepdims=True)
    channels = [luma + 0.4 * chroma[0], luma, luma + 0.4 * chroma[1]]
    pixels = 128 + 45 * numpy.stack(channels, axis=-1) + 60 * (random.random(3) - 0.5)
    image = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, width, height = random.random(4) * size * (0.8, 0.8, 0.2, 0.2)
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        random.choice([draw.ellipse, draw.rectangle])([x, y, x + width, y + height], fill=colour)
    grain = 4 * random.standard_normal((size, size, 1))
    return Image.fromarray((numpy.asarray(image) + grain).clip(0, 255).astype(numpy.uint8))


def deal(distinct: int, count: int, random: numpy.random.Generator) -> numpy.ndarray:
    """`count` indices below `distinct` in random order, each as often as any other, up to one."""
    return random.permutation(numpy.arange(count) % distinct)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=64, help="distinct images, at least 2")
    parser.add_argument("--image-recurrence", type=float, default=1.0)
    parser.add_argument("--prompt-recurrence", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=1024, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = numpy.random.default_rng(arguments.seed)

    (arguments.folder / "images").mkdir(parents=True, exist_ok=True)
    paths = [f"images/{index:05}.jpg" for index in range(arguments.images)]
    for path in paths:
        photograph(arguments.size, random).save(arguments.folder / path, quality=90, subsampling="4:2:0")

    rows = round(arguments.images * arguments.image_recurrence / 2)
    pairs = deal(arguments.images, 2 * rows, random).reshape(rows, 2)
    while (equal := pairs[:, 0] == pairs[:, 1]).any():  # swap a doubled pair's negative with a random row's
        first, other = equal.argmax(), random.integers(rows)
        pairs[[first, other], 1] = pairs[[other, first], 1]
    prompts = deal(max(1, round(rows / arguments.prompt_recurrence)), rows, random)
    pandas.DataFrame(
        {
            "prompt": [f"{SUBJECTS[p % 6]}, {STYLES[p % 5]}, number {p}, highly detailed" for p in prompts],
            "pos_path": [paths[index] for index in pairs[:, 0]],
            "neg_path": [paths[index] for index in pairs[:, 1]],
        }
    ).to_parquet(arguments.folder / "triplets.parquet")
