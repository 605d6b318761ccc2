"""What may be removed: one file a kind of module.

Groups are declared by the kind of module, not traced: discovery walks the module tree and asks every handler.
It works on the meta device, needs no example input and no forward pass. A new kind of module is one new file
here with a function decorated by `handler`.
"""

from pruning.groups.base import HANDLERS, KINDS, discover, find_groups, handler, kind
from pruning.registry import import_submodules

import_submodules(__name__, __path__)

__all__ = ["HANDLERS", "KINDS", "discover", "find_groups", "handler", "kind"]
