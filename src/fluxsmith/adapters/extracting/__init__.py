"""From a delta to a module of an adapter.

extraction.py   low-rank factors, a Kronecker product, or the difference itself
rank.py         how many singular values are kept;  factorise.py  the nearest matrix of that rank, verified
kronecker.py    the nearest Kronecker product
findings.py     what became of the deltas, by tensor and by block
"""
