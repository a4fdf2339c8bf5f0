"""rlp_datasets: the registry, the two datasets, and what importing the package costs."""

import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlp_datasets import (
    DATASET_REGISTRY,
    DatasetFileError,
    DatasetUnavailableError,
    Example,
    UnknownDatasetError,
    UnknownSplitError,
    register_dataset,
)
from rlp_datasets.arithmetic import training_problems
from rlp_datasets.template import r1_prompt, r1_response


def test_import_loads_nothing_heavy():
    code = "import sys, rlp_datasets; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "pyarrow", "numpy", "pandas"} & set(loaded)


def test_template():
    assert r1_prompt("How {many}?").endswith("\nUser: How {many}?\nAssistant: <think>")
    assert r1_response("1+1=2.", "2") == " 1+1=2. </think> <answer> 2 </answer>"


# --- registry -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_names():
    """Forgets the datasets that a test registered or found installed."""
    before = dict(DATASET_REGISTRY._functions)
    yield
    DATASET_REGISTRY._functions.clear()
    DATASET_REGISTRY._functions.update(before)


def test_registry_lists_the_built_in_datasets():
    assert {"arithmetic_r1_template", "gsm8k_r1_template"} <= set(DATASET_REGISTRY)
    assert len(DATASET_REGISTRY) == len(list(DATASET_REGISTRY))


def test_one_decorated_function_registers_a_dataset(fresh_names):
    @register_dataset("sums")
    def sums(split="train"):
        return [Example(text="1+1=", question="1+1", answer="2", meta={"split": split})]

    assert "sums" in DATASET_REGISTRY
    assert DATASET_REGISTRY["sums"](split="test")[0].meta == {"split": "test"}

    with pytest.raises(ValueError, match=r"'sums' is taken by .*sums"):
        register_dataset("sums")(lambda split="train": [])


def test_a_dataset_may_be_defined_again(fresh_names):
    """As in a notebook, where a cell runs twice."""
    for answer in "23":

        @register_dataset("again")
        def again(split="train", answer=answer):
            return [Example("", "", answer)]

    assert DATASET_REGISTRY["again"]()[0].answer == "3"


def test_unknown_dataset_says_which_exist():
    with pytest.raises(UnknownDatasetError) as caught:
        DATASET_REGISTRY["gsm8k"]
    assert str(caught.value).startswith("Unknown dataset 'gsm8k'. There are: ")
    assert "arithmetic_r1_template" in str(caught.value)
    assert isinstance(caught.value, LookupError)
    assert "gsm8k" not in DATASET_REGISTRY


@pytest.fixture
def install(tmp_path, monkeypatch, fresh_names):
    """Installs a distribution whose only module has `body`, and whose only entry point is `point`."""

    def install(body: str, point: str) -> None:
        (tmp_path / "somebodys_sums.py").write_text(body)
        info = tmp_path / "somebodys_sums-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-sums\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[rlp_datasets]\n{point}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "somebodys_sums", raising=False)

    return install


def test_installed_dataset_is_listed_without_import_and_loaded_when_asked_for(install):
    body = "def sums(split='train'):\n    return [split]\n"
    install(body, "installed_sums = somebodys_sums:sums")
    assert "installed_sums" in DATASET_REGISTRY
    assert "installed_sums" in list(DATASET_REGISTRY)
    assert "somebodys_sums" not in sys.modules
    assert DATASET_REGISTRY["installed_sums"](split="test") == ["test"]


def test_installed_dataset_may_also_be_decorated(install):
    body = (
        "from rlp_datasets import register_dataset\n"
        "@register_dataset('decorated_sums')\n"
        "def sums(split='train'):\n    return [split]\n"
    )
    install(body, "decorated_sums = somebodys_sums:sums")
    assert DATASET_REGISTRY["decorated_sums"]() == ["train"]


