# ruff: noqa: E501  (tables of evil values, a hundred a line)
"""Files spoilt at random, and the same way each time: bits and lengths of any file, and what its own format knows.

`spoil` changes a file once to three times. Where the format has check sums (a zip, a tar, a PNG), what is inside is as
often spoilt before they are computed: else nothing would come further than the check.
"""

import gzip
import io
import json
import pickletools
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

Spoiler = Callable[[random.Random, bytes], bytes]

# What an opcode, a name or a value calls for if anybody runs it: a file of this name in the working folder.
CANARY = "canary"
_COMMAND = f"touch {CANARY}"
_BIG = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 2**64 - 1)
_EVIL_NAMES = (
    "../outside.png", "../../outside.png", "/outside.png", "..\\outside.png", "C:/outside.png", "a/../../outside.png",
    "dataset.json", "data.pkl", "x/data.pkl", "x\0y.png", "\ud7ff.png", "e\u0301.png", "." * 300 + ".png", "", ".", "/",
    "cifar-10-batches-py/data_batch_1", "a/" * 400 + "b.png", "-.png", "x\ny.png", "~/.png", "a//b.png", "./a.png",
)  # fmt: skip


def spoil(random_: random.Random, content: bytes, name: str, others: list[bytes]) -> bytes:
    """The content of a file of this name, spoilt; others: whole files of the format, to splice with."""
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        own = SPOILERS.get(_ending(name))
        if own and random_.random() < 0.6:
            content = _whole_again(own, random_, content)
        else:
            content = _anyhow(random_, content, others)
    return content


def _ending(name: str) -> str:
    for ending in sorted(SPOILERS, key=len, reverse=True):
        if name.endswith(ending):
            return ending
    return ""


def _whole_again(own: Spoiler, random_: random.Random, content: bytes) -> bytes:
    """What the format's own spoiler makes; of a file that is too far gone for it, what bits make."""
    try:
        return own(random_, content)
    except Exception:  # the second change of a file may find anything
        return _anyhow(random_, content, [content])


# ---- any file


def _anyhow(random_: random.Random, content: bytes, others: list[bytes]) -> bytes:
    size, at = len(content), random_.randrange(len(content) + 1)
    some = random_.randrange(1, 1 + max(1, min(size, 1 << random_.randrange(1, 12))))
    match random_.randrange(9):
        case 0:  # a few bits
            spoilt = bytearray(content)
            for _ in range(random_.randrange(1, 9) if spoilt else 0):
                spoilt[random_.randrange(size)] ^= 1 << random_.randrange(8)
            return bytes(spoilt)
        case 1:
            return content[:at]
        case 2:
            return content[at:]
        case 3:
            return content[:at] + content[at + some :]
        case 4:
            return content[:at] + random_.randbytes(some) + content[at:]
        case 5:  # a piece once more
            return content[: at + some] + content[at:]
        case 6:  # a length
            width, order = random_.choice((1, 2, 4, 8)), random_.choice(("little", "big"))
            number = random_.choice(_BIG) & (1 << 8 * width) - 1
            return content[:at] + number.to_bytes(width, order) + content[at + width :]
        case 7:
            other = random_.choice(others)
            return content[:at] + other[random_.randrange(len(other) + 1) :]
        case _:
            return content[:at] + bytes([random_.choice((0, 255, 32, 10, 48, 57))]) * some + content[at + some :]


# ---- gzip and PNG


def _gzip(random_: random.Random, content: bytes) -> bytes:
    return gzip.compress(_anyhow(random_, gzip.decompress(content), [content]), 1, mtime=0)


