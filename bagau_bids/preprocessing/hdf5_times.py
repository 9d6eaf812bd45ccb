"""Taking the times out of HDF5 files, so that equal content is equal bytes.

ITK cannot be told not to write when a file was made. Times lie in object headers of version 2
(HDF5 File Format Specification 3.0, IV.A.1.b), which end with a checksum: Jenkins' lookup3.
"""

from pathlib import Path

SIGNATURE = b"OHDR\x02"
HAS_TIMES, HAS_PHASES, SIZE_OF_SIZE = 0x20, 0x10, 0x03  # flags of a header
TIMES = 16  # bytes: access, modification, change, birth
CHECKSUM = 4
WORD = 0xFFFFFFFF


def forget_times(path: Path) -> None:
    """Set all times in an HDF5 file to 0, in place.

    Bytes that look like a header, but do not have its checksum, are left as they are.
    """
    content = bytearray(path.read_bytes())
    start = content.find(SIGNATURE)
    while start >= 0:
        _forget_times_of_header(content, start)
        start = content.find(SIGNATURE, start + 1)
    path.write_bytes(content)


def _forget_times_of_header(content: bytearray, start: int) -> None:
    """Set the times of the header at `start` to 0 where it is one and has some."""
    place = start + len(SIGNATURE)
    flags = content[place]
    times = place + 1
    if not flags & HAS_TIMES:
        return
    sizes = times + TIMES + (4 if flags & HAS_PHASES else 0)
    messages = sizes + (1 << (flags & SIZE_OF_SIZE))
    end = messages + int.from_bytes(content[sizes:messages], "little")
    checksum = slice(end, end + CHECKSUM)
    if content[checksum] != lookup3(content[start:end]).to_bytes(CHECKSUM, "little"):
        return
    content[times : times + TIMES] = bytes(TIMES)
    content[checksum] = lookup3(content[start:end]).to_bytes(CHECKSUM, "little")


def lookup3(data: bytes | bytearray) -> int:
    """Return Bob Jenkins' hash ``hashlittle`` of bytes, begun at 0, as HDF5 uses it."""
    a = b = c = (0xDEADBEEF + len(data)) & WORD
    blocks = [data[place : place + 12] for place in range(0, len(data), 12)]
    for number, block in enumerate(blocks):
        x, y, z = (int.from_bytes(block[place : place + 4], "little") for place in (0, 4, 8))
        a, b, c = (a + x) & WORD, (b + y) & WORD, (c + z) & WORD
        a, b, c = _final(a, b, c) if number == len(blocks) - 1 else _mix(a, b, c)
    return c


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for turn in (4, 6, 8, 16, 19, 4):
        a = ((a - c) & WORD) ^ _turned(c, turn)
        c = (c + b) & WORD
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> tuple[int, int, int]:
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _turned(b, turn)) & WORD
        a, b, c = b, c, a
    return c, a, b


def _turned(value: int, by: int) -> int:
    return ((value << by) | (value >> (32 - by))) & WORD