def test_an_entry_point_may_name_the_module(install):
    body = (
        "from rlp_datasets import register_dataset\n"
        "@register_dataset('module_sums')\n"
        "def sums(split='train'):\n    return [split]\n"
    )
    install(body, "module_sums = somebodys_sums")
    assert DATASET_REGISTRY["module_sums"](split="test") == ["test"]


def test_a_module_that_registers_nothing_of_the_name(install):
    install("", "silent_sums = somebodys_sums")
    with pytest.raises(
        UnknownDatasetError, match=r"'silent_sums' is installed as 'somebodys_sums', which is no function"
    ):
        DATASET_REGISTRY["silent_sums"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def sums(:", "'broken_sums' is installed as 'somebodys_sums:sums' but cannot be imported: .*syntax.* Repair"),
        ("sums = no_such_name", "cannot be imported: name 'no_such_name' is not defined. Repair"),
        ("raise RuntimeError('two\\nlines')", "cannot be imported: two lines. Repair"),
        ("import no_such_module_at_all", "cannot be imported: No module named 'no_such_module_at_all'. Repair"),
        ("", "cannot be imported: .*has no attribute 'sums'"),
        ("sums = 3", "is no function"),
    ],
)
def test_broken_installed_dataset_is_a_sentence(install, body, message):
    install(body, "broken_sums = somebodys_sums:sums")
    with pytest.raises(UnknownDatasetError, match=message):
        DATASET_REGISTRY["broken_sums"]
    assert DATASET_REGISTRY["arithmetic_r1_template"]  # the others are unharmed


@pytest.mark.parametrize("name", ["arithmetic_r1_template", "gsm8k_r1_template"])
def test_unknown_split_names_the_splits(name):
    with pytest.raises(UnknownSplitError, match=f"'{name}' has no split 'dev'. It has: train, test."):
        DATASET_REGISTRY[name](split="dev")


# --- arithmetic ---------------------------------------------------------------------------------------------------


def arithmetic(split: str):
    return DATASET_REGISTRY["arithmetic_r1_template"](split=split)


def kind(numbers, operations) -> tuple:
    """What must not stand in both splits: the numbers and operations, whatever their order."""
    return tuple(sorted(numbers)), "".join(sorted(operations))


def test_arithmetic_answers_follow_from_the_questions():
    """The answer by Python's own arithmetic on what stands in the text, no step below zero."""
    for example in [*arithmetic("train")[:2000], *arithmetic("test")]:
        numbers, operations = example.meta["numbers"], example.meta["operations"]
        assert [int(number) for number in re.findall(r"\d+", example.question)] == numbers
        assert all(1 <= number <= 99 for number in numbers)
        assert len(numbers) == len(operations) + 1 <= 3
        expression = str(numbers[0])
        for operation, number in zip(operations, numbers[1:], strict=True):
            expression += f"{operation}{number}"
            assert eval(expression) >= 0
        assert example.answer == str(eval(expression))
        assert example.text == r1_prompt(example.question)


def test_arithmetic_splits_are_disjoint():
    test = {kind(example.meta["numbers"], example.meta["operations"]) for example in arithmetic("test")}
    assert len(test) == len(arithmetic("test")) == 2000
    train = {kind(example.meta["numbers"], example.meta["operations"]) for example in arithmetic("train")[:10_000]}
    assert len(train) > 8_000
    assert not test & train
    assert not test & {kind(problem.numbers, problem.operations) for problem in islice(training_problems(0), 10_000)}


def test_arithmetic_is_the_same_everywhere():
    """Pinned: another machine, or a later version, must tell the same problem by the same name."""
    assert arithmetic("train")[0] == arithmetic("train")[-100_000]
    assert arithmetic("train")[99_999].question == PINNED_TRAIN
    assert arithmetic("test")[0].question == PINNED_TEST


PINNED_TRAIN = "A shop has 17 stamps and sells 12. How many stamps are left in the shop?"
PINNED_TEST = "Eva has 48 apples, gives away 10 and gets 22 more. How many apples does Eva have now?"


