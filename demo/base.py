"""Pack the demo base into one small file, and expand it into a stock SD1.5 checkpoint.

    python -m demo.base OUT.safetensors                           expand the base.bin next to this module
    python -m demo.base pack --unet FILE --autoencoder FILE       make base.bin from half-precision weights

The packed file contains the UNet and the autoencoder. The text encoder is untrained and generated from a fixed seed.

Format of the packed file (integers little-endian):

    8 bytes    MAGIC
    32 bytes   SHA-256 of everything after it
    4 bytes    length of the header in bytes, unsigned
    header     JSON: a list of {"name", "shape", "bits"}, in the order of the tensors
    payload    raw deflate of the concatenated bytes of the tensors:
               bits 16   float16 values as two planes: all low bytes, then all high bytes
               bits 8    one float16 step per row (two planes as above), then one byte per weight: its code + 128;
                         weight = step of its row * code, where a row is all weights of one output, shape [first, rest]

A code is an integer number of steps. Most weights have small codes, which Huffman coding stores in fewer bits: about five per
weight on average. Deflate uses Huffman coding only (Z_HUFFMAN_ONLY), because weights contain no repetitions worth searching for:
the result is 2 % smaller than LZMA's and takes one second instead of fifty.
"""

import argparse
import hashlib
import json
import math
import os
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

PACKED = Path(__file__).with_name("base.bin")
MAGIC = b"PERFBASE"
UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer."
AUTOENCODER = "first_stage_model."

Tensors = dict[str, np.ndarray]


# Packing


def resolution(name: str) -> float | None:
    """Return log2 of a row's RMS divided by its quantisation step, or None for tensors that stay float16.

    The values were chosen by rounding each layer alone and measuring the error of the UNet's output. Layers that the signal
    passes through last or without a parallel path (skip_connection, proj_in, proj_out) need steps ten times finer than the
    lowest level, which contributes little to an 8 x 8 latent. Cross-attention is never coarse, since this project edits it. The
    autoencoder stays in float16, because 8 bits per weight there change pixels by one or two levels.
    """
    if not name.startswith(UNET) or name.endswith("bias"):
        return None
    name = name.removeprefix(UNET)
    if name in ("input_blocks.0.0.weight", "out.2.weight"):
        return None
    if name.endswith(("skip_connection.weight", "proj_in.weight", "proj_out.weight")):
        return 5.0
    if name.startswith("output_blocks.3."):
        return 4.0
    if ".attn2." in name:
        return 3.0
    lowest_level = ("input_blocks.3.", "middle_block.", "output_blocks.0.")
    if name.startswith(lowest_level) or ".emb_layers." in name or name == "time_embed.2.weight":
        return 1.5
    return 3.0


def quantise(weight: np.ndarray, finer: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a weight [rows, ...] to steps [rows] float16 and codes [rows, columns] int8 in -127..127.

    A row's step is its RMS / 2**finer, or its largest magnitude / 127 if that is greater, so that nothing is clipped beyond the
    rounding of the step to float16.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float32)
    steps = np.maximum(np.sqrt((rows**2).mean(1)) * 2.0**-finer, np.abs(rows).max(1) / 127)
    # The step of a row of zeros must not be 0; any other value will do.
    steps = np.maximum(steps, np.finfo(np.float16).smallest_subnormal).astype(np.float16)
    codes = np.rint(rows / steps.astype(np.float32)[:, None])
    return steps, codes.clip(-127, 127).astype(np.int8)


def planes(values: np.ndarray) -> bytes:
    """Return the low bytes of float16 values, then their high bytes: each plane compresses better on its own."""
    return np.ascontiguousarray(values, "<f2").reshape(-1).view(np.uint8).reshape(-1, 2).T.tobytes()


