"""The command ``push``: the slim model of a run to a model hub, or what would be sent."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from pruning.cli.console import Console, Outcome, facts, table
from pruning.files import size
from pruning.stages.folder import RunFolder

logger = logging.getLogger(__name__)


def push(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Publish a run, or with ``--dry-run`` lay out what would be published and ask no network."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars

    from pruning.stages.publishing import prepare, send

    parcel = prepare(RunFolder(arguments.run), arguments.repo, licence=arguments.license)
    for entry in parcel.left_out:
        logger.info("left out, since it names a place on a machine: %s", entry)
    if parcel.licence is None:
        logger.warning(
            "the card states no licence: that of the base model is not known here; --license gives it"
        )
    whole = sum(parcel.files.values())
    found: dict[str, Any] = {
        "run": arguments.run,
        "repo": parcel.repo,
        "private": arguments.private,
        "license": parcel.licence,
        "files": parcel.files,
        "bytes": whole,
        "sent": not arguments.dry_run,
    }
    if not arguments.dry_run:
        if not console.progress:
            disable_progress_bars()
        found |= send(parcel, HfApi(token=get_token() or False), private=arguments.private)
    rows = [(name, size(count)) for name, count in parcel.files.items()]
    about = {
        "repository": parcel.repo,
        "who sees it": "nobody else" if found["private"] else "everybody",
        "licence": parcel.licence or "not stated",
        "address": found.get("url", "nothing has been sent"),
    }
    title = f"\n{len(rows)} files, {size(whole)}, {'sent' if found['sent'] else 'would be sent'}"
    return Outcome(found, [facts(about), table(("file", "size"), rows, title=title)], str(parcel.folder))
