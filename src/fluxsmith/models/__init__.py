"""Stock diffusers modules from checkpoints, recipes and formulas.

transformer.py  a FluxTransformer2DModel filled straight from the engine
"""
