"""What merging does: the pocket fine-tunes merged by every method, and every skill of every child scored.

bench.py      the run: references, each method at its default and at its best setting
family.py     who is merged
calls.py      how a method is called with a base and its fine-tunes, from its signature
statistics_inputs.py  calls of methods that need statistics of activations or gradients
settings.py   the grid: which options of a method are searched, over which values
scoring.py    a wish made into a transformer, sampled and scored
records.py    scores in a file of JSON lines, so that a run can go on
table.py      the page in Markdown;  verdicts.py  its sentences;  heat_map.py  its picture
"""
