"""Recipes: what one experiment is, in one YAML file.

Its sections and their rules are in `pruning.settings`; `schema` has the whole, `reading` parses, `leaves` reads values
as the schema says, and `loading` merges.
"""

from pruning.recipe.loading import (
    bundled_recipes,
    find_recipe,
    load_recipe,
    recipes_folder,
    to_dict,
    to_yaml,
)
from pruning.recipe.schema import Recipe

__all__ = [
    "Recipe",
    "bundled_recipes",
    "find_recipe",
    "load_recipe",
    "recipes_folder",
    "to_dict",
    "to_yaml",
]
