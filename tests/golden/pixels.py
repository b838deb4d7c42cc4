"""Image files of every kind, and the pixels openai-clip's own transform makes of them, before ToTensor.

Made with Pillow 13.0.0, torchvision 0.26.0, openai-clip 1.0.1. Writes pixels/cases.json, one file and one
expected RGB crop (`*.expected.png`) per case.

    python tests/golden/pixels.py
"""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy
from clip.clip import _transform
from PIL import Image, ImageFile, ImageOps

ImageFile.LOAD_TRUNCATED_IMAGES = True
OUT = Path(__file__).parent / "pixels"
CASES = []


def scene(width, height, seed=0):
    """A picture with gradients, hard edges, saturated colours and noise: uint8 [height, width, 3]."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width].astype(float)
    x, y = x / max(width, 2), y / max(height, 2)
    bands = [128 + 120 * numpy.sin(6 * x + 9 * y * (band + 1) + band) for band in range(3)]
    picture = numpy.stack(bands, axis=2) + random.normal(0, 6, (height, width, 3))
    picture[(x > 0.55) & (y > 0.4) & (y < 0.7)] = [250, 10, 30]
    picture[(x - 0.3) ** 2 + (y - 0.35) ** 2 < 0.03] = [5, 20, 240]
    picture[(abs(x - y) < 0.03)] = 255
    return picture.clip(0, 255).astype(numpy.uint8)


def alpha(width, height):
    """Fully clear, fully opaque and everything between: uint8 [height, width]."""
    y, x = numpy.mgrid[0:height, 0:width].astype(float)
    ramp = 255 * x / max(width - 1, 1)
    ramp[y > 0.6 * height] = 255
    ramp[(x < 0.3 * width) & (y < 0.3 * height)] = 0
    return ramp.astype(numpy.uint8)


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def raw_png(samples, bits, colour_type, extra=b"", interlaced=False):
    """The PNG kinds Pillow cannot write: 16-bit colour, colour keys, interlacing. samples [height, width, channels]."""
    height, width, _ = samples.shape
    kind = ">u2" if bits == 16 else "u1"
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    rows = b"".join(
        b"\0" + row.astype(kind).tobytes()
        for left, top, across, down in passes
        for row in samples[top::down, left::across]
        if row.size
    )

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def case(name, content, size=32, exif_rotate=False, truncated=False, clipped=False):
    (OUT / name).write_bytes(content)
    picture = Image.open(io.BytesIO(content))
    mode = picture.mode
    if exif_rotate:
        picture = ImageOps.exif_transpose(picture)
    for step in _transform(size).transforms[:3]:
        picture = step(picture)
    assert picture.mode == "RGB" and picture.size == (size, size)
    expected = f"{name}.{size}{'.rotated' if exif_rotate else ''}.expected.png"
    picture.save(OUT / expected, optimize=True)
    CASES.append(
        {
            "file": name,
            "mode": mode,
            "size": size,
            "exif_rotate": exif_rotate,
            "truncated": truncated,
            "clipped": clipped,
            "expected": expected,
        }
    )


def saved(picture, format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def jpegs():
    rgb = Image.fromarray(scene(97, 75))
    for subsampling in ("4:2:0", "4:2:2", "4:4:4"):
        for progressive in (False, True):
            name = f"{subsampling.replace(':', '')}{'_progressive' if progressive else ''}.jpg"
            case(name, saved(rgb, "JPEG", quality=90, subsampling=subsampling, progressive=progressive))
    case("rgb_components.jpg", saved(rgb, "JPEG", quality=90, keep_rgb=True))
    case("grey.jpg", saved(rgb.convert("L"), "JPEG", quality=90))
    cmyk = numpy.concatenate([scene(97, 75, 1), scene(97, 75, 2)[:, :, :1] // 2], axis=2)
    case("cmyk.jpg", saved(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=90))
    photo = saved(Image.fromarray(scene(331, 257)), "JPEG", quality=90)
    case("photo.jpg", photo, size=224)
    case("photo.jpg", photo, size=56)
    case("narrow.jpg", saved(Image.fromarray(scene(300, 451)), "JPEG", quality=80), size=224)

    exif = Image.Exif()
    for orientation in range(2, 9):
        exif[0x0112] = orientation
        turned = saved(rgb, "JPEG", quality=75, exif=exif)
        case(f"orientation_{orientation}.jpg", turned, size=16, exif_rotate=True)
    case("orientation_8.jpg", turned)

    for name in ("420", "420_progressive", "cmyk"):
        whole = (OUT / f"{name}.jpg").read_bytes()
        case(f"truncated_{name}.jpg", whole[: len(whole) * 3 // 5], truncated=True)


def pngs():
    rgb, mask = scene(97, 75), alpha(97, 75)
    grey = Image.fromarray(rgb).convert("L")
    case("grey1.png", saved(grey.convert("1"), "PNG"))
    levels = numpy.asarray(grey)
    case("grey4.png", packed_grey(levels // 16, 4))
    case("grey2.png", packed_grey(levels // 64, 2))
    case("grey8.png", saved(grey, "PNG"))
    case("grey16.png", saved(Image.fromarray(levels.astype(numpy.uint16)), "PNG"))
    case("grey16_bright.png", saved(Image.fromarray(levels.astype(numpy.uint16) * 257), "PNG"), clipped=True)
    case("grey16_near_clip.png", saved(Image.fromarray(levels.astype(numpy.uint16) + 60), "PNG"), clipped=True)
    case("grey_alpha.png", saved(Image.merge("LA", [grey, Image.fromarray(mask)]), "PNG"))
    grey_alpha = numpy.stack([levels, mask], axis=2).astype(numpy.uint16) * 257
    case("grey_alpha16.png", raw_png(grey_alpha, 16, 4))
    palette = Image.fromarray(rgb).quantize(64)
    case("palette.png", saved(palette, "PNG"))
    case("palette_transparent.png", saved(palette, "PNG", transparency=bytes(range(0, 256, 4))))
    case("palette4.png", saved(Image.fromarray(rgb).quantize(16), "PNG", bits=4))
    case("palette1.png", saved(Image.fromarray(rgb).quantize(2), "PNG", bits=1))
    case("rgb.png", saved(Image.fromarray(rgb), "PNG"))
    case("rgb_odd.png", saved(Image.fromarray(scene(61, 41)), "PNG"))
    case("rgb_key.png", saved(Image.fromarray(rgb), "PNG", transparency=(250, 10, 30)))
    case("rgb16.png", raw_png(rgb.astype(numpy.uint16) * 256 + 77, 16, 2))
    rgba = numpy.dstack([rgb, mask])
    case("rgba.png", saved(Image.fromarray(rgba), "PNG"))
    case("rgba_same_size.png", saved(Image.fromarray(rgba[:32, :32]), "PNG"))
    case("rgba_same_height.png", saved(Image.fromarray(rgba[:32, :60]), "PNG"))
    case("rgba16.png", raw_png(rgba.astype(numpy.uint16) * 257, 16, 6))
    case("interlaced.png", raw_png(rgb, 8, 2, interlaced=True))
    case("upscaled.png", saved(Image.fromarray(scene(17, 11)), "PNG"), size=56)
    case("upscaled_palette.png", saved(Image.fromarray(scene(17, 11)).quantize(16), "PNG"), size=56)
    case("upscaled_rgba.png", saved(Image.fromarray(rgba[20:31, 40:57]), "PNG"), size=56)
    case("one_pixel.png", saved(Image.fromarray(scene(1, 1)), "PNG"))
    for name in ("rgb", "palette", "grey1", "interlaced"):
        whole = (OUT / f"{name}.png").read_bytes()
        case(f"truncated_{name}.png", whole[: len(whole) * 3 // 5], truncated=True)


def packed_grey(levels, bits):
    """Grey of 2 or 4 bits a sample, levels [height, width]."""
    width = levels.shape[1]
    per_byte = 8 // bits
    padded = numpy.pad(levels, ((0, 0), (0, -width % per_byte)))
    packed = sum(padded[:, place::per_byte] << (8 - bits * (place + 1)) for place in range(per_byte))
    content = raw_png(packed[:, :, None], bits, 0)
    header = struct.pack(">IIBBBBB", width, levels.shape[0], bits, 0, 0, 0, 0)
    return content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]


def others():
    rgb, rgba = Image.fromarray(scene(97, 75)), Image.fromarray(numpy.dstack([scene(97, 75), alpha(97, 75)]))
    case("lossy.webp", saved(rgb, "WEBP", quality=90))
    case("lossy_low.webp", saved(rgb, "WEBP", quality=30))
    case("lossy_photo.webp", saved(Image.fromarray(scene(331, 257)), "WEBP", quality=80), size=224)
    case("lossless.webp", saved(rgb, "WEBP", lossless=True))
    case("lossy_alpha.webp", saved(rgba, "WEBP", quality=90))
    case("lossless_alpha.webp", saved(rgba, "WEBP", lossless=True, exact=True))
    case("palette.gif", saved(rgb.quantize(64), "GIF"))
    case("grey.gif", saved(rgb.convert("L"), "GIF"))
    case("rgb.bmp", saved(rgb, "BMP"))
    case("grey.bmp", saved(rgb.convert("L"), "BMP"))
    case("rgb.tiff", saved(rgb, "TIFF", compression="tiff_lzw"))
    case("rgba.tiff", saved(rgba, "TIFF", compression="tiff_lzw"))
    case("grey.tiff", saved(rgb.convert("L"), "TIFF"))
    case("grey16.tiff", saved(Image.fromarray(numpy.asarray(rgb.convert("L")).astype(numpy.uint16)), "TIFF"))


def extremes():
    wide, tall = scene(5000, 20), scene(20, 5000)
    case("wide.jpg", saved(Image.fromarray(wide), "JPEG", quality=40), size=224)
    case("tall.jpg", saved(Image.fromarray(tall), "JPEG", quality=40), size=224)
    case("wide_palette.png", saved(Image.fromarray(wide).quantize(4, dither=Image.Dither.NONE), "PNG", bits=2), size=56)
    case("line.png", saved(Image.fromarray(scene(900, 1)), "PNG"))


def main():
    OUT.mkdir(exist_ok=True)
    jpegs()
    pngs()
    others()
    extremes()
    (OUT / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")


if __name__ == "__main__":
    main()
