"""The page of a prompt's responses: what is shown, in which order, and that nothing in it comes alive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.snapshot import SnapshotRow
from tests.web.pictures.conftest import Studio, a_row

TOKENS = ["The", " sum", " is", " ", "\n", "4", ".", "</answer>"]


def plain(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
    return a_row(prompt, sample, TOKENS)


class TestTokens:
    def test_each_with_its_tint_and_its_figures(self, studio: Studio) -> None:
        job = studio.finished([{"prompt": "2+2=", "custom_id": "sum-4"}], plain, G=1)
        page = studio.page(f"/jobs/{job.id}/sequences?prompt=0")
        assert page.words("tokens", but="tooltip") == TOKENS
        assert page.words("tooltip")[1] == (
            '" sum" · id 101 · position 1 · log p −0.5000 · entropy 0.2500 · '
            "sampling log q −0.2500 · sampling entropy 0.1250 nats"
        )
        tints = [a["class"] for _, a in page.elements if (a.get("class") or "").startswith("token ")]
        shown = ["t0", "t2", "t3", "t3", "t4 line-break", "t4", "t4", "t4"]  # −log p is 0, 0.5, 1, …
        assert tints[: len(TOKENS)] == [f"token {tint}" for tint in shown]
        assert tints[len(TOKENS) :] == [f"token t{i}" for i in range(6)], "the legend"
        assert "8 tokens stop log-probability −14.0000 nats mean entropy 0.2500 nats" in page.text
        for words in ("< 0.1", "≥ 4", "−log p, nats"):
            assert words in page.text

    def test_by_any_measurement(self, studio: Studio) -> None:
        job = studio.finished(["p"], plain, G=1)
        for by, tint, legend in (
            ("entropy", "t1", "entropy, nats"),
            ("sampling_entropy", "t1", "sampling entropy, nats"),
            ("sampling_logprob", "t3", "−log q, nats"),
        ):
            page = studio.page(f"/jobs/{job.id}/sequences?by={by}")
            classes = [a["class"] for _, a in page.elements if (a.get("class") or "").startswith("token ")]
            assert classes[7].split()[1] == tint, by
            assert legend in page.text
        assert "sampling log-probability −7.0000 nats" in page.text

    def test_what_was_not_measured(self, studio: Studio) -> None:
        def bare(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
            names = ("logprobs", "sampling_logprobs", "sampling_entropies")
            return a_row(prompt, sample, TOKENS, **dict.fromkeys(names))

        job = studio.finished(["p"], bare, measurements=["entropies"])
        page = studio.page(f"/jobs/{job.id}/sequences")
        assert page.words("tooltip")[0] == '"The" · id 100 · position 0 · entropy 0.2500 nats'
        refused = studio.page(f"/jobs/{job.id}/sequences?by=logprob", 400)
        assert f"job {job.id} did not measure logprobs; it has entropies" in refused.text

        def nothing(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
            return bare(prompt, sample) | {"entropies": None}

        job = studio.finished(["p"], nothing, measurements=[])
        page = studio.page(f"/jobs/{job.id}/sequences")
        assert page.words("tokens", but="tooltip") == TOKENS * 2
        assert page.words("tooltip")[0] == '"The" · id 100 · position 0'

    def test_rewards_stand_beside_each_response(self, studio: Studio) -> None:
        def right(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
            return a_row(prompt, sample, ["<answer>", "4", "</answer>"])

        rows = [{"prompt": f"p{i}", "answer": "4"} for i in range(4)]
        job = studio.finished(rows, right, rewards=["tag_format"])
        page = studio.page(f"/jobs/{job.id}/sequences?prompt=1")
        assert page.text.count("tag_format not judged") == 2 and page.text.count("✓ correct") == 2
        for shard, values in ((0, [0.0, 1.0, -0.123456, None]), (1, [1.0] * 4)):
            studio.judge(job, "style", shard, values)
        page = studio.page(f"/jobs/{job.id}/sequences?prompt=1")
        assert "style −0.1235 tag_format not judged ✓ correct" in page.text
        assert "style not judged tag_format" in page.text

    def test_math_answer_tells_right_from_wrong(self, studio: Studio) -> None:
        def half(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
            return a_row(prompt, sample, ["<answer>", "1/2", "</answer>"])

        job = studio.finished([{"prompt": "p0", "answer": "0.5"}], half, G=3)
        assert studio.page(f"/jobs/{job.id}/sequences").text.count("✗ wrong") == 3
        studio.judge(job, "math_answer", 0, [1.0, 0.0, None])
        page = studio.page(f"/jobs/{job.id}/sequences")
        assert (page.text.count("✓ correct"), page.text.count("✗ wrong")) == (1, 1)

    def test_what_is_not_finite_and_what_has_no_text(self, studio: Studio) -> None:
        def odd(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
            values = np.array([-0.1, -np.inf, -0.1], np.float32)
            return a_row(prompt, sample, ["a", "b", ""], sampling_logprobs=values)

        job = studio.finished(["p"], odd, G=1)
        page = studio.page(f"/jobs/{job.id}/sequences?by=sampling_logprob")
        classes = [a["class"] for _, a in page.elements if (a.get("class") or "").startswith("token ")]
        assert classes[:3] == ["token t1", "token t5 infinite", "token t1 nothing"]
        assert "sampling log q −∞" in page.words("tooltip")[1]
        assert page.words("tooltip")[2].startswith('"" · id 102')

    def test_a_response_without_tokens(self, studio: Studio) -> None:
        job = studio.finished(["p"], lambda prompt, sample: a_row(prompt, sample, []), G=1)
        assert "This response has no tokens." in studio.page(f"/jobs/{job.id}/sequences").text


class TestHostile:
    TEXTS = (
        "<script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "{{ 7 * 7 }}{% raw %}",
        "a\u202egnp.exe",
        "\x1b[31mred\x00\x07",
        "</span></p></article><b>out</b>",
        "\u2028line",
    )

    def test_nothing_comes_alive(self, studio: Studio) -> None:
        def hostile(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
            return a_row(prompt, sample, list(self.TEXTS))

        rows = [{"prompt": text, "custom_id": f"{i}{text}", "answer": text} for i, text in enumerate(self.TEXTS)]
        job = studio.finished(rows, hostile, G=1, name=self.TEXTS[1])
        letters = list("abcdefg")
        harmless = studio.finished([{"prompt": "p", "answer": "a"}], lambda p, s: a_row(p, s, letters), G=1)
        shape = [tag for tag, _ in studio.page(f"/jobs/{harmless.id}/sequences").elements]
        for prompt in range(len(rows)):
            page = studio.page(f"/jobs/{job.id}/sequences?prompt={prompt}")
            tags = [tag for tag, _ in page.elements]
            assert tags.count("script") == shape.count("script")
            assert not {"img", "b"} & (set(tags) - set(shape))
            assert not any(name.startswith("on") or name == "style" for _, a in page.elements for name in a)
            assert not set("\u202e\x1b\x00\x07\u2028") & set(page.html)
            shown = page.words("tokens", but="tooltip")
            assert page.words("tooltip")[3].startswith('"a\\u202egnp.exe" · id 103')
            assert shown == [*self.TEXTS[:3], "a\ufffdgnp.exe", "␛[31mred␀␇", self.TEXTS[5], "\ufffdline"]

    def test_an_error_too(self, studio: Studio) -> None:
        job = studio.finished(["good", "x<i>\u202e"], lambda p, s: plain(p, s) if p.prompt == "good" else None)
        page = studio.page(f"/jobs/{job.id}/sequences?prompt=1")
        assert "Prompt 1 failed: prompt x<i>\ufffd is <b>bad</b>" in page.text
        assert not {"i", "b"} & {tag for tag, _ in page.elements}


class TestOrder:
    LENGTHS = (3, 1, 4, 2)

    def row(self, prompt: SnapshotRow, sample: int) -> dict[str, Any]:
        count = self.LENGTHS[sample]
        return a_row(
            prompt,
            sample,
            ["x"] * count,
            logprobs=np.full(count, -1.0, np.float32),
            entropies=np.full(count, 1.0 / (sample + 1), np.float32),
        )

    @pytest.mark.parametrize(
        ("query", "samples"),
        [
            ("", [0, 1, 2, 3]),
            ("order=desc", [3, 2, 1, 0]),
            ("sort=tokens", [1, 3, 0, 2]),
            ("sort=tokens&order=desc", [2, 0, 3, 1]),
            ("sort=sum", [2, 0, 3, 1]),
            ("sort=mean&by=entropy", [3, 2, 1, 0]),
            ("sort=sum&by=entropy&order=desc", [0, 2, 1, 3]),
            ("sample=2", [2]),
        ],
    )
    def test_by_a_measurement(self, studio: Studio, query: str, samples: list[int]) -> None:
        job = studio.finished(["p"], self.row, G=4)
        page = studio.page(f"/jobs/{job.id}/sequences?{query}")
        assert [a["id"] for tag, a in page.elements if tag == "article"] == [f"sample-{i}" for i in samples]

    def test_pages_of_many(self, studio: Studio) -> None:
        job = studio.finished(["p"], lambda p, s: a_row(p, s, ["x"]), G=20)
        seen = []
        for number in (1, 2, 3):
            page = studio.page(f"/jobs/{job.id}/sequences?prompt=0&page={number}&by=entropy")
            seen += [str(a["id"]) for tag, a in page.elements if tag == "article"]
        assert seen == [f"sample-{i}" for i in range(20)]
        links = [a["href"] for tag, a in page.elements if tag == "a" and a.get("rel") == "prev"]
        assert links == ["?prompt=0&by=entropy&page=2"], "and there is no prompt before the first"
        assert "there are none here" in studio.page(f"/jobs/{job.id}/sequences?page=4", 400).text

    def test_a_long_response_in_parts(self, studio: Studio) -> None:
        many = [f"w{i} " for i in range(7_000)]
        job = studio.finished(["p"], lambda p, s: a_row(p, s, many), G=2)
        page = studio.page(f"/jobs/{job.id}/sequences")
        assert page.words("tokens", but="tooltip") == many[:1200] * 2
        assert "?prompt=0&by=logprob&sample=1&from=1200" in [a.get("href") for _, a in page.elements]
        page = studio.page(f"/jobs/{job.id}/sequences?prompt=0&sample=1&from=1200")
        assert page.words("tokens", but="tooltip") == many[1200:]
        assert page.words("tooltip")[0].startswith('"w1200 " · id 1300 · position 1200 · ')
        assert studio.page(f"/jobs/{job.id}/sequences?sample=1&from=9000").words("tokens") == []


class TestWhileItRuns:
    def test_what_is_done_is_shown_and_what_is_not_is_waited_for(self, studio: Studio) -> None:
        job = studio.submit([f"p{i}" for i in range(5)])
        page = studio.page(f"/jobs/{job.id}/sequences")
        assert "There is nothing of prompt 0 yet: its shard 0 is pending" in page.text
        [live] = [a for _, a in page.elements if a.get("id") == "live"]
        assert live["hx-get"] == f"/jobs/{job.id}/sequences?prompt=0&by=logprob"
        studio.run_one(plain)
        page = studio.page(f"/jobs/{job.id}/sequences?prompt=1")
        assert page.words("tokens", but="tooltip") == TOKENS * 2
        [live] = [a for _, a in page.elements if a.get("id") == "live"]
        assert "hx-get" not in live, "what is committed does not change"
        assert "its shard 2 is pending" in studio.page(f"/jobs/{job.id}/sequences?prompt=4").text
        studio.store.cancel(job.id)
        page = studio.page(f"/jobs/{job.id}/sequences?prompt=4")
        assert "its shard 2 is cancelled" in page.text
        assert not any("hx-get" in a for _, a in page.elements)

    def test_the_first_prompt_that_there_is(self, studio: Studio) -> None:
        job = studio.submit([f"p{i}" for i in range(4)])
        with studio.store.db.transaction() as connection:
            connection.exec_driver_sql("UPDATE shards SET state = 'cancelled' WHERE \"index\" = 0")
            connection.exec_driver_sql("UPDATE jobs SET pending_shards = 1, cancelled_shards = 1")
        studio.run_one(plain)
        assert "Prompt 2 · 2 tokens" in studio.page(f"/jobs/{job.id}/sequences").text


def test_gold_answers(studio: Studio) -> None:
    def row(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
        return a_row(prompt, sample, ["so <answer>", ["4.0", "5"][sample], "</answer>"])

    job = studio.finished([{"prompt": "2+2", "answer": "4"}, {"prompt": "?"}], row)
    page = studio.page(f"/jobs/{job.id}/sequences?prompt=0")
    assert (page.words("right"), page.words("wrong")) == (["✓ correct"], ["✗ wrong"])
    assert "gold answer: 4" in page.text
    page = studio.page(f"/jobs/{job.id}/sequences?prompt=1")
    assert page.words("right") == page.words("wrong") == []


def test_a_chat_is_shown_message_by_message(studio: Studio) -> None:
    chat = '[{"role": "user", "content": "Hi <you>"}, {"role": "assistant", "content": "Hm"}]'
    job = studio.finished(["p"], lambda p, s: a_row(p, s, ["x"]) | {"prompt": chat}, G=1)
    assert studio.page(f"/jobs/{job.id}/sequences").words("prompt")[-2] == "user: Hi <you>\n\nassistant: Hm"


def test_wrong_addresses_are_said(studio: Studio) -> None:
    job = studio.finished(["p"], plain)
    at = f"/jobs/{job.id}/sequences"
    assert "no job abc" in studio.page("/jobs/abc/sequences", 404).text
    assert f"job {job.id} has no prompt 1: they are counted from 0 to 0" in studio.page(f"{at}?prompt=1", 400).text
    for query in ("prompt=-1", "prompt=x", "by=x", "sort=x", "order=x", "page=0", "sample=-1", "from=-1"):
        assert query.partition("=")[0] in studio.page(f"{at}?{query}", 422).text, query
    assert "has 2 responses" in studio.page(f"{at}?sample=2", 400).text
