"""Recipes: what one experiment is, in one YAML file.

The schema is in `schema`; `reading` parses, `loading` merges, `checks` has the rules for values, and `defaults` what
null stands for.
"""

from pruning.recipe.loading import (
    bundled_recipes,
    find_recipe,
    load_recipe,
    recipes_folder,
    to_dict,
    to_yaml,
)
from pruning.recipe.schema import Limit, Recipe, Target

__all__ = [
    "Limit",
    "Recipe",
    "Target",
    "bundled_recipes",
    "find_recipe",
    "load_recipe",
    "recipes_folder",
    "to_dict",
    "to_yaml",
]
