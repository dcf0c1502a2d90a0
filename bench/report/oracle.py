"""An oracle router: it knows which steps the small model gets wrong."""

from __future__ import annotations

from bench.report.domain import Domain
from engine import Boundary, Decision, Engine, Window

_LONGEST = 48  # tokens of a step that are tried


class Oracle:
    """Lets the small model write each step on trial and asks the task's checker about it.

    Its trials are counted like those of any probe. After the large model's first error the checker
    takes all steps for wrong.
    """

    name = "oracle"
    reads = True

    def __init__(self, engine: Engine, domain: Domain) -> None:
        self.window = Window("probe", min(_LONGEST, domain.test.max_tokens))
        self._engine = engine
        self._first_error = domain.first_error
        encode = engine.tokenizer.encode
        self._problems = {tuple(encode(p.prompt)): p for p in domain.test.problems}

    def decide(self, boundary: Boundary) -> Decision:
        """Let the large model write the steps that the small one got wrong."""
        tokens = self._engine.scheduler.tokens_since(boundary.request, 0).tolist()
        problem = self._problems[tuple(tokens[: boundary.prompt_tokens])]
        eos = {i for shape in self._engine.shapes for i in shape.eos_ids}
        written = [t for t in tokens[boundary.prompt_tokens :] if t not in eos]
        text = self._engine.tokenizer.text_of(written)
        for delimiter in self._engine.config.delimiters:
            text = text.removesuffix(delimiter)
        wrong = self._first_error(problem, text) == boundary.step
        return Decision("large" if wrong else "small", "wrong" if wrong else "right")
