"""What tests share: makers of tiny checkpoints, of broken files, of runs of the program, of pictures of folders.

tiny_flux.py        stock FLUX.1 transformers with random weights, and their files in every layout
foreign_models.py   files of other kinds: Chroma, FLUX.2, ControlNet, adapters, ...
broken_files.py     safetensors files that break one rule of the format, byte by byte
cli_runs.py         the program run in this process, or in one of its own
folder_pictures.py  everything that lies in a folder, to see that nothing changed
"""
