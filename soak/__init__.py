"""The soak: random programs under random faults, and a model of what may be true afterwards.

`python -m soak` runs it, `python -m soak --program SEED` repeats one program. The programs are in
`programs.py`, what befalls them in `chaos.py`, and what they are held against in `model.py`.
"""
