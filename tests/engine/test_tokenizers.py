"""Ids as transformers and sentencepiece make them; chat templates as transformers renders them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast

from bench import smollm2
from engine import Engine, SamplingParams, SteerError
from engine.cli import main
from engine.config import TINY
from engine.text.tokenizer import Tokenizer

from .hard_text import HARD

CORPUS = [text for text in HARD if text.strip()] * 3 + [
    "the quick brown fox jumps over the dog"
] * 9
CHAT = {"<|im_start|>": True, "<|im_end|>": True, "<think>": False, "</think>": False}


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Path:
    """A byte-level BPE with special and plain added tokens, one of them only in the config."""
    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    for token, special in CHAT.items():
        added = AddedToken(token, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    size = tokenizer.get_vocab_size()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"},
        "added_tokens_decoder": {
            str(size): {"content": "<extra>", "special": False, "normalized": False}
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_byte_level_ids_equal_transformers(byte_level: Path):
    ours, theirs = Tokenizer(byte_level), PreTrainedTokenizerFast.from_pretrained(byte_level)
    for text in (*HARD, "a<extra>b <think>\n\nhm</think>"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        plain = "".join(t for t in (text,))
        for token, special in CHAT.items():
            plain = plain.replace(token, "") if special else plain
        assert ours.bytes_of(ids) == plain.encode()
    assert ours.encode("<extra>") == [ours.size - 1]


def test_ends_of_a_text_are_marked_as_tokenizer_json_says(byte_level: Path, tmp_path: Path):
    """A text prompt gets them, messages do not."""
    shutil.copytree(byte_level, tmp_path, dirs_exist_ok=True)
    tokenizer = FastTokenizer.from_file(str(byte_level / "tokenizer.json"))
    bos = tokenizer.token_to_id("<|im_start|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = Tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert ours.encode("some text", special=True) == theirs.encode("some text")
    assert ours.encode("some text", special=True) == [bos, *ours.encode("some text")]


@pytest.fixture(scope="module", params=["as it is", "tidied"])
def pieces(request, tmp_path_factory) -> Path:
    """A sentencepiece BPE with byte fallback, as Llama 2 and Mistral have it, and a tidier one."""
    tidy = request.param == "tidied"
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text("\n".join(t.replace("\n", " ").replace("\0", "") for t in CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=520,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=tidy,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "added_tokens_decoder": {"520": {"content": "[INST]", "special": False}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_sentencepiece_ids_equal_its_own(pieces: Path):
    ours = Tokenizer(pieces)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    for text in HARD:
        if "<" in text:
            continue  # we recognise special tokens in a text, the library itself does not
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        read = theirs.decode(ids)
        assert ours.decode(ids) == read
        assert ours.bytes_of(ids) == (f" {read}" if ids else "").encode()
    assert ours.encode("a", special=True) == [theirs.bos_id(), *theirs.encode("a")]
    ids = ours.encode("[INST] a</s>")
    assert ids[0] == 520 and ids[-1] == theirs.eos_id()
    assert any(len(theirs.encode(t)) > len(t) for t in HARD if t), "nothing fell back to bytes"


@pytest.mark.parametrize("keep", [0, 1, 100, 3000])
def test_a_cut_sentencepiece_model_is_refused(pieces: Path, tmp_path: Path, keep: int):
    content = (pieces / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content[:keep])
    with pytest.raises(SteerError, match=r"tokenizer\.model: (not )?a sentencepiece"):
        Tokenizer(tmp_path)


CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}"
    "{% endif %}\n{% for m in messages %}\n{{ '<|im_start|>' + m['role'] + '\\n' + m['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>tools\\n' }}
    {%- for tool in tools %}{{ tool | tojson }}{{ "\\n" }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if m.reasoning_content and loop.index0 > ns.last %}
            {{- '<think>\\n' ~ m.reasoning_content.strip('\\n') ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- generation %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role in ['system', 'user'] %}
        {{- '<|im_start|>' ~ m.role ~ '\\n' ~ (m.content | trim) ~ '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('no role ' ~ m.role) }}
    {%- endif %}
    {%- if loop.index > 20 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
INSTRUCT = (
    "{{ bos_token }}{{ dict(a=strftime_now('%Y')).a }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
    "{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "system", "content": "  You are <b>terse</b> & exact. "},
    {"role": "user", "content": "What is 1 < 2?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTrue."},
    {"role": "user", "content": "Grüße 👋\n\n```py\nprint('{{ x }}')\n```"},
    {"role": "assistant", "content": "Hello", "reasoning": "They greet.\n"},
]
TOOL = {"type": "function", "function": {"name": "f", "description": "<ä> 'x'", "parameters": {}}}


@pytest.mark.parametrize("template", [CHATML, THINKING, INSTRUCT])
@pytest.mark.parametrize(
    "variables",
    [{}, {"enable_thinking": False}, {"tools": [TOOL]}, {"add_generation_prompt": False}],
)
@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_chats_equal_transformers(byte_level, tmp_path, template, variables, length):
    shutil.copytree(byte_level, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template)
    ours, theirs = Tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    asked = {"add_generation_prompt": True} | variables
    expected = theirs.apply_chat_template(TALK[:length], tokenize=False, **asked)
    assert ours.chat_template.render(TALK[:length], **variables) == expected
    if set(variables) - {"add_generation_prompt"} <= ours.chat_template.reads:
        ids = theirs.apply_chat_template(TALK[:length], return_dict=False, **asked)
        assert ours.chat(TALK[:length], **variables) == ids
    else:
        with pytest.raises(SteerError, match="the chat template does not read"):
            ours.chat(TALK[:length], **variables)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "refuses these messages: access to attr",
        ),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{% set n = namespace(__init__=1) %}", "must not set '__init__'"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for i in range(10**9) %}{% endfor %}", "fails on these messages: OverflowError"),
        ("{{ 1 / 0 }}", "fails on these messages: ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "fails on these messages: TypeError"),
        ("{% include 'x' %}", "fails on these messages"),
    ],
)
def test_a_template_stays_in_its_sandbox(byte_level, tmp_path, template, message):
    shutil.copytree(byte_level, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(SteerError, match=message):
        Tokenizer(tmp_path).chat(TALK)


def test_messages_that_are_none(byte_level: Path, tmp_path: Path):
    with pytest.raises(SteerError, match="brings no chat template"):
        Tokenizer(byte_level).chat(TALK)
    shutil.copytree(byte_level, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    tokenizer = Tokenizer(tmp_path)
    for messages in ("hi", [], {"role": "user"}, None):
        with pytest.raises(SteerError, match="messages must be a list"):
            tokenizer.chat(messages)
    for messages in ([{"content": "hi"}], ["hi"], [{"role": 1, "content": ""}]):
        with pytest.raises(SteerError, match="a message must be"):
            tokenizer.chat(messages)
    with pytest.raises(SteerError, match="must be plain JSON values"):
        tokenizer.chat([{"role": "user", "content": object()}])
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(SteerError, match="the chat template is malformed"):
        Tokenizer(tmp_path)


def test_a_template_of_the_config_and_engines_without_one(byte_level: Path, tmp_path: Path):
    shutil.copytree(byte_level, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "other", "template": "x"}, {"name": "default", "template": CHATML}]
    for template in (CHATML, named):
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps(config | {"chat_template": template})
        )
        assert Tokenizer(tmp_path).chat(TALK[:1])
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(TINY / "small" / "tokenizer.json", bare)
    assert Tokenizer(bare).chat_template is None


@pytest.mark.skipif(smollm2.missing() is not None, reason=str(smollm2.missing()))
def test_smollm2_ids_equal_transformers():
    folder = smollm2.folder()
    ours, theirs = Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    for text in HARD:
        assert ours.encode(text, special=True) == theirs.encode(text)
    for talk in (TALK[:2], TALK[1:2], TALK):
        ids = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        assert ours.chat(talk) == ids


def test_chats_through_an_engine_and_its_command(tmp_path: Path, capsys):
    """The large checkpoint's template makes the prompt; without one the command says so."""
    for role, template in (("small", "never"), ("large", "{{ messages[-1].content + '?' }}")):
        shutil.copytree(TINY / role, tmp_path / role)
        (tmp_path / role / "chat_template.jinja").write_text(template)
    engine = Engine("tiny", small=tmp_path / "small", large=tmp_path / "large")
    ids = engine.tokenizer.chat([{"role": "user", "content": "47+36"}])
    assert ids == engine.tokenizer.encode("47+36?")
    (done,) = engine.generate([ids], SamplingParams(max_tokens=4), "small")
    assert done.prompt_token_ids == tuple(ids)
    folders = ["--small", str(tmp_path / "small"), "--large", str(tmp_path / "large")]
    assert main(["generate", "--chat", *folders, "--policy", "large", "47+36"]) == 0
    assert "large" in capsys.readouterr().out
    for role in ("small", "large"):
        (tmp_path / role / "chat_template.jinja").unlink()
    assert main(["generate", "--chat", *folders, "47+36"]) == 2
    assert "brings no chat template" in capsys.readouterr().err
    assert main(["generate", "--system", "Be brief.", "47+36"]) == 2
    assert "--system goes with --chat" in capsys.readouterr().err
