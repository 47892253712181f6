"""Parity with other programs, used as oracles where they are installed; where they differ on purpose, the difference is tested.

agreement.py          how much of two checkpoints is equal, and how far apart the rest is
test_sd_mecha.py      sd-mecha: sums, averages, slerp, TIES
test_mergekit.py      mergekit: linear, slerp, task arithmetic, TIES, DARE
test_krea_script.py   the Krea merge script, stated here in ten lines, and the preset that takes its place
"""
