"""Makes tiffs/: tiny TIFF images of every kind there is a word for, and what Pillow makes of them.

    python make_tiffs.py

`index.tsv` has a line for each: name, bytes in files.bin.gz, Pillow's mode, width, height, offset in expected.bin.gz of the
pixels over white ("hf") and of those with alpha dropped; or Pillow's error. Where Pillow does not read, or misreads,
one way of writing an image that it reads in another, `Same` gives the other. Made with Pillow 13.0.0.
"""

import gzip
import io
import lzma
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).parent / "tiffs"
WIDTH, HEIGHT = 11, 7
rng = np.random.default_rng(11)


def pack_bits(data):
    packed = b""
    for start in range(0, len(data), 5):
        piece = data[start : start + 5]
        packed += bytes([257 - 3]) + piece[:1] * 1 if len(piece) >= 3 and len(set(piece[:3])) == 1 else b""
        piece = piece[3:] if len(piece) >= 3 and len(set(piece[:3])) == 1 else piece
        packed += bytes([len(piece) - 1]) + piece if piece else b""
        packed += b"\x80"  # no operation
    return packed


def lzw(data, early=False):
    """Codes of 9 bits alone: the table is cleared before it grows."""
    codes = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    codes.append(257)
    if early:
        bits = sum(code << 9 * index for index, code in enumerate(codes))
        return bits.to_bytes((9 * len(codes) + 7) // 8, "little")
    bits = "".join(format(code, "09b") for code in codes)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def xz(data, delta=1):
    filters = [{"id": lzma.FILTER_DELTA, "dist": delta}, {"id": lzma.FILTER_LZMA2, "dict_size": 65536}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


COMPRESSORS = {1: bytes, 5: lzw, 8: zlib.compress, 32946: zlib.compress, 32773: pack_bits, 34925: xz}
REVERSED = bytes(int(format(byte, "08b")[::-1], 2) for byte in range(256))


def rows_of(samples, bits, kind, order):
    """Bytes of each row of `samples` [height, width, samples]."""
    end = "<" if order == b"II" else ">"
    rows = samples.reshape(samples.shape[0], -1)
    if bits < 8 or bits == 12:
        for row in rows:
            text = "".join(format(int(value), f"0{bits}b") for value in row)
            text += "0" * (-len(text) % 8)
            yield int(text, 2).to_bytes(len(text) // 8, "big")
    else:
        for row in rows:
            yield row.astype(end + kind + str(bits // 8)).tobytes()


def predict(samples, bits, kind, predictor, order):
    if predictor == 2:
        kind = "u" if kind == "f" else kind
        whole = samples.astype(f"f{bits // 8}").view(f"u{bits // 8}") if samples.dtype.kind == "f" else samples
        whole = whole.astype(f"u{max(1, bits // 8)}")
        difference = whole.copy()
        difference[:, 1:] -= whole[:, :-1]
        difference &= 2**bits - 1
        return list(rows_of(difference, bits, "u", order))
    rows = []
    for row in samples.reshape(samples.shape[0], -1):
        count = samples.shape[2]
        sorted_bytes = row.astype(f">f{bits // 8}").view("u1").reshape(-1, bits // 8).T.ravel().copy()
        difference = sorted_bytes.copy()
        difference[count:] -= sorted_bytes[:-count]
        rows.append(difference.tobytes())
    return rows


def tiff(samples, photometric, bits=8, kind="u", order=b"II", big=False, extra=(), planar=False, tile=None, strip=None,
         compression=1, predictor=1, fill=1, tags=(), without=(), bits_tag=None, compressor=None, head=None):
    """A TIFF file from samples [height, width, samples]."""
    end = "<" if order == b"II" else ">"
    height, width, count = samples.shape
    compress = compressor or COMPRESSORS[compression]
    planes = [samples[:, :, i : i + 1] for i in range(count)] if planar else [samples]
    chunks = []
    for plane in planes:
        if tile:
            across, down = -(-width // tile[0]), -(-height // tile[1])
            padded = np.zeros((down * tile[1], across * tile[0], plane.shape[2]), plane.dtype)
            padded[:height, :width] = plane
            pieces = [padded[y * tile[1] : (y + 1) * tile[1], x * tile[0] : (x + 1) * tile[0]]
                      for y in range(down) for x in range(across)]
        else:
            pieces = [plane[y : y + (strip or height)] for y in range(0, height, strip or height)]
        for piece in pieces:
            rows = predict(piece, bits, kind, predictor, order) if predictor > 1 else rows_of(piece, bits, kind, order)
            data = compress(b"".join(rows))
            chunks.append(data.translate(REVERSED) if fill == 2 else data)
    offsets, body = [], b""
    for chunk in chunks:
        offsets.append(16 + len(body))
        body += chunk + b"\0" * (len(chunk) & 1)
    lengths = [len(chunk) for chunk in chunks]
    entries = {256: ("H", [width]), 257: ("H", [height]), 258: ("H", bits_tag or [bits] * count), 259: ("H", [compression]),
               262: ("H", [photometric]), 277: ("H", [count])}
    if tile:
        entries |= {322: ("H", [tile[0]]), 323: ("H", [tile[1]]), 324: ("I", offsets), 325: ("I", lengths)}
    else:
        entries |= {273: ("I", offsets), 278: ("H", [strip or height]), 279: ("I", lengths)}
    if extra:
        entries[338] = ("H", list(extra))
    if kind != "u":
        entries[339] = ("H", [{"i": 2, "f": 3}[kind]] * count)
    if planar:
        entries[284] = ("H", [2])
    if predictor > 1:
        entries[317] = ("H", [predictor])
    if fill == 2:
        entries[266] = ("H", [2])
    entries |= dict(tags)
    for tag in without:
        del entries[tag]
    kinds = {"B": 1, "H": 3, "I": 4, "Q": 16}
    unit, number = (8, "Q") if big else (4, "I")
    start = 16 + len(body)
    directory = struct.pack(end + ("Q" if big else "H"), len(entries))
    apart, apart_at = b"", start + len(directory) + len(entries) * (12 + 2 * (unit - 4)) + unit
    for tag, (letter, values) in sorted(entries.items()):
        data = struct.pack(f"{end}{len(values)}{letter}", *values)
        if len(data) <= unit:
            value = data.ljust(unit, b"\0")
        else:
            value = struct.pack(end + number, apart_at + len(apart))
            apart += data + b"\0" * (len(data) & 1)
        directory += struct.pack(end + "HH" + number, tag, kinds[letter], len(values)) + value
    directory += bytes(unit)
    if big:
        header = order + struct.pack(end + "HHHQ", 43, 8, 0, start)
    else:
        header = (head or order + struct.pack(end + "H", 42)) + struct.pack(end + "I", start) + bytes(8)
    return header + body + directory + apart


class Same(bytes):
    """A file, whose pixels are those of the file `other`."""

    def __new__(cls, data, other):
        self = super().__new__(cls, data)
        self.other = other
        return self


def same(*args, **changed):
    """Twice the same image: as `changed` says, and as Pillow reads it."""
    options = {name: changed.pop(name) for name in ("order", "tags", "kind", "extra") if name in changed}
    other = {name[3:]: changed.pop(name) for name in list(changed) if name.startswith("as_")}
    return Same(tiff(*args, **options, **changed), tiff(*args, **{**options, **other}))


def noise(count, high=256, dtype="i8"):
    return rng.integers(0, high, (HEIGHT, WIDTH, count)).astype(dtype)


def near(count, low=-40, high=300):
    """Values on both sides of what 8 bits hold."""
    return rng.integers(low, high, (HEIGHT, WIDTH, count))


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", **options)
    return buffer.getvalue()


def files():
    colour_map = lambda bits: {320: ("H", rng.integers(0, 65536, 3 << bits).tolist())}.items()
    orders = ((b"II", "le"), (b"MM", "be"))
    # Grey of every depth, both meanings of zero, both orders of bits and bytes.
    for order, name in orders:
        for photometric, meaning in ((0, "white"), (1, "black")):
            for bits in (1, 2, 4, 8):
                for fill in (1, 2):
                    yield f"grey{bits}_{meaning}_{name}_fill{fill}", same(noise(1, 2**bits), photometric, bits, order=order, fill=fill)
            if photometric == 1:
                yield f"grey12_{meaning}_{name}", same(noise(1, 400), photometric, 12, order=order, as_order=b"II")
            else:
                yield f"grey12_{meaning}_{name}", tiff(noise(1, 400), photometric, 12, order=order)
            yield f"grey16_{meaning}_{name}", same(noise(1, 400), photometric, 16, order=order, as_order=b"II")
            yield f"grey16_{meaning}_{name}_deflate", same(noise(1, 400), photometric, 16, order=order, compression=8, as_order=b"II")
            if photometric == 1:
                yield f"grey32_{meaning}_{name}", same(noise(1, 400), photometric, 32, order=order, as_order=b"II")
            else:
                yield f"grey32_{meaning}_{name}", tiff(noise(1, 400), photometric, 32, order=order)
            floats = near(1) + noise(1, 8) / 8
            yield f"float32_{meaning}_{name}", tiff(floats, photometric, 32, "f", order)
        for bits in (8, 16, 32):
            yield f"signed{bits}_{name}", tiff(near(1, *((-128, 128) if bits == 8 else (-40, 300))), 1, bits, "i", order)
        yield f"float16_{name}", tiff(near(1) / 1.0, 1, 16, "f", order)
        yield f"float64_{name}", tiff(near(1) / 1.0, 1, 64, "f", order)
        yield f"float32_not_numbers_{name}", tiff(np.array([np.nan, np.inf, -np.inf, 1e30, 0.999, 255.5]).reshape(2, 3, 1), 1, 32, "f", order)
        yield f"grey32_high_{name}", same(noise(1, 2**32), 1, 32, order=order, as_order=b"II")
        # Colours.
        for bits in (8, 16):
            high = 2**bits
            yield f"rgb{bits}_{name}", tiff(noise(3, high), 2, bits, order=order)
            yield f"rgb{bits}_{name}_planar", same(noise(3, high), 2, bits, order=order, planar=True)
            yield f"rgb{bits}_{name}_planar_deflate", tiff(noise(3, high), 2, bits, order=order, planar=True, compression=8)
            yield f"rgb{bits}_{name}_fill2", tiff(noise(3, high), 2, bits, order=order, fill=2)
            yield f"cmyk{bits}_{name}", tiff(noise(4, high), 5, bits, order=order)
            yield f"cmyk{bits}_{name}_planar", same(noise(4, high), 5, bits, order=order, planar=True)
            yield f"cmyk{bits}_{name}_deflate", tiff(noise(4, high), 5, bits, order=order, compression=8)
            yield f"rgba{bits}_{name}_unsaid", tiff(noise(4, high), 2, bits, order=order)
            for first in (0, 1, 2, 3, 999):
                for count in (1, 2, 3):
                    extra = (first,) + (0,) * (count - 1)
                    yield f"rgb{bits}_extra{first}x{count}_{name}", tiff(noise(3 + count, high), 2, bits, order=order, extra=extra)
            yield f"rgb{bits}_extra1_{name}_planar", same(noise(4, high), 2, bits, order=order, extra=(1,), planar=True)
            yield f"rgb{bits}_extra1_{name}_deflate", tiff(noise(4, high), 2, bits, order=order, extra=(1,), compression=8)
            yield f"rgb{bits}_extra1_{name}_planar_deflate", tiff(noise(4, high), 2, bits, order=order, extra=(1,), planar=True, compression=8)
            yield f"rgb{bits}_extra0_{name}_planar", same(noise(4, high), 2, bits, order=order, extra=(0,), planar=True)
            yield f"rgb{bits}_extra2_{name}_planar", same(noise(4, high), 2, bits, order=order, extra=(2,), planar=True)
            for first in (0, 1, 2):
                yield f"grey{bits}_extra{first}_{name}", tiff(noise(2, high), 1, bits, order=order, extra=(first,))
                yield f"cmyk{bits}_extra{first}_{name}", tiff(noise(5, high), 5, bits, order=order, extra=(first,))
        yield f"grey8_unsaid_{name}", tiff(noise(2), 1, order=order)
        yield f"grey8_white_extra0_{name}", tiff(noise(2), 0, order=order, extra=(0,))
        yield f"cmyk8_extra0x2_{name}", tiff(noise(6), 5, order=order, extra=(0, 0))
        yield f"rgb8_extra0_2_{name}", tiff(noise(5), 2, order=order, extra=(0, 2))
        yield f"rgb8_extra2_2_{name}", tiff(noise(5), 2, order=order, extra=(2, 2))
        for bits in (1, 2, 4, 8, 16):
            for fill in (1, 2):
                tags = colour_map(min(bits, 8))
                yield f"palette{bits}_{name}_fill{fill}", same(noise(1, 2**bits), 3, bits, order=order, fill=fill, tags=tags)
        for first in (0, 1, 2):
            yield f"palette8_extra{first}_{name}", tiff(noise(2), 3, order=order, extra=(first,), tags=colour_map(8))
        yield f"ycbcr_{name}", tiff(noise(3), 6, order=order, tags={530: ("H", [1, 1])}.items())
        yield f"ycbcr_{name}_unsaid", tiff(noise(3), 6, order=order)
        yield f"ycbcr_{name}_deflate", tiff(noise(3), 6, order=order, compression=8, tags={530: ("H", [1, 1])}.items())
        yield f"y_{name}", tiff(noise(1), 6, order=order)
        yield f"lab_{name}", tiff(noise(3), 8, order=order)
        # BigTIFF.
        for label, image in (("grey8", (noise(1), 1)), ("rgb8", (noise(3), 2)), ("palette8", (noise(1), 3))):
            tags = colour_map(8) if image[1] == 3 else ()
            yield f"big_{label}_{name}", same(*image, order=order, big=True, tags=tags)
            yield f"big_{label}_{name}_tiles", same(*image, order=order, big=True, tags=tags, tile=(16, 16), compression=8)
        # Compressions, strips, tiles, predictors.
        for compression in (1, 5, 8, 32946, 32773, 34925):
            for bits, count in ((8, 1), (8, 3), (16, 3), (4, 1)):
                shape = f"c{compression}_{bits}x{count}_{name}"
                image = (noise(count, 2**bits), 2 if count == 3 else 1, bits)
                yield shape + "_strips", tiff(*image, order=order, compression=compression, strip=3)
                yield shape + "_tiles", tiff(*image, order=order, compression=compression, tile=(16, 16))
                if compression == 8:
                    yield shape + "_fill2", tiff(*image, order=order, compression=compression, fill=2)
        for bits, count in ((8, 1), (8, 3), (8, 4), (16, 1), (16, 3), (16, 4), (32, 1), (4, 1)):
            photometric = 2 if count > 2 else 1
            image = (noise(count, 400 if bits > 8 and count == 1 else 2**bits), photometric, bits)
            extra = (2,) if count == 4 else ()
            make = tiff if bits < 32 else lambda *a, **k: same(*a, as_order=b"II", **k)
            for compression in (5, 8):
                yield f"predictor2_c{compression}_{bits}x{count}_{name}", make(*image, order=order, compression=compression, predictor=2, extra=extra)
            yield f"predictor2_{bits}x{count}_{name}_tiles", make(*image, order=order, compression=8, predictor=2, tile=(16, 16), extra=extra)
            yield f"predictor2_{bits}x{count}_{name}_planar", make(*image, order=order, compression=8, predictor=2, planar=True, extra=extra)
        floats = near(1) + noise(1, 8) / 8
        for compression in (5, 8, 34925):
            yield f"predictor3_c{compression}_{name}", same(floats, 1, 32, kind="f", order=order, compression=compression, predictor=3)
        yield f"predictor3_{name}_tiles", same(floats, 1, 32, kind="f", order=order, compression=8, predictor=3, tile=(16, 16))
        yield f"predictor2_float_{name}", same(floats, 1, 32, kind="f", order=order, compression=8, predictor=2)
        yield f"predictor2_packbits_{name}", tiff(noise(3), 2, order=order, compression=32773, tags={317: ("H", [2])}.items())
        yield f"lzw_early_{name}", tiff(noise(1), 1, order=order, compression=5, compressor=lambda data: lzw(data, early=True))
        yield f"planar_strips_{name}", tiff(noise(3), 2, order=order, planar=True, strip=3)
        yield f"planar_tiles_{name}", tiff(noise(3), 2, order=order, planar=True, tile=(16, 16))
        yield f"planar_tiles_{name}_lzw", tiff(noise(3), 2, order=order, planar=True, tile=(16, 16), compression=5)
        yield f"many_tiles_{name}", tiff(noise(3), 2, order=order, tile=(4, 4))
    # Tags that are missing, too long or of other kinds.
    yield "no_photometric", tiff(noise(1), 1, without=(262,))
    yield "no_compression", tiff(noise(1), 1, without=(259,))
    yield "no_samples", tiff(noise(1), 1, without=(277,))
    yield "no_bits", tiff(noise(1, 2), 1, 1, without=(258,))
    yield "no_rows_per_strip", tiff(noise(3), 2, without=(278,))
    yield "no_strip_bytes", tiff(noise(3), 2, without=(279,))
    yield "no_strip_bytes_deflate", tiff(noise(3), 2, compression=8, without=(279,))
    yield "no_offsets", tiff(noise(3), 2, without=(273,))
    yield "no_width", tiff(noise(3), 2, without=(256,))
    yield "no_palette", tiff(noise(1), 3)
    yield "palette_short", tiff(noise(1), 3, tags={320: ("H", rng.integers(0, 65536, 3 * 100).tolist())}.items())
    yield "palette_8_bit_values", tiff(noise(1), 3, tags={320: ("H", rng.integers(0, 256, 768).tolist())}.items())
    yield "bits_once", tiff(noise(3), 2, bits_tag=[8])
    yield "bits_too_many", tiff(noise(1), 1, bits_tag=[8, 8, 8])
    yield "bits_too_few", tiff(noise(3), 2, bits_tag=[8, 8])
    yield "bits_mixed", tiff(noise(3), 2, bits_tag=[8, 8, 16])
    yield "sample_formats_mixed", tiff(noise(3), 2, tags={339: ("H", [1, 2, 1])}.items())
    yield "sample_format_signed_rgb", tiff(noise(3), 2, tags={339: ("H", [2, 2, 2])}.items())
    yield "sample_format_void", tiff(noise(1), 1, tags={339: ("H", [4])}.items())
    yield "long_rows_per_strip", tiff(noise(3), 2, tags={278: ("I", [2**32 - 1])}.items())
    yield "strip_bytes_too_large", tiff(noise(3), 2, tags={279: ("I", [99999])}.items())
    yield "strip_bytes_too_small", tiff(noise(3), 2, tags={279: ("I", [9])}.items())
    yield "strip_bytes_too_large_deflate", same(noise(3), 2, compression=8, tags={279: ("I", [99999])}.items())
    yield "strip_bytes_too_small_deflate", tiff(noise(3), 2, compression=8, tags={279: ("I", [9])}.items())
    yield "offset_beyond", tiff(noise(3), 2, tags={273: ("I", [99999])}.items())
    yield "two_offsets_one_strip", tiff(noise(3), 2, tags={273: ("I", [9999, 16])}.items())
    yield "mixed_order_le", tiff(noise(3), 2, head=b"II\0*")
    yield "mixed_order_be", tiff(noise(3), 2, order=b"MM", head=b"MM*\0")
    yield "samples_seven", tiff(noise(7), 2, extra=(0, 0, 0, 0))
    yield "transparency_mask", tiff(noise(1, 2), 4, 1)
    yield "compression_unknown", tiff(noise(1), 1, tags={259: ("H", [60000])}.items())
    yield "orientation_planar", tiff(noise(3), 2, planar=True, tags={274: ("H", [6])}.items())
    yield "orientation_float", tiff(near(1) / 1.0, 1, 32, "f", tags={274: ("H", [8])}.items())
    for photometric in (0, 1):
        yield f"grey8_{photometric}_lzw_orientation", tiff(noise(1), photometric, compression=5, tags={274: ("H", [5])}.items())
    # What only libtiff writes.
    rgb = Image.fromarray(noise(3, dtype="u1"))
    smooth = Image.fromarray(rng.integers(0, 256, (3, 4, 3)).astype("u1")).resize((40, 24), Image.Resampling.BICUBIC)
    bits = Image.fromarray(noise(1, 2, "u1")[:, :, 0] * 255).convert("1")
    for compression in ("group3", "group4", "tiff_ccitt", "tiff_raw_16"):
        yield compression, saved(bits, compression=compression)
        yield f"{compression}_black", saved(bits, compression=compression, tiffinfo={262: 1})
        yield f"{compression}_fill2", saved(bits, compression=compression, tiffinfo={266: 2})
    yield "group3_two_dimensional", saved(bits, compression="group3", tiffinfo={292: 1})
    yield "group3_padded", saved(bits, compression="group3", tiffinfo={292: 4})
    yield "group4_wide", saved(bits.resize((300, 9)), compression="group4")
    yield "ccitt_wide", saved(bits.resize((3000, 3)), compression="tiff_ccitt")
    yield "group3_wide", saved(bits.resize((3000, 3)), compression="group3")
    yield "group4_white", saved(Image.new("1", (70, 5), 1), compression="group4")
    for compression in ("tiff_lzw", "zstd", "lzma", "packbits"):
        yield f"saved_{compression}", saved(rgb, compression=compression)
        yield f"saved_{compression}_predictor", saved(rgb, compression=compression, tiffinfo={317: 2})
        yield f"saved_{compression}_big", saved(smooth, compression=compression, big_tiff=True)
    for mode in ("L", "RGB", "CMYK", "YCbCr"):
        yield f"jpeg_{mode}", saved(smooth.convert(mode), compression="jpeg", quality=90)
    yield "jpeg_strips", saved(smooth.resize((40, 80)), compression="jpeg", quality=90, strip_size=2000)
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"):
        image = rgb.convert("L").convert(mode) if mode in ("I", "F", "I;16") else rgb.convert("RGBA").convert(mode) if mode == "RGBX" else rgb.convert(mode) if mode != "LAB" and mode != "PA" else None
        if image is not None:
            yield f"saved_{mode.replace(';', '')}", saved(image)


def pixels(data, alpha):
    image = Image.open(io.BytesIO(data))
    mode = image.mode
    if mode == "La":
        image = image.convert("LA")
    if alpha and image.mode != "RGB":
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255))
        return mode, Image.alpha_composite(white, image).convert("RGB")
    return mode, image.convert("RGB")


def main():
    warnings.simplefilter("ignore")
    OUT.mkdir(exist_ok=True)
    lines, packed, blob, known = [], b"", bytearray(), {}

    def place(data):
        if data not in known:
            known[data] = len(blob)
            blob.extend(data)
        return known[data]

    for name, data in files():
        packed += data
        try:
            image = getattr(data, "other", data)
            mode, white = pixels(image, True)
            _, plain = pixels(image, False)
        except Exception as error:
            lines.append(f"{name}\t{len(data)}\t-\t{type(error).__name__}\n")
            continue
        places = place(white.tobytes()), place(plain.tobytes())
        lines.append(f"{name}\t{len(data)}\t{mode}\t{white.width}\t{white.height}\t{places[0]}\t{places[1]}\n")
    (OUT / "files.bin.gz").write_bytes(gzip.compress(packed, 9, mtime=0))
    (OUT / "expected.bin.gz").write_bytes(gzip.compress(blob, 9, mtime=0))
    (OUT / "index.tsv").write_text("".join(lines))
    print(len(lines), "files,", len(packed), "bytes,", len(blob), "bytes expected", file=sys.stderr)


main()
