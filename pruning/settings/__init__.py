"""Settings: each knob once, with its default, its meaning and its rules. Imports neither torch nor diffusers.

The sections of a recipe are the dataclasses that functions take. A new knob is one entry in `sections` and its use.
"""

from pruning.settings.section import knobs_of as knobs_of
from pruning.settings.section import type_words as type_words
from pruning.settings.sections import ADAMW_8BIT as ADAMW_8BIT
from pruning.settings.sections import ALL as ALL
from pruning.settings.sections import COMPENSATIONS as COMPENSATIONS
from pruning.settings.sections import DIGITS as DIGITS
from pruning.settings.sections import DTYPES as DTYPES
from pruning.settings.sections import LORA as LORA
from pruning.settings.sections import NO_DATA as NO_DATA
from pruning.settings.sections import NOISED as NOISED
from pruning.settings.sections import RENOISED as RENOISED
from pruning.settings.sections import SAMPLING as SAMPLING
from pruning.settings.sections import WEIGHTINGS as WEIGHTINGS
from pruning.settings.sections import Calibrate as Calibrate
from pruning.settings.sections import Data as Data
from pruning.settings.sections import Depth as Depth
from pruning.settings.sections import Evaluate as Evaluate
from pruning.settings.sections import Export as Export
from pruning.settings.sections import Limit as Limit
from pruning.settings.sections import Model as Model
from pruning.settings.sections import Networks as Networks
from pruning.settings.sections import Prune as Prune
from pruning.settings.sections import Recover as Recover
from pruning.settings.sections import Score as Score
from pruning.settings.sections import SinkWeights as SinkWeights
from pruning.settings.sections import Target as Target
