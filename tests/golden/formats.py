"""Tiny image files of every mode and option of the formats that are read, and what Pillow makes of each.

Made with Pillow 13.0.0; imagecodecs 2026.3.6 adds JPEGs that Pillow cannot write.

    python tests/golden/formats.py             writes formats.json: some of every kind, which a test of `reward` reads
    python tests/golden/formats.py --all FILE  writes all of them; SOCIAL_REWARD_FORMATS=FILE makes the test read FILE
"""

import argparse
import hashlib
import io
import itertools
import json
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy
from PIL import Image, ImageFile

try:
    import imagecodecs
except ImportError:
    imagecodecs = None

warnings.simplefilter("ignore")
CASES = []
WIDTH, HEIGHT = 13, 9
RANDOM = numpy.random.default_rng(16)


def decoded(content, whatever_is_there):
    """Mode, size and RGB of the file; None if Pillow refuses it. `whatever_is_there`: also of a file that is cut off."""
    ImageFile.LOAD_TRUNCATED_IMAGES = whatever_is_there
    try:
        picture = Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
        picture.load()
        return picture.mode, picture.size, picture.convert("RGB").tobytes()
    except Exception:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def case(name, content, keep=False):
    """`keep`: also in formats.json."""
    seen, entry = decoded(content, False), {"name": name, "file": content.hex()}
    if seen is None and (seen := decoded(content, True)):
        entry["cut"] = True
    if seen:
        mode, size, rgb = seen
        lossy = name.startswith(("jpeg", "webp lossy", "webp animated", "tiff jpeg"))
        entry |= {"mode": mode, "size": size, "rgb": rgb.hex() if lossy else hashlib.sha256(rgb).hexdigest()}
    CASES.append((keep, entry))


def scene(channels=3, width=WIDTH, height=HEIGHT):
    """Soft colours, which lossy formats keep, with an edge: uint8 [height, width, channels]."""
    y, x = numpy.mgrid[0:height, 0:width].astype(float)
    bands = [127 + 120 * numpy.sin(0.35 * x + 0.5 * y * (band + 1) / 2 + band) for band in range(channels)]
    picture = numpy.stack(bands, axis=2)
    picture[height // 2 :, width // 2 :] = [230, 30, 60, 140, 200, 90][:channels]
    return picture.clip(0, 255).astype(numpy.uint8)


def saved(picture, format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def packed(levels, bits):
    """Rows of 1, 2, 4 or 8 bits a sample, the first sample in the high bits; levels [height, width]."""
    per_byte = 8 // bits
    padded = numpy.pad(levels, ((0, 0), (0, -levels.shape[1] % per_byte))).astype(numpy.uint8)
    return sum(padded[:, place::per_byte] << (8 - bits * (place + 1)) for place in range(per_byte)).astype(numpy.uint8)


# PNG


def chunk(name, body, crc=None):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) if crc is None else crc)


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_rows(bits, colour, interlaced):
    samples = scene(CHANNELS[colour]).astype(numpy.uint16)
    samples = samples * 257 + 19 if bits == 16 else samples >> (8 - bits)
    rows = b""
    for left, top, across, down in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        part = samples[top::down, left::across]
        if part.size:
            flat = part.reshape(part.shape[0], -1)
            lines = flat.astype(">u2").view(numpy.uint8) if bits == 16 else packed(flat, bits)
            rows += b"".join(b"\0" + line.tobytes() for line in lines)
    return rows


def png(bits, colour, interlaced=False, before=b"", between=b"", after=b"", palette=None, idats=None, end=True, crc=None):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, int(interlaced)))
    if colour == 3:
        palette = palette if palette is not None else PALETTE[: 3 << bits]
        header += chunk(b"PLTE", palette)
    if idats is None:
        idats = [zlib.compress(png_rows(bits, colour, interlaced))]
    body = b"".join(chunk(b"IDAT", part, crc) for part in idats)
    return SIGNATURE + header + before + body + between + (chunk(b"IEND", b"") if end else b"") + after


PALETTE = bytes((37 * k + 11 * band * k + 90 * band) % 256 for k in range(256) for band in range(3))
RAMP = bytes(k for k in range(256) for _ in range(3))


