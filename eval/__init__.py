"""Evaluation: quality, cost and latency of generative models, side by side in one process.

This package knows nothing of pruning. It is given subjects (a prediction and a sample function each), real
images, noised batches and plain files, and returns plain numbers. A metric is one file with a `compute`
function; `eval.run` finds it by its file name. Import the modules you need: ``from eval.run import measure_all``.
"""
