"""Reads the source of a model's blocks, and of the code that calls them, to say which can go and what is left of them.

What is read: the Python source of ``forward`` methods, followed through calls, branches and loops without a number
(`interpreter`, `statements`, `expressions`; what is known of a value is in `values`), and that of constructors, for
the config entry that counts a list of blocks (`counts`). What is proven: with all its parameters at zero a block
returns its input, perhaps with a factor, in each way that a call can take (`residual`); every call of the block is
known, and nothing of it is read from outside that an identity could not show (`callers`); a block is deleted from its
list only where neither constructor nor forward look at positions. What is not understood is unknown, and a block whose
proof needs it is none: the reading errs towards fewer blocks. Three things are taken for granted: masks mark padding,
whose rows nobody uses; a shortcut convolution to fewer channels stands for the first channels; hooks and patched
methods are not seen. The tests over all classes hold each block found to the block with its parameters at zero.
"""
