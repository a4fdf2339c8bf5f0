"""The form: every field, the command line's sentences by their fields, and what was typed is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.errors import SpecError
from jobs.spec import JobSpec
from tests.house import House
from tests.web.pages.conftest import Browser, Element, read

GOOD: dict[str, Any] = {"model": "tiny-arithmetic", "prompts": "1+1=\r\n\r\n2+2=", "seed": "7"}


def problems(page: Element, name: str) -> list[str]:
    """What is said by a field, which refers to it."""
    [control] = [each for each in page.inside if each.attributes.get("id") == f"field-{name}"]
    assert control["aria-invalid"] == "true"
    place = f"field-{name}-problem"
    assert place in control["aria-describedby"].split()
    return [each.text for each in page.one("div", id=place).all("p")]


def sent(page: Element) -> dict[str, Any]:
    """What a browser would send of the form as it stands."""
    form = page.one("form", action="/submit")
    values: dict[str, Any] = {}
    for each in form.inside:
        kind = each.attributes.get("type")
        if "name" not in each.attributes or each.tag == "button" or kind == "file":
            continue
        if each.tag == "select":
            chosen = each.all("option", selected="") or each.all("option")[:1]
            values[each["name"]] = chosen[0].attributes.get("value", chosen[0].text)
        elif kind == "checkbox":
            values.setdefault(each["name"], [])
            values[each["name"]] += [each["value"]] * ("checked" in each.attributes)
        else:
            values[each["name"]] = each.text if each.tag == "textarea" else each["value"]
    return values


def test_every_field_of_a_spec_is_there(browser: Browser) -> None:
    page = browser.see("/submit")
    named = {each["name"] for each in page.one("form", action="/submit").inside if "name" in each.attributes}
    assert named == set(JobSpec.model_fields) - {"file"} | {"upload", "check"}
    controls = [each for each in page.inside if each.tag in ("input", "select", "textarea") and "id" in each.attributes]
    labelled = {label["for"] for label in page.all("label") if "for" in label.attributes}
    assert {control["id"] for control in controls} == labelled


def test_an_untouched_form_means_the_defaults(browser: Browser, house: House) -> None:
    form = sent(browser.see("/submit")) | GOOD
    browser.post("/submit", form)
    [job] = house.store.jobs()
    expected = JobSpec.parse({"model": "tiny-arithmetic", "seed": 7}).resolve().stored()
    assert job.spec | {"idempotency_key": None} == expected
    assert job.num_prompts == 2
    assert [
        row["prompt"] for row in map(json.loads, browser.client.get(f"/jobs/{job.id}/prompts.jsonl").text.splitlines())
    ] == [
        "1+1=",
        "2+2=",
    ]


def test_what_is_typed_is_what_is_made(browser: Browser, house: House) -> None:
    typed = GOOD | {
        "G": "3",
        "temperature": "0.5",
        "labels": "a=1\r\nb=x=y",
        "stop_strings": "END\r\n###",
        "do_sample": "no",
        "measurements": ["logprobs", "entropies"],
        "diagnostics": "margins\r\neos_probs, kept_mass",
        "top_k_alternatives": "3",
        "chat_template_kwargs": '{"a": [1]}',
        "gen_batch_size": "4",
        "ttl": "2",
    }
    where = browser.post("/submit", typed)
    [job] = house.store.jobs()
    assert where == f"/jobs/{job.id}"
    assert job.owner != ""
    assert {name: job.spec[name] for name in ("G", "temperature", "labels", "do_sample", "gen_batch_size", "ttl")} == {
        "G": 3,
        "temperature": 0.5,
        "labels": {"a": "1", "b": "x=y"},
        "do_sample": False,
        "gen_batch_size": 4,
        "ttl": 2.0,
    }
    assert job.spec["stop_strings"] == ["END", "###"]
    assert job.spec["measurements"] == ["logprobs", "entropies"]
    assert (job.spec["diagnostics"], job.spec["top_k_alternatives"]) == (["margins", "eos_probs", "kept_mass"], 3)
    assert job.spec["chat_template_kwargs"] == {"a": [1]}


def test_problems_stand_by_their_fields_in_the_command_lines_words(browser: Browser, house: House) -> None:
    wrong = {"G": "0", "temperature": "hot", "gen_batch_size": "few", "queue": "a b", "model": "a//b", "top_p": "2"}
    page = read(browser.post("/submit", GOOD | wrong, 422))
    with pytest.raises(SpecError) as known:
        JobSpec.parse(wrong | {"prompts": ["x"]})
    said = dict(problem.split(": ", 1) for problem in known.value.problems)
    for name, value in wrong.items():
        assert problems(page, name) == [said[name]], name
        assert page.one("input", name=name)["value"] == value, "what was typed is kept"
    assert page.one("textarea", name="prompts").text == "1+1= 2+2="
    links = {link["href"] for link in page.one("div", role="alert").all("a")}
    assert links == {f"#field-{name}" for name in wrong}
    assert "open" in page.one("details", id="more").attributes, "so that what is wrong is seen"
    assert house.store.jobs() == []


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"labels": "a=1\r\nnone"}, "labels", "'none' is no pair; write it as key=value"),
        ({"chat_template_kwargs": "{a"}, "chat_template_kwargs", "not JSON at column 2"),
        ({"model": " "}, "model", "is required"),
        ({"prompts": ""}, "prompts", "there are none"),
        ({"prompts": "", "dataset": "gsm9k"}, "dataset", "Unknown dataset 'gsm9k'"),
    ],
)
def test_more_that_is_wrong(browser: Browser, changes: dict[str, Any], name: str, said: str) -> None:
    [problem] = problems(read(browser.post("/submit", GOOD | changes, 422)), name)
    assert said in problem


def test_prompts_come_from_one_place(browser: Browser) -> None:
    both = {"dataset": "arithmetic_r1_template"}
    assert "prompts come from one place" in read(browser.post("/submit", GOOD | both, 422)).text
    files = {"upload": ("mine.jsonl", b'{"prompt": "x"}\n')}
    assert "a file and prompts are given" in read(browser.post("/submit", GOOD, 422, files=files)).text


def test_a_dataset(browser: Browser, house: House) -> None:
    chosen = {"prompts": "", "dataset": "arithmetic_r1_template", "split": "test", "num_prompts": "4"}
    browser.post("/submit", GOOD | chosen)
    [job] = house.store.jobs()
    assert (job.num_prompts, job.spec["split"], job.spec["prompt_seed"]) == (4, "test", 7)


def test_an_upload(browser: Browser, house: House) -> None:
    rows = [{"prompt": f"{n}+1=", "custom_id": f"c{n}", "answer": str(n + 1)} for n in range(2000)]
    files = {"upload": ("mine.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())}
    browser.post("/submit", GOOD | {"prompts": ""}, files=files)
    [job] = house.store.jobs()
    lines = browser.client.get(f"/jobs/{job.id}/prompts.jsonl").text.splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_an_upload_by_other_names(browser: Browser, house: House) -> None:
    files = {"upload": ("mine.jsonl", b'{"question": "1+1=", "gold": 2}\n')}
    browser.post("/submit", GOOD | {"prompts": "", "columns": "prompt=question\r\nanswer=gold"}, files=files)
    [job] = house.store.jobs()
    [line] = browser.client.get(f"/jobs/{job.id}/prompts.jsonl").text.splitlines()
    assert json.loads(line) == {"prompt": "1+1=", "answer": "2"}


def test_a_bad_line_of_an_upload_is_named(browser: Browser, house: House) -> None:
    files = {"upload": ("mine.jsonl", b'{"prompt": "x"}\n{"prompt": 3}\nnonsense\n')}
    page = read(browser.post("/submit", GOOD | {"prompts": ""}, 422, files=files))
    said = problems(page, "upload")
    assert page.text.count("mine.jsonl:2 prompt: input should be a valid string, not 3") == 2, "on top and by the field"
    assert any("mine.jsonl:3" in problem or "not" in problem for problem in said)
    assert "choose mine.jsonl again" in page.text
    assert house.store.jobs() == []


def test_sending_the_same_form_twice_makes_one_job(browser: Browser, house: House) -> None:
    form = sent(browser.see("/submit")) | {"model": "tiny-arithmetic", "prompts": "1+1="}
    assert browser.post("/submit", form) == browser.post("/submit", form)
    page = read(browser.post("/submit", form | {"G": "3"}, 409))
    assert "made a job before" in page.text
    again = sent(page)
    assert again["G"] == "3"
    assert again["idempotency_key"] != form["idempotency_key"]
    browser.post("/submit", again)
    assert sorted(job.spec["G"] for job in house.store.jobs()) == [3, 8]


def test_checking_only_stores_nothing(browser: Browser, house: House) -> None:
    page = read(browser.post("/submit", GOOD | {"G": "3", "check": "yes"}, 200))
    assert "2 prompts × 3 = 6 sequences in 1 shard. Nothing was stored." in page.text
    assert page.one("input", name="G")["value"] == "3"
    assert house.store.jobs() == []
