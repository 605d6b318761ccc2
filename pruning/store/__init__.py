"""Results that are made once and found again by what they depend on. Knows files alone, no model."""

from pruning.store.hashes import Hashes as Hashes
from pruning.store.hashes import file_hash as file_hash
from pruning.store.hashes import files_of as files_of
from pruning.store.hashes import folder_bytes as folder_bytes
from pruning.store.hashes import hash_of as hash_of
from pruning.store.locks import holder as holder
from pruning.store.locks import locked as locked
from pruning.store.result import BESIDE as BESIDE
from pruning.store.result import MANIFEST as MANIFEST
from pruning.store.result import SCRATCH as SCRATCH
from pruning.store.result import Key as Key
from pruning.store.result import Result as Result
from pruning.store.result import changes as changes
from pruning.store.result import changes_in_words as changes_in_words
from pruning.store.result import version_of as version_of
from pruning.store.store import LOCK as LOCK
from pruning.store.store import OWNER as OWNER
from pruning.store.store import STORE as STORE
from pruning.store.store import Store as Store
from pruning.store.store import link_tree as link_tree
