"""Stock diffusers modules from checkpoints, recipes and formulas.

transformer.py      a FluxTransformer2DModel filled straight from the engine
statistics.py       what it does on examples: Fisher information, Gram matrices of inputs
statistics_file.py  these as a file for recipes
"""
