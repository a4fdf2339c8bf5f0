"""The application in this process, over a real store whose jobs are run by hand; its pages, taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from tests.house import House
from webui.app import create_app

ORIGIN = "http://127.0.0.1:8642"
_VOID = {"input", "link", "meta", "img", "br"}


@dataclass
class Element:
    """An element, its attributes and all text in it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    inside: list[Element] = field(default_factory=list)  # all of them, at any depth

    def __getitem__(self, attribute: str) -> str:
        return self.attributes[attribute]

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """The elements with this tag and these attributes; `class_` and `aria_label` are spelled so."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [each for each in self.inside if each.tag == tag and wanted.items() <= each.attributes.items()]

    def one(self, tag: str, **attributes: str) -> Element:
        """The only one of `all`."""
        [found] = self.all(tag, **attributes)
        return found

    @property
    def rows(self) -> list[list[str]]:
        """The text of the cells of each row that has any."""
        return [[cell.text for cell in row.all("td")] for row in self.all("tr") if row.all("td")]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        for outer in self.open:
            outer.inside.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            closed = self.open.pop()
            assert closed.tag == tag, f"<{closed.tag}> is closed by </{tag}> in line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def read(html: str) -> Element:
    """The document; every element in it must be closed."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    [document] = reader.open
    for element in (document, *document.inside):
        element.text = " ".join(element.text.split())
    return document


@dataclass
class Browser:
    """A client of the application; a page comes as its elements."""

    client: TestClient

    def see(self, path: str, status: int = 200) -> Element:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return read(answer.text)

    def post(self, path: str, data: dict[str, object] | None = None, status: int = 303, **options: object) -> str:
        """Where it leads to; of an answer that leads nowhere, its text."""
        answer = self.client.post(path, data=data, **options)  # type: ignore[arg-type]
        assert answer.status_code == status, answer.text
        return answer.headers.get("location") or answer.text


@pytest.fixture
def browser(house: House) -> Iterator[Browser]:
    app = create_app(house.settings, loopback=True)
    with TestClient(app, base_url=ORIGIN, headers={"Origin": ORIGIN}, follow_redirects=False) as client:
        yield Browser(client)
