"""The small tokenizer: any text survives, marks and digits are one token each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.small.tokenizer import END, SPECIAL_TOKENS, train_tokenizer

plain_text = st.text(max_size=60).filter(lambda s: not any(t in s for t in SPECIAL_TOKENS))


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 512)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_the_vocabulary_has_at_most_the_asked_for_size(tokenizer):
    assert len(tokenizer) <= 512


def test_it_is_deterministic_in_the_corpus(tokenizer, texts):
    assert train_tokenizer(texts, 512).get_vocab() == tokenizer.get_vocab()


def test_every_special_token_is_one_id_and_nothing_is_added(tokenizer):
    for token in SPECIAL_TOKENS:
        assert len(encode(tokenizer, token)) == 1, token
    assert tokenizer.eos_token == END
    assert encode(tokenizer, "") == []


def test_numbers_are_split_into_digits(tokenizer):
    assert len(encode(tokenizer, "90210")) == 5
    assert encode(tokenizer, "12") == encode(tokenizer, "1") + encode(tokenizer, "2")


def test_it_compresses_what_it_was_trained_on(tokenizer):
    text = "cancel the order of mira"
    assert len(encode(tokenizer, text)) < len(text) / 2


@given(text=plain_text)
def test_any_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text), skip_special_tokens=False) == text


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|>47 times 86 ?<|end|><|assistant|>\né漢🙂"
    assert encode(again, text) == encode(tokenizer, text)
    assert again.chat_template == tokenizer.chat_template
    assert (again.eos_token_id, again.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
