"""Results that are made once and found again by what they depend on. Knows files alone, no model."""

from pruning.store.hashes import Hashes, file_hash, hash_of
from pruning.store.links import files_of, folder_bytes, link_tree
from pruning.store.locks import holder, locked
from pruning.store.result import BESIDE, DONE, MANIFEST, SCRATCH, Key, Result, changes
from pruning.store.store import Store

__all__ = [
    "BESIDE",
    "DONE",
    "MANIFEST",
    "SCRATCH",
    "Hashes",
    "Key",
    "Result",
    "Store",
    "changes",
    "file_hash",
    "files_of",
    "folder_bytes",
    "hash_of",
    "holder",
    "link_tree",
    "locked",
]
