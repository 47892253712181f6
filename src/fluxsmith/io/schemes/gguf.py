"""The block types of GGUF files that image programs read (ComfyUI-GGUF, stable-diffusion.cpp, diffusers)."""

from fluxsmith.io.schemes.scheme import Scheme

__all__ = ["SCHEMES"]

SCHEMES = (
    Scheme("q8_0", "Q8_0", "GGUF's Q8_0: 8 bits, a float16 scale per 32 weights", container="gguf"),
    Scheme("q4_0", "Q4_0", "GGUF's Q4_0: 4 bits, a float16 scale per 32 weights", container="gguf"),
)
