"""Settings of `meta_train.training.train`."""

from dataclasses import dataclass, field

from harness.settings import check_choice, check_counts
from ngopt.schedule import half_cosine

ESTIMATORS = ("tbptt", "tbptt-2", "pes", "es")


@dataclass(frozen=True)
class Config:
    """Meta-training settings; every random number follows from `seed`."""

    folder: str
    """Where checkpoints, logs and weights go."""
    metanet: str = "ff"
    """Name of the metanet to train, or module:Class of your own
    `ngopt.metanets.Metanet`."""
    init_from: str | None = None
    """Weights (a bundled name or a file) to start from;
    those of an FF become another metanet's head."""
    problems: tuple[str, ...] = ("fm-16",)
    """Problems to sample from; validation is on the held-out data of the first."""
    estimator: str = "tbptt"
    """tbptt, tbptt-2 (second order), pes, or es (whole inner runs)."""
    outer_steps: int = 1000
    optimizees: int = 2
    """Inner runs at the same time, of different ages."""
    horizon: int = 1000
    """Inner steps after which an optimizee is begun anew."""
    shortest: int | None = None
    """With it, horizons are log-uniform from it up to a longest, which grows to
    `horizon` until half of the outer steps are done."""
    truncation: int = 100
    """Inner steps per outer step; of es all."""
    tail: float = 1.0
    """Share of a truncation, at its end, whose losses make up the meta-loss."""
    lr: float = 1e-3
    """Peak outer learning rate (AdamW), decayed along half a cosine to a hundredth."""
    warmup: int = 20
    """Outer steps of linear warm-up."""
    weight_decay: float = 1e-4
    """Decay of the outer AdamW."""
    average: float = 0.0
    """Decay of a running mean of the metanet's weights over outer steps, which is what
    is validated and kept; with 0 these are the latest."""
    clip_norm: float = 1.0
    """Largest norm of one optimizee's meta-gradient."""
    sigma: float = 0.01
    """Standard deviation of the perturbations of pes and es."""
    loss_limit: float = 2.0
    """Losses count up to this many times the first; an optimizee whose mean over a
    truncation is more than half way there is begun anew."""
    metanet_config: dict[str, float] = field(default_factory=dict)
    """Numbers of the metanet's config, such as width 48 layers 3; hidden 64 is the
    width of both layers of its MLP."""
    validate_every: int = 50
    validation_seeds: int = 1
    autocast: bool = False
    """Compute optimizees' losses in bfloat16: faster where the CPU has AMX,
    three times slower elsewhere."""
    device: str = "cpu"
    """Where optimizees and metanet are: cpu or cuda; of several GPUs each process takes
    its own."""
    stacked: bool = False
    """Unroll optimizees of one network as one (vmap), which keeps a GPU busy;
    the same numbers to rounding."""
    processes: int = 1
    """Processes, of one thread each; their number changes no result."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_counts(self, "outer_steps", "optimizees", "horizon", "shortest")
        check_counts(self, "truncation", "validate_every", "validation_seeds")
        check_counts(self, "processes")
        if not 0 <= self.average < 1:
            raise ValueError(f"average: expected a decay in [0, 1); got {self.average}")
        if self.estimator == "es" and self.shortest is not None:
            raise ValueError(
                "shortest: expected none with es, whose steps are whole runs; "
                f"got {self.shortest}"
            )


def learning_rate_factor(step: int, config: Config) -> float:
    """Linear warm-up, then half a cosine from 1 to 0.01."""
    if step <= config.warmup:
        return step / config.warmup
    progress = (step - config.warmup) / max(config.outer_steps - config.warmup, 1)
    return 0.01 + 0.99 * half_cosine(progress)
