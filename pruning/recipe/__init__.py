"""Recipes: what one experiment is, in one YAML file. Its sections and their rules are in `pruning.settings`."""

from pruning.recipe.loading import bundled_recipes as bundled_recipes
from pruning.recipe.loading import find_recipe as find_recipe
from pruning.recipe.loading import load_recipe as load_recipe
from pruning.recipe.loading import read_arguments as read_arguments
from pruning.recipe.loading import to_yaml as to_yaml
from pruning.recipe.schema import Recipe as Recipe
