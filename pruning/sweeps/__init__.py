"""Many runs of one recipe: which, how they are done, and what they come to."""

from pruning.sweeps.points import Axis as Axis
from pruning.sweeps.points import Point as Point
from pruning.sweeps.points import grid as grid
from pruning.sweeps.points import read_axes as read_axes
from pruning.sweeps.search import front_of as front_of
from pruning.sweeps.search import search as search
from pruning.sweeps.sweep import LOGS as LOGS
from pruning.sweeps.sweep import Sweep as Sweep
from pruning.sweeps.work import here as here
from pruning.sweeps.work import on_ray as on_ray
