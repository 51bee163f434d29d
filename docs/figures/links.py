"""For mkdocs.yml: links from docs/ to files beside it lead to the repository; where that has no URL, they are text."""

import posixpath
import re

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown, page, config, files):
    """mkdocs calls this with every page before it reads it."""

    def repository(found):
        label, address = found.groups()
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), address))
        repo = (config.repo_url or "").rstrip("/")
        return f"[{label}]({repo}/blob/main/{target})" if repo else label

    return LINK.sub(repository, markdown)
