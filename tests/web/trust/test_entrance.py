"""Tokens and sessions: how one gets in, and the ways that do not lead there."""

from __future__ import annotations

import re
import time
from urllib.parse import quote

import pytest

from jobs import Client
from jobs.errors import UsageError
from jobs.settings import Settings, current_owner
from tests.web.conftest import TOKEN, Answer, Start, Web
from tests.web.trust.conftest import BEARER, BROWSER, FORM, ask, cookie_of, log_in
from webui.entrance import Entrance
from webui.guesses import REGAINED_IN, TRIES

ELSEWHERE = [
    "https://evil.example",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "/\t/evil.example",
    "\\\\evil.example",
    "javascript:alert(1)",
    " //evil.example",
    "/\r\nSet-Cookie: a=b",
    "evil.example",
    "",
]


class TestLogin:
    def test_pages_lead_to_it_and_it_leads_back(self, guarded: Web) -> None:
        sent = ask(guarded, "GET", "/jobs?state=running&label=a%3Db", BROWSER)
        assert (sent.status, sent.headers["location"]) == (
            303,
            "/login?next=%2Fjobs%3Fstate%3Drunning%26label%3Da%253Db",
        )
        form = ask(guarded, "GET", sent.headers["location"], BROWSER)
        assert form.status == 200
        assert 'name="next" value="/jobs?state=running&amp;label=a%3Db"' in form.text
        entered = ask(guarded, "POST", "/login", FORM, f"token={TOKEN}&next=%2Fjobs%3Fstate%3Drunning")
        assert (entered.status, entered.headers["location"]) == (303, "/jobs?state=running")
        assert ask(guarded, "GET", "/metrics", cookie_of(entered)).status == 200
        assert ask(guarded, "GET", "/login?next=/workers", cookie_of(entered)).headers["location"] == "/workers"

    def test_a_wrong_token(self, guarded: Web, address: dict[str, str]) -> None:
        for wrong in ("", "%00", "x" * 5_000, f"{TOKEN}x", TOKEN.upper(), "%f0%9f%92%a5"):
            refused = ask(guarded, "POST", "/login", FORM | address, f"token={wrong}&next=/jobs")
            assert refused.status == 401
            assert "set-cookie" not in refused.headers
            assert "This is not a token of this server." in refused.text

    @pytest.mark.parametrize("target", ELSEWHERE)
    def test_nobody_is_sent_elsewhere(self, guarded: Web, target: str) -> None:
        entered = ask(guarded, "POST", "/login", FORM, f"token={TOKEN}&next={quote(target)}")
        assert (entered.status, entered.headers["location"]) == (303, "/")
        known = ask(guarded, "GET", f"/login?next={quote(target)}", cookie_of(entered))
        assert (known.status, known.headers["location"]) == (303, "/")
        assert 'name="next" value="/"' in ask(guarded, "GET", f"/login?next={quote(target)}").text

    def test_where_there_is_no_token_there_is_nothing_to_log_in_to(self, unguarded: Web) -> None:
        assert ask(unguarded, "GET", "/login?next=/jobs").headers["location"] == "/jobs"
        assert ask(unguarded, "POST", "/login", FORM, "token=a").headers["location"] == "/"
        assert ask(unguarded, "GET", "/jobs?token=of-another-server&q=a", BROWSER).headers["location"] == "/jobs?q=a"


class TestTokenInTheAddress:
    def test_it_goes_into_a_session_and_out_of_the_address(self, guarded: Web) -> None:
        for path, clean in (
            (f"/?token={TOKEN}", "/"),
            (f"/jobs?state=failed&token={TOKEN}&q=a+b%26", "/jobs?state=failed&q=a+b%26"),
        ):
            answer = ask(guarded, "GET", path, BROWSER)
            assert (answer.status, answer.headers["location"]) == (303, clean)
            assert ask(guarded, "GET", "/metrics", cookie_of(answer)).status == 200
        assert TOKEN not in guarded.log.read_text()

    def test_a_wrong_one_and_one_that_no_page_was_asked_with(self, guarded: Web, address: dict[str, str]) -> None:
        wrong = ask(guarded, "GET", "/?token=wrong", BROWSER | address)
        assert (wrong.status, "set-cookie" in wrong.headers) == (401, False)
        assert ask(guarded, "GET", f"/metrics?token={TOKEN}").status == 401
        assert ask(guarded, "POST", f"/jobs/cancel?token={TOKEN}", BROWSER).status == 401

    def test_a_path_that_looks_like_another_host(self, guarded: Web) -> None:
        answer = ask(guarded, "GET", f"//evil.example/?token={TOKEN}", BROWSER)
        assert (answer.status, answer.headers["location"]) == (303, "/")

    def test_a_session_that_is_there_is_not_changed_by_a_link(self, guarded: Web) -> None:
        """Else a link could have somebody work under its sender's name."""
        answer = ask(guarded, "GET", "/?token=secret-of-mallory", BROWSER | log_in(guarded))
        assert (answer.status, "set-cookie" in answer.headers) == (303, False)


