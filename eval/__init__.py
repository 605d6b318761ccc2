"""Evaluation: quality, cost and latency of generative models, side by side in one process; it knows no pruning.

A metric is one file with a `compute` function, which `eval.run` finds by its file name.
"""
