"""Makes files/: tiny images of every kind that is decoded in its own way. python make_files.py

Everything is drawn from a fixed seed. Made with Pillow 13.0.0.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).parent / "files"
WIDTH, HEIGHT = 13, 9
rng = np.random.default_rng(7)


def noise(*shape, high=256, dtype="u1"):
    return rng.integers(0, high, shape).astype(dtype)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(name, depth, colour, rows, *extra):
    """A PNG from packed rows; `extra` are (kind, data) chunks before the image data."""
    header = struct.pack(">IIBBBBB", WIDTH, len(rows), depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    (OUT / name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks))


def packed(values, depth):
    bits = "".join(format(int(v), f"0{depth}b") for v in values)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def pngs():
    for depth, transparent in ((1, 1), (2, 3), (4, 3)):
        rows = [packed(row, depth) for row in noise(HEIGHT, WIDTH, high=2**depth)]
        png(f"grey{depth}.png", depth, 0, rows)
        png(f"grey{depth}_transparent.png", depth, 0, rows, (b"tRNS", struct.pack(">H", transparent)))
    rows = [row.tobytes() for row in noise(HEIGHT, WIDTH, high=5)]
    png("grey8_transparent.png", 8, 0, rows, (b"tRNS", struct.pack(">H", 3)))
    grey = noise(HEIGHT, WIDTH, high=65536, dtype=">u2")
    grey[:4] = noise(4, WIDTH, high=300)
    grey[1, 0], grey[2, 3] = 77, 1000
    rows = [row.tobytes() for row in grey]
    png("grey16.png", 16, 0, rows)
    png("grey16_transparent.png", 16, 0, rows, (b"tRNS", struct.pack(">H", 77)))
    png("grey16_transparent_high.png", 16, 0, rows, (b"tRNS", struct.pack(">H", 1000)))
    for colour, channels, name in ((4, 2, "la16"), (2, 3, "rgb16"), (6, 4, "rgba16")):
        png(f"{name}.png", 16, colour, [row.tobytes() for row in noise(HEIGHT, WIDTH, channels, high=65536, dtype=">u2")])
    rgb = noise(HEIGHT, WIDTH, 3)
    rgb[2, 2] = (1, 2, 3)
    png("rgb_transparent.png", 8, 2, [row.tobytes() for row in rgb], (b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    palette = (b"PLTE", noise(16, 3).tobytes())
    rows = [packed(row, 4) for row in noise(HEIGHT, WIDTH, high=16)]
    png("palette.png", 4, 3, rows, palette)
    png("palette_alpha.png", 4, 3, rows, palette, (b"tRNS", noise(7).tobytes()))
    png("palette_one_transparent.png", 4, 3, rows, palette, (b"tRNS", b"\xff\xff\0"))


def tiff16():
    """A little-endian 16-bit grey TIFF: for Pillow mode I;16."""
    data = noise(HEIGHT, WIDTH, high=400, dtype="<u2").tobytes()
    tags = [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 122),
            (277, 3, 1), (278, 3, HEIGHT), (279, 4, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    (OUT / "grey16.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data)


def gif(image, name, transparent=None):
    """A GIF whose only frame is smaller than the canvas."""
    buffer = io.BytesIO()
    image.quantize(7).save(buffer, "GIF", optimize=False)
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", WIDTH + 6, HEIGHT + 5)
    position = 13 + 3 * (2 << (data[10] & 7))
    assert data[position] == 0x2C
    data[position + 1 : position + 5] = struct.pack("<HH", 4, 2)
    if transparent is not None:
        data[position:position] = b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    (OUT / name).write_bytes(data)


def oriented(number):
    exif = Image.Exif()
    exif[274] = number
    return exif


def jpeg_colours(image):
    """JPEG files whose markers and names of components disagree on what the samples are."""
    jfif = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
    adobe = lambda transform: b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])

    def bare(mode):
        """Without the markers, and where the names of components are."""
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "JPEG", quality=90, subsampling="4:4:4")
        data, kept, position = buffer.getvalue(), b"\xff\xd8", 2
        while data[position + 1] != 0xDA:
            length = 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
            if data[position + 1] not in (0xE0, 0xEE):
                kept += data[position : position + length]
            position += length
        return kept + data[position:]

    def lettered(data):
        data = bytearray(data)
        frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
        for index, letter in enumerate(b"RGB"):
            data[frame + 10 + 3 * index] = data[scan + 5 + 2 * index] = letter
        return bytes(data)

    rgb, cmyk = bare("RGB"), bare("CMYK")
    files = {
        "jfif_adobe0": (rgb, jfif + adobe(0)), "adobe0_jfif": (rgb, adobe(0) + jfif), "adobe0": (rgb, adobe(0)),
        "adobe2": (rgb, adobe(2)), "adobe7": (rgb, adobe(7)), "letters": (lettered(rgb), b""),
        "letters_jfif": (lettered(rgb), jfif), "letters_adobe1": (lettered(rgb), adobe(1)),
        "letters_adobe0_jfif": (lettered(rgb), adobe(0) + jfif), "cmyk_adobe1": (cmyk, adobe(1)),
        "cmyk_adobe7": (cmyk, adobe(7)), "cmyk_bare": (cmyk, b""),
    }
    for name, (data, markers) in files.items():
        (OUT / f"colours_{name}.jpg").write_bytes(data[:2] + markers + data[2:])


def bmp16():
    """Five and six bits a colour, with masks and without."""
    for name, masks in (("555", b""), ("555_masks", struct.pack("<III", 0x7C00, 0x3E0, 0x1F)),
                        ("565", struct.pack("<III", 0xF800, 0x7E0, 0x1F))):
        rows = noise(HEIGHT, WIDTH + 1, high=65536, dtype="<u2").tobytes()
        start = 54 + len(masks)
        header = struct.pack("<IHHIIiiHHIIiiII", start + len(rows), 0, 0, start, 40, WIDTH, HEIGHT, 1, 16,
                             3 if masks else 0, len(rows), 0, 0, 0, 0)
        (OUT / f"rgb{name}.bmp").write_bytes(b"BM" + header + masks + rows)


def main():
    OUT.mkdir(exist_ok=True)
    pngs()
    tiff16()
    rgb = Image.fromarray(noise(HEIGHT, WIDTH, 3))
    rgba = Image.fromarray(noise(HEIGHT, WIDTH, 4))
    gif(rgb, "frame.gif")
    gif(rgb, "frame_transparent.gif", 3)
    for name in ("rgba.png", "rgba.tif", "rgba.bmp", "rgba.qoi"):
        rgba.save(OUT / name)
    rgba.save(OUT / "rgba.webp", lossless=True, exact=True)
    rgba.save(OUT / "animation.webp", save_all=True, append_images=[rgba.rotate(180)], lossless=True, exact=True)
    rgba.convert("LA").save(OUT / "la.png")
    for name in ("rgb.bmp", "rgb.qoi", "rgb.ppm", "rgb.tif"):
        rgb.save(OUT / name)
    rgb.convert("1").save(OUT / "bit.pbm")
    rgb.convert("1").save(OUT / "bit.bmp")
    for number in range(2, 9):
        rgb.save(OUT / f"orientation_{number}.png", exif=oriented(number))
    rgb.save(OUT / "orientation_6.tif", exif=oriented(6))
    rgb.save(OUT / "orientation_6.webp", exif=oriented(6), lossless=True)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    rgb.save(OUT / "orientation_xmp_8.webp", xmp=xmp, lossless=True)
    smooth = Image.fromarray(noise(3, 4, 3)).resize((21, 17), Image.Resampling.BICUBIC)
    smooth.convert("L").save(OUT / "grey.jpg", quality=90)
    smooth.save(OUT / "orientation_5.jpg", quality=90, exif=oriented(5))
    smooth.save(OUT / "progressive.jpg", quality=90, progressive=True, subsampling="4:4:4")
    smooth.convert("CMYK").save(OUT / "cmyk.jpg", quality=90)
    for width, height in ((1, 1), (1, 20), (20, 1), (9, 40), (40, 9), (37, 23)):
        Image.fromarray(noise(height, width, 3)).save(OUT / f"noise_{width}x{height}.png")
    for depth in (1, 4):
        rows = [packed(row, depth) for row in noise(HEIGHT, WIDTH, high=2**depth)]
        palette, alpha = (b"PLTE", noise(2**depth, 3).tobytes()), (b"tRNS", noise(2**depth + 3).tobytes())
        png(f"palette{depth}_alpha_surplus.png", depth, 3, rows, palette, alpha)
    jpeg_colours(smooth)
    bmp16()


if __name__ == "__main__":
    main()
