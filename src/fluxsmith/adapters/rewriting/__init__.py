"""Adapters written anew.

resizing.py    with another rank, of a LoRA without making its delta
combining.py   several as one: their exact sum
files.py       from files to a file
"""
