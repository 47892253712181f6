"""Quantised tensors: how they are stored (plain data, without torch) and how tiles of them become float32.

codec.py         blocks, scales and tables of one stored tensor
decoding.py      from an extent to its values; which scheme has which decoder
encoding.py      from values to quantised elements
fp8.py           the values of fp8 numbers
recognition.py   what recognising a scheme in a checkpoint gives, and the errors that all schemes share
scaled_fp8.py    fp8 with scales: ComfyUI's two conventions and sd-scripts'
gguf.py          the block types of GGUF
bitsandbytes.py  NF4 and FP4
torchao.py       int8 weights with a scale for every row
"""
