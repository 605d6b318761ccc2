"""Templates: Jinja with everything escaped, except what is markup already (drawings, rendered parts)."""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eval.report import fmt

ENVIRONMENT = Environment(
    loader=PackageLoader("eval.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters.update(seconds=fmt.seconds, percent=lambda share: fmt.percent(share, 0))


def template(text: str) -> Callable[..., Markup]:
    """Return a template as a function of its values, which returns HTML."""
    compiled = ENVIRONMENT.from_string(text)
    return lambda **values: Markup(compiled.render(**values))
