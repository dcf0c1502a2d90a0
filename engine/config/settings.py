"""The settings of an engine. Every default of it lives here."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import SteerError

LANE_POLICIES = ("latency", "weighted", "throughput", "auto")
GRAPHS = ("auto", "on", "off")
PLAN_AHEAD = ("auto", "off", "small", "both")
ARENA_TOKENS = 32768  # on a CPU at least, if memory allows
ROWS_AT_ONCE = 16  # that are penalised or sorted, in fp64: each takes many times its logits' bytes
LOAD_FORMATS = ("safetensors", "dummy")
DUMMY = "dummy:"  # how the fingerprint of a pair with made-up weights begins
_SWITCHES = (
    "prefix_cache", "eager_admission", "cpu_kernels", "overlap", "fused_head", "fused_sampling",
    "retokenize",
)  # fmt: skip
_NOT_WHOLE = (
    *_SWITCHES, "delimiters", "lane_policy", "load_format", "graphs", "plan_ahead",
    "memory_fraction",
)  # fmt: skip


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one engine.

    block_tokens: tokens of a KV block.
    arena_tokens: KV room in tokens of the large model; the small one may borrow all of it. 0 takes
        what is free on a GPU; on a CPU what ``max_sequences`` need, half of what is free at most.
    max_context: tokens of one sequence, prompt included; 0 takes the smaller model's limit.
    max_sequences: running at once, the rest waits; fewer where the arena is likely not to hold
        them until they end.
    max_waiting: waiting at once, the rest is refused; 0 sets no limit.
    max_tick_tokens: rows of one forward pass; long prefills are cut to fit.
    delimiters: what ends a step.
    prefix_cache: keep the KV of full settled blocks and share it among requests with the same
        beginning, until the room is needed.
    host_kv_tokens: KV room in tokens of the large model in host memory (pinned for a GPU). What is
        evicted there is copied back where it would else be computed again; 0 keeps nothing. Needs
        prefix_cache, and both models on one device.
    eager_admission: let requests run as soon as there is room for their prompts, whatever they are
        likely to need; to see what the forecast is worth.
    lane_policy: which lane may run: "latency", each whenever it can; "weighted", the lanes share
        the time; "throughput", one at a time, large steps gather; "auto", latency while few run.
    gather: sequences that are worth a large tick under throughput; 0 works it out from the load.
    hold_ticks: ticks of the other lane that one with work is held at most under throughput.
    eager_backlog: the large model reads along once it lags so many settled tokens behind what the
        small one writes, with rows and blocks that nobody else needs; 0 reads at the handoff only.
    read_along: likewise the small model, where it will read the next boundary.
    plan_ahead: lanes whose next tick is planned and launched while the last one runs: "off",
        "small", "both", or "auto": the small model's on a GPU. What was launched in vain where the
        other model takes over costs a row; of the large model, that is a whole tick for little.
    overlap: whether both lanes may run at the same time; if not, each waits for the other's tick.
    fused_head: whether statistics come out of the head's product on a GPU, without its logits.
    fused_sampling: whether a GPU draws in a kernel of its own; if not, in plain PyTorch.
    check_every: ticks between proofs of the core's books; 0 checks only when idle.
    load_format: "safetensors" reads the pair's folders; "dummy" makes weights up, to measure speed:
        of the folders' shapes, or of the pair's named ones where it has no folders.
    graphs: whether ticks are recorded and replayed: "on", "off", or "auto", on GPUs only. Ticks of
        decodes alone always, others up to ``graph_rows``.
    graph_rows: rows of the largest recorded tick with a span (catch-up, short prefill); 0: none.
    memory_fraction: of a GPU's memory, what may be in use, that of other programs included.
    cpu_kernels: whether a CPU runs the compiled kernels where they take the model; if not, PyTorch.
    retokenize: take pairs whose tokenizers differ: text crosses at step boundaries, encoded again.
        Where they agree nothing changes.
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
            "arena_tokens", "max_context", "max_waiting", "check_every", "gather", "eager_backlog",
            "read_along", "graph_rows", "host_kv_tokens",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise SteerError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.max_tick_tokens <= self.max_sequences:
            raise SteerError(
                f"max_tick_tokens ({self.max_tick_tokens}) must be greater than "
                f"max_sequences ({self.max_sequences})"
            )
        self._check_host()

    def _check_host(self) -> None:
        tokens, limit = self.host_kv_tokens, (2**31 - 1) * self.block_tokens
        if tokens > limit:
            raise SteerError(f"host_kv_tokens must be at most {limit}, got {tokens}")
        if tokens and not self.prefix_cache:
            raise SteerError(
                "host_kv_tokens needs prefix_cache, through which parked KV is found again; "
                "turn it on, or set host_kv_tokens to 0"
            )

    @property
    def host_blocks(self) -> int:
        """Blocks that ``host_kv_tokens`` are."""
        return -(-self.host_kv_tokens // self.block_tokens)

    def _check_choices(self) -> None:
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SteerError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.lane_policy not in LANE_POLICIES:
            raise SteerError(
                f"unknown lane policy {self.lane_policy!r}; known: {', '.join(LANE_POLICIES)}"
            )
        for name, known in (("graphs", GRAPHS), ("plan_ahead", PLAN_AHEAD)):
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
        found = self.delimiters
        listed = isinstance(found, tuple | list) and bool(found)
        if not listed or not all(isinstance(d, str) and d for d in found):
            raise SteerError(
                f"delimiters must be one or more strings that are not empty, got {found!r}"
            )
