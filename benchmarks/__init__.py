"""Benchmarks: the numbers of docs/benchmarks.md, measured on the machine at hand.

    python -m benchmarks              everything, with the 3.17 B and 12 B shapes (about 50 GB of disk, half an hour)
    python -m benchmarks --quick      the same on a tiny shape in a minute or two: tests the benchmark, says nothing of speed

The process that measures stays small and without torch, because the peak memory that the kernel reports for a child
begins at what its parent had; whatever needs arrays runs as a program of its own (inputs.py, compare.py, exact.py).

    shapes.py    the sizes of model that are measured
    inputs.py    random checkpoints of a shape, in every layout; sparse files of full size
    measure.py   running programs in turn: wall time, CPU time, peak memory
    bench.py     the work folder, the programs' command lines, the time of their start
    peers.py     sd-mecha, mergekit and MergeFlux in an environment of their own
    compare.py   tensors of two checkpoints, element by element
    exact.py     TIES by numpy, to compare with
    matrices.py  files of one square matrix, and what a plan counts for merging them
    rows/        what is measured, one file per group of rows
    table.py     docs/benchmarks.md
"""
