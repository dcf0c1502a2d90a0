"""--chat, --system and --instruction: the same prompts in every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.pair_training.chat_template import CHAT_TEMPLATE
from bench.tasks import arithmetic
from engine import Engine, EngineConfig
from engine.cli import main
from engine.config import ROLES, TINY
from engine.conversation import Conversation, length

# The embedded pair knows no single line end, and its prompts end in "?" and a blank line.
TEMPLATE = (
    "{% for m in messages %}{{ m.content | replace('\\n', '') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


def chat_pair(folder: Path, template: str = TEMPLATE) -> list[str]:
    """The embedded pair with a chat template of its own: the flags that load it."""
    for role in ("small", "large"):
        shutil.copytree(TINY / role, folder / role)
        (folder / role / "chat_template.jinja").unlink()
        config = json.dumps({"chat_template": template})
        (folder / role / "tokenizer_config.json").write_text(config)
    return ["--pair=custom", f"--small={folder / 'small'}", f"--large={folder / 'large'}"]


def test_prompts_of_all_settings(tmp_path: Path):
    chat_pair(tmp_path)
    engine = Engine("custom", small=tmp_path / "small", large=tmp_path / "large")
    ids = engine.tokenizer.encode
    assert Conversation().prompt(engine, "4+3?") == "4+3?"
    assert Conversation(instruction="Go").prompt(engine, "4+3?") == "4+3?\nGo"
    assert Conversation(chat=True).prompt(engine, "4+3?") == ids("4+3?\n\n")
    whole = Conversation(chat=True, system="8*", instruction="?")
    assert whole.prompts(engine, ["4+3", "1+1"]) == [ids("8*4+3?\n\n"), ids("8*1+1?\n\n")]
    assert length(engine, whole.prompt(engine, "4+3")) == len(ids("8*4+3?\n\n"))
    assert whole.settings() == {"chat": True, "system": "8*", "instruction": "?"}
    assert Conversation().settings() == {}


def test_models_with_different_tokens_get_a_prompt_each(tmp_path: Path):
    chat_pair(tmp_path)
    path = tmp_path / "small" / "tokenizer.json"
    raw = json.loads(path.read_text())
    known = raw["model"]["vocab"]
    known["@"], known["!"] = known["!"], known["@"]
    path.write_text(json.dumps(raw))
    config = tmp_path / "small" / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    engine = Engine(
        "custom",
        small=tmp_path / "small",
        large=tmp_path / "large",
        config=EngineConfig(retokenize=True),
    )
    prompt = Conversation(chat=True).prompt(engine, "4+3?")
    assert len(prompt.small) + 1 == len(prompt.large) == length(engine, prompt)


def test_generate_takes_them(tmp_path: Path, capsys):
    """The instruction ends the problem, and the system's message begins it."""
    folders = chat_pair(tmp_path)
    assert main(["generate", "--pair=tiny", "--policy=large", "47+36*2?\\n\\n"]) == 0
    plain = capsys.readouterr().out.splitlines()
    command = ["generate", *folders, "--policy=large", "--chat"]
    assert main([*command, "--system=4", "--instruction=?", "7+36*2"]) == 0
    chat = capsys.readouterr().out.splitlines()
    assert chat[0] == "7+36*2" and chat[1:] == plain[1:]
    # Without a chat the text is as it is: the pair knows a blank line, but no single line end.
    assert main(["generate", "--policy=large", "--instruction=\\n12", "47+36*2?"]) == 0
    assert main(["generate", "--policy=large", "--instruction=12", "47+36*2?"]) == 2
    assert "does not know '\\n'" in capsys.readouterr().err


def test_calibrate_takes_them(tmp_path: Path):
    """The calibration is that of the same prompts as text; it keeps digests of the raw ones."""
    folders = chat_pair(tmp_path)
    found = {}
    for name, end, flags in (("text", "?\n\n", []), ("chat", "", ["--chat", "--instruction=?"])):
        problems = arithmetic.problems("calibration", 60, seed=8)
        raws = [p.prompt.removesuffix("?\n\n") for p in problems]
        path, output = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.json"
        path.write_text("\n".join(json.dumps({"prompt": raw + end}) for raw in raws))
        more = ["--target=agreement:0.9", "--no-plots", f"--output={output}"]
        assert main(["calibrate", str(path), *folders, *flags, *more]) == 0
        found[name] = json.loads(output.read_text())
    text, chat = found["text"], found["chat"]
    assert text["provenance"].pop("prompts") != chat["provenance"].pop("prompts")
    for each in found.values():
        del each["provenance"]["date"]
    assert text == chat


@pytest.mark.parametrize(
    ("template", "flags", "message"),
    [
        (None, ["--chat"], "pair custom brings no chat template (--chat): take"),
        (TEMPLATE, ["--system=x"], "--system goes with --chat"),
        (TEMPLATE, ["--system="], "--system goes with --chat"),
        (TEMPLATE, ["--instruction= "], "--instruction is empty"),
        (NO_SYSTEM, ["--chat", "--system=x"], "--system: the chat template refuses these messages"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "calibrate"])
def test_bad_settings_get_one_line(
    tmp_path: Path, capsys, command: str, template: str | None, flags: list[str], message: str
):
    folders = chat_pair(tmp_path, template or "")
    if template is None:
        (tmp_path / "large" / "tokenizer_config.json").unlink()
        (tmp_path / "small" / "tokenizer_config.json").unlink()
    (tmp_path / "p.jsonl").write_text('{"prompt": "4+3?"}\n')
    asked = [str(tmp_path / "p.jsonl")] if command == "calibrate" else ["4+3?", "--policy=large"]
    assert main([command, *folders, *flags, *asked]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_embedded_pair_reads_the_last_question():
    engine = Engine("tiny")
    asked = Conversation(chat=True, system="Be brief.")
    assert asked.prompts(engine, ["4+3?"]) == [engine.tokenizer.encode("4+3?\n\n")]
    talk = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": " 4+3?\n"},
    ]
    assert engine.chat(talk) == engine.tokenizer.encode("4+3?\n\n")
    small, large = ((TINY / role / "chat_template.jinja").read_text() for role in ROLES)
    assert small == large == CHAT_TEMPLATE, "training writes another one"
