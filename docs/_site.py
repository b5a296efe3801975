"""What `mkdocs build` checks and prints beyond mkdocs: see mkdocs.yml."""

from __future__ import annotations

import logging
import re
from typing import Any

from mkdocs.exceptions import PluginError

logger = logging.getLogger("mkdocs.hooks.site")
# What a browser loads by itself; a link that the reader follows is not among it.
LOADED = re.compile(
    r"<(?:script|img|iframe|source|audio|video)\b[^>]*?\bsrc=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|<link\b[^>]*?\brel=[\"']?(?:stylesheet|preconnect|icon|preload)[^>]*?(?:https?:)?//[^\s\"'>]+"
    r"|url\([\"']?(?:https?:)?//[^)]+|@import[^;]+//[^;]+"
)
counts = {"pages": 0, "links": 0}


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Refuse a page that would load anything from another host; count pages and links."""
    if loaded := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} must load nothing from another host: {loaded[0]}")
    counts["pages"] += 1
    counts["links"] += len(re.findall(r"<a\b[^>]*\bhref=", output))
    return output


def on_post_build(**_: Any) -> None:
    """Print the counts."""
    logger.info("%(pages)d pages with %(links)d links, all of which resolve", counts)