def test_arithmetic_is_a_sequence():
    train = arithmetic("train")
    assert len(train) == 100_000
    assert list(islice(train, 3)) == train[:3] == [train[0], train[1], train[2]]
    with pytest.raises(IndexError):
        train[100_000]


def test_reasoning_reaches_the_answer_digit_by_digit():
    for problem in islice(training_problems(1), 3000):
        reasoning, answer = problem.reasoning()
        assert answer == problem.answer
        assert reasoning.endswith(f", so {answer}.")
        for verb, number in zip(problem.verbs, problem.numbers[1:], strict=True):
            assert f" {verb} {number}: " in reasoning
            assert f" {verb} {number}" in problem.question
        for sum_, result in re.findall(r"(\d+(?:[+-]\d+)+)=(\d+)", reasoning):
            assert eval(re.sub(r"\b0+(?=\d)", "", sum_)) == int(result)


def test_a_slip_leads_to_another_answer():
    wrong = [problem.reasoning(lambda digit: min(digit + 1, 9))[1] - problem.answer for problem in _some(200)]
    assert set(wrong) <= {0, 1, 2}
    assert 1 in wrong


def _some(count: int):
    return islice(training_problems(2), count)


# --- gsm8k --------------------------------------------------------------------------------------------------------

NATALIA = {"question": "How many clips?", "answer": "48+24 = <<48+24=72>>72 clips.\n#### 1,072"}


@pytest.fixture
def data_dir(tmp_path, monkeypatch) -> Path:
    (tmp_path / "gsm8k").mkdir()
    monkeypatch.setenv("SEQPROC_DATA_DIR", str(tmp_path))
    return tmp_path


def test_gsm8k_from_the_data_folder(data_dir):
    lines = [NATALIA, {"question": "Two?", "answer": "#### 2"}]
    (data_dir / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples = DATASET_REGISTRY["gsm8k_r1_template"](split="test")
    assert [example.answer for example in examples] == ["1072", "2"]
    assert examples[0].question == "How many clips?"
    assert examples[0].text == r1_prompt("How many clips?")
    assert examples[0].meta["solution"] == NATALIA["answer"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "Why?"', "malformed JSON at column"),
        ('{"question": "Why?", "answer": "42"}', "gold answer after ####"),
        ('{"answer": "#### 42"}', "gold answer after ####"),
    ],
)
def test_gsm8k_damaged_file_names_the_line(data_dir, line, message):
    path = data_dir / "gsm8k" / "train.jsonl"
    path.write_text(json.dumps(NATALIA) + "\n" + line + "\n")
    with pytest.raises(DatasetFileError, match=re.escape(f"{path}:2: ")) as caught:
        DATASET_REGISTRY["gsm8k_r1_template"]()
    assert message in str(caught.value)


def hub(monkeypatch, load_dataset) -> None:
    """A stand-in for the library `datasets`: tests have no network."""
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_gsm8k_from_the_hub_when_there_is_no_file(data_dir, monkeypatch):
    asked = []
    hub(monkeypatch, lambda *names, split: asked.append((*names, split)) or [NATALIA])
    assert [example.answer for example in DATASET_REGISTRY["gsm8k_r1_template"]()] == ["1072"]
    monkeypatch.delenv("SEQPROC_DATA_DIR")
    DATASET_REGISTRY["gsm8k_r1_template"](split="test")
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]


def test_gsm8k_without_file_and_network_names_the_variable(data_dir, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the hub.\nA long story.")

    hub(monkeypatch, unreachable)
    with pytest.raises(DatasetUnavailableError) as caught:
        DATASET_REGISTRY["gsm8k_r1_template"](split="test")
    assert str(caught.value) == (
        "gsm8k_r1_template cannot be loaded from the hub (openai/gsm8k): Couldn't reach the hub. "
        "Without network, set SEQPROC_DATA_DIR to a folder that holds gsm8k/test.jsonl."
    )
