"""Which container a file is, told by how it begins, as the name of the one FFmpeg reader that may open it.

Knows: the containers that are taken, each holding all that it shows. Does not know: frames (`video.py`).

FFmpeg left to itself tries every reader it has: a text that begins `ffconcat` or `#EXTM3U` has it open other files of
this machine, and a session description (SDP) a port of the network. So no file is opened without a reader's name.
`serving/demo/films.py` says the same for demos, which are given away without this package; a test holds them together.
"""

from __future__ import annotations

LOOKED_AT = 4096
"""Bytes of a file's beginning that tell."""
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_BEGINNINGS = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    b"GIF8": "gif",
    b"ID3": "mp3",
    b"fLaC": "flac",
}
"""Sounds too: that there are no pictures in one is said better than that it cannot be read."""
_RIFF = {b"AVI ": "avi", b"WAVE": "wav"}
_PACKETS = ((0, 188), (4, 196))
"""Where the first two packets of an MPEG transport stream begin, without and with a time before each."""


def container_of(begin: bytes) -> str | None:
    """FFmpeg's name of the container that a file with this beginning (`LOOKED_AT` bytes) is; None for any other."""
    if begin[4:8] in _BOXES:
        return "mov"
    if begin.startswith(b"RIFF"):
        return _RIFF.get(begin[8:12])
    if begin.startswith(b"\x89PNG"):
        return "apng" if b"acTL" in begin else None  # before the first pixel, where it moves
    known = next((name for sign, name in _BEGINNINGS.items() if begin.startswith(sign)), None)
    if known is None and any(begin[one : one + 1] == begin[two : two + 1] == b"G" for one, two in _PACKETS):
        return "mpegts"
    return known
