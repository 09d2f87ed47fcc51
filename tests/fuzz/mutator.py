"""Seeded mutations of a file: of its bytes, of its text, and of what a gzip or zip file holds.

A file of text gets numbers, words and lines that readers trip over besides flipped bits; what a gzip or zip
file holds is also damaged inside and packed again, so that the damage passes the archive's own CRC.
"""

import contextlib
import functools
import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

TEXT_SUFFIXES = frozenset({"", ".csv", ".hea", ".http", ".json", ".jsonl", ".yaml"})
"""Files that are damaged as text too; those without a suffix are `RECORDS`."""

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_./~-]*|\"[^\"\n]*\"")
_INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_FLOATS = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e-300, 1e30, 4.1e9)
_NUMBERS = (
    *(b"0", b"-1", b"1", b"2", b"0.1", b"1e-9", b"1e9", b"1e308", b"1e999", b"nan", b"inf", b"-inf"),
    *(b"2147483648", b"9223372036854775808", b"9" * 4000, b"1_000", b"0x10", "²".encode(), "１".encode()),
    *(b"true", b"null", b"", b'""', b'"x"', b"[]", b"{}"),
)
_WORDS = (
    *(b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"'", b"\r", b"\n\n", b"#", b":", b","),
    *(b"/", b"..", b"../../x", b"~", b"~nobody/x", b"%s", "é".encode(), b"x" * 300, b"x" * 200_000),
    *(b"[" * 20_000, b'{"a":' * 20_000, b"a: &a [*a]", b"<<: *a", b"!!python/object/apply:os.getcwd []"),
)
_UNKNOWN_KEYS = 100_000
_BOMB_CHUNK = 16 << 20
_BOMB_CHUNKS = 200  # 3.3 GB
_BOMB_CHANCE = 1 / 200


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A damaged file: how, its bytes, and whether the archive's own checksums were made to fit again."""

    how: str
    content: bytes
    forged: bool


def damage(content: bytes, suffix: str, random: Random) -> Damage:
    """Damage a file's `content` one to four times; the result differs from it."""
    forged, steps, damaged = False, [], content
    while damaged == content:
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            kind = _archive_of(damaged)
            if kind is not None and random.random() < 0.7:
                how, damaged = kind(damaged, random)
                forged = True
            else:
                how, damaged = _plain(damaged, suffix, random)
            steps.append(how)
            if how.endswith("bomb"):
                break  # the next step would unpack it
    return Damage(how=", ".join(steps), content=damaged, forged=forged)


Mutation = Callable[[bytes, Random], bytes]


def _plain(content: bytes, suffix: str, random: Random) -> tuple[str, bytes]:
    known: Sequence[Mutation] = BYTES
    if suffix in TEXT_SUFFIXES and random.random() < 0.8:
        known = (*TEXT, yaml_bomb) if suffix == ".yaml" else TEXT
    mutate = random.choice(known)
    return mutate.__name__, mutate(content, random)


# ---------------------------------------------------------------- bytes


def _position(content: bytes, random: Random) -> int:
    """A place in the file; a quarter each in the first and last half kilobyte, where headers stand."""
    where = random.random()
    low = max(0, len(content) - 512) if where < 0.25 else 0
    high = min(512, len(content)) if 0.25 <= where < 0.5 else len(content)
    return random.randrange(low, max(low + 1, high))


def _block(content: bytes, random: Random) -> tuple[int, int]:
    start = _position(content, random)
    return start, min(len(content), start + random.choice((1, 4, 16, 64, 512, 4096, 65536)))


def flip_a_bit(content: bytes, random: Random) -> bytes:
    at = _position(content, random)
    return (
        content[:at]
        + bytes(byte ^ 1 << random.randrange(8) for byte in content[at : at + 1])
        + content[at + 1 :]
    )


def randomise(content: bytes, random: Random) -> bytes:
    start, stop = _block(content, random)
    return content[:start] + random.randbytes(stop - start) + content[stop:]


def truncate(content: bytes, random: Random) -> bytes:
    return content[: random.choice((0, 1, _position(content, random), max(0, len(content) - 1)))]


def delete(content: bytes, random: Random) -> bytes:
    start, stop = _block(content, random)
    return content[:start] + content[stop:]


def zero(content: bytes, random: Random) -> bytes:
    start, stop = _block(content, random)
    return content[:start] + bytes(stop - start) + content[stop:]


def repeat(content: bytes, random: Random) -> bytes:
    start, stop = _block(content, random)
    return content[:stop] + content[start:stop] * random.choice((1, 2, 50)) + content[stop:]


def splice(content: bytes, random: Random) -> bytes:
    """Overwrite a block with another of the file."""
    (start, stop), (at, end) = _block(content, random), _block(content, random)
    return content[:start] + content[at:end] + content[stop:]


def extend(content: bytes, random: Random) -> bytes:
    return content + random.randbytes(random.choice((1, 7, 1000)))


def set_a_field(content: bytes, random: Random) -> bytes:
    """Set a length, count or rate of 1 to 8 bytes, to an extreme value or to one beside its own."""
    start = _position(content, random)
    if random.random() < 0.3:
        packed = struct.pack(*random.choice((("<f", _finite32(random)), ("<d", random.choice(_FLOATS)))))
    else:
        width = random.choice((1, 2, 4, 8))
        own = int.from_bytes(content[start : start + width], "little")
        value = random.choice((*_INTEGERS, own + 1, own - 1, own * 2, random.getrandbits(64)))
        packed = (value % 256**width).to_bytes(width, random.choice(("little", "big")))
    return content[:start] + packed + content[start + len(packed) :]


