"""Which test holds each fault that servers like this one have had again and again.

The numbers are those of the list that this server was designed by; where no test says a word of
one, its reason does.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = "tests/serve/"
PITFALLS = {
    1: "answers/test_hard_text.py::test_a_handover_inside_a_character",  # split characters
    2: "answers/test_chat_streams.py::test_nothing_of_a_stop_string_leaks",
    3: "answers/test_endings.py::test_a_client_that_leaves_a_whole_answer_ends_it",
    4: "answers/test_endings.py::test_a_request_is_aborted_by_its_id",  # twice, and while it ends
    5: "answers/test_endings.py::test_the_prefix_of_one_who_left_is_kept",
    6: "answers/test_chat_streams.py::test_usage_comes_last_and_only_if_asked_for",
    7: "answers/test_chat_streams.py::test_from_the_role_to_the_end",
    8: "answers/test_chat_streams.py::test_a_limit_is_a_length",  # finish reasons
    9: "answers/test_chat_streams.py::test_samples_are_interleaved",
    10: "answers/test_chat.py::test_max_completion_tokens_wins",
    11: "answers/test_chat.py::test_messages_become_text",  # null and parts as content
    12: "answers/test_chat.py::test_a_bad_message_is_named",  # roles
    13: "answers/test_chat.py::test_messages_become_text",  # arguments of tool calls as text
    14: "answers/test_chat.py::test_a_template_that_refuses_is_a_400",
    15: "test_known_faults.py::test_log_probabilities_of_guessed_tokens",
    16: "test_known_faults.py::test_a_wrong_body_has_a_short_answer",
    17: "answers/test_fields.py::test_a_wrong_field_is_named",
    18: "test_bodies.py::test_what_is_no_json",
    19: "answers/test_fields.py::test_too_many_entries_cost_nothing",
    20: "test_bodies.py::test_floods_of_headers_are_refused",
    21: "test_known_faults.py::test_a_long_prompt_stops_no_probe",
    22: "test_operations.py::test_health_is_of_the_engine",
    23: "answers/test_endings.py::test_a_client_that_reads_nothing_is_given_up",
    24: "test_lifecycle.py::test_running_answers_end_and_new_ones_are_refused",
    25: "answers/test_endings.py::test_n_counts_n_in_the_queue",
    26: "answers/test_chat_streams.py::test_headers_are_for_proxies",
    27: "test_lifecycle.py::test_connections_are_kept_longer_than_clients_keep_them",
    28: "answers/test_endings.py::test_an_engine_that_fails_ends_the_stream",
    29: "test_guards.py::test_preflights_need_no_key",
    30: "test_known_faults.py::test_head",  # and test_urls.py, for the other forms of URLs
    31: "answers/test_routing.py::test_an_unknown_model_is_a_404",
    32: "answers/test_chat.py::test_too_long",
    33: "test_metrics.py::test_labels_are_closed_sets",
    34: "answers/test_hard_text.py::test_an_id_used_again_has_no_memory",
    35: "streams of tool calls: calls are not parsed, tools only go to the template",
    36: "test_known_faults.py::test_a_log_has_ids_and_no_prompts",
    37: "grammars beside drafts: structured output is not built, response_format is refused",
    38: "test_known_faults.py::test_what_would_fail_again_is_not_tried_again",
    39: "answers/test_chat_streams.py::test_text_is_raw_and_in_one_line",
    40: "test_guards.py::test_a_name_that_was_led_here_is_refused",
}


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / HERE / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_none_is_left_out():
    assert list(PITFALLS) == list(range(1, 41))
    reasons = {number for number, held in PITFALLS.items() if "::" not in held}
    assert reasons == {35, 37}


@pytest.mark.parametrize("number", [n for n, held in PITFALLS.items() if "::" in held])
def test_the_test_is_there(number: int):
    file, _, name = PITFALLS[number].partition("::")
    assert name in functions_of(file) and name.startswith("test_")
