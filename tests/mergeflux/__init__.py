"""MergeFlux's two scripts as commands: the same numbers to the last bit, the same metadata, and honest exit codes.

spelled_out.py    what the scripts compute, in plain torch on whole tensors
conftest.py       small files with FLUX names, and their tensors
"""