def _finite32(random: Random) -> float:
    return random.choice([value for value in _FLOATS if not 0 < abs(value) < 1e-30])


BYTES: Sequence[Mutation] = (
    *(
        flip_a_bit,
        flip_a_bit,
        set_a_field,
        set_a_field,
        randomise,
        truncate,
        delete,
        zero,
        repeat,
        splice,
        extend,
    ),
)


# ---------------------------------------------------------------- text


def _replace_one(
    pattern: re.Pattern[bytes], content: bytes, random: Random, values: Sequence[bytes]
) -> bytes:
    found = list(pattern.finditer(content))
    if not found:
        return content + random.choice(values)
    match = random.choice(found)
    return content[: match.start()] + random.choice(values) + content[match.end() :]


def set_a_number(content: bytes, random: Random) -> bytes:
    own = random.choice(_NUMBER.findall(content) or [b"0"])
    digit = str(random.randrange(10)).encode()
    return _replace_one(_NUMBER, content, random, (*_NUMBERS, own, own + digit, b"-" + own, digit, own[:-1]))


def set_a_word(content: bytes, random: Random) -> bytes:
    own = random.choice(_WORD.findall(content) or [b"x"])
    return _replace_one(
        _WORD, content, random, (*_WORDS, *_NUMBERS, own, own, own, own.swapcase(), own + b"x")
    )


def insert_a_word(content: bytes, random: Random) -> bytes:
    at = _position(content, random)
    return content[:at] + random.choice((*_WORDS, *_NUMBERS)) + content[at:]


def change_lines(content: bytes, random: Random) -> bytes:
    """Repeat, drop, swap or indent a line."""
    lines = content.split(b"\n")
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    what = random.randrange(4)
    if what == 0:
        lines[one:one] = [lines[other]] * random.choice((1, 1, 1000))
    elif what == 1:
        del lines[one]
    elif what == 2:
        lines[one], lines[other] = lines[other], lines[one]
    else:
        lines[one] = b"  " + lines[one]
    return b"\n".join(lines)


def add_unknown_keys(content: bytes, random: Random) -> bytes:
    if b"{" in content:
        head, brace, tail = content.partition(b"{")
        keys = b"".join(b'"k%d": 0, ' % number for number in range(_UNKNOWN_KEYS))
        return head + brace + keys + tail
    return content + b"\n" + b"".join(b"k%d: 0\n" % number for number in range(_UNKNOWN_KEYS))


def yaml_bomb(content: bytes, random: Random) -> bytes:
    """Ten lines whose aliases unfold to ten to the tenth values."""
    lines = [b"b0: &b0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [b"b%d: &b%d [%s]" % (n, n, b", ".join([b"*b%d" % (n - 1)] * 10)) for n in range(1, 10)]
    return content + b"\n" + b"\n".join(lines) + b"\n"


TEXT: Sequence[Mutation] = (
    *(set_a_number,) * 8, *(set_a_word,) * 5, *(insert_a_word,) * 3, *(change_lines,) * 3, add_unknown_keys,
)  # fmt: skip


# ---------------------------------------------------------------- archives


def _archive_of(content: bytes) -> Callable[[bytes, Random], tuple[str, bytes]] | None:
    """What damages the inside of `content`, if it is an archive that can still be opened."""
    if content.startswith(b"\x1f\x8b"):
        return _damage_gzip
    try:
        is_zip = content.startswith(b"PK") and zipfile.is_zipfile(io.BytesIO(content))
    except zipfile.BadZipFile:  # as of an archive on several disks
        return None
    return _damage_zip if is_zip else None


def _damage_gzip(content: bytes, random: Random) -> tuple[str, bytes]:
    if random.random() < _BOMB_CHANCE:
        return "gzip bomb", content + gzip.compress(bytes(_BOMB_CHUNK), 1, mtime=0) * _BOMB_CHUNKS
    try:
        inner = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):  # damaged outside by the step before
        return _plain(content, ".gz", random)
    how, inner = _plain(inner, ".gz", random)
    return f"gzip inside: {how}", gzip.compress(inner, 1, mtime=0)


def _damage_zip(content: bytes, random: Random) -> tuple[str, bytes]:
    if random.random() < _BOMB_CHANCE:
        with contextlib.suppress(struct.error, zipfile.BadZipFile):  # damaged outside by the step before
            return "zip bomb", _with_zip_bomb(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
    except Exception:  # damaged outside by the step before
        return _plain(content, ".zip", random)
    chosen = random.randrange(len(members)) if members else -1
    how, out = "repacked", io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number, (info, inner) in enumerate(members):
            if number == chosen:
                # The header of an .npy is text; that of a pickle is not.
                how, inner = _plain(inner, "" if info.filename.endswith(".npy") else ".bin", random)
                how = f"{info.filename} inside: {how}"
            fresh = zipfile.ZipInfo(info.filename, (1980, 1, 1, 0, 0, 0))
            archive.writestr(fresh, inner, info.compress_type)
    return how, out.getvalue()


def _with_zip_bomb(content: bytes) -> bytes:
    """The archive with a member of zeros that is 3 GB when unpacked."""
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as archive:
        info = zipfile.ZipInfo("bomb.npy", (1980, 1, 1, 0, 0, 0))
        archive.writestr(info, _deflated_zeros())
        # What the directory at the end says counts.
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, _BOMB_CHUNK * _BOMB_CHUNKS + 128
    return out.getvalue()


@functools.cache
def _deflated_zeros() -> bytes:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }" % (_BOMB_CHUNK * _BOMB_CHUNKS)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    start = packer.compress(b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n")
    start += packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(_BOMB_CHUNK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + zeros * _BOMB_CHUNKS + packer.flush(zlib.Z_FINISH)
