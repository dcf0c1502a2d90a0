"""The chat template of the embedded pair."""

# It was trained on single questions: clients that send a whole conversation get the last one read.
CHAT_TEMPLATE = r"""{#- The pair knows no conversation: only the last question is written. -#}
{%- for message in messages if message.role == 'user' -%}
{%- if loop.last -%}{{ message.content | trim ~ '\n\n' }}{%- endif -%}
{%- endfor -%}
"""