def pack_tensors(tensors: Tensors, out: Path) -> None:
    """Write tensors, named as in a full SD1.5 checkpoint, to a packed file.

    Raises:
        ValueError: A tensor is neither float16 nor float32, or has values that are not finite in float16.
    """
    header, payload = [], []
    for name, value in tensors.items():
        if value.dtype not in (np.float16, np.float32) or not (np.abs(value) <= np.finfo(np.float16).max).all():
            raise ValueError(f"{name} must hold finite values within float16's range, in float16 or float32")
        finer = resolution(name) if value.ndim > 1 else None
        if finer is None:
            payload.append(planes(value))
        else:
            steps, codes = quantise(value, finer)
            payload += [planes(steps), (codes.view(np.uint8) + np.uint8(128)).tobytes()]
        header.append({"name": name, "shape": value.shape, "bits": 16 if finer is None else 8})
    text = json.dumps(header, separators=(",", ":")).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    rest = struct.pack("<I", len(text)) + text + b"".join(map(deflate.compress, payload)) + deflate.flush()
    out.write_bytes(MAGIC + hashlib.sha256(rest).digest() + rest)


def pack(unet: Path, autoencoder: Path, out: Path) -> None:
    """Pack a UNet (names as in SD1.5, without prefix) and an autoencoder (`taesd_encoder.*`, `taesd_decoder.*`).

    Raises:
        ValueError: The autoencoder's file is empty or contains other tensors, or a tensor cannot be packed.
    """
    coder = load_file(autoencoder)
    strange = [name for name in coder if not name.startswith(("taesd_encoder.", "taesd_decoder."))]
    if strange or not coder:
        raise ValueError(f"{autoencoder} should hold taesd_encoder.* and taesd_decoder.* only, not {strange[:3]}")
    tensors = {UNET + name: value for name, value in load_file(unet).items()}
    pack_tensors(tensors | {AUTOENCODER + name: value for name, value in coder.items()}, out)


# Expanding


def unpack_tensors(packed: Path) -> Tensors:
    """Return all tensors of a packed file, as float16.

    Raises:
        ValueError: The file is not exactly as `pack_tensors` wrote it.
    """
    data = packed.read_bytes()
    if data[:8] != MAGIC:
        raise ValueError(f"{packed} is not a packed demo base")
    if len(data) < 44 or hashlib.sha256(memoryview(data)[40:]).digest() != data[8:40]:
        raise ValueError(f"{packed} is damaged or cut short: its checksum does not match; download it again")
    start = 44 + struct.unpack_from("<I", data, 40)[0]
    try:
        header = json.loads(data[44:start])
        shapes = [_entry(entry) for entry in header]
        # -15: raw deflate with the largest window.
        inflate = zlib.decompressobj(-15)
        payload = np.frombuffer(inflate.decompress(memoryview(data)[start:]), np.uint8)
    except (ValueError, TypeError, KeyError, zlib.error) as error:
        raise ValueError(f"{packed} cannot be read: {error}") from error
    sizes = [2 * math.prod(shape) if bits == 16 else 2 * shape[0] + math.prod(shape) for _, shape, bits in shapes]
    names = {name for name, _, _ in shapes}
    if len(names) != len(shapes) or sum(sizes) != len(payload) or not inflate.eof or inflate.unused_data:
        raise ValueError(f"{packed} cannot be read: its tensors and its header do not agree")
    tensors: Tensors = {}
    for (name, shape, bits), part in zip(shapes, np.split(payload, np.cumsum(sizes)[:-1]), strict=True):
        if bits == 16:
            tensors[name] = _join(part).reshape(shape)
        else:
            steps = _join(part[: 2 * shape[0]]).astype(np.float32)
            codes = part[2 * shape[0] :].reshape(shape[0], -1).astype(np.float32) - 128
            tensors[name] = (codes * steps[:, None]).astype(np.float16).reshape(shape)
    return tensors


def _entry(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int]:
    """Validate one tensor's entry of the header and return its name, shape and bits."""
    name, shape, bits = entry["name"], tuple(entry["shape"]), entry["bits"]
    sized = isinstance(name, str) and all(type(n) is int and n > 0 for n in shape)
    if not sized or not (bits == 16 or (bits == 8 and len(shape) > 1)):
        raise ValueError(f"its header says {entry}")
    return name, shape, bits