class TestSession:
    def test_the_cookie(self, guarded: Web) -> None:
        cookie = ask(guarded, "POST", "/login", FORM, f"token={TOKEN}").headers["set-cookie"]
        words = {word.partition("=")[0].strip().lower() for word in cookie.split(";")[1:]}
        assert words == {"httponly", "samesite", "path", "max-age"}
        assert re.search(r"samesite=lax", cookie, re.IGNORECASE)
        assert TOKEN not in cookie
        assert cookie.startswith(f"seqproc-session-{guarded.port}="), "browsers send cookies to every port of a host"

    def test_over_https_it_goes_over_https_only(self, guarded: Web) -> None:
        proxied = ask(guarded, "POST", "/login", FORM | {"X-Forwarded-Proto": "https"}, f"token={TOKEN}")
        assert "Secure" in proxied.headers["set-cookie"]

    def test_no_forged_one_is_taken(self, guarded: Web) -> None:
        name, _, value = log_in(guarded)["Cookie"].partition("=")
        expires, _, signature = value.partition(".")
        forged = [
            TOKEN,
            "",
            ".",
            f"{expires}.",
            f".{signature}",
            f"{int(expires) + 1}.{signature}",
            f"{expires}.{signature[:-1]}{'0' if signature[-1] != '0' else '1'}",
            f"{expires}.{signature.upper()}",
            f"{expires}.{'0' * 64}",
            f"-1.{signature}",
            f"{'9' * 5000}.{signature}",
            f"\u00b2.{signature}",
        ]
        for cookie in forged:
            assert ask(guarded, "GET", "/metrics", {"Cookie": f"{name}={cookie}"}).status == 401, cookie
        assert ask(guarded, "GET", "/metrics", {"Cookie": f"{name}={value}"}).status == 200
        assert ask(guarded, "GET", "/metrics", {"Cookie": f"seqproc-session-1={value}"}).status == 401

    def test_it_ends(self, guarded: Web) -> None:
        [key] = Entrance(Settings(token=TOKEN))._keys  # type: ignore[arg-type]
        now = int(time.time())
        for expires, status in ((now - 1, 401), (now + 600, 200)):
            cookie = f"seqproc-session-{guarded.port}={expires}.{key.signature(expires)}"
            assert ask(guarded, "GET", "/metrics", {"Cookie": cookie}).status == status

    def test_another_token_ends_all(self, guarded: Web, start: Start) -> None:
        value = log_in(guarded)["Cookie"].partition("=")[2]
        changed = start(SEQPROC_TOKEN=TOKEN + "x")
        assert ask(changed, "GET", "/metrics", {"Cookie": f"seqproc-session-{changed.port}={value}"}).status == 401

    def test_logging_out(self, guarded: Web) -> None:
        left = ask(guarded, "POST", "/logout", log_in(guarded) | {"Sec-Fetch-Site": "same-origin"})
        assert (left.status, left.headers["location"]) == (303, "/login")
        assert re.search(r'seqproc-session-\d+=""; .*Max-Age=0', left.headers["set-cookie"])

    def test_a_page_that_polls_is_told_to_load_anew(self, guarded: Web) -> None:
        answer = ask(guarded, "GET", "/jobs", {"HX-Request": "true", "Accept": "*/*"})
        assert (answer.status, answer.headers["hx-refresh"]) == (401, "true")


