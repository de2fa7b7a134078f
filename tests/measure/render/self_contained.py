"""What a page refers to outside itself."""

import re
from html.parser import HTMLParser

_LINKING = ("src", "href", "srcset", "action", "data", "poster", "background", "xlink:href")


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            if name in _LINKING and value and not value.startswith(("data:", "#")):
                self.found.append(f"{tag} {name}={value}")
            if name == "style" and value:
                self.found += re.findall(r"url\((?!data:)[^)]*\)|@import[^;]*", value)
        if tag in ("link", "script", "iframe", "object", "embed", "base"):
            self.found.append(tag)

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.found += re.findall(r"url\((?!data:)[^)]*\)|@import[^;]*", data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


def references(page: str) -> list[str]:
    """Whatever a browser would fetch, or a click would open, that is not in the page."""
    parser = _References()
    parser.feed(page)
    return parser.found
