"""The merge engine: a recipe becomes a plan (pure data, without torch), a run streams what the plan says.

plan.py          what a plan is
planning.py      recipe + headers -> plan; every key accounted for
inputs.py        opening inputs and checking that they fit;  outputs.py  how the result lies in its files
rest.py          models of which what is not merged is copied;  copying.py   the plan of such a merge
bundling.py      all-in-one files taken apart and put together
storage.py       in what types a result is stored;  quantising.py  scales, and what rounding costs
programs.py      the program of one tensor
memory.py        how large tiles are and what they take
lineage.py       what an output says of itself
schedule.py      the order of tiles, passes and jobs
adapters.py      the adapters of a recipe, bound to its tensors;  adapting.py  their deltas on a tile
tiles.py         evaluating a program on a tile
streaming.py     threads that take tiles from a schedule
execution.py     what a run does with a tile: checks, writing
devices.py       CPU and accelerators
allocation.py    keeping freed tiles
journal.py       what an interrupted run has done
input_hashes.py  hashing inputs beside the run
merging.py       a whole merge into a file or folder
in_memory.py     the same into memory
extraction.py    a delta as an adapter;  deltas.py  one matrix at a time;  scratch.py  finished modules;  rounding.py  what is noise
adapter_merging.py  adapters merged by any method
reproduction.py  making an output again from what it carries
"""