def pngs():
    kinds = [(bits, 0) for bits in (1, 2, 4, 8, 16)] + [(bits, 3) for bits in (1, 2, 4, 8)]
    kinds += [(bits, colour) for colour in (2, 4, 6) for bits in (8, 16)]
    for (bits, colour), interlaced in itertools.product(kinds, (False, True)):
        name = f"png {bits} bit colour {colour}{' interlaced' if interlaced else ''}"
        case(name, png(bits, colour, interlaced), keep=True)
        if colour in (0, 2):
            key = chunk(b"tRNS", struct.pack(">H", 1) if colour == 0 else struct.pack(">HHH", 230, 30, 60))
            case(name + " key", png(bits, colour, interlaced, before=key))
        if colour == 3:
            for length in sorted({1, (1 << bits) // 2, 1 << bits, (1 << bits) + 40}):
                alpha = bytes(RANDOM.integers(0, 256, length, dtype=numpy.uint8))
                case(name + f" alpha of {length}", png(bits, colour, interlaced, before=chunk(b"tRNS", alpha)), keep=length > 1 << bits)
            for entries in sorted({0, 1, 2, (1 << bits) - 1, 1 << bits, min(256, (1 << bits) + 3), 300}):
                case(name + f" palette of {entries}", png(bits, colour, interlaced, palette=(PALETTE * 2)[: 3 * entries]), keep=not interlaced and entries < 3)
            case(name + " grey palette", png(bits, colour, interlaced, palette=RAMP[: 3 << bits]))
            case(name + " ragged palette", png(bits, colour, interlaced, palette=PALETTE[: (3 << bits) - 1]))
    bad = {"bits 3": (3, 0), "16 bit palette": (16, 3), "4 bit colour": (4, 2), "colour 1": (8, 1), "colour 5": (8, 5)}
    for name, (bits, colour) in bad.items():
        raw = bytearray(png(8, 0))
        raw[24:26] = bytes([bits, colour])
        raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
        case(f"png {name}", bytes(raw))
    whole = zlib.compress(png_rows(8, 2, False))
    case("png empty and split data", png(8, 2, idats=[b"", whole[:7], b"", whole[7:], b""]), keep=True)
    case("png unknown critical chunk", png(8, 2, before=chunk(b"CgBI", b"\x50\0\x20\x02")), keep=True)
    case("png unknown critical chunk of another name", png(8, 6, before=chunk(b"ABCd", b"x")))
    case("png unknown critical chunk after the data", png(8, 2, between=chunk(b"ABCd", b"x")))
    case("png of an iPhone", SIGNATURE + chunk(b"CgBI", b"\x50\0\x20\x02") + png(8, 2, idats=[whole[2:-4]])[8:], keep=True)
    case("png palette in a colour picture", png(8, 2, before=chunk(b"PLTE", PALETTE)))
    case("png palette in a grey picture", png(8, 0, before=chunk(b"PLTE", PALETTE)))
    case("png without its end", png(8, 2, end=False), keep=True)
    case("png data behind the end", png(8, 2, after=b"\0" * 90 + b"garbage"), keep=True)
    case("png other chunk between data", png(8, 2, between=chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", b"xx")))
    case("png data checksum wrong", png(8, 2, crc=7), keep=True)
    case("png adler wrong", png(8, 2, idats=[whole[:-4] + b"abcd"]))
    case("png both checksums wrong", png(8, 2, idats=[whole[:-4] + b"abcd"], crc=7))
    raw = bytearray(png(8, 2))
    raw[29:33] = b"abcd"
    case("png header checksum wrong", bytes(raw), keep=True)
    case("png text checksum wrong", png(8, 2, before=chunk(b"tEXt", b"a\0b", crc=7)))
    case("png broken profile", png(8, 2, before=chunk(b"iCCP", b"bad\0\0not zlib")), keep=True)
    case("png gamma", png(8, 2, before=chunk(b"gAMA", struct.pack(">I", 100000))))
    case("png text bomb", png(8, 2, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000), 9))))
    case("png of too few rows", png(8, 2, idats=[zlib.compress(png_rows(8, 2, False)[:200])]))
    case("png of too many rows", png(8, 2, idats=[zlib.compress(png_rows(8, 2, False) * 2)]))
    case("png filter 9", png(8, 2, idats=[zlib.compress(b"\x09" + png_rows(8, 2, False)[1:])]))
    for filter in range(1, 5):
        rows = bytearray(png_rows(8, 6, False))
        rows[:: 1 + 4 * WIDTH] = bytes([filter] * HEIGHT)
        case(f"png filter {filter}", png(8, 6, idats=[zlib.compress(bytes(rows))]))
    for bits, colour, interlaced in ((8, 2, False), (8, 2, True), (4, 3, False), (16, 6, False)):
        content = png(bits, colour, interlaced)
        for share in range(1, 16):
            cut = content[: len(content) * share // 16]
            case(f"png {bits} bit colour {colour} interlaced {interlaced} cut {share}/16", cut, keep=share == 12)
    first, second = (Image.fromarray(numpy.roll(scene(4), turn, axis=1)) for turn in (0, 4))
    for default_image, disposal, blend in itertools.product((False, True), (0, 1, 2), (0, 1)):
        options = {"default_image": default_image, "disposal": disposal, "blend": blend, "duration": 80}
        content = saved(first, "PNG", save_all=True, append_images=[second], **options)
        case(f"png animated {default_image} {disposal} {blend}", content, keep=blend == disposal == 0)
    control = chunk(b"acTL", struct.pack(">II", 1, 0))
    for box in ((WIDTH, HEIGHT, 0, 0), (WIDTH - 3, HEIGHT - 2, 2, 1), (WIDTH, HEIGHT, 5, 5)):
        frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, *box, 1, 10, 0, 0))
        case(f"png animated, first frame {box}", png(8, 2, before=control + frame))


# GIF


def lzw(indices, bits):
    """Codes of `bits` + 1 bits with clear codes between, so that the table never grows."""
    clear, codes = 1 << bits, []
    for place, index in enumerate(indices):
        if place % max(1, (1 << bits) - 2) == 0:
            codes.append(clear)
        codes.append(int(index))
    codes.append(clear + 1)
    value, length, out = 0, 0, bytearray()
    for code in codes:
        value |= code << length
        length += bits + 1
        while length >= 8:
            out.append(value & 255)
            value, length = value >> 8, length - 8
    out.append(value & 255)
    blocks = b"".join(bytes([len(part)]) + part for part in (bytes(out[k : k + 255]) for k in range(0, len(out), 255)))
    return bytes([bits]) + blocks + b"\0"