def _png(random_: random.Random, content: bytes) -> bytes:
    """A chunk spoilt, dropped, doubled or moved, all with the right check sums."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += length + 12
    place = random_.randrange(len(chunks))
    kind, body = chunks[place]
    match random_.randrange(6):
        case 0:
            chunks[place] = kind, _anyhow(random_, body, [body])
        case 1:
            del chunks[place]
        case 2:
            chunks.insert(random_.randrange(len(chunks)), (kind, body))
        case 3:
            sides = [random_.choice((0, 1, 8, 255, 8192, 60000, 0x7FFFFFFF)) for _ in "wh"]
            how = [random_.choice((1, 8, 16)), random_.choice((0, 2, 3, 4, 6)), 0, 0, random_.randrange(2)]
            chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *sides, *how)
        case 4:
            name = random_.choice((b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"PLTE", b"acTL", b"fdAT", b"eXIf", b"xxxx"))
            chunks.insert(place, (name, b"a\0\0" + zlib.compress(bytes(random_.choice((10, 1 << 22))))))
        case _:
            chunks = [(k, zlib.compress(bytes(1 << 20), 1) if k == b"IDAT" else b) for k, b in chunks]
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return content[:8] + b"".join(parts)


# ---- zips


@dataclass(frozen=True)
class Member:
    """An entry of a zip as it stands in the file; what it says of itself need not be so."""

    name: str
    method: int
    crc: int
    size: int
    packed: bytes
    mode: int = 0o644 << 16
    flags: int = 0
    claimed: int | None = None  # packed size, if not that of `packed`

    @classmethod
    def of(cls, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> "Member":
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        packed = content if method == zipfile.ZIP_STORED else packer.compress(content) + packer.flush()
        return cls(name, method, zlib.crc32(content), len(content), packed)


def zipped(members: list[Member]) -> bytes:
    """A zip of these entries, written by hand, since `zipfile` writes no wrong ones."""
    body, directory = b"", b""
    for one in members:
        name = one.name.encode("utf-8", "surrogatepass")[:65535]
        claimed = len(one.packed) if one.claimed is None else one.claimed
        sizes = one.crc & 0xFFFFFFFF, claimed & 0xFFFFFFFF, one.size & 0xFFFFFFFF
        common = struct.pack("<HHHHHIII", 20, one.flags | 0x800, one.method, 0, 33, *sizes) + struct.pack(
            "<HH", len(name), 0
        )
        directory += b"PK\1\2" + struct.pack("<H", 0x314) + common
        directory += struct.pack("<HHHII", 0, 0, 0, one.mode, len(body)) + name
        body += b"PK\3\4" + common + name + one.packed
    counts = len(members) & 0xFFFF
    return body + directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, counts, counts, len(directory), len(body), 0)


def _members(content: bytes) -> list[Member]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [Member.of(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]


def _zip(random_: random.Random, content: bytes) -> bytes:
    members = _members(content)
    place = random_.randrange(len(members))
    one = members[place]
    match random_.randrange(12):
        case 0 | 1 | 2 | 3 | 4:  # what is inside, with the right check sum
            plain = one.packed if one.method == zipfile.ZIP_STORED else zlib.decompress(one.packed, -15)
            members[place] = Member.of(one.name, spoil(random_, plain, one.name, [plain]), one.method)
        case 5:
            members[place] = replace(one, name=random_.choice(_EVIL_NAMES))
        case 6:
            members.insert(random_.randrange(len(members)), one)
        case 7:
            del members[place]
        case 8:
            members[place] = replace(one, size=random_.choice(_BIG), claimed=random_.choice((None, *_BIG)))
        case 9:
            members[place] = Member.of(
                one.name, bytes(random_.choice((1 << 20,) * 9 + (80 << 20,))), zipfile.ZIP_DEFLATED
            )
        case 10:
            members[place] = replace(
                one, method=random_.choice((1, 8, 9, 12, 14, 93, 99)), flags=random_.choice((0, 1, 8))
            )
        case _:
            members[place] = replace(one, mode=0o120777 << 16, packed=b"../../outside.png", size=17)
    return zipped(members)


# ---- tars


def _tar(random_: random.Random, content: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        entries = [(info, archive.extractfile(info).read() if info.isreg() else b"") for info in archive]
    place = random_.randrange(len(entries))
    info, inside = entries[place]
    match random_.randrange(8):
        case 0 | 1 | 2:
            inside = spoil(random_, inside, info.name, [inside])
        case 3:
            info.name = random_.choice([name for name in _EVIL_NAMES if "\0" not in name])
        case 4:
            info.type = random_.choice((b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"L", b"S", b"?"))
            info.linkname, inside = random_.choice(("../../outside", "/etc/hostname", info.name, "", "a")), b""
        case 5:
            entries.insert(random_.randrange(len(entries)), entries[place])
        case 6:
            del entries[place]
        case _:
            key = random_.choice(("path", "linkpath", "size", "mtime", "uid", "GNU.sparse.map", "hdrcharset"))
            info.pax_headers = {
                key: random_.choice(("../x", "-1", "1e99", "9" * 30, "x\0", "\u00e9", "BINARY", "1,2,3"))
            }
    if random_.randrange(8) and place < len(entries):
        info.size = len(inside)
        entries[place] = info, inside
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, inside in entries:
            archive.addfile(info, io.BytesIO(inside.ljust(max(0, min(info.size, 1 << 20)), b"\0")))
    return file.getvalue()


def _tar_gz(random_: random.Random, content: bytes) -> bytes:
    if random_.randrange(64) == 0:
        return gzip.compress(gzip.decompress(content) + bytes(96 << 20), 1, mtime=0)
    return gzip.compress(_tar(random_, gzip.decompress(content)), 1, mtime=0)


# ---- pickles


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


_SNIPPETS = (
    b"cos\nsystem\n" + _text(_COMMAND) + b"\x85R",
    b"cposix\nsystem\n(" + _text(_COMMAND) + b"tR",
    _text("builtins") + _text("exec") + b"\x93" + _text(f"open('{CANARY}', 'w')") + b"\x85R",
    b"(" + _text(_COMMAND) + b"ios\nsystem\n",
    b"cbuiltins\ngetattr\n", b"cnumpy\nload\n", b"ctorch\nload\n", b"c__main__\nx\n", b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy\ndtype\n" + _text("O8") + b"\x85R", b"cnumpy\ndtype\n" + _text("V99999999") + b"\x85R",
    b"ccollections\nOrderedDict\n)R", b"cbuiltins\nset\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch.storage\n_load_from_bytes\n", b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n", b"ctorch\nSize\n",
    b"cnumpy.core.multiarray\nscalar\n", b"ctorch.nn.modules.linear\nLinear\n)R", b"c_codecs\nencode\n",
    b"N", b"}", b"]", b")", b"(", b"0", b"1", b"2", b"\x85", b"\x86", b"\x87", b"R", b"b", b"a", b"e", b"s", b"u", b"t", b"l",
    b"d", b".", b"\x93", b"\x94", b"\x81", b"\x90", b"\x8f", b"Q", b"G\x7f\xf8" + bytes(6), b"K\xff", b"J\xff\xff\xff\xff",
    b"L" + b"9" * 5000 + b"L\n", b"I1e5\n", b"F1e999\n", b"\x8a\xff" + b"\xff" * 255, b"\x8b\xff\xff\xff\x7f",
    b"B\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x8d" + b"\xff" * 7 + b"\x7f", b"\x96" + b"\xff" * 7 + b"\x7f",
    b"\x95" + b"\xff" * 8, b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"\x82\x01", b"\x97", b"\x98", b"h\x00", b"q\x00",
    b"]" * 3000, b"(" * 3000, b"]" * 2000 + b"a" * 1999, b")" + b"\x85" * 5000, b"}" + b"}" + b")" + b"\x85" * 900 + b"Ns",
    b"]q\xfah\xfaa",  # a list that holds itself
    b"]" + b"2\x86" * 64,  # tuples of tuples: as many leaves as 2 to the power of 64
)  # fmt: skip


def _pickle(random_: random.Random, content: bytes) -> bytes:
    places = [at for _, _, at in pickletools.genops(content)]
    first = random_.randrange(len(places))
    start, end = places[first], places[first + 1] if first + 1 < len(places) else len(content)
    match random_.randrange(6):
        case 0 | 1 | 2:
            return content[:start] + random_.choice(_SNIPPETS) + content[start:]
        case 3:
            return content[:start] + content[end:]
        case 4:
            return content[:end] + content[start:]
        case _:
            return content[:start] + random_.choice(_SNIPPETS) + content[end:]


# ---- JSON, and what holds it


def _values() -> tuple:
    deep: object = 0
    for _ in range(300):
        deep = [deep]
    return (
        None, True, False, 0, 1, -1, 2, 7, 10**6, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
        "", "x", "nan", "1", "../../outside", "a" * 5000, "\ud800", "\0", "<script>", "x\ny", "=1+1", "100%", "{x}", [], {}, [[]], {"": {}},
        [0] * 3000, {"x": [1]}, deep, "SongUNet", "digits", 8, 64, 10**9, [1, 2], "2024-01-01", [None], {"a": None},
    )  # fmt: skip


def _tree(random_: random.Random, value: object) -> object:
    """The value with one place in it changed."""
    places: list = []

    def walk(holder: object, depth: int) -> None:
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, inner in items:
            places.append((holder, key))
            if isinstance(inner, dict | list) and depth < 50:
                walk(inner, depth + 1)

    if isinstance(value, dict | list):
        walk(value, 0)
    if not places or random_.random() < 0.03:
        return random_.choice(_values())
    holder, key = random_.choice(places)
    match random_.randrange(6):
        case 0 | 1 | 2:
            holder[key] = random_.choice(_values())
        case 3:
            del holder[key]
        case 4:  # a value from elsewhere in it
            other, place = random_.choice(places)
            holder[key] = (
                other[place] if not isinstance(other[place], dict | list) else json.loads(json.dumps(other[place]))
            )
        case _ if isinstance(holder, dict):
            holder[random_.choice(("", "x", "\0", "a b", "__class__", key + "x"))] = holder.pop(key)
        case _:
            holder.append(holder[key])
    return value


_TEXTS = (
    "[" * 100_000, '{"a":' * 50_000, "1" * 5000, "1e9999", "-Infinity", "NaN", '"\\ud800"', "\ufeff", "'", '{"a": 1, "a": 2}', "null",
)  # fmt: skip


def _json(random_: random.Random, content: bytes) -> bytes:
    if random_.random() < 0.1:
        text, word = content.decode(), random_.choice(_TEXTS)
        at = random_.randrange(len(text) + 1)
        return (text[:at] + word + text[at:]).encode()
    return json.dumps(_tree(random_, json.loads(content))).encode("utf-8", "surrogatepass")


def _safetensors(random_: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", content)
    header, body = content[8 : 8 + length], content[8 + length :]
    if random_.randrange(4) == 0:
        numbers = np.frombuffer(body, np.uint8).copy()
        numbers[random_.randrange(len(numbers)) :][:8] = random_.choice((0, 127, 128, 255))
        body = numbers.tobytes()
    else:
        header = _json(random_, header)
    return struct.pack("<Q", random_.choice((len(header),) * 6 + _BIG[-3:])) + header + body


def _notebook(random_: random.Random, content: bytes) -> bytes:
    """As JSON, mostly in the score bundle: the rest of a notebook is a few names."""
    document = json.loads(content)
    bundles = [
        (output["data"], mime)
        for cell in document["cells"]
        for output in cell.get("outputs", ())
        for mime in output.get("data", {})
        if mime.startswith("application/vnd")
    ]
    if not bundles or random_.random() < 0.3:
        return _json(random_, content)
    holder, mime = random_.choice(bundles)
    holder[mime] = _tree(random_, holder[mime])
    return json.dumps(document).encode("utf-8", "surrogatepass")


# ---- npz: zips of npy, whose header is text


def _npy(random_: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack_from("<H", content, 8)
    header, body = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    at = random_.randrange(len(header))
    shape = header[header.index("(") : header.index(")") + 1]
    kind = header.split("'")[3]
    match random_.randrange(5):
        case 0:
            header = header.replace(
                shape,
                random_.choice(("(99999999999,)", "(-1, 4)", "()", "(0, 8, 8, 3)", "(2**40,)", "(1,)", "(True, 3)")),
            )
        case 1:
            header = header.replace(
                f"'{kind}'",
                random_.choice(
                    ("'|O'", "'<f8'", "'|V99'", "[('a', '<f8')]", "'<U9'", "'<M8[s]'", "'|S4'", "'?'", "'<c16'", "'x'")
                ),
            )
        case 2:
            header = header.replace("False", random_.choice(("True", "None", "[]", "1e9")))
        case 3:
            header = (
                header[:at] + random_.choice(("(" * 200, "'" * 3, "\\", "__import__('os')", "9" * 5000)) + header[at:]
            )
        case _:
            body = _anyhow(random_, body, [body])
    return content[:8] + struct.pack("<H", len(header) & 0xFFFF) + header.encode("latin1") + body


# ---- idx


def _idx(random_: random.Random, content: bytes) -> bytes:
    axes = content[3]
    lengths = list(struct.unpack_from(f">{axes}i", content, 4))
    lengths[random_.randrange(axes)] = random_.choice((0, -1, 1, 2, 4, 7, 2**31 - 1, -(2**31)))
    return content[:4] + struct.pack(f">{axes}i", *lengths) + content[4 + 4 * axes :]


# ---- YAML

_YAML = (
    "*a", "&a [*a]", "!!python/object/apply:os.system ['" + _COMMAND + "']", "!!python/name:os.system", "!!binary aGk=", "!!set {a, b}",
    "<<: *a", "<<: {a: 1}", "? [a, b]\n: c", "!!int x", "!!float x", "!!timestamp x", "2024-01-01", "2024-13-41", "0x_", "1_000", "1:60:60", ".inf", ".nan", "~",
    "on", "no", "1e4", "=", "null", "'", '"', "|", ">", "---", "...", "%YAML 9.9", "\t", "- ", "  ", "{", "[", "}", "]", ": ", "#", "@", "`",
    "[" * 2000, "{a: " * 900, "- " * 900, "9" * 5000, "0b2", "09", "!x y", "!<tag:yaml.org,2002:python/name:os.system> x", "\ufffe", "\x07", "\u2028",
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e]\n"
    "g: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f]\nh: &h [*g, *g, *g, *g, *g, *g, *g, *g, *g]\n",
    "os.system", "subprocess.Popen", "builtins.exec", "x.py", "../x.py", "/etc/passwd", "nan", "1e999", "-1", "0", "1.5", "9999999999", "a+a", "size+kimg",
    "[1, 2, 3]", "{a: 1}", "[[1], [2]]", "[&x {y: *x}]", "{? {a: b} : c}", "{[a]: b}",
)  # fmt: skip


def _yaml(random_: random.Random, content: bytes) -> bytes:
    lines = content.decode("utf-8", "replace").split("\n")
    place, word = random_.randrange(len(lines)), random_.choice(_YAML)
    line = lines[place]
    match random_.randrange(7):
        case 0:
            lines.insert(place, word)
        case 1 | 2 if ":" in line:
            lines[place] = line.split(":")[0] + ": " + word
        case 3:
            at = random_.randrange(len(line) + 1)
            lines[place] = line[:at] + word + line[at:]
        case 4:
            lines[place] = random_.choice((" ", "  ", "- ", "\t")) + line
        case 5:
            del lines[place]
        case _:
            lines.insert(random_.randrange(len(lines)), random_.choice(lines))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


SPOILERS: dict[str, Spoiler] = {
    ".gz": _gzip,
    ".png": _png,
    ".zip": _zip,
    ".pth": _zip,
    ".npz": _zip,
    ".npy": _npy,
    ".tar": _tar,
    ".tar.gz": _tar_gz,
    ".pkl": _pickle,
    ".json": _json,
    ".ipynb": _notebook,
    ".safetensors": _safetensors,
    "-ubyte": _idx,
    ".yaml": _yaml,
}
