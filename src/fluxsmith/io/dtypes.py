"""The element types of the safetensors format, their widths and their names in torch and on the command line; and the
block types of GGUF that can be written."""

from dataclasses import dataclass

from fluxsmith.errors import UsageError, did_you_mean

__all__ = ["BLOCK_TYPES", "DTYPES", "BlockType", "DType", "dtype_from_name", "promote", "stored_type"]


@dataclass(frozen=True)
class DType:
    """One element type.

    `name` is the safetensors name, `bits` the width of an element, `torch` the attribute of the torch module (None:
    torch cannot hold it), `short` the name that users write.
    """

    name: str
    bits: int
    torch: str | None
    short: str
    is_float: bool = False

    def nbytes(self, count: int) -> int:
        """Bytes that `count` elements take."""
        return count * self.bits // 8


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("F64", 64, "float64", "fp64", True),
        DType("F32", 32, "float32", "fp32", True),
        DType("F16", 16, "float16", "fp16", True),
        DType("BF16", 16, "bfloat16", "bf16", True),
        DType("F8_E4M3", 8, "float8_e4m3fn", "fp8_e4m3", True),
        DType("F8_E5M2", 8, "float8_e5m2", "fp8_e5m2", True),
        DType("I64", 64, "int64", "int64"),
        DType("I32", 32, "int32", "int32"),
        DType("I16", 16, "int16", "int16"),
        DType("I8", 8, "int8", "int8"),
        DType("U64", 64, "uint64", "uint64"),
        DType("U32", 32, "uint32", "uint32"),
        DType("U16", 16, "uint16", "uint16"),
        DType("U8", 8, "uint8", "uint8"),
        DType("BOOL", 8, "bool", "bool"),
        DType("C64", 64, "complex64", "complex64"),
        DType("F8_E8M0", 8, "float8_e8m0fnu", "fp8_e8m0"),
        DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "fp8_e4m3fnuz"),
        DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "fp8_e5m2fnuz"),
        DType("F4", 4, None, "fp4"),
        DType("F6_E2M3", 6, None, "fp6_e2m3"),
        DType("F6_E3M2", 6, None, "fp6_e3m2"),
    )
}


@dataclass(frozen=True)
class BlockType:
    """A type that stores `block` consecutive elements of a row as `block_bytes` bytes, their scale among them."""

    name: str
    block: int
    block_bytes: int
    short: str
    is_float: bool = True

    @property
    def bits(self) -> float:
        """The width of an element, its share of the scale included."""
        return self.block_bytes * 8 / self.block

    def nbytes(self, count: int) -> int:
        """Bytes that `count` elements take, which are whole blocks."""
        return count // self.block * self.block_bytes


#: Block types of GGUF (ggml-quants.c): a float16 scale, then 32 numbers of 8 or 4 bits. No safetensors file has them.
BLOCK_TYPES: dict[str, BlockType] = {t.name: t for t in (BlockType("Q8_0", 32, 34, "q8_0"), BlockType("Q4_0", 32, 18, "q4_0"))}


def stored_type(name: str) -> DType | BlockType:
    """The element type or block type of this name."""
    return BLOCK_TYPES[name] if name in BLOCK_TYPES else DTYPES[name]


_ALIASES = {d.short: d.name for d in DTYPES.values()} | {
    "float": "F32",
    "float32": "F32",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "fp8": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
WRITABLE = ("bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2")


def dtype_from_name(name: str) -> DType:
    """The element type that a user names (`bf16`, `float16`, `F32`, ...).

    Raises UsageError where the name is unknown.
    """
    found = DTYPES.get(_ALIASES.get(name.lower(), name.upper()))
    if found is None:
        raise UsageError(
            "dtype.unknown",
            f"`{name}` is not an element type",
            facts={"known": ", ".join(WRITABLE)},
            fix=did_you_mean(name, list(_ALIASES)),
        )
    return found


def promote(names: "set[str]") -> str:
    """The smallest float type that holds every one of the given float types; one type alone stays as it is.

    fp8 next to a 16-bit type gives the 16-bit type; bf16 next to fp16 gives fp32.
    """
    if len(names) == 1:
        return next(iter(names))
    wide = {n for n in names if DTYPES[n].bits > 8} or {"BF16"}
    if len(wide) == 1:
        return next(iter(wide))
    return "F64" if "F64" in wide else "F32"
