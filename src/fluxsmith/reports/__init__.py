"""What a person reads of a plan or a result.

plan_text.py  a plan as a page of text
card.py       the model card that goes into a merged folder
story.py      one tensor of a merge, explained
demo.py       the demo: merge, sample, score;  demo_page.py  its page
"""
