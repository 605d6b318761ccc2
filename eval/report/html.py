"""What a section is, and templates: Jinja with everything escaped, except what is markup already (drawings, parts)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
ENVIRONMENT.filters.update(seconds=fmt.seconds, times=fmt.times, percent=lambda share: fmt.percent(share, 0))


def template(text: str) -> Callable[..., Markup]:
    """Return a template as a function of its values, which returns HTML."""
    compiled = ENVIRONMENT.from_string(text)
    return lambda **values: Markup(compiled.render(**values))


@dataclass(frozen=True)
class Section:
    """What a file of `eval.report.sections` shows of a run.

    Attributes:
        body: HTML.
        heading: What stands above it; a picture within another section has none.
        link: Its name in the line of links at the top; empty takes the heading.
    """

    body: Markup
    heading: str = ""
    link: str = ""


PATHS = template(
    """
<div class="scroll"><table>
<thead><tr><td></td>{% for name in names %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for module, cells in rows %}
<tr><th scope="row" class="path">{{ module }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
"""
)
"""A table with a line for each module: `names` of columns, `rows` of a path and its cells."""
