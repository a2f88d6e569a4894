"""gzip on all cores: one ordinary member whose deflate blocks are packed side by side.

Each block is packed on its own and ends on a whole byte (a sync flush), so the blocks follow each other in one stream
that every reader of gzip takes. The bytes depend on the blocks alone, never on the number of threads. ISA-L packs
without the interpreter's lock.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from isal import isal_zlib

from .cores import threads

LEVEL = 2
HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no name, no time: equal voxels give equal files
LAST_BLOCK = b"\x03\0"  # an empty final deflate block

Block = bytes | memoryview


def gzipped(blocks: Iterable[Block]) -> Generator[Block, None, None]:
    """The bytes of a gzip file, piece by piece.

    Memory: one block a thread and one more, packed and unpacked.
    """
    checksum, length = 0, 0
    yield HEAD
    for piece, crc, size in packed_blocks(blocks):
        checksum = isal_zlib.crc32_combine(checksum, crc, size)
        length += size
        yield piece
    yield LAST_BLOCK + struct.pack("<II", checksum, length & 0xFFFFFFFF)


def packed_blocks(blocks: Iterable[Block]) -> Iterator[tuple[bytes, int, int]]:
    """Each block packed, with its checksum and length, in order."""
    workers = threads()
    if workers == 1:
        yield from map(packed, blocks)
        return
    waiting: deque[Future[tuple[bytes, int, int]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="gzip") as pool:
        try:
            for block in blocks:
                waiting.append(pool.submit(packed, block))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def packed(block: Block) -> tuple[bytes, int, int]:
    """One block as raw deflate that ends on a whole byte."""
    packer = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -15)
    piece = packer.compress(block) + packer.flush(isal_zlib.Z_SYNC_FLUSH)
    return piece, isal_zlib.crc32(block), len(block)
