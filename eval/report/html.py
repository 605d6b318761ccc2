"""Templates: Jinja with everything escaped, except what is markup already (drawings, rendered parts)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from eval.report import fmt

FILES = Path(__file__).parent / "templates"

_ENVIRONMENT = Environment(
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters.update(seconds=fmt.seconds, percent=lambda share: fmt.percent(share, 0))


def template(text: str) -> Callable[..., Markup]:
    """Return a template as a function of its values, which returns HTML."""
    compiled = _ENVIRONMENT.from_string(text)
    return lambda **values: Markup(compiled.render(**values))


def template_file(name: str) -> Callable[..., Markup]:
    """Return the template in a file of the folder ``templates``."""
    return template((FILES / name).read_text(encoding="utf-8"))
