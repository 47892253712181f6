"""What a person reads of a plan or a result.

plan_text.py  a plan as a page of text
card.py       the model card that goes into a merged folder
merge_report.py  the page beside a merge: of what it was made, how far it is from each input
quantisation.py  what quantising cost
diff_page.py  how two checkpoints differ;  block_map.py  numbers per block as a picture
style.py      how all pages look
story.py      one tensor of a merge, explained
demo.py       the demo: merge, sample, score;  demo_page.py  its page
methods_bench/  what merging does: every method's child, every skill scored
"""
