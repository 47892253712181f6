"""Faults that people run into, each with its exit code, its error, and nothing changed.

cases.py          what a case is, and the yard in which it is arranged
files.py          one file that is broken, or not what its name says
folders.py        shards and indices that do not belong together
models.py         sound files that are no models, or do not fit each other
values.py         numbers that are not finite
outputs.py        targets that must not or cannot be written
recipes.py        recipes and formulas that cannot be meant
usage.py          wrong arguments
adapters.py       adapters that cannot be meant, and where they do not belong; adapter_recipes.py: in formulas and recipes;
                  adapter_commands.py: extract, adapter ..., split, bundle
quantised.py      quantised files that lack a half, quantised outputs that cannot be
test_table.py     all cases of the files above
test_*.py         what needs more than a table: other processes, full disks, faults that are let through
"""
