"""Stop strings on text, whatever the tokenisation; and StopAfterAnswer inside `model.generate`."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, LogitsProcessor, PreTrainedTokenizerFast

from sequence_processing import StopAfterAnswer
from sequence_processing.stops import ByteStream, StopStrings, WindowStream, decode

from .support import EOS, make_model, make_tokenizer


def sentencepiece_like():
    """Metaspace words with byte fallback, as Llama 2's: not byte-level, strips the first space."""
    words = ["<unk>", "▁the", "▁ans", "wer", "▁", "<", "/", "answer", ">", "a", "b"]
    vocab = {w: i for i, w in enumerate([*words, *(f"<0x{b:02X}>" for b in range(256))])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def ended_at(tokenizer, stops, ids):
    """(index of the token that ends the row, offset), or None."""
    watch = StopStrings(tokenizer, stops).watch()
    for i, token in enumerate(ids):
        if watch.push(token):
            return i, watch.offset
    return None


class TestStopStrings:
    @pytest.mark.parametrize("text", ["4</answer>", "4</answer>\n\n", "4<</answer>", "日本</answer>é", "</</answer>"])
    def test_tokenisation_cannot_hide_a_tag(self, tokenizer, text):
        for ids in (tokenizer(text)["input_ids"], [tokenizer.convert_tokens_to_ids(c) for c in byte_tokens(text)]):
            at, offset = ended_at(tokenizer, ["</answer>"], ids)
            assert offset == text.index("</answer>")
            assert "</answer>" in decode(tokenizer, ids[: at + 1])
            assert "</answer>" not in decode(tokenizer, ids[:at])

    def test_the_tag_may_melt_into_what_follows(self, tokenizer):
        ids = tokenizer("</answer>\n")["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids)[-1] == ">Ċ"  # its id is not that of ">"
        assert ended_at(tokenizer, ["</answer>"], ids) == (len(ids) - 1, 0)

    def test_earliest_of_several(self, tokenizer):
        ids = tokenizer("ab STOP")["input_ids"]
        assert ended_at(tokenizer, ["STOP", "b", "zz"], ids) == (1, 1)

    def test_no_stop(self, tokenizer):
        ids = tokenizer("4 </answe r>")["input_ids"]
        assert ended_at(tokenizer, ["</answer>"], ids) is None
        assert ended_at(tokenizer, [], ids) is None

    def test_characters_cut_by_tokens_are_withheld(self, tokenizer):
        stream = StopStrings(tokenizer, ["x"]).watch()._stream
        assert isinstance(stream, ByteStream)
        pieces = [stream.push(i) for i in tokenizer("é日")["input_ids"]]
        assert pieces == ["", "é", "", "", "日"]

    def test_a_stop_string_of_several_bytes_a_character(self, tokenizer):
        assert ended_at(tokenizer, ["日本"], tokenizer("aé日本")["input_ids"]) == (8, 2)

    def test_invalid_bytes_do_not_swallow_the_tag(self, tokenizer):
        broken = tokenizer("日")["input_ids"][:2]
        assert ended_at(tokenizer, ["</answer>"], [*broken, *tokenizer("</answer>")["input_ids"]])[1] == 1

    def test_special_tokens_are_no_text_but_may_be_a_stop(self, tokenizer):
        ids = [*tokenizer("a")["input_ids"], EOS, *tokenizer("b")["input_ids"]]
        assert ended_at(tokenizer, ["ab"], ids) == (2, 0)
        assert ended_at(tokenizer, ["<eos>"], ids) == (1, 1)

    @pytest.mark.parametrize("make", [make_tokenizer, sentencepiece_like])
    def test_special_tokens_without_a_role_are_no_text_either(self, make):
        tokenizer = make()
        tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
        end = tokenizer.convert_tokens_to_ids("<|end|>")
        assert end not in tokenizer.all_special_ids
        a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
        watch = StopStrings(tokenizer, ["ab"]).watch()
        assert [watch.push(i) for i in (a, end, b)] == [False, False, True]
        assert watch.offset == 0 and watch.token_ends(3, decode(tokenizer, [a, end, b])) == [1, 1, 2]
        assert ended_at(tokenizer, ["<|end|>"], [a, end]) == (1, 1)

    def test_unused_ids_are_no_text(self, tokenizer):
        assert ended_at(tokenizer, ["ab"], [*tokenizer("a")["input_ids"], 271, *tokenizer("b")["input_ids"]]) == (2, 0)

    def test_stream_is_the_decoded_text(self, tokenizer):
        ids = torch.randint(0, 272, (2000,)).tolist()
        stream = StopStrings(tokenizer, ["x"]).watch()._stream
        text = "".join(stream.push(i) for i in ids)
        whole = decode(tokenizer, ids)
        assert whole.startswith(text) and len(whole) - len(text) <= 3


class TestOtherTokenizers:
    def test_tag_and_offset(self):
        tokenizer = sentencepiece_like()
        ids = [tokenizer.convert_tokens_to_ids(t) for t in ["▁the", "▁", "a", "<", "/", "answer", ">", "a"]]
        assert ended_at(tokenizer, ["</answer>"], ids) == (6, 5)
        assert decode(tokenizer, ids)[5:14] == "</answer>"

    def test_stream_is_the_decoded_text(self):
        tokenizer = sentencepiece_like()
        ids = [tokenizer.convert_tokens_to_ids(t) for t in ["▁the", "<0xE6>", "<0x97>", "<0xA5>", "▁ans", "wer", "▁"]]
        stream = StopStrings(tokenizer, ["x"]).watch()._stream
        assert isinstance(stream, WindowStream)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) == decode(tokenizer, ids) == "the日 answer "
        assert pieces[1:4] == ["", "", "日"]


class Scripted(LogitsProcessor):
    """Makes `generate` produce given tokens, row by row."""

    def __init__(self, scripts, prompt_len):
        self.scripts, self.prompt_len = scripts, prompt_len

    def __call__(self, input_ids, scores):
        out = torch.full_like(scores, -torch.inf)
        for row, script in enumerate(self.scripts):
            out[row, script[input_ids.shape[1] - self.prompt_len]] = 0.0
        return out


class TestStopAfterAnswer:
    def generate(self, tokenizer, prompt, texts, processor):
        ids = tokenizer([prompt] * len(texts), return_tensors="pt", padding=False)["input_ids"]
        scripts = [[*tokenizer(t)["input_ids"], *([65] * 30)] for t in texts]
        out = make_model().generate(
            ids,
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=EOS,
            eos_token_id=EOS,
            logits_processor=[Scripted(scripts, ids.shape[1]), processor],
        )
        return [decode(tokenizer, row[ids.shape[1] :].tolist()) for row in out]

    def test_ends_each_row_after_its_tag(self, tokenizer):
        texts = ["4</answer>", "forty</answer>\nmore", "no tag here at all"]
        out = self.generate(tokenizer, "2+2?", texts, StopAfterAnswer(tokenizer))
        assert out[0] == "4</answer>"
        assert out[1] == "forty</answer>\n"  # the tag's last token carries the newline
        assert out[2].startswith("no tag here at all") and len(out[2]) > len("no tag here at all")

    def test_a_tag_in_the_prompt_stops_nothing(self, tokenizer):
        out = self.generate(tokenizer, "Put it in <answer> </answer>", ["7 7 7 7"], StopAfterAnswer(tokenizer))
        assert out[0].startswith("7 7 7 7")

    def test_one_instance_serves_many_calls(self, tokenizer):
        processor = StopAfterAnswer(tokenizer)
        for prompt in ("2+2?", "Put it in <answer> </answer>", "2+2?"):
            assert self.generate(tokenizer, prompt, ["4</answer>", "5"], processor)[0] == "4</answer>"

    def test_needs_eos(self, tokenizer):
        with pytest.raises(ValueError, match="EOS"):
            StopAfterAnswer(sentencepiece_like())
        processor = StopAfterAnswer(tokenizer, ["a"], prompt_len=0, eos_token_id=7)
        scores = processor(torch.tensor([[tokenizer.convert_tokens_to_ids("a")]]), torch.zeros(1, 272))
        assert scores.argmax() == 7 and scores.isfinite().sum() == 1


def byte_tokens(text):
    """The byte-level tokens of `text`, one a byte: no merges."""
    table = {b: chr(b) for b in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]}
    hidden = [b for b in range(256) if b not in table]
    table |= {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [table[b] for b in text.encode()]
