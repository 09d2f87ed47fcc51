"""Check every link of the built site: a file that is there, and an anchor that stands in it.

    python docs/check_links.py build/site

Sphinx has checked the links of the Markdown pages; this reads the HTML that a browser gets, with
navigation and Python reference. `nox -s docs -- --external` checks links to other hosts, over the network.
"""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect `href`, `src`, `id` and `name`."""
        found = dict(attrs)
        self.links += [found[name] or "" for name in ("href", "src") if name in found]
        self.anchors |= {found[name] or "" for name in ("id", "name") if name in found}


read_page = cache(Page)


def dead_links(page: Path, site: Path) -> list[str]:
    """The links of a page that lead nowhere, or out of the site."""
    dead = []
    for link in read_page(page).links:
        target = urlsplit(link)
        if target.scheme or target.netloc:
            continue
        file = (page.parent / unquote(target.path)).resolve() if target.path else page
        there = file.is_file() and file.is_relative_to(site)
        if there and file.suffix == ".html":
            there = unquote(target.fragment) in read_page(file).anchors
        dead += [] if there else [link]
    return dead


def main(directory: str) -> int:
    """Print dead links; 1 where there is one, or no page."""
    site = Path(directory).resolve()
    pages = sorted(site.rglob("*.html"))
    dead = [f"{page.relative_to(site)}: {link}" for page in pages for link in dead_links(page, site)]
    links = sum(len(read_page(page).links) for page in pages)
    sys.stdout.write("\n".join([*dead, f"{len(pages)} pages, {links} links, {len(dead)} dead\n"]))
    return 1 if dead or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
