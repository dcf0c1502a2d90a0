"""The settings of an engine; all defaults are defined here."""

from __future__ import annotations

from dataclasses import dataclass

from engine._core import DRAFT_SOURCES, LANE_POLICIES, MOST_DRAFTS
from engine.errors import SteerError

GRAPHS = ("auto", "on", "off")
PLAN_AHEAD = ("auto", "off", "small", "both")
ARENA_TOKENS = 32768  # on a CPU at least, if memory allows
# Rows penalised or sorted together in fp64: a row takes many times the bytes of its logits.
ROWS_AT_ONCE = 16
_LEAST_DRAWN = MOST_DRAFTS + 1  # rows that one request is sampled from in a tick, at most
LOAD_FORMATS = ("safetensors", "dummy")
DUMMY = "dummy:"  # the fingerprint of a pair with dummy weights begins with it
_SWITCHES = (
    "prefix_cache",
    "eager_admission",
    "cpu_kernels",
    "overlap",
    "fused_head",
    "fused_sampling",
    "retokenize",
)
_NOT_WHOLE = (
    *_SWITCHES,
    "delimiters",
    "lane_policy",
    "load_format",
    "graphs",
    "plan_ahead",
    "memory_fraction",
    "draft_source",
)


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one engine.

    block_tokens: tokens of a KV block.
    arena_tokens: KV capacity in tokens of the large model; the small one may borrow all of it. 0:
        on a GPU all free memory; on a CPU what ``max_sequences`` need, at most half of what is
        free.
    max_context: tokens of one sequence, prompt included; 0 takes the smaller model's limit.
    max_sequences: requests that run at once, others wait; fewer where the arena is not expected to
        hold them until they end.
    max_waiting: requests that wait at once, further ones are refused; 0 sets no limit.
    max_tick_tokens: rows of one forward pass; long prefills are cut to fit.
    delimiters: texts that end a step.
    prefix_cache: keep the KV of full settled blocks and share it among requests with the same
        prefix, until its memory is needed.
    host_kv_tokens: KV capacity in host memory (pinned for a GPU), in tokens of the large model.
        Evicted KV is kept there, and copied back instead of recomputed; 0 keeps none. Needs
        prefix_cache, and both models on one device.
    eager_admission: let requests run as soon as their prompts fit, whatever they are expected to
        need later; serves to measure what the forecast gains.
    lane_policy: which lane may run: "latency", each whenever it can; "weighted", the lanes share
        the time; "throughput", one at a time, and steps of the large model gather; "auto", latency
        while few requests run.
    gather: sequences that are worth a tick of the large model under throughput; 0 derives it from
        the load.
    hold_ticks: ticks of the other lane for which a lane with work is held back under throughput,
        at most.
    eager_backlog: the large model catches up during the small model's steps once so many settled
        tokens are unread, with rows and blocks that no other work needs; 0 reads at the handoff
        only.
    read_along: the same for the small model, where it will read the next boundary.
    plan_ahead: lanes whose next tick is planned and launched while the last one runs: "off",
        "small", "both", or "auto": the small model's on a GPU. Where the other model takes over,
        the row launched ahead is wasted; for the large model that can be a whole tick.
    overlap: whether both lanes may run at the same time; if not, each waits for the other's tick.
    fused_head: whether a GPU computes signals within the head's product, without storing logits.
    fused_sampling: whether a GPU samples in a kernel of its own; if not, in plain PyTorch.
    check_every: ticks between integrity checks of the core; 0 checks only when idle.
    load_format: "safetensors" reads the pair's checkpoints; "dummy" generates weights, to measure
        speed: in the checkpoints' shapes, or in the pair's named ones where it has none.
    graphs: whether ticks are recorded and replayed: "on", "off", or "auto", on GPUs only. Ticks of
        decodes alone always are, others up to ``graph_rows``.
    graph_rows: rows of the largest recorded tick with a span (catch-up, short prefill); 0: none.
    memory_fraction: share of a GPU's memory that may be in use, other programs included.
    cpu_kernels: whether a CPU runs the compiled kernels where they support the model; if not,
        PyTorch.
    speculate: guesses at the large model's tokens before each of its passes, for requests whose
        policy does not say; 0: none. They change no text: see ``docs/library.md``.
    draft_source: where those guesses come from: "small", the small model; "lookup", what followed
        the latest tokens earlier in the text; "both", a look-up where it finds something.
    max_drawn_rows: rows of a tick that are sampled from, at most: each sequence's last one, and one
        for each guess that is verified. On a GPU memory for their logits is set aside. 0:
        ``max_sequences``, or 16 if that is more.
    retokenize: accept pairs whose tokenizers differ: text crosses at step boundaries and is encoded
        again. Where they agree nothing changes.
    """

    block_tokens: int = 16
    arena_tokens: int = 0
    max_context: int = 0
    max_sequences: int = 256
    max_waiting: int = 8192
    max_tick_tokens: int = 2048
    delimiters: tuple[str, ...] = ("\n\n",)
    prefix_cache: bool = True
    host_kv_tokens: int = 0
    eager_admission: bool = False
    lane_policy: str = "latency"
    gather: int = 0
    hold_ticks: int = 32
    eager_backlog: int = 0
    read_along: int = 0
    plan_ahead: str = "auto"
    overlap: bool = True
    fused_head: bool = True
    fused_sampling: bool = True
    check_every: int = 0
    load_format: str = "safetensors"
    graphs: str = "auto"
    graph_rows: int = 256
    memory_fraction: float = 0.92
    cpu_kernels: bool = True
    speculate: int = 0
    draft_source: str = "small"
    max_drawn_rows: int = 0
    retokenize: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in _NOT_WHOLE:
                continue
            limit = 2**62 if name in ("arena_tokens", "host_kv_tokens") else 2**31
            if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= limit:
                raise SteerError(f"{name} must be a whole number below {limit}, got {value!r}")
        self._check_choices()
        for name in ("block_tokens", "max_sequences", "hold_ticks"):
            if getattr(self, name) < 1:
                raise SteerError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "arena_tokens",
            "max_context",
            "max_waiting",
            "check_every",
            "gather",
            "eager_backlog",
            "read_along",
            "graph_rows",
            "host_kv_tokens",
            "max_drawn_rows",
        ):
            if getattr(self, name) < 0:
                raise SteerError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.max_tick_tokens <= self.max_sequences:
            raise SteerError(
                f"max_tick_tokens ({self.max_tick_tokens}) must be greater than "
                f"max_sequences ({self.max_sequences})"
            )
        self._check_guesses()
        self._check_host()

    def _check_guesses(self) -> None:
        if not 0 <= self.speculate <= MOST_DRAFTS:
            raise SteerError(
                f"speculate must be from 0 (off) to {MOST_DRAFTS} guesses, got {self.speculate}"
            )
        if 0 < self.max_drawn_rows < self.max_sequences:
            raise SteerError(
                f"max_drawn_rows must be 0 or at least max_sequences ({self.max_sequences}), got "
                f"{self.max_drawn_rows}"
            )

    def _check_host(self) -> None:
        tokens, limit = self.host_kv_tokens, (2**31 - 1) * self.block_tokens
        if tokens > limit:
            raise SteerError(f"host_kv_tokens must be at most {limit}, got {tokens}")
        if tokens and not self.prefix_cache:
            raise SteerError(
                "host_kv_tokens needs prefix_cache, through which offloaded KV is found again; "
                "turn it on, or set host_kv_tokens to 0"
            )

    @classmethod
    def or_default(cls, config: EngineConfig | None) -> EngineConfig:
        """The settings, or the defaults for None. SteerError on anything else."""
        if config is None:
            return cls()
        if not isinstance(config, cls):
            raise SteerError(
                f"config must be EngineConfig(...) or None, got a {type(config).__name__}"
            )
        return config

    @property
    def drawn_rows(self) -> int:
        """``max_drawn_rows``, or what 0 stands for."""
        return self.max_drawn_rows or max(self.max_sequences, _LEAST_DRAWN)

    @property
    def host_blocks(self) -> int:
        """``host_kv_tokens`` in blocks, rounded up."""
        return -(-self.host_kv_tokens // self.block_tokens)

    def _check_choices(self) -> None:
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SteerError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.lane_policy not in LANE_POLICIES:
            raise SteerError(
                f"unknown lane policy {self.lane_policy!r}; known: {', '.join(LANE_POLICIES)}"
            )
        choices = ("graphs", GRAPHS), ("plan_ahead", PLAN_AHEAD), ("draft_source", DRAFT_SOURCES)
        for name, known in choices:
            if getattr(self, name) not in known:
                raise SteerError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        share = self.memory_fraction
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise SteerError(f"memory_fraction must be above 0 and at most 1, got {share!r}")
        self._check_loading()

    def _check_loading(self) -> None:
        if self.load_format not in LOAD_FORMATS:
            raise SteerError(
                f"unknown load_format {self.load_format!r}; known: {', '.join(LOAD_FORMATS)}"
            )
        for name in ("eager_backlog", "read_along"):
            if self.retokenize and getattr(self, name):
                raise SteerError(
                    f"{name} cannot go with retokenize: text that has not crossed cannot be read"
                )
        if self.retokenize and self.load_format == "dummy":
            raise SteerError(
                'load_format "dummy" cannot go with retokenize: made-up weights have '
                "made-up tokens, the same for both models"
            )
        delimiters = self.delimiters
        listed = isinstance(delimiters, tuple | list) and bool(delimiters)
        if not listed or not all(isinstance(d, str) and d for d in delimiters):
            raise SteerError(
                f"delimiters must be one or more strings that are not empty, got {delimiters!r}"
            )
        object.__setattr__(self, "delimiters", tuple(delimiters))  # a list cannot be hashed
