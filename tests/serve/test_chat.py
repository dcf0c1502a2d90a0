"""POST /v1/chat/completions: whole answers."""

from __future__ import annotations

from .running import Running

TEXT = "é\n\n😁c\u2028d"
CHAT = "/v1/chat/completions"


def test_an_answer(writes: Running):
    answer = writes.chat(model="tiny")
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny"
    assert choice["message"]["content"] == TEXT
    assert choice["finish_reason"] == "stop" and choice["index"] == 0
    print(answer)
