"""Results that are made once and found again by what they depend on. Knows files alone, no model."""

from pruning.store.artefacts import file_hash
from pruning.store.hashes import Hashes
from pruning.store.links import folder_bytes, link_tree, same_tree
from pruning.store.locks import holder, is_held, locked
from pruning.store.result import DONE, MANIFEST, SCRATCH, Enough, Key, Result
from pruning.store.store import Store

__all__ = [
    "DONE",
    "MANIFEST",
    "SCRATCH",
    "Enough",
    "Hashes",
    "Key",
    "Result",
    "Store",
    "file_hash",
    "folder_bytes",
    "holder",
    "is_held",
    "link_tree",
    "locked",
    "same_tree",
]
