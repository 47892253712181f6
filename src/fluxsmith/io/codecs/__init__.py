"""Quantised tensors: how they are stored (plain data, without torch) and how tiles of them become float32.

codec.py         blocks, scales and tables of one stored tensor
decoding.py      from an extent to its values; which scheme has which decoder
torchao.py       int8 weights with a scale for every row
"""