class TestGuessing:
    @pytest.mark.parametrize("way", ["header", "form", "address"])
    def test_after_ten_wrong_tokens_one_waits(self, guarded: Web, address: dict[str, str], way: str) -> None:
        session, began, wrong = log_in(guarded), time.monotonic(), 0
        while self.attempt(guarded, way, f"guess-{wrong}", address).status == 401:
            wrong += 1
        assert TRIES <= wrong <= TRIES + (time.monotonic() - began) / REGAINED_IN
        for other in ("header", "form", "address"):
            right = self.attempt(guarded, other, TOKEN, address)
            assert right.status == 429, "nor does a right one tell that it is"
            assert 1 <= int(right.headers["retry-after"]) <= REGAINED_IN
            assert "set-cookie" not in right.headers
        assert ask(guarded, "GET", "/metrics", session | address).status == 200, "a session is no guess"
        assert ask(guarded, "GET", "/healthz", address).status == 200
        assert ask(guarded, "GET", "/metrics", BEARER).status == 200, "from elsewhere"

    def test_no_token_is_no_guess(self, guarded: Web, address: dict[str, str]) -> None:
        for headers in [{}, BROWSER, {"Cookie": "seqproc-session=a"}, {"Authorization": "Basic YTpi"}] * 5:
            assert ask(guarded, "GET", "/metrics", headers | address).status in (303, 401)
        assert ask(guarded, "GET", "/metrics", BEARER | address).status == 200

    @staticmethod
    def attempt(web: Web, way: str, token: str, address: dict[str, str]) -> Answer:
        if way == "header":
            return ask(web, "GET", "/metrics", address | {"Authorization": f"Bearer {token}"})
        if way == "form":
            return ask(web, "POST", "/login", address | FORM, f"token={token}")
        return ask(web, "GET", f"/?token={token}", address | BROWSER)


class TestNames:
    def test_each_token_is_somebody(self) -> None:
        settings = Settings(token=TOKEN, tokens="alice:secret-a, bob.b:secret:b")  # type: ignore[arg-type]
        entrance = Entrance(settings)
        for token, name, operator in (
            (TOKEN, current_owner(), True),
            ("secret-a", "alice", False),
            ("secret:b", "bob.b", False),
        ):
            caller = entrance.by_token(token.encode(), "192.0.2.1")
            assert (caller.name, caller.operator) == (name, operator)

    def test_buttons_are_shown_to_those_who_may_use_them(self, guarded: Web, client: Client) -> None:
        job = client.submit(model="tiny-arithmetic", prompts=["2+3="]).id
        polls = {"HX-Request": "true"}  # in turns within a second: what was made for one is not shown to the other
        for _ in range(2):
            for token, shown in ((TOKEN, True), ("secret-of-mallory", False)):
                for headers in (polls, {}):
                    page = ask(guarded, "GET", f"/jobs/{job}", headers | {"Authorization": f"Bearer {token}"})
                    assert page.status == 200
                    assert (f'action="/jobs/{job}/cancel"' in page.text) is shown

    def test_names_alone_open_a_server(self, start: Start) -> None:
        web = start("--host", "0.0.0.0", SEQPROC_TOKENS="alice:secret-a")
        assert ask(web, "GET", "/metrics", {"Authorization": "Bearer secret-a"}).status == 200
        assert ask(web, "GET", "/metrics", log_in(web, "secret-a")).status == 200
        for wrong in ("Bearer alice:secret-a", "Bearer alice", "Bearer "):
            assert ask(web, "GET", "/metrics", {"Authorization": wrong}).status == 401

    @pytest.mark.parametrize(
        "tokens",
        [
            "hush-hush",
            "alice:",
            ":hush-hush",
            "a b:hush-hush",
            "alice:hush-hush,alice:t",
            "alice:hush-hush,bob:hush-hush",
            f"alice:{TOKEN}",
            "a/b:hush-hush",
        ],
    )
    def test_wrong_ones_are_named_without_their_secrets(self, tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEQPROC_TOKEN", TOKEN)
        monkeypatch.setenv("SEQPROC_TOKENS", tokens)
        with pytest.raises(UsageError, match="SEQPROC_TOKENS: give") as caught:
            Settings.load()
        assert "hush-hush" not in str(caught.value) and TOKEN not in str(caught.value)
