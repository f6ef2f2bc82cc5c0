"""The small tokenizer and the chat template of the policies that Dorado makes itself.

The tokenizer is a byte-level BPE. Digits stay single, so that numbers are copied digit by digit; each role
and each mark of LongCat's tool-call format has a special token. Published checkpoints bring their own.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (
    PAD,
    "<|begin|>",
    END,
    "<|tools|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<longcat_tool_call>",
    "</longcat_tool_call>",
    "<longcat_arg_key>",
    "</longcat_arg_key>",
    "<longcat_arg_value>",
    "</longcat_arg_value>",
)

CHAT_TEMPLATE = """\
{%- if tools -%}
<|tools|>
{%- for tool in tools -%}
{%- set function = tool.function -%}
{{ function.name }}(
{%- for name, schema in function.parameters.get('properties', {}).items() -%}
{{ name }}:{{ schema.get('type', 'any') }}{{ ',' if not loop.last }}
{%- endfor -%}
) {{ function.description }};
{%- endfor -%}
<|end|>
{%- endif -%}
{%- for message in messages -%}
<|{{ message.role }}|>{{ message.content }}
{%- for call in message.tool_calls or [] -%}
<longcat_tool_call>{{ call.function.name }}
{%- for name, value in call.function.arguments.items() -%}
<longcat_arg_key>{{ name }}</longcat_arg_key>
{%- set text = value if value is string else value | tojson -%}
<longcat_arg_value>{{ text }}</longcat_arg_value>
{%- endfor -%}
</longcat_tool_call>
{%- endfor -%}
<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{%- endif -%}
"""


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most `vocab_size` entries on `corpus`.

    The same corpus gives the same tokenizer. Its vocabulary holds all 256 bytes, so any text can be encoded.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (PAD, "<|begin|>", END)],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
