"""Looks for what is broken in the built site: ``make docs`` runs it after Sphinx.

    python docs/check_site.py build/docs

Each link within the site must lead to a file, whose name it writes as the disk has it, and to an anchor that is there;
each picture must say what it shows; each table and block of code must scroll by itself where a screen is narrow; the
offline search must find every public name.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["problems"]

# Within one of these, what is too wide for the screen scrolls.
SCROLLS = {"table-wrapper", "highlight", "output", "genindextable", "domainindex-table"}


class Page(HTMLParser):
    """What a page links to, what can be linked to, and what is too wide for a phone.

    Attributes:
        links: each with the line that it stands in.
        anchors: the ids.
        complaints: about the page itself.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[int, str]] = []
        self.anchors: set[str] = set()
        self.complaints: list[str] = []
        self._scrolling: list[tuple[str, bool]] = []  # the open elements, and whether something around them scrolls
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        line = self.getpos()[0]
        self.anchors.update({found[name] for name in ("id", "name") if found.get(name)})
        self.links += [(line, found[name]) for name in ("href", "src") if found.get(name)]
        if tag == "img" and not found.get("alt", "").strip():
            self.complaints.append(f"line {line}: the picture {found.get('src', '')[:80]} does not say what it shows")
        around = bool(self._scrolling) and self._scrolling[-1][1]
        scrolls = around or bool(SCROLLS & set(found.get("class", "").split()))
        if tag in ("table", "pre") and not scrolls:
            self.complaints.append(f"line {line}: a <{tag}> that does not scroll on a narrow screen")
        if tag not in _EMPTY:
            self._scrolling.append((tag, scrolls))

    def handle_comment(self, comment: str) -> None:
        if comment.split()[:1] == ["python"]:
            self.complaints.append(f"line {self.getpos()[0]}: python that readers need not see")

    def handle_endtag(self, tag: str) -> None:
        while any(tag == opened for opened, _ in self._scrolling):
            if self._scrolling.pop()[0] == tag:
                break


_EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def problems(site: Path, names: Iterable[str] = ()) -> list[str]:
    """A sentence for each thing that is broken, with the page that it is on.

    Args:
        site: the folder that Sphinx has written.
        names: what its search must find.
    """
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    pages = {name: Page((site / name).read_text(encoding="utf-8")) for name in sorted(files) if name.endswith(".html")}
    found = [f"{name}, {complaint}" for name, page in pages.items() for complaint in page.complaints]
    for name, page in pages.items():
        for line, link in page.links:
            complaint = _complaint(name, link, files, pages)
            if complaint:
                found.append(f"{name}, line {line}: {complaint}")
    index = site / "searchindex.js"
    words = set(re.findall(r"\w+", index.read_text(encoding="utf-8"))) if index.exists() else set()
    found += [f"searchindex.js: the search does not find {name}" for name in names if name not in words]
    return found


def _complaint(page: str, link: str, files: set[str], pages: dict[str, Page]) -> str | None:
    """What is wrong with a link, if it leads into the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = unquote(parts.path)
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
    if target not in files:
        return f"{link} leads to no file"
    if target in pages and parts.fragment and unquote(parts.fragment) not in pages[target].anchors:
        return f"{link} leads to no anchor on {target}"
    return None


def main() -> int:
    from camshaft import __all__ as public  # noqa: PLC0415 - only to check a site that was built with it

    site = Path(sys.argv[1])
    found = problems(site, (name for name in public if not name.startswith("_")))
    sys.stderr.writelines(f"{problem}\n" for problem in found)
    if found:
        return 1
    sys.stdout.write(f"Open {site / 'index.html'} in a browser.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
