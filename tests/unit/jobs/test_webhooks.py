"""Delivery to a real server: what is sent, how it is signed, and everything that a server can do wrong."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from jobs.records import Job, Webhook
from jobs.settings import Settings
from jobs.store.schema import webhooks
from jobs.webhook_target import AllowedHosts
from jobs.webhooks import FIRST_PAUSE, TRIES, Courier
from tests.house import House
from tests.receiver import Receiver, receiver

SECRET = "whsec-of-a-test"
_RESOLVE = socket.getaddrinfo


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as started:
        yield started


def ended(house: House, url: str, hosts: str = "127.0.0.1,localhost,hook.test:1", **fields: Any) -> Job:
    """A job that has ended and wants that told."""
    listed = tuple(hosts.split(","))
    open_house = House(Settings(home=house.settings.home, webhook_hosts=listed), house.store)
    job = open_house.submit(prompts=["p0"], webhook=url, **fields).job
    return open_house.finish(job)


def courier(house: House, *hosts: str, **options: Any) -> Courier:
    return Courier(house.store, AllowedHosts.of(hosts or ("127.0.0.1",)), SECRET, **options)


def the_webhook(house: House, job: Job) -> Webhook:
    [webhook] = house.store.webhooks_of(job.id)
    return webhook


def make_due(house: House) -> None:
    with house.store.db.transaction() as connection:
        connection.execute(update(webhooks).where(webhooks.c.next_try_at.is_not(None)).values(next_try_at=0.0))


def test_an_event_is_delivered_once_and_its_signature_holds(house: House, server: Receiver) -> None:
    job = ended(house, server.url(path="/hook?a=b"), name="naïve", labels={"sweep": "1"})
    before = int(time.time())
    assert courier(house).deliver_next()
    assert not courier(house).deliver_next()
    [(path, headers, body)] = server.requests
    event = json.loads(body)
    assert path == "/hook?a=b"
    assert event["id"] == headers["Seqproc-Event"] == f"{job.id}-{job.revision}"
    assert event["type"] == "job.ended"
    assert {"id": job.id, "state": "succeeded", "name": "naïve", "labels": {"sweep": "1"}}.items() <= event[
        "job"
    ].items()
    assert event["job"]["done_sequences"] == job.done_sequences
    # As the README tells a receiver to do it.
    stamp, given = (part.split("=", 1)[1] for part in headers["Seqproc-Signature"].split(","))
    assert given == hmac.new(SECRET.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert before <= int(stamp) <= time.time()
    assert headers["Host"] == f"127.0.0.1:{server.port}"
    webhook = the_webhook(house, job)
    assert (webhook.tries, webhook.next_try_at, webhook.error) == (1, None, None)
    assert webhook.delivered_at is not None


def test_a_failure_is_tried_again_after_a_pause_under_the_same_id(house: House) -> None:
    with receiver(500, 200) as server:
        job = ended(house, server.url())
        assert courier(house).deliver_next()
        failed = the_webhook(house, job)
        assert failed.error == f"127.0.0.1:{server.port} answered 500"
        assert failed.next_try_at is not None
        assert failed.next_try_at - house.store.clock() == pytest.approx(FIRST_PAUSE, abs=10)
        assert not courier(house).deliver_next(), "not before its time"
        make_due(house)
        assert courier(house).deliver_next()
    assert len({headers["Seqproc-Event"] for _, headers, _ in server.requests}) == 1
    assert len(server.requests) == 2
    webhook = the_webhook(house, job)
    assert (webhook.tries, webhook.error) == (2, None)
    assert webhook.delivered_at is not None


def test_pauses_grow_to_about_a_day_and_then_it_is_given_up(house: House) -> None:
    with receiver(503) as server:
        job = ended(house, server.url())
        pauses = []
        for _ in range(TRIES):
            make_due(house)
            assert courier(house).deliver_next()
            due = the_webhook(house, job).next_try_at
            pauses.append(None if due is None else due - house.store.clock())
        make_due(house)
        assert not courier(house).deliver_next()
    *grown, last = pauses
    assert last is None
    assert len(server.requests) == TRIES
    assert all(b == pytest.approx(2 * a, abs=15) for a, b in pairwise(grown))
    assert 20 * 3600 < sum(filter(None, grown)) < 28 * 3600
    assert the_webhook(house, job).error == f"127.0.0.1:{server.port} answered 503"
    assert house.store.job(job.id).state == "succeeded"


def test_a_redirect_is_not_followed(house: House, server: Receiver) -> None:
    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("Location", server.url(path="/stolen"))
        handler.end_headers()

    with receiver(elsewhere) as redirecting:
        job = ended(house, redirecting.url())
        courier(house).deliver_next()
        assert the_webhook(house, job).error == (
            f"127.0.0.1:{redirecting.port} answered 307, and redirects are not followed"
        )
    assert server.requests == []


def test_a_server_that_hangs_or_dribbles(house: House) -> None:
    over = threading.Event()

    def silent(_handler: BaseHTTPRequestHandler) -> None:
        over.wait(30)

    def dribbling(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not over.wait(0.02):  # a byte now and then: no single wait is long
            handler.wfile.write(b"x")

    for behaviour in (silent, dribbling):
        with receiver(behaviour) as server:
            job = ended(house, server.url())
            assert courier(house, whole=0.3).deliver_next()
            assert the_webhook(house, job).error == f"127.0.0.1:{server.port} did not answer in time"
            assert len(server.requests) == 1
            over.set()
        over.clear()


def test_a_body_without_end_is_not_read(house: House) -> None:
    over = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while not over.is_set():
                handler.wfile.write(b"x" * 65_536)
        except OSError:
            over.set()

    with receiver(endless) as server:
        job = ended(house, server.url())
        courier(house).deliver_next()
        assert the_webhook(house, job).delivered_at is not None
        assert over.wait(10), "the connection was closed on it"


def test_nobody_listens_and_no_such_name(house: House) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening
        job = ended(house, f"http://127.0.0.1:{held.getsockname()[1]}/")
        courier(house).deliver_next()
        assert "Connection refused" in str(the_webhook(house, job).error)
    unknown = ended(house, "https://no-such-host.invalid/", "no-such-host.invalid")
    courier(house, "no-such-host.invalid").deliver_next()
    assert "no-such-host.invalid cannot be resolved" in str(the_webhook(house, unknown).error)


def test_a_host_that_this_worker_may_not_tell(house: House, server: Receiver) -> None:
    job = ended(house, server.url())
    courier(house, "example.org").deliver_next()
    assert "127.0.0.1 is not among the hosts that may be told" in str(the_webhook(house, job).error)
    assert server.requests == []


def rebind(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """hook.test resolves to one address after the other; the answers given. All else resolves as it does."""
    given: list[str] = []

    def resolver(host: str, port: Any, *args: Any, **options: Any) -> Any:
        if host != "hook.test":
            return _RESOLVE(host, port, *args, **options)
        given.append(answers[min(len(given), len(answers) - 1)])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (given[-1], port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return given


def test_a_name_is_asked_for_once_and_what_was_checked_is_connected_to(
    house: House, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = (f"hook.test:{server.port}", f"127.0.0.1:{server.port}")
    job = ended(house, server.url("hook.test"), ",".join(hosts))
    given = rebind(monkeypatch, "127.0.0.1", "127.0.0.2")
    courier(house, *hosts).deliver_next()
    assert given == ["127.0.0.1"]
    assert the_webhook(house, job).delivered_at is not None
    assert server.requests[0][1]["Host"] == f"hook.test:{server.port}"


def test_a_name_that_was_rebound_to_a_private_address(
    house: House, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"hook.test:{server.port}"
    job = ended(house, server.url("hook.test"), host)
    rebind(monkeypatch, "127.0.0.1")
    courier(house, host).deliver_next()
    assert the_webhook(house, job).error == (
        "hook.test is at 127.0.0.1, which is not public; SEQPROC_WEBHOOK_HOSTS would have to list that address as well"
    )
    assert server.requests == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of hook.test with its key, signed by itself."""
    if shutil.which("openssl") is None:
        missing = "no openssl on the PATH, which makes a certificate for the test"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    file = tmp_path_factory.mktemp("tls") / "hook.test.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=hook.test", "-addext", "subjectAltName=DNS:hook.test"]
    subprocess.run([*command, "-keyout", str(file), "-out", f"{file}.crt"], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


@pytest.mark.parametrize(
    ("trusted", "name", "error"),
    [
        (True, "hook.test", None),
        (False, "hook.test", "self-signed certificate"),
        (True, "localhost", "Hostname mismatch"),
    ],
)
def test_over_tls_the_certificate_is_that_of_the_name(
    house: House, monkeypatch: pytest.MonkeyPatch, certificate: Path, trusted: bool, name: str, error: str | None
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    rebind(monkeypatch, "127.0.0.1")
    with receiver(tls=context) as server:
        hosts = (f"{name}:{server.port}", f"127.0.0.1:{server.port}")
        job = ended(house, server.url(name, scheme="https"), ",".join(hosts))
        courier(house, *hosts).deliver_next()
        webhook = the_webhook(house, job)
    if error is None:
        assert (webhook.error, len(server.requests)) == (None, 1)
    else:
        assert error in str(webhook.error)
        assert server.requests == []


def test_a_jobs_row_that_cannot_be_told_holds_up_no_other(
    house: House, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ended(house, server.url())
    second = ended(house, server.url())
    read = house.store.job

    def cannot(job_id: str) -> Job:
        if job_id == first.id:
            raise ValueError("not JSON")
        return read(job_id)

    monkeypatch.setattr(house.store, "job", cannot)
    while courier(house).deliver_next():
        pass
    assert the_webhook(house, first).error == "ValueError: not JSON"
    assert the_webhook(house, second).delivered_at is not None


def test_a_deleted_job_is_told_no_more(house: House, server: Receiver) -> None:
    job = ended(house, server.url())
    house.store.tombstone(job.id)
    assert courier(house).deliver_next()
    house.store.purge(job.id)
    assert not courier(house).deliver_next()
    assert server.requests == []