def gif(screen=(WIDTH, HEIGHT), offset=(0, 0), size=(WIDTH, HEIGHT), bits=4, palette=None, local=None, background=5, transparent=None, interlaced=False, disposal=0, version=b"GIF89a", before=b"", after=b"", end=b";", top=None):
    palette = PALETTE[: 3 << bits] if palette is None else palette
    depth = max(0, (len(palette) // 3 - 1).bit_length() - 1)
    out = version + struct.pack("<HHBBB", *screen, (0x80 | depth if palette else 0) | 0x70, background, 0) + palette + before
    if transparent is not None or disposal:
        out += b"\x21\xf9\x04" + bytes([(disposal << 2) | (transparent is not None), 0, 0, transparent or 0, 0])
    flags = (0x40 if interlaced else 0) | (0x80 | max(0, (len(local) // 3 - 1).bit_length() - 1) if local else 0)
    out += b"," + struct.pack("<HHHHB", *offset, *size, flags) + (local or b"")
    levels = scene(1, max(1, size[0]), max(1, size[1]))[:, :, 0] >> (8 - bits)
    if top:
        levels = levels % top
    if interlaced:
        levels = numpy.concatenate([levels[0::8], levels[4::8], levels[2::4], levels[1::2]])
    return out + lzw(levels.ravel()[: size[0] * size[1]], max(2, bits)) + after + end


def gifs():
    for bits, interlaced, local in itertools.product((1, 2, 3, 4, 8), (False, True), (False, True)):
        name = f"gif {bits} bit{' interlaced' if interlaced else ''}{' local' if local else ''}"
        other = bytes(reversed(PALETTE[: 3 << bits])) if local else None
        case(name, gif(bits=bits, interlaced=interlaced, local=other), keep=bits in (1, 4))
        case(name + " local alone", gif(bits=bits, interlaced=interlaced, palette=b"", local=PALETTE[: 3 << bits]))
        for ramp in (RAMP[: 3 << bits], RAMP[: 3 << bits][::-1]):
            case(name + f" ramp from {ramp[0]}", gif(bits=bits, interlaced=interlaced, palette=ramp), keep=bits == 8 and not local)
            case(name + f" own ramp from {ramp[0]}", gif(bits=bits, interlaced=interlaced, local=ramp), keep=bits == 8 and not local and not interlaced)
    case("gif without a palette", gif(palette=b""), keep=True)
    case("gif without a palette, transparent", gif(palette=b"", transparent=3))
    case("gif of 87", gif(version=b"GIF87a"))
    case("gif of 88", gif(version=b"GIF88a"))
    case("gif colours beyond the palette", gif(bits=8, palette=PALETTE[:48]), keep=True)
    case("gif colours beyond the palette, transparent", gif(bits=8, palette=PALETTE[:48], transparent=200))
    screens = {"inside": ((20, 15), (4, 3)), "beyond": ((8, 6), (0, 0)), "beyond with offset": ((8, 6), (3, 2)), "far off": ((8, 6), (20, 20)), "empty screen": ((0, 0), (0, 0)), "empty width": ((0, 9), (0, 0)), "empty screen with offset": ((0, 0), (2, 1))}
    for (name, (screen, offset)), transparent, background, interlaced in itertools.product(screens.items(), (None, 3, 200), (0, 5), (False, True)):
        full = f"gif {name}, transparent {transparent}, background {background}{' interlaced' if interlaced else ''}"
        content = gif(screen, offset, transparent=transparent, background=background, interlaced=interlaced)
        case(full, content, keep=background == 5 and not interlaced and transparent != 200)
    case("gif inside, transparent, grey", gif((20, 15), (4, 3), palette=b"", transparent=3))
    case("gif inside, grey", gif((20, 15), (4, 3), palette=b""), keep=True)
    for disposal in range(5):
        case(f"gif disposal {disposal}", gif((20, 15), (4, 3), disposal=disposal, transparent=2))
    case("gif of no pixels", gif(size=(0, 0)))
    case("gif of no columns", gif(size=(0, 9)))
    second = gif((20, 15))[13 + 48 :]
    case("gif two frames", gif((20, 15), (2, 2), end=second), keep=True)
    case("gif without its end", gif(end=b""), keep=True)
    case("gif garbage at its end", gif(end=b"garbage"))
    case("gif comment and application", gif(before=b"\x21\xfe\x03abc\0\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"))
    case("gif unknown extension", gif(before=b"\x21\x77\x03abc\0"))
    case("gif garbage before the frame", gif(before=b"\0\0\0"))
    case("gif empty control block", gif(before=b"\x21\xf9\0"))
    case("gif trailer first", gif(before=b";"))
    whole = gif()
    for share in range(1, 16):
        case(f"gif cut {share}/16", whole[: len(whole) * share // 16], keep=share == 12)
    picture = Image.fromarray(scene()).quantize(16)
    for options in ({}, {"transparency": 3}, {"interlace": 0}, {"optimize": True}):
        case(f"gif of Pillow {options}", saved(picture, "GIF", **options))
    case("gif of Pillow, animated", saved(Image.fromarray(scene()), "GIF", save_all=True, append_images=[Image.fromarray(scene()[::-1])]))


# BMP


def bmp(bits, header=40, compression=0, colours=None, palette=None, height=HEIGHT, masks=None, data=None, gap=0, used=None, width=WIDTH):
    entry = 3 if header == 12 else 4
    count = (1 << bits) if bits <= 8 else 0
    if palette is None:
        palette = b"".join(PALETTE[3 * k : 3 * k + 3] + b"\0" * (entry - 3) for k in range(count if colours is None else colours))
    if data is None:
        stride = (width * bits + 31) // 32 * 4
        if bits <= 8:
            rows = packed(scene(1, width)[:, :, 0] >> (8 - bits), bits)
        else:
            rows = RANDOM.integers(0, 256, (abs(height), width * bits // 8), dtype=numpy.uint8)
        data = b"".join(row.tobytes().ljust(stride, b"\0") for row in rows)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height & 0xFFFF, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(data), 2835, 2835, used if used is not None else colours or 0, 0)
        if header >= 52:
            info += struct.pack("<IIII", *((masks or (0, 0, 0)) + (0,))[:4])[: header - 40]
        info = info.ljust(header, b"\0")
        if header == 40 and masks:
            palette = struct.pack("<III", *masks[:3]) + palette
    offset = 14 + len(info) + len(palette) + gap
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + palette + b"\0" * gap + data


def bmps():
    for header, bits, up in itertools.product((12, 40, 52, 56, 64, 108, 124), (1, 2, 4, 8, 16, 24, 32), (True, False)):
        if header == 12 and not up:
            continue
        case(f"bmp {bits} bit, header {header}{'' if up else ' top down'}", bmp(bits, header, height=HEIGHT if up else -HEIGHT), keep=(header, up) in ((12, True), (40, True), (124, False)))
    layouts = {32: [(0xFF0000, 0xFF00, 0xFF, 0), (0xFF000000, 0xFF0000, 0xFF00, 0), (0xFF000000, 0xFF00, 0xFF, 0), (0xFF000000, 0xFF0000, 0xFF00, 0xFF), (0xFF, 0xFF00, 0xFF0000, 0xFF000000), (0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0xFF000000, 0xFF00, 0xFF, 0xFF0000), (0, 0, 0, 0), (0xFF, 0xFF00, 0xFF0000, 0), (0x3FF00000, 0xFFC00, 0x3FF, 0)], 24: [(0xFF0000, 0xFF00, 0xFF), (0xFF, 0xFF00, 0xFF0000)], 16: [(0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F), (0xF00, 0xF0, 0xF), (0x1F, 0x7E0, 0xF800), (0x7C00, 0x3E0, 0x1F, 0x8000)]}
    for bits, masks in ((bits, masks) for bits, all in layouts.items() for masks in all):
        for header, height in itertools.product((40, 52, 56, 108, 124), (HEIGHT, -HEIGHT)):
            case(f"bmp {bits} bit, header {header}, masks {masks}, height {height}", bmp(bits, header, 3, masks=masks, height=height), keep=(header, height) == (124, HEIGHT))
    case("bmp 8 bit with masks", bmp(8, 40, 3, masks=(0xFF0000, 0xFF00, 0xFF)))
    for bits in (1, 4, 8):
        full = 1 << bits
        for colours in sorted({1, 2, full - 1, full, full + 5}):
            case(f"bmp {bits} bit, {colours} colours", bmp(bits, colours=colours), keep=colours == 1)
            case(f"bmp {bits} bit, {colours} greys", bmp(bits, colours=colours, palette=b"".join(bytes([k & 255] * 3 + [0]) for k in range(colours))), keep=colours == full)
        case(f"bmp {bits} bit, black and white", bmp(bits, colours=2, palette=b"\0\0\0\0\xff\xff\xff\0"), keep=True)
        case(f"bmp {bits} bit, white and black", bmp(bits, colours=2, palette=b"\xff\xff\xff\0\0\0\0\0"), keep=True)
        case(f"bmp {bits} bit, grey of 12", bmp(bits, 12, palette=b"".join(bytes([k * 255 // (full - 1)] * 3) for k in range(full))))
        case(f"bmp {bits} bit, gap", bmp(bits, gap=10))
        case(f"bmp {bits} bit, huge colour count", bmp(bits, used=70000))
        case(f"bmp {bits} bit, more colours said than there", bmp(bits, used=1000))
    for bits in (16, 24, 32):
        case(f"bmp {bits} bit, gap", bmp(bits, gap=10), keep=True)
        case(f"bmp {bits} bit, with a palette", bmp(bits, palette=PALETTE[:64], used=16))
    runs = {
        "plain": b"".join(bytes([6, 3, 4, 9, 3, 1, 0, 0]) for _ in range(HEIGHT)) + b"\0\1",
        "absolute": b"".join(bytes([0, 5, 1, 2, 3, 4, 5, 0, 8, 7, 0, 0]) for _ in range(HEIGHT)) + b"\0\1",
        "short lines": b"".join(bytes([6, 3, 0, 0]) for _ in range(HEIGHT)) + b"\0\1",
        "delta": bytes([6, 3, 0, 2, 3, 2, 4, 9, 0, 0, 5, 5]) + b"\0\1",
        "long lines": bytes([200, 3]) * HEIGHT + b"\0\1",
        "early end": bytes([6, 3, 0, 0, 3, 4, 0, 1]),
        "no end": b"".join(bytes([13, k, 0, 0]) for k in range(HEIGHT)),
        "no line ends": b"".join(bytes([13, k]) for k in range(HEIGHT)) + b"\0\1",
        "cut": bytes([6, 3, 0, 9, 1, 2]),
    }
    for (name, data), (bits, compression), height in itertools.product(runs.items(), ((8, 1), (4, 2)), (HEIGHT, -HEIGHT)):
        case(f"bmp run length {bits}, {name}, height {height}", bmp(bits, compression=compression, data=data, height=height), keep=height > 0)
    nibbles = b"".join(bytes([0, 5, 0x12, 0x34, 0x50, 0, 8, 0x79, 0, 0]) for _ in range(HEIGHT)) + b"\0\1"
    case("bmp run length 4, padded nibbles", bmp(4, compression=2, data=nibbles))
    case("bmp run length of another depth", bmp(4, compression=1, data=runs["plain"]))
    case("bmp run length 8 of 4 bits", bmp(8, compression=2, data=runs["plain"]))
    for compression in (4, 5, 6, 11):
        case(f"bmp compression {compression}", bmp(24, compression=compression))
    for bits in (1, 8, 24):
        whole = bmp(bits)
        for share in range(1, 16):
            case(f"bmp {bits} bit cut {share}/16", whole[: len(whole) * share // 16], keep=share == 12)
    case("bmp header of 16", bmp(24, 40)[:14] + struct.pack("<I", 16) + bmp(24)[18:])
    case("bmp no rows", bmp(24, height=0))
    case("bmp no columns", bmp(24, width=0, data=b"\0" * 64))
    case("bmp without data offset", bmp(24)[:10] + b"\0\0\0\0" + bmp(24)[14:])
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        case(f"bmp of Pillow, {mode}", saved(Image.fromarray(scene()).convert(mode), "BMP"))


# TIFF


def tiff_lzw(data):
    """Codes of 9 bits with clear codes between."""
    codes = []
    for place, byte in enumerate(data):
        if place % 200 == 0:
            codes.append(256)
        codes.append(byte)
    codes.append(257)
    bits = "".join(f"{code:09b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def packbits(data):
    return b"".join(bytes([len(part) - 1]) + part for part in (data[k : k + 100] for k in range(0, len(data), 100)))


COMPRESS = {1: bytes, 5: tiff_lzw, 8: zlib.compress, 32946: zlib.compress, 32773: packbits}


def tiff(photometric, bits, samples=1, extra=(), order="<", compression=1, format=1, planar=1, rows=HEIGHT, tile=None, fill=1, predictor=1, tags={}, big=False, next_page=False, drop=(), data=None):
    """One page; `bits` of every sample."""
    levels = scene(samples)
    if data is not None:
        levels = data
    elif bits == 16 and format == 1:
        levels = levels.astype(numpy.uint16) * 257 + 19
    elif bits in (32, 64) and format == 3:
        levels = levels.astype(f"f{bits // 8}") / 255
    elif bits in (16, 32):
        levels = levels.astype(f"i{bits // 8}") * 200
    elif bits < 8:
        levels = levels >> (8 - bits)

    def block(part):
        part = part.astype(part.dtype.newbyteorder(order))
        if predictor == 2:
            part = numpy.concatenate([part[:, :1], numpy.diff(part.astype(part.dtype.newbyteorder("=")), axis=1)], axis=1).astype(part.dtype)
        flat = part.reshape(part.shape[0], -1)
        raw = packed(flat, bits).tobytes() if bits < 8 else numpy.ascontiguousarray(flat).tobytes()
        if fill == 2:
            raw = bytes(int(f"{byte:08b}"[::-1], 2) for byte in raw)
        return COMPRESS[compression](raw)

    planes = [levels] if planar == 1 else [levels[:, :, k : k + 1] for k in range(samples)]
    blocks = []
    for plane in planes:
        if tile:
            padded = numpy.pad(plane, ((0, -HEIGHT % tile), (0, -WIDTH % tile), (0, 0)), mode="edge")
            blocks += [block(padded[y : y + tile, x : x + tile]) for y in range(0, HEIGHT, tile) for x in range(0, WIDTH, tile)]
        else:
            blocks += [block(plane[y : y + rows]) for y in range(0, HEIGHT, rows)]
    entries = {256: ("H", [WIDTH]), 257: ("H", [HEIGHT]), 258: ("H", [bits] * samples), 259: ("H", [compression]), 262: ("H", [photometric]), 277: ("H", [samples]), 284: ("H", [planar]), 339: ("H", [format] * samples)}
    if fill != 1:
        entries[266] = ("H", [fill])
    if extra:
        entries[338] = ("H", list(extra))
    if predictor != 1:
        entries[317] = ("H", [predictor])
    if photometric == 3:
        entries[320] = ("H", [value * 257 for band in range(3) for value in PALETTE[band :: 3][: 1 << bits]])
    at, sizes = (324, 325) if tile else (273, 279)
    entries |= {322: ("H", [tile]), 323: ("H", [tile])} if tile else {278: ("H", [rows])}
    entries[at], entries[sizes] = ("I", [0] * len(blocks)), ("I", [len(part) for part in blocks])
    entries |= tags
    for tag in drop:
        entries.pop(tag, None)
    word, start = ("Q", 16) if big else ("I", 8)
    width = struct.calcsize(word)
    directory = start + (8 if big else 2) + len(entries) * (12 + 2 * (width - 4)) + width
    values, place = b"", directory
    table = b""
    packed_blocks = sum(map(len, blocks))
    sizes_of = {tag: len(values) * struct.calcsize(kind) for tag, (kind, values) in entries.items()}
    data_at = directory + sum(size + size % 2 for size in sizes_of.values() if size > width)
    if at in entries:
        offsets = list(itertools.accumulate([data_at] + [len(part) for part in blocks]))[:-1]
        entries[at] = ("I", offsets)
    for tag in sorted(entries):
        kind, items = entries[tag]
        body = struct.pack(f"{order}{len(items)}{kind}", *items)
        code = {"B": 1, "H": 3, "I": 4}[kind]
        table += struct.pack(f"{order}HH{word}", tag, code, len(items))
        if len(body) <= width:
            table += body.ljust(width, b"\0")
        else:
            table += struct.pack(f"{order}{word}", place)
            body += b"\0" * (len(body) % 2)
            values, place = values + body, place + len(body)
    end = data_at + packed_blocks
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8))
    count = struct.pack(f"{order}{'Q' if big else 'H'}", len(entries))
    follow = start if next_page == "loop" else 0
    return head + count + table + struct.pack(f"{order}{word}", follow) + values + b"".join(blocks)


def tiffs():
    kinds = [(p, b, 1, (), 1) for p in (0, 1) for b in (1, 2, 4, 8, 16)]
    kinds += [(1, 12, 1, (), 1), (1, 8, 1, (), 2), (1, 16, 1, (), 2), (1, 32, 1, (), 1), (1, 32, 1, (), 2), (1, 32, 1, (), 3), (0, 32, 1, (), 3), (1, 64, 1, (), 3), (1, 16, 1, (), 3)]
    kinds += [(1, 8, 2, (e,), 1) for e in (0, 1, 2)] + [(1, 16, 2, (2,), 1), (0, 8, 2, (2,), 1)]
    kinds += [(2, b, 3, (), 1) for b in (8, 16, 32)] + [(2, b, 4, e, 1) for b in (8, 16) for e in ((), (0,), (1,), (2,))]
    kinds += [(2, 8, 5, (2, 0), 1), (2, 8, 6, (0, 0, 0), 1), (2, 8, 4, (999,), 1), (2, 32, 3, (), 3)]
    kinds += [(3, b, 1, (), 1) for b in (1, 2, 4, 8)] + [(3, 8, 2, (0,), 1), (3, 8, 2, (2,), 1)]
    kinds += [(5, 8, 4, (), 1), (5, 16, 4, (), 1), (5, 8, 5, (0,), 1), (5, 8, 5, (2,), 1), (6, 8, 3, (), 1), (8, 8, 3, (), 1), (9, 8, 3, (), 1), (4, 1, 1, (), 1), (1, 8, 3, (), 1), (32803, 16, 1, (), 1)]
    for (photometric, bits, samples, extra, format), order, compression, layout in itertools.product(kinds, "<>", (1, 5, 8, 32773), ("strip", "strips", "tiles", "planes", "tiled planes")):
        if bits == 12 or (samples == 1 and "planes" in layout):
            continue
        options = {"strip": {}, "strips": {"rows": 4}, "tiles": {"tile": 16}, "planes": {"planar": 2, "rows": 4}, "tiled planes": {"planar": 2, "tile": 16}}[layout]
        content = tiff(photometric, bits, samples, extra, order, compression, format, **options)
        name = f"tiff {photometric} of {samples} x {bits}, extra {extra}, format {format}, {order}, compression {compression}, {layout}"
        keep = (order, compression, layout) == ("<", 5, "strips") or ((order, compression, layout) == (">", 1, "tiles") and photometric == 2 and samples == 3)
        case(name, content, keep)
    for (photometric, bits, samples), order, compression, layout in itertools.product(((1, 8, 1), (1, 16, 1), (2, 8, 3), (2, 16, 3), (2, 8, 4), (5, 8, 4), (0, 8, 1), (1, 4, 1)), "<>", (5, 8), ({}, {"tile": 16}, {"planar": 2})):
        content = tiff(photometric, bits, samples, (2,) if (photometric, samples) == (2, 4) else (), order, compression, predictor=2, **layout)
        case(f"tiff predictor, {photometric} of {samples} x {bits}, {order}, compression {compression}, {layout}", content, keep=order == "<" and compression == 5)
    for photometric, bits, compression in itertools.product((0, 1), (1, 4, 8), (1, 5, 8, 32773)):
        case(f"tiff fill order 2, {photometric} of {bits}, compression {compression}", tiff(photometric, bits, fill=2, compression=compression), keep=photometric == 1 and bits == 8)
    for orientation, (photometric, bits, samples) in itertools.product(range(0, 10), ((1, 8, 1), (2, 8, 3), (1, 1, 1))):
        case(f"tiff orientation {orientation}, {photometric} of {samples} x {bits}", tiff(photometric, bits, samples, tags={274: ("H", [orientation])}), keep=samples == 3)
    case("tiff big", tiff(2, 8, 3, big=True), keep=True)
    case("tiff one bits value for three samples", tiff(2, 8, 3, tags={258: ("H", [8])}))
    case("tiff unequal bits", tiff(2, 8, 3, tags={258: ("H", [8, 8, 16])}))
    for tag in (256, 257, 258, 259, 262, 277, 278, 284, 273, 279):
        case(f"tiff without tag {tag}", tiff(2, 8, 3, drop=(tag,)))
        case(f"tiff grey without tag {tag}", tiff(1, 8, drop=(tag,)))
    case("tiff bilevel with as few tags as may be", tiff(1, 1, drop=(258, 259, 277, 284, 339)))
    case("tiff loop of pages", tiff(2, 8, 3, next_page="loop"), keep=True)
    case("tiff old deflate", tiff(2, 8, 3, compression=32946))
    case("tiff 0 columns", tiff(2, 8, 3, tags={256: ("H", [0])}))
    case("tiff 0 rows a strip", tiff(2, 8, 3, tags={278: ("I", [0])}))
    case("tiff huge rows a strip", tiff(2, 8, 3, tags={278: ("I", [0xFFFFFFFF])}), keep=True)
    case("tiff huge width", tiff(2, 8, 3, tags={256: ("I", [0x7FFFFFFF])}))
    case("tiff more rows than data", tiff(2, 8, 3, tags={257: ("H", [HEIGHT * 2])}))
    whole = tiff(2, 8, 3)
    for share in range(1, 16):
        case(f"tiff cut {share}/16", whole[: len(whole) * share // 16], keep=share == 12)
    picture = Image.fromarray(scene())
    for mode, compression in itertools.product(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"), ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group3", "group4", "tiff_ccitt", "jpeg", "zstd", "lzma", "webp", "tiff_thunderscan")):
        try:
            made = Image.fromarray(scene(1)[:, :, 0].astype(numpy.uint16)) if mode == "I;16" else picture.convert("L").convert(mode) if mode in ("I", "F") else picture.convert(mode)
            content = saved(made, "TIFF", compression=compression)
        except Exception:
            continue
        case(f"tiff {'jpeg ' if compression == 'jpeg' else ''}of Pillow, {mode}, {compression}", content, keep=compression in ("jpeg", "group4", "zstd"))
    large = Image.fromarray(scene(3, 96, 80))
    for quality, mode in itertools.product((60, 95), ("L", "RGB", "YCbCr", "CMYK")):
        try:
            case(f"tiff jpeg of Pillow, large, {mode}, {quality}", saved(large.convert(mode), "TIFF", compression="jpeg", quality=quality))
        except Exception:
            continue
    case("tiff pages of Pillow", saved(picture, "TIFF", save_all=True, append_images=[picture.rotate(180)]), keep=True)
    case("tiff larger of Pillow", saved(large, "TIFF", compression="tiff_lzw"))


# WebP


def riff(*chunks):
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunks(content):
    place, found = 12, []
    while place + 8 <= len(content):
        size = struct.unpack("<I", content[place + 4 : place + 8])[0]
        found.append((content[place : place + 4], content[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return found


def three(value):
    return struct.pack("<I", value)[:3]


def webps():
    rgb, rgba, grey = scene(), scene(4), scene(1)[:, :, 0]
    clear = rgba.copy()
    clear[:4, :, 3] = 0
    opaque = rgba.copy()
    opaque[:, :, 3] = 255
    pictures = {"rgb": Image.fromarray(rgb), "rgba": Image.fromarray(rgba), "clear": Image.fromarray(clear), "opaque": Image.fromarray(opaque), "grey": Image.fromarray(grey)}
    for name, picture in pictures.items():
        for options in ({"lossless": True}, {"lossless": True, "exact": True}, {"lossless": True, "method": 6, "quality": 100}):
            case(f"webp lossless {name} {options}", saved(picture, "WEBP", **options), keep=len(options) == 2)
        for quality, alpha, method in itertools.product((5, 60, 95), (30, 100), (0, 4, 6)):
            case(f"webp lossy {name} {quality} {alpha} {method}", saved(picture, "WEBP", quality=quality, alpha_quality=alpha, method=method), keep=(quality, alpha, method) == (60, 100, 4))
        for exact in (False, True):
            case(f"webp lossy {name} exact {exact}", saved(picture, "WEBP", quality=80, exact=exact))
        case(f"webp lossy with metadata {name}", saved(picture, "WEBP", icc_profile=b"x" * 128, exif=b"Exif\0\0" + b"y" * 20, xmp=b"<x/>"))
        case(f"webp lossless with metadata {name}", saved(picture, "WEBP", lossless=True, icc_profile=b"x" * 128))
    for width, height in ((1, 1), (1, 40), (17, 16), (64, 48), (97, 75)):
        big = Image.fromarray(scene(3, width, height))
        case(f"webp lossy {width} x {height}", saved(big, "WEBP", quality=70))
        case(f"webp lossless {width} x {height}", saved(big, "WEBP", lossless=True))
    for lossless, colours in itertools.product((True,), (2, 3, 5, 17)):
        case(f"webp lossless of {colours} colours", saved(Image.fromarray(rgb).quantize(colours).convert("RGB"), "WEBP", lossless=True), keep=True)
    kind = {"lossless": {"lossless": True}, "animated": {"quality": 80}}
    for (name, options), first, second in itertools.product(kind.items(), ("rgb", "rgba", "clear"), ("rgb", "rgba")):
        for minimize, background in itertools.product((False, True), ((0, 0, 0, 0), (10, 200, 30, 255))):
            content = saved(pictures[first], "WEBP", save_all=True, append_images=[pictures[second]], duration=80, minimize_size=minimize, background=background, **options)
            case(f"webp {name} of {first} and {second}, {minimize}, background {background}", content, keep=name == "lossless" and second == "rgb" and not minimize)
    still = {name: webp_chunks(saved(pictures[name], "WEBP", lossless=True, exact=True))[-1] for name in ("rgb", "clear")}
    for (name, part), offset, flags, alpha, background in itertools.product(still.items(), ((0, 0), (4, 2), (40, 40)), (0, 1, 2, 3), (0, 0x10), (b"\0\0\0\0", b"\x1e\xc8\x0a\xff", b"\x1e\xc8\x0a\x80")):
        frame = three(offset[0] // 2) + three(offset[1] // 2) + three(WIDTH - 1) + three(HEIGHT - 1) + three(80) + bytes([flags])
        body = part[0] + struct.pack("<I", len(part[1])) + part[1] + b"\0" * (len(part[1]) % 2)
        content = riff((b"VP8X", bytes([2 | alpha, 0, 0, 0]) + three(20) + three(15)), (b"ANIM", background + b"\0\0"), (b"ANMF", frame + body), (b"ANMF", frame + body))
        case(f"webp frame of {name} at {offset}, flags {flags}, alpha {alpha}, background {background.hex()}", content, keep=offset == (4, 2) and flags == 0 and alpha and background[3:] == b"\xff")
    for (name, part), alpha, size in itertools.product(still.items(), (0, 0x10), ((WIDTH, HEIGHT), (20, 15), (5, 5))):
        content = riff((b"VP8X", bytes([alpha, 0, 0, 0]) + three(size[0] - 1) + three(size[1] - 1)), part)
        case(f"webp lossless extended, {name}, alpha {alpha}, canvas {size}", content, keep=size == (WIDTH, HEIGHT))
    lossy = webp_chunks(saved(pictures["clear"], "WEBP", quality=80))
    for alpha in (0, 0x10):
        case(f"webp lossy extended, alpha {alpha}", riff((b"VP8X", bytes([alpha, 0, 0, 0]) + three(WIDTH - 1) + three(HEIGHT - 1)), *lossy[1:]))
    for base in ("rgb", "clear"):
        for options in ({"lossless": True}, {"quality": 60}):
            content = saved(pictures[base], "WEBP", **options)
            for share in range(1, 16):
                case(f"webp {'lossless' if 'lossless' in options else 'lossy'} {base} cut {share}/16", content[: len(content) * share // 16], keep=share == 12)
            case(f"webp {'lossless' if 'lossless' in options else 'lossy'} {base}, garbage behind", content + b"garbage" * 9)


# JPEG


def segments(content):
    """(marker, body) up to the first scan, and the rest."""
    place, found = 2, []
    while content[place + 1] != 0xDA:
        length = struct.unpack(">H", content[place + 2 : place + 4])[0]
        found.append((content[place + 1], content[place + 4 : place + 2 + length]))
        place += 2 + length
    return found, content[place:]


def jpeg(found, rest):
    return b"\xff\xd8" + b"".join(b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in found) + rest


def adobe(transform):
    return (0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def jpegs():
    width, height = 23, 17
    rgb = Image.fromarray(scene(3, width, height))
    cmyk = Image.fromarray(scene(4, width, height), "CMYK")
    for quality, subsampling, progressive, optimize, restart in itertools.product((20, 90, 100), ("4:4:4", "4:2:2", "4:2:0"), (False, True), (False, True), (0, 1)):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive, "optimize": optimize, "restart_marker_blocks": restart}
        case(f"jpeg {options}", saved(rgb, "JPEG", **options), keep=quality == 90 and not optimize and subsampling == "4:2:0" and restart == 0)
    for progressive in (False, True):
        grey = saved(rgb.convert("L"), "JPEG", quality=85, progressive=progressive)
        case(f"jpeg grey, progressive {progressive}", grey, keep=True)
        kept = saved(rgb, "JPEG", quality=85, keep_rgb=True, progressive=progressive)
        inks = saved(cmyk, "JPEG", quality=85, progressive=progressive)
        plain = saved(rgb, "JPEG", quality=85, progressive=progressive)
        for name, content in (("rgb", kept), ("cmyk", inks), ("ycc", plain), ("grey", grey)):
            found, rest = segments(content)
            bare = [(marker, body) for marker, body in found if marker not in (0xE0, 0xEE)]
            jfif = [(marker, body) for marker, body in found if marker == 0xE0] or [(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")]
            for front, heads in (("", []), (" jfif", jfif)):
                case(f"jpeg {name}{front}, progressive {progressive}, no adobe", jpeg(heads + bare, rest), keep=not progressive and not front)
                for transform in (0, 1, 2, 3):
                    case(f"jpeg {name}{front}, progressive {progressive}, adobe {transform}", jpeg(heads + [adobe(transform)] + bare, rest), keep=not progressive and not front and name != "grey" and transform < 3)
            for ids in (b"RGB", b"\1\2\3", b"\0\1\2", b"rgb", b"\1\x22\x23"):
                if name in ("rgb", "ycc"):
                    frame = [(m, b[:6] + b"".join(ids[k : k + 1] + b[7 + 3 * k : 9 + 3 * k] for k in range(3)) if 0xC0 <= m <= 0xC2 else b) for m, b in bare]
                    scans = rest
                    if not progressive:
                        scans = rest[:5] + b"".join(ids[k : k + 1] + rest[6 + 2 * k : 7 + 2 * k] for k in range(3)) + rest[11:]
                        case(f"jpeg {name}, ids {ids.hex()}", jpeg(frame, scans), keep=ids in (b"RGB", b"\0\1\2"))
    plain = saved(rgb, "JPEG", quality=90)
    found, rest = segments(plain)
    frame = lambda change: [(m, change(b) if m == 0xC0 else b) for m, b in found]
    case("jpeg two components", jpeg(frame(lambda b: b[:5] + b"\2" + b[6:12]), rest), keep=True)
    case("jpeg five components", jpeg(frame(lambda b: b[:5] + b"\5" + b[6:] + b[6:12]), rest))
    case("jpeg of no columns", jpeg(frame(lambda b: b[:3] + b"\0\0" + b[5:]), rest))
    case("jpeg of no rows", jpeg(frame(lambda b: b[:1] + b"\0\0" + b[3:]), rest))
    for version in (b"\0\0", b"\1\0", b"\1\2", b"\2\0", b"\x09\x09"):
        case(f"jpeg jfif {version.hex()}", jpeg([(m, b[:5] + version + b[7:] if m == 0xE0 else b) for m, b in found], rest), keep=version == b"\2\0")
    case("jpeg thumbnail said, none there", jpeg([(m, b[:12] + b"\5\5" if m == 0xE0 else b) for m, b in found], rest))
    case("jpeg bad profile", jpeg(found[:1] + [(0xE2, b"ICC_PROFILE\0\1\1garbage")] + found[1:], rest))
    case("jpeg bad exif", jpeg(found[:1] + [(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")] + found[1:], rest))
    case("jpeg comment", jpeg(found[:1] + [(0xFE, b"made by hand")] + found[1:], rest))
    case("jpeg without its end", plain[:-2], keep=True)
    case("jpeg garbage behind", plain + b"\r\n<html></html>" * 9, keep=True)
    case("jpeg zeros behind", plain + b"\0" * 99)
    case("jpeg two pictures", plain + plain)
    case("jpeg newline in front", b"\n" + plain, keep=True)
    case("jpeg stray bytes between segments", plain[:20] + b"\0\1\2" + plain[20:])
    case("jpeg fill bytes", plain[:2] + b"\xff\xff\xff" + plain[2:])
    case("jpeg zeroed tail", plain[: len(plain) * 3 // 4] + b"\0" * (len(plain) // 4))
    case("jpeg without huffman tables", jpeg([(m, b) for m, b in found if m != 0xC4], rest))
    case("jpeg without quantization", jpeg([(m, b) for m, b in found if m != 0xDB], rest), keep=True)
    for name, content in (("baseline", plain), ("cmyk", saved(cmyk, "JPEG", quality=90))):
        for share in range(1, 16):
            case(f"jpeg {name} cut {share}/16", content[: len(content) * share // 16], keep=share == 14)
    if imagecodecs:
        picture = scene(3, width, height)
        case("jpeg 12 bit", imagecodecs.jpeg8_encode(picture.astype(numpy.uint16) * 16, bitspersample=12, level=90), keep=True)
        case("jpeg 12 bit grey", imagecodecs.jpeg8_encode(picture[:, :, 0].astype(numpy.uint16) * 16, bitspersample=12, level=90))
        for subsampling in ("440", "411"):
            case(f"jpeg {subsampling}", imagecodecs.jpeg8_encode(picture, level=90, subsampling=subsampling), keep=True)
        for bits in (8, 12, 16):
            data = picture if bits == 8 else picture.astype(numpy.uint16) << (bits - 8)
            try:
                case(f"jpeg lossless {bits} bit", imagecodecs.jpeg8_encode(data, lossless=True, bitspersample=bits), keep=bits == 8)
                case(f"jpeg lossless {bits} bit grey", imagecodecs.jpeg8_encode(data[:, :, 0].copy(), lossless=True, bitspersample=bits))
            except Exception as error:
                print("not written:", bits, error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", type=Path, metavar="FILE", help="where all cases go")
    arguments = parser.parse_args()
    for make in (pngs, gifs, bmps, tiffs, webps, jpegs):
        make()
    twice = [name for name, count in Counter(entry["name"] for _, entry in CASES).items() if count > 1]
    assert not twice, f"two cases of one name: {twice}"
    file = arguments.all or Path(__file__).with_suffix(".json")
    kept = [json.dumps(entry) for keep, entry in CASES if keep or arguments.all]
    file.write_text("[\n" + ",\n".join(kept) + "\n]\n")
    print(f"{file}: {len(kept)} cases, {file.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
