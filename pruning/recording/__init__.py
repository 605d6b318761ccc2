"""Recorded calls: a user's own pipeline runs, and what its denoisers were asked is the data set."""

from typing import TYPE_CHECKING

from pruning.lazy import lazy_exports

if TYPE_CHECKING:
    from pruning.recording.batches import recorded_batches as recorded_batches
    from pruning.recording.calls import RecordedCalls as RecordedCalls
    from pruning.recording.format import Row as Row
    from pruning.recording.writing import record as record

__getattr__, __dir__ = lazy_exports(__name__, __file__)
