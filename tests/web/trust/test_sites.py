"""Pages of other sites: names that were rebound to us, forms and scripts that post here, frames, links."""

from __future__ import annotations

import pytest

from jobs import Client
from tests.web.conftest import TOKEN, Start, Web
from tests.web.trust.conftest import BEARER, BROWSER, FORM, ask, log_in

EVIL = "https://evil.example"


@pytest.fixture
def job(client: Client) -> str:
    """A job that waits."""
    return client.submit(model="tiny-arithmetic", prompts=["1+1="]).id


class TestNames:
    """DNS rebinding: evil.example resolves to 127.0.0.1, and the browser takes us for evil.example."""

    def test_loopback_answers_to_loopbacks_names_only(self, unguarded: Web, client: Client, job: str) -> None:
        for host in (
            "evil.example",
            "evil.example:8642",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.5",
            "[fe80::1]",
        ):
            as_one = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
            for method, path in (
                ("GET", "/jobs"),
                ("POST", f"/api/v1/jobs/{job}/cancel"),
                ("GET", "/static/style.css"),
                ("GET", "/login"),
                ("GET", "/healthz"),
            ):
                assert ask(unguarded, method, path, as_one).status == 400, (host, method, path)
        assert client.get(job).state == "queued"

    def test_names_that_the_operator_lists(self, start: Start) -> None:
        web = start(SEQPROC_WEB_HOSTS="seqproc.example, Box")
        for host in ("seqproc.example", "SEQPROC.example:443", "box", "localhost", "127.0.0.1", "[::1]:8642"):
            assert ask(web, "GET", "/healthz", {"Host": host}).status == 200, host
        for host in ("evil.example", "x.seqproc.example"):
            assert ask(web, "GET", "/healthz", {"Host": host}).status == 400, host

    def test_elsewhere_a_rebound_page_has_no_session(self, start: Start) -> None:
        web = start("--host", "0.0.0.0", SEQPROC_TOKEN=TOKEN)
        log_in(web)  # whose cookie a browser sends to 127.0.0.1 and not to evil.example
        for headers in ({}, BROWSER):
            assert ask(web, "GET", "/metrics", {"Host": "evil.example"} | headers).status in (303, 401)

    def test_a_list_holds_elsewhere_as_well(self, start: Start) -> None:
        web = start("--host", "0.0.0.0", SEQPROC_TOKEN=TOKEN, SEQPROC_WEB_HOSTS="seqproc.example")
        assert ask(web, "GET", "/metrics", {"Host": "seqproc.example"} | BEARER).status == 200
        assert ask(web, "GET", "/metrics", {"Host": "evil.example"} | BEARER).status == 400

    def test_what_is_no_host(self, start: Start) -> None:
        web = start("--host", "0.0.0.0", SEQPROC_TOKEN=TOKEN)
        for host in ("", "[", "[::::]", "a b", "a/b", "a@b", "localhost:port", "<b>", "[::1"):
            answer = ask(web, "GET", "/metrics", {"Host": host} | BEARER)
            assert (answer.status, "<b>" in answer.text) == (400, False), host


FOREIGN = [
    {"Origin": EVIL},
    {"Origin": EVIL, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    {"Origin": "null", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://[", "Sec-Fetch-Mode": "navigate"},
    {"Origin": "http://localhost"},  # another port
    {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "nonsense"},
]


class TestForms:
    @pytest.mark.parametrize("kind", ["guarded", "unguarded"])
    def test_no_other_site_changes_anything(
        self, request: pytest.FixtureRequest, client: Client, job: str, kind: str
    ) -> None:
        web: Web = request.getfixturevalue(kind)
        session = log_in(web) if kind == "guarded" else {}
        before = len(client.jobs())
        for foreign in FOREIGN:
            for method, path, body in (
                ("POST", f"/jobs/{job}/cancel", ""),
                ("POST", "/jobs/cancel", f"job={job}"),
                ("POST", f"/api/v1/jobs/{job}/cancel", ""),
                ("DELETE", f"/api/v1/jobs/{job}", ""),
                ("POST", "/submit", "model=tiny-arithmetic&prompts=1"),
                ("POST", "/api/v1/jobs", '{"model": "tiny-arithmetic", "prompts": ["1"]}'),
                ("POST", "/login", f"token={TOKEN}"),
                ("POST", "/logout", ""),
            ):
                answer = ask(web, method, path, FORM | foreign | session, body)
                assert answer.status == 403, (foreign, method, path)
                assert "set-cookie" not in answer.headers
        assert client.get(job).state == "queued"
        assert len(client.jobs()) == before

    def test_a_cookie_without_a_word_of_where_from(self, guarded: Web) -> None:
        assert ask(guarded, "POST", "/logout", log_in(guarded)).status == 403

    def test_our_own_forms_and_programs_may(self, guarded: Web) -> None:
        here, session = f"127.0.0.1:{guarded.port}", log_in(guarded)
        for headers in (
            session | {"Origin": f"http://{here}", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"},
            session | {"Origin": f"http://{here}"},
            BEARER,
            BEARER | {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"},  # a script could not have sent the token
        ):
            assert ask(guarded, "POST", "/logout", headers).status == 303, headers

    def test_without_a_token_a_program_may_and_a_page_may_not(self, unguarded: Web) -> None:
        assert ask(unguarded, "POST", "/logout").status == 303
        assert ask(unguarded, "POST", "/logout", {"Origin": EVIL}).status == 403


class TestReading:
    def test_another_site_may_link_here(self, unguarded: Web) -> None:
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert ask(unguarded, "GET", "/metrics", link).status == 200

    @pytest.mark.parametrize("mode", ["no-cors", "cors", "websocket"])
    def test_and_embed_or_fetch_nothing(self, unguarded: Web, mode: str) -> None:
        for site in ("cross-site", "same-site"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
            assert ask(unguarded, "GET", "/metrics", headers).status == 403

    def test_nobody_is_given_leave_to_cross_over(self, guarded: Web) -> None:
        preflight = {
            "Origin": EVIL,
            "Access-Control-Request-Method": "DELETE",
            "Access-Control-Request-Headers": "authorization",
        }
        for method, headers in (("OPTIONS", preflight), ("GET", {"Origin": EVIL} | BEARER)):
            answer = ask(guarded, method, "/api/v1/jobs", headers)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
            assert method == "GET" or answer.status == 403
