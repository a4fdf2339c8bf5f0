"""Which URLs may be told of an end: what the operator lists, at public addresses or at addresses listed as well."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from jobs.errors import SpecError, UsageError
from jobs.spec import JobSpec
from jobs.webhook_target import AllowedHosts, Refused, Target, check_webhook
from tests.house import House


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://h/x", "must begin with https://"),
        ("h/x", "must begin with https://"),
        ("https:///x", "names no host"),
        ("https://user:pw@h/x", "must hold no user and no password"),
        ("https://h\\@evil/x", "ASCII without blanks"),
        ("https://h/a b", "ASCII without blanks"),
        ("https://h/\n", "ASCII without blanks"),
        ("https://bücher.example/", "ASCII without blanks"),
        ("https://h:70000/", "a port that is no port"),
        ("https://h:x/", "a port that is no port"),
        ("https://-h-/", "names no host"),
        ("https://h%00/", "names no host"),
    ],
)
def test_a_url_that_is_none(url: str, says: str) -> None:
    with pytest.raises(SpecError, match="webhook: ") as caught:
        JobSpec.parse({"model": "tiny-arithmetic", "webhook": url})
    assert says in str(caught.value)
    assert "pw" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://Hooks.Example.org./a?b=c", Target("https", "hooks.example.org", 443, "/a?b=c")),
        ("http://h:8080", Target("http", "h", 8080, "/")),
        ("https://[::1]:8/", Target("https", "::1", 8, "/")),
        ("https://[0:0::1]/", Target("https", "::1", 443, "/")),
    ],
)
def test_where_a_url_points_to(url: str, target: Target) -> None:
    assert Target.of(url) == target


def test_the_authority_names_a_port_only_where_it_is_another() -> None:
    urls = ["https://h/", "http://h/", "https://h:80/", "https://[::1]:8/"]
    assert [Target.of(url).authority for url in urls] == ["h", "h", "h:80", "[::1]:8"]


@pytest.mark.parametrize(
    ("listed", "url", "allowed"),
    [
        ("h.org", "https://h.org/x", True),
        ("H.org", "https://h.ORG./x", True),
        ("h.org", "https://h.org:8443/x", False),
        ("h.org", "http://h.org/x", False),
        ("h.org", "http://h.org:443/x", False),
        ("h.org:8080", "http://h.org:8080/x", True),
        ("h.org:8443", "https://h.org:8443/x", True),
        ("h.org:8080", "https://h.org/x", False),
        ("h.org", "https://evil.h.org/x", False),
        ("h.org", "https://h.org.evil/x", False),
        ("localhost", "http://localhost:1234/", True),
        ("127.0.0.1", "http://127.0.0.1:1234/", True),
        ("::1", "http://[::1]:1234/", True),
        ("10.0.0.5", "http://10.0.0.5/", False),
        ("10.0.0.5:80", "http://10.0.0.5/", True),
        ("", "https://h.org/", False),
    ],
)
def test_the_operators_list(listed: str, url: str, allowed: bool) -> None:
    hosts = AllowedHosts.of(filter(None, [listed]))
    if allowed:
        hosts.check(Target.of(url))
    else:
        with pytest.raises(Refused, match="SEQPROC_WEBHOOK_HOSTS"):
            hosts.check(Target.of(url))


@pytest.mark.parametrize("entry", ["https://h.org", "h.org/x", "u@h.org", "h org", "h.org:x", "*"])
def test_a_list_that_cannot_be_read(entry: str) -> None:
    with pytest.raises(UsageError, match=r"SEQPROC_WEBHOOK_HOSTS: .* is no host"):
        AllowedHosts.of([entry])


def answer(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name resolves to these addresses; the names that were asked for."""
    asked: list[str] = []

    def resolver(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [(f, socket.SOCK_STREAM, 6, "", (a, port)) for f, a in zip(families, addresses, strict=True)]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return asked


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.5", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:10.0.0.5"),
        *("2002:0a00:0005::", "64:ff9b::a00:5"),
    ],
)
def test_an_address_that_is_not_public(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    answer(monkeypatch, address)
    with pytest.raises(Refused, match="which is not public"):
        AllowedHosts.of(["h.org"]).resolve(Target.of("https://h.org/"))


def test_of_several_addresses_only_the_allowed_ones_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, "10.0.0.5", "93.184.215.14", "10.0.0.6", "2606:4700::1111")
    hosts = AllowedHosts.of(["h.org", "10.0.0.6:443"])
    places = [place for _, place in hosts.resolve(Target.of("https://h.org/"))]
    assert places == [("93.184.215.14", 443), ("10.0.0.6", 443), ("2606:4700::1111", 443)]
    assert asked == ["h.org"]


def test_localhost_is_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "127.0.0.1", "10.0.0.5")
    places = AllowedHosts.of(["localhost"]).resolve(Target.of("http://localhost:99/"))
    assert places == [(socket.AF_INET, ("127.0.0.1", 99))]


def test_submit_refuses_what_is_not_listed(house: House) -> None:
    with pytest.raises(SpecError, match=r"webhook: hooks\.example\.org is not among the hosts"):
        house.submit(prompts=["p"], webhook="https://hooks.example.org/x")
    assert not house.store.jobs()
    check_webhook("https://hooks.example.org/x", ["hooks.example.org"])
    check_webhook(None, [])