def _join(part: np.ndarray) -> np.ndarray:
    """Invert `planes`: uint8 [2 n] -> float16 [n]."""
    return np.ascontiguousarray(part.reshape(2, -1).T).view("<f2").reshape(-1).astype(np.float16)


def text_shapes() -> list[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes of CLIP-L's text model, in the order in which random numbers are drawn for them."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("text_model.embeddings.token_embedding.weight", (49408, 768)),
        ("text_model.embeddings.position_embedding.weight", (77, 768)),
    ]

    def both(name: str, outputs: int, *inputs: int) -> None:
        shapes.extend([(f"{name}.weight", (outputs, *inputs)), (f"{name}.bias", (outputs,))])

    for i in range(12):
        layer = f"text_model.encoder.layers.{i}"
        both(f"{layer}.layer_norm1", 768)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            both(f"{layer}.self_attn.{projection}", 768, 768)
        both(f"{layer}.layer_norm2", 768)
        both(f"{layer}.mlp.fc1", 3072, 768)
        both(f"{layer}.mlp.fc2", 768, 3072)
    both("text_model.final_layer_norm", 768)
    return shapes


def text_encoder() -> Tensors:
    """Return CLIP-L's text model in float16, initialised from a fixed seed with CLIP's own scales.

    The UNet was trained on its encodings.
    """
    random = np.random.RandomState(1234)
    narrow = 768**-0.5 * 24**-0.5
    scales = {
        "token_embedding": 0.02,
        "position_embedding": 0.005,
        "out_proj": 768**-0.5,
        "fc1": 1536**-0.5,
        "fc2": narrow,
        "q_proj": narrow,
        "k_proj": narrow,
        "v_proj": narrow,
    }
    tensors: Tensors = {}
    for name, shape in text_shapes():
        kind = name.split(".")[-2]
        if name.endswith("bias"):
            tensors[name] = np.zeros(shape, np.float16)
        elif "layer_norm" in kind:
            tensors[name] = np.ones(shape, np.float16)
        else:
            values = random.randn(*shape)
            values *= scales[kind]
            if kind == "v_proj":
                # At full scale, a word's own position carries hardly more information about it than every later position.
                values *= 0.3
            tensors[name] = values.astype(np.float16)
    return tensors


def expand(packed: Path, out: Path) -> None:
    """Expand a packed base into a stock SD1.5 single-file checkpoint; `out` is written atomically."""
    tensors = unpack_tensors(packed)
    tensors |= {TEXT + name: value for name, value in text_encoder().items()}
    tensors[AUTOENCODER + "vae_scale"] = np.array(0.18215, np.float32)
    tensors[AUTOENCODER + "vae_shift"] = np.array(0.0, np.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(handle)
    try:
        save_file(tensors, name, metadata={"format": "pt", "modelspec.title": "World of characters"})
        # mkstemp creates files that only their owner can read; a model should be readable by everyone with access to the folder.
        os.chmod(name, 0o644)
        os.replace(name, out)
    finally:
        Path(name).unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """Run the command line; `arguments` exclude the program's name."""
    parser = argparse.ArgumentParser(prog="python -m demo.base", description=__doc__.splitlines()[0])
    if arguments[:1] == ["pack"]:
        parser.add_argument("--unet", type=Path, required=True)
        parser.add_argument("--autoencoder", type=Path, required=True)
        parser.add_argument("--out", type=Path, default=PACKED)
        options = parser.parse_args(arguments[1:])
        pack(options.unet, options.autoencoder, options.out)
        print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")
    else:
        parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="checkpoint to write (`pack` makes base.bin instead)")
        expand(PACKED, parser.parse_args(arguments).out)


if __name__ == "__main__":
    main(sys.argv[1:])
