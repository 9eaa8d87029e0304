"""Makes metadata/: tiny images with their orientation in every place and kind of value where one may be.

    python make_metadata.py

`expected.tsv` has a line for each: file, and the orientation that Pillow 13.0.0 turns it by (1 for none; 0 where
Pillow refuses the file for its metadata). The pixels do not matter and are always the same.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image, ImageOps

OUT = Path(__file__).parent / "metadata"
SMALL = Image.new("RGB", (2, 3))
SMALL.putdata([(0, 0, 0), (60, 0, 0), (0, 90, 0), (0, 0, 250), (160, 160, 0), (255, 255, 255)])
TURNS = {  # the pixels after each turn
    number: (SMALL if number == 1 else SMALL.transpose(method)).tobytes()
    for number, method in enumerate((None, 0, 3, 1, 5, 4, 6, 2), 1)
}
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
XMP_START = b"http://ns.adobe.com/xap/1.0/\0"


def block(order, *entries, start=8, version=42):
    """An EXIF block; each entry is (tag, kind, struct letters, values) or (tag, kind, count, bytes)."""
    end = "<" if order == b"II" else ">"
    body, apart = struct.pack(end + "H", len(entries)), b""
    base = start + 2 + 12 * len(entries) + 4
    for tag, kind, letter, values in entries:
        if isinstance(values, bytes):
            count, data = letter, values
        else:
            count, data = len(values), struct.pack(f"{end}{len(values)}{letter}", *values)
        value = data.ljust(4, b"\0")
        if len(data) > 4:
            value, apart = struct.pack(end + "I", base + len(apart)), apart + data
        body += struct.pack(end + "HHI", tag, kind, count) + value
    head = order + struct.pack(end + "HI", version, start)
    return head + bytes(start - 8) + body + bytes(4) + apart


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(*segments):
    """The pixels are those of an 8-bit grey square that shows all turns: see `grey`."""
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def app1(exif):
    return segment(0xE1, b"Exif\0\0" + exif)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before=(), after=()):
    header = struct.pack(">IIBBBBB", 2, 3, 8, 2, 0, 0, 0)
    data = SMALL.tobytes()
    rows = b"".join(b"\0" + data[row * 6 : row * 6 + 6] for row in range(3))
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def webp(flags, *chunks, extended=True):
    buffer = io.BytesIO()
    SMALL.save(buffer, "WEBP", lossless=True)
    pixels = buffer.getvalue()[12:]
    before = [(b"VP8X", struct.pack("<I", flags) + b"\1\0\0\2\0\0")] if extended else []
    pack = lambda c: c[0] + struct.pack("<I", len(c[1])) + c[1] + b"\0" * (len(c[1]) & 1)
    body = b"WEBP" + b"".join(map(pack, before)) + pixels + b"".join(map(pack, chunks))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(order, *entries):
    fixed = [(256, 3, "H", [2]), (257, 3, "H", [3]), (258, 3, "H", [8, 8, 8]), (259, 3, "H", [1]), (262, 3, "H", [2]),
             (273, 4, "I", [8]), (277, 3, "H", [3]), (278, 3, "H", [3]), (279, 4, "I", [18])]
    entries = sorted(fixed + list(entries), key=lambda entry: entry[0])
    file = bytearray(block(order, *entries, start=26))
    file[8:26] = SMALL.tobytes()
    return bytes(file)


def raw_profile(data, name="exif"):
    return f"\n{name}\n{len(data):8}\n{data.hex()}\n".encode()


def international(keyword, text, packed=False):
    return keyword + bytes([0, packed, 0, 0, 0]) + (zlib.compress(text) if packed else text)


def kinds(number):
    """(name, entry) of each kind of value."""
    ints = {"byte": (1, "B"), "short": (3, "H"), "long": (4, "I"), "sbyte": (6, "b"), "undefined": (7, "B"),
            "sshort": (8, "h"), "slong": (9, "i"), "float": (11, "f"), "double": (12, "d"), "ifd": (13, "I"),
            "long8": (16, "Q"), "slong8": (17, "q"), "unknown": (99, "H")}
    for name, (kind, letter) in ints.items():
        yield name, (274, kind, letter, [number])
        yield f"{name}_twice", (274, kind, letter, [number, 3])
    yield "ascii", (274, 2, 2, b"%d\0" % number)
    yield "rational", (274, 5, 1, struct.pack("<II", number * 2, 2))
    yield "rational_zero", (274, 5, 1, struct.pack("<II", number, 0))
    yield "srational", (274, 10, 1, struct.pack("<ii", -number, -1))
    yield "none", (274, 3, 0, b"")
    yield "float_part", (274, 11, "f", [6.5])
    yield "nine", (274, 3, "H", [9])
    yield "zero", (274, 3, "H", [0])
    yield "negative", (274, 8, "h", [-6])
    yield "much", (274, 4, "I", [65536 + 6])


def files():
    short = lambda number, order=b"II": block(order, (274, 3, "H", [number]))
    xmp = lambda number: XMP % number
    for order in (b"II", b"MM"):
        for name, entry in kinds(6):
            if order == b"II" or isinstance(entry[2], str):
                yield f"exif_{order.decode()}_{name}.png", png([(b"eXIf", block(order, entry))])
        yield f"exif_{order.decode()}.jpg", jpeg(app1(short(6, order)))
        yield f"tiff_{order.decode()}.tif", tiff(order, (274, 3, "H", [6]))
        yield f"tiff_{order.decode()}_long.tif", tiff(order, (274, 4, "I", [8]))
    # The directory itself.
    yield "exif_late.png", png([(b"eXIf", block(b"MM", (274, 3, "H", [6]), start=40))])
    yield "exif_second_tag.png", png([(b"eXIf", block(b"II", (274, 3, "H", [6]), (274, 3, "H", [3])))])
    yield "exif_empty_tag_first.png", png([(b"eXIf", block(b"II", (274, 3, 0, b""), (274, 3, "H", [3])))])
    yield "exif_unsorted.png", png([(b"eXIf", block(b"II", (305, 2, 9, b"Software\0"), (274, 3, "H", [6])))])
    yield "exif_broken_before.png", png([(b"eXIf", block(b"II", (271, 2, 9000, b"outside"), (274, 3, "H", [6])))])
    yield "exif_outside_before.png", png(
        [(b"eXIf", block(b"II", (271, 2, 9, b"\xff\xff\0\0"), (274, 3, "H", [6])))])
    yield "exif_outside_after.png", png(
        [(b"eXIf", block(b"II", (274, 3, "H", [6]), (271, 2, 9, b"\xff\xff\0\0")))])
    yield "exif_cut.png", png([(b"eXIf", short(6)[:21])])
    yield "exif_cut_after.png", png([(b"eXIf", short(6)[:22])])
    yield "exif_no_header.png", png([(b"eXIf", b"no header of TIFF")])
    yield "exif_mixed_order.png", png([(b"eXIf", b"II\0*" + short(6)[4:])])
    yield "exif_mixed_order_2.png", png([(b"eXIf", b"MM*\0" + short(6, b"MM")[4:])])
    yield "exif_other_version.png", png([(b"eXIf", block(b"II", (274, 3, "H", [6]), version=99))])
    yield "exif_empty.png", png([(b"eXIf", b"")])
    # JPEG: segments.
    yield "two.jpg", jpeg(app1(short(6)), app1(short(3)))
    yield "two_first_without.jpg", jpeg(app1(block(b"II", (271, 2, 2, b"a\0"))), app1(short(3)))
    split = block(b"II", (271, 2, 30, b"made by nobody in particular.\0"), (274, 3, "H", [6]))
    yield "split.jpg", jpeg(app1(split[:20]), app1(split[20:]))
    yield "after_others.jpg", jpeg(segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), segment(0xE2, b"FPXR\0"),
                                   segment(0xED, b"Photoshop 3.0\0"), segment(0xFE, b"comment"), app1(short(6)))
    yield "prefix_twice.jpg", jpeg(app1(b"Exif\0\0" + short(6)))
    yield "prefix_thrice.jpg", jpeg(app1(b"Exif\0\0Exif\0\0" + short(6)))
    yield "prefix_ff.jpg", jpeg(segment(0xE1, b"Exif\0\xff" + short(6)))
    yield "app2.jpg", jpeg(segment(0xE2, b"Exif\0\0" + short(6)))
    yield "fill_bytes.jpg", jpeg(b"\xff\xff", app1(short(6)))
    yield "junk_between.jpg", jpeg(b"junk", app1(short(6)))
    yield "after_scan.jpg", JPEG[:-2] + app1(short(6)) + JPEG[-2:]
    yield "xmp.jpg", jpeg(segment(0xE1, XMP_START + xmp(8)))
    yield "xmp_two.jpg", jpeg(segment(0xE1, XMP_START + xmp(8)), segment(0xE1, XMP_START + xmp(3)))
    yield "xmp_before_exif.jpg", jpeg(segment(0xE1, XMP_START + xmp(8)), app1(short(6)))
    yield "xmp_and_exif_upright.jpg", jpeg(segment(0xE1, XMP_START + xmp(8)), app1(short(1)))
    yield "xmp_and_exif_nine.jpg", jpeg(segment(0xE1, XMP_START + xmp(8)), app1(short(9)))
    yield "xmp_and_exif_byte.jpg", jpeg(app1(block(b"II", (274, 1, "B", [6]))), segment(0xE1, XMP_START + xmp(8)))
    yield "xmp_and_exif_without.jpg", jpeg(app1(block(b"II", (271, 2, 2, b"a\0"))), segment(0xE1, XMP_START + xmp(8)))
    yield "xmp_element.jpg", jpeg(segment(0xE1, XMP_START + b"<tiff:Orientation>6</tiff:Orientation>"))
    yield "xmp_single_quotes.jpg", jpeg(segment(0xE1, XMP_START + b"tiff:Orientation='6'"))
    yield "xmp_spaces.jpg", jpeg(segment(0xE1, XMP_START + b'tiff:Orientation = "6"'))
    yield "xmp_two_digits.jpg", jpeg(segment(0xE1, XMP_START + b'tiff:Orientation="62"'))
    yield "xmp_second.jpg", jpeg(segment(0xE1, XMP_START + b'tiff:Orientation="x" tiff:Orientation="3"'))
    yield "xmp_other_header.jpg", jpeg(segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + xmp(6)))
    # MPO: the first image counts.
    frames = [Image.open(io.BytesIO(jpeg(app1(short(number))))) for number in (6, 3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:], exif=b"Exif\0\0" + short(6), quality=90)
    yield "two.mpo.jpg", buffer.getvalue()
    # PNG: chunks and texts.
    exif = lambda number: (b"eXIf", short(number))
    yield "after.png", png(after=[exif(6)])
    yield "before_and_after.png", png([exif(6)], [exif(3)])
    yield "two_before.png", png([exif(6), exif(3)])
    yield "prefix.png", png([(b"eXIf", b"Exif\0\0" + short(6))])
    raw = raw_profile(b"Exif\0\0" + short(6))
    yield "raw_text.png", png([(b"tEXt", b"Raw profile type exif\0" + raw)])
    yield "raw_packed.png", png([(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))])
    yield "raw_packed_after.png", png(after=[(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))])
    yield "raw_packed_damaged.png", png([(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)[:-9])])
    yield "raw_international.png", png([(b"iTXt", international(b"Raw profile type exif", raw))])
    yield "raw_international_packed.png", png([(b"iTXt", international(b"Raw profile type exif", raw, True))])
    yield "raw_bare.png", png([(b"tEXt", b"Raw profile type exif\0" + raw_profile(short(6)))])
    lines = raw[: raw.rindex(b"4578")] + b"4578\n" + raw[raw.rindex(b"4578") + 4 :]
    yield "raw_lines.png", png([(b"tEXt", b"Raw profile type exif\0" + lines)])
    yield "raw_app1.png", png([(b"tEXt", b"Raw profile type APP1\0" + raw_profile(b"Exif\0\0" + short(6), "APP1"))])
    yield "raw_and_exif.png", png([(b"tEXt", b"Raw profile type exif\0" + raw), exif(3)])
    yield "raw_and_exif_after.png", png([(b"tEXt", b"Raw profile type exif\0" + raw)], [exif(3)])
    yield "raw_two.png", png([(b"tEXt", b"Raw profile type exif\0" + raw),
                              (b"tEXt", b"Raw profile type exif\0" + raw_profile(short(3)))])
    yield "text_exif.png", png([(b"tEXt", b"exif\0" + short(6))])
    keyword = b"XML:com.adobe.xmp"
    yield "xmp_international.png", png([(b"iTXt", international(keyword, xmp(6)))])
    yield "xmp_international_packed.png", png([(b"iTXt", international(keyword, xmp(6), True))])
    yield "xmp_text.png", png([(b"tEXt", keyword + b"\0" + xmp(6))])
    yield "xmp_packed.png", png([(b"zTXt", keyword + b"\0\0" + zlib.compress(xmp(6)))])
    yield "xmp_after.png", png(after=[(b"iTXt", international(keyword, xmp(6)))])
    yield "xmp_and_raw.png", png([(b"iTXt", international(keyword, xmp(8))), (b"tEXt", b"Raw profile type exif\0" + raw)])
    yield "xmp_raw_profile.png", png([(b"tEXt", b"Raw profile type xmp\0" + raw_profile(xmp(6), "xmp"))])
    # WebP: chunks, and what the header announces.
    yield "exif.webp", webp(8, (b"EXIF", short(6)))
    yield "prefix.webp", webp(8, (b"EXIF", b"Exif\0\0" + short(6)))
    yield "unannounced.webp", webp(0, (b"EXIF", short(6)), (b"XMP ", xmp(6)))
    yield "not_extended.webp", webp(0, (b"EXIF", short(6)), extended=False)
    yield "two.webp", webp(8, (b"EXIF", short(6)), (b"EXIF", short(3)))
    yield "xmp.webp", webp(4, (b"XMP ", xmp(6)))
    yield "xmp_and_upright.webp", webp(12, (b"EXIF", short(1)), (b"XMP ", xmp(6)))
    yield "outside.webp", webp(8) + b"EXIF" + struct.pack("<I", len(short(6))) + short(6)
    # TIFF: its own directory.
    yield "tiff_byte.tif", tiff(b"II", (274, 1, "B", [6]))
    yield "tiff_two_values.tif", tiff(b"II", (274, 3, "H", [6, 3]))
    yield "tiff_xmp.tif", tiff(b"II", (700, 1, len(xmp(6)), xmp(6)))
    yield "tiff_xmp_undefined.tif", tiff(b"MM", (700, 7, len(xmp(6)), xmp(6)))
    yield "tiff_xmp_and_upright.tif", tiff(b"II", (274, 3, "H", [1]), (700, 1, len(xmp(6)), xmp(6)))
    yield "tiff_exif_directory.tif", tiff(b"II", (34665, 4, "I", [0]))


def grey(image):
    """Which of four corners is darkest and which lightest tells the turn of a JPEG."""
    image = image.convert("L").resize((2, 2), Image.Resampling.BOX)
    order = sorted(range(4), key=lambda corner: image.getdata()[corner])
    return tuple(order)


CORNERS = Image.new("L", (16, 16))
for index, value in enumerate((0, 80, 160, 240)):
    CORNERS.paste(value, (index % 2 * 8, index // 2 * 8, index % 2 * 8 + 8, index // 2 * 8 + 8))
BUFFER = io.BytesIO()
CORNERS.save(BUFFER, "JPEG", quality=90, optimize=True)
JPEG = BUFFER.getvalue()


def turn(data):
    """The orientation that Pillow turned by."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        turned = ImageOps.exif_transpose(image)
    except Exception as error:
        print(repr(error))
        return 0
    if data[:2] == b"\xff\xd8":
        found = [n for n in TURNS if grey(CORNERS if n == 1 else CORNERS.transpose(METHODS[n])) == grey(turned)]
    else:
        width = {2: 2, 3: 3}[turned.size[0]]
        found = [n for n, pixels in TURNS.items() if pixels == turned.convert("RGB").tobytes() and (n > 4) == (width == 3)]
    assert len(found) == 1, found
    return found[0]


METHODS = dict(enumerate((None, 0, 3, 1, 5, 4, 6, 2), 1))


def main():
    warnings.simplefilter("ignore")
    OUT.mkdir(exist_ok=True)
    names, packed, lines = set(), b"", []
    for name, data in files():
        assert name not in names
        names.add(name)
        lines.append(f"{name}\t{len(data)}\t{turn(data)}\n")
        packed += data
    (OUT / "files.bin").write_bytes(packed)
    (OUT / "expected.tsv").write_text("".join(lines))
    print(len(lines), "files,", len(packed), "bytes")


main()
