"""Files that mean harm, or have been damaged, each with a word of the error that it must get."""

import copy
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


class Bomb:
    """Leaves a trace where it is unpickled: a folder beside the file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


class Glutton:
    """Asks for a terabyte where it is unpickled, by a class that PyTorch's restricted reader allows."""

    def __reduce__(self):
        return (bytearray, (2**40,))


def trace_of(path: Path) -> Path:
    return path.with_name("trace")


def code_in_an_archive(path: Path) -> str:
    torch.save({f"{BLOCK}.weight": torch.zeros(2), "x": Bomb(trace_of(path))}, path)
    return "mkdir', which is no tensor"


def code_of_a_later_protocol(path: Path) -> str:
    torch.save({"x": Bomb(trace_of(path))}, path, pickle_protocol=4)
    return "STACK_GLOBAL"


def code_as_it_is(path: Path) -> str:
    path.write_bytes(pickle.dumps(Bomb(trace_of(path))))
    return "a bare pickle"


def old_archive(path: Path) -> str:
    torch.save({f"{BLOCK}.weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    return "a bare pickle"


def glutton(path: Path) -> str:
    torch.save({"x": Glutton()}, path)
    return "bytearray', which is no tensor"


def compressed_archive(path: Path) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(2**28))
    return "something compressed"


def overlapping_archive(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
        for number in range(50):
            again = copy.copy(archive.filelist[0])
            again.filename = f"archive/data/{number}"
            archive.filelist.append(again)
    return "more than the file has"


def other_archive(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return "not one that PyTorch wrote"


def endless_index(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"}" * (5 * 2**20))
    return "as no model needs"


def damaged_archive(path: Path) -> str:
    torch.save({f"{BLOCK}.weight": torch.zeros(2000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    return "a damaged archive"


def endless_tensor(path: Path) -> str:
    torch.save({f"{BLOCK}.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    return "of which the file has only a part"


def endless_dictionary(path: Path) -> str:
    inner: dict[int, object] = {}
    for _ in range(7):
        inner = dict.fromkeys(range(100), inner)
    torch.save(inner, path)
    return "than any model's"


def _safetensors(path: Path, header: object, data: bytes = bytes(16), *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def _entry(**changes: object) -> dict[str, object]:
    return {f"{BLOCK}.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


def header_longer_than_the_file(path: Path) -> str:
    _safetensors(path, _entry(), length=10**6)
    return "header tells the truth"


def header_of_exabytes(path: Path) -> str:
    _safetensors(path, _entry(), length=2**63)
    return "header tells the truth"


def offsets_beyond_the_end(path: Path) -> str:
    _safetensors(path, _entry(shape=[2000, 2], data_offsets=[0, 16000]))
    return "header tells the truth"


def offsets_that_overlap(path: Path) -> str:
    _safetensors(path, _entry() | {"other": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}})
    return "header tells the truth"


def other_type_than_the_bytes(path: Path) -> str:
    _safetensors(path, _entry(dtype="F64"))
    return "header tells the truth"


def unknown_type(path: Path) -> str:
    _safetensors(path, _entry(dtype="F31"))
    return "header tells the truth"


def absurd_shape(path: Path) -> str:
    _safetensors(path, _entry(shape=[2**62, 2**62]))
    return "header tells the truth"


def header_that_is_no_json(path: Path) -> str:
    _safetensors(path, b"{" * 100)
    return "header tells the truth"


def pointer(path: Path) -> str:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    return "git-lfs" if path.suffix != ".safetensors" else "header tells the truth"


def nothing(path: Path) -> str:
    path.touch()
    return "which is empty" if path.suffix != ".safetensors" else "header tells the truth"


PICKLED: tuple[Callable[[Path], str], ...] = (
    *(code_in_an_archive, code_of_a_later_protocol, code_as_it_is, old_archive, glutton, compressed_archive),
    *(
        overlapping_archive,
        other_archive,
        endless_index,
        damaged_archive,
        endless_tensor,
        endless_dictionary,
        pointer,
        nothing,
    ),
)
LYING: tuple[Callable[[Path], str], ...] = (
    *(header_longer_than_the_file, header_of_exabytes, offsets_beyond_the_end, offsets_that_overlap),
    *(other_type_than_the_bytes, unknown_type, absurd_shape, header_that_is_no_json, pointer, nothing),
)


def picture_of_billions(path: Path) -> str:
    """A PNG that has nothing but its header: 60,000 × 60,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1000))))
    return "pixels"


def truncated_picture(path: Path) -> str:
    from PIL import Image

    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    return "a picture that can be read"
