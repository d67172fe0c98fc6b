"""What is trained, drawn and compared: the arms, the ways of sampling from them, and the two sets of cells.

An *arm* is one way to train on the same base, data, samples, noise and steps. A *sampling* is one way to draw from a
trained arm. A *protocol* says which people, prompts and seeds are drawn.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from infra.model_files import ZOO
from moa_model.scene import EDGE

LENGTHS = (300, 600, 1200)  # steps at which an arm is kept and drawn; the last is the whole training
SEEDS = (0, 1, 2)  # of training: samples, noise, timesteps, fresh weights
ROWS = 8  # per step: on one core half the time of 16, and more steps teach more than larger ones
LEARNING_RATE = 1e-3  # what release 1 was trained with from scratch
ROUTER_FACTOR = 5.0  # the demo preset's
WARM_UP = 20  # steps; then constant, so that a training of 600 steps is the half of one of 1,200
EMA_DECAY = 0.99  # about 100 steps: smooths what a falling rate would
DROPOUT = 0.1  # of text and subject together, in every arm


@dataclass(frozen=True)
class Arm:
    """One way to train; the defaults are the demo preset's MoA."""

    name: str
    title: str
    kind: Literal["prior", "moa", "ip-adapter", "shipped"] = "moa"
    """"shipped": the adapter that comes with the package, not trained here."""
    moa_layer: bool = True
    """False: the router says (0, 1) everywhere, so the attention layers are fine-tuned directly."""
    prompt: Literal["spacetime", "constant", "fastcomposer"] = "spacetime"
    masked_probability: float = 1.0
    lambda_router: float = 0.3
    router_foreground: float = 0.5
    lambda_object: float = 1e-4
    lambda_preservation: float = 1.0
    blocks: Literal["middle", "all"] = "all"
    max_timestep: int = 900
    timestep_exponent: float = 0.6
    router_bias: float = 0.0
    """The routers' logits differ by it at first: R_1 = sigmoid(bias), 0 = one half."""
    prior_only_above: int = 900
    """In sampling. 1000 = the arm draws from the first step on."""

    def training_key(self) -> str:
        """A name that changes with everything the training depends on, so that no old result is taken for a new one."""
        facts = {key: value for key, value in asdict(self).items() if key not in ("name", "title", "prior_only_above")}
        if not self.router_bias:
            del facts["router_bias"]  # so that what was trained before there was such a field is still what it was
        facts |= {"rows": ROWS, "rate": LEARNING_RATE, "router_rate": ROUTER_FACTOR, "warm_up": WARM_UP}
        if self.kind == "shipped":
            facts |= {"weights": hashlib.sha256((SHIPPED / "adapter.safetensors").read_bytes()).hexdigest()}
        facts |= {"ema": EMA_DECAY, "dropout": DROPOUT}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


SHIPPED = ZOO / "release-1"
PRIOR = Arm("prior", "The prior alone", kind="prior")
MOA = Arm("moa", "MoA")
TABLE = (
    PRIOR,
    MOA,
    replace(MOA, name="no-layer", title="MoA without the MoA layer", moa_layer=False),
    # FastComposer's released settings: masked loss half of the time, localisation 1e-3 on the five middle stages,
    # no router, no spacetime encoding, every timestep, and the subject's word joins after a fifth of the steps.
    Arm(
        "fastcomposer",
        "FastComposer's way",
        moa_layer=False,
        prompt="fastcomposer",
        masked_probability=0.5,
        lambda_router=0.0,
        router_foreground=0.0,
        lambda_object=1e-3,
        lambda_preservation=0.0,
        blocks="middle",
        max_timestep=999,
        prior_only_above=1000,
    ),
    # Its authors train the plain denoising loss on all pixels.
    Arm(
        "ip-adapter",
        "IP-Adapter (diffusers)",
        kind="ip-adapter",
        masked_probability=0.0,
        lambda_router=0.0,
        lambda_object=0.0,
        lambda_preservation=0.0,
        max_timestep=999,
        prior_only_above=1000,
    ),
    replace(MOA, name="no-spacetime", title="MoA without spacetime conditioning", prompt="constant"),
    replace(MOA, name="no-router-loss", title="MoA without the router loss", lambda_router=0.0, router_foreground=0.0),
    replace(MOA, name="no-object-loss", title="MoA without the object loss", lambda_object=0.0),
)
# Not one of the table's arms (8 times their samples, a falling rate), but what MoA comes to when it is trained on.
RELEASE = Arm("release-1", "Release 1: MoA, 38,400 samples", kind="shipped")
# The search: MoA with one thing changed. Each stands with what it is called in the report.
SEARCH = (
    replace(MOA, name="paper-objective", title="the paper's objective alone", router_foreground=0.0,
            lambda_preservation=0.0),
    replace(MOA, name="preservation-0", title="preservation 0", lambda_preservation=0.0),
    replace(MOA, name="preservation-2", title="preservation 2", lambda_preservation=2.0),
    replace(MOA, name="preservation-4", title="preservation 4", lambda_preservation=4.0),
    replace(MOA, name="router-0.1", title="router loss 0.1", lambda_router=0.1),
    replace(MOA, name="router-1", title="router loss 1", lambda_router=1.0),
    replace(MOA, name="foreground-0", title="router's mirror term 0", router_foreground=0.0),
    replace(MOA, name="foreground-1", title="router's mirror term 1", router_foreground=1.0),
    replace(MOA, name="timestep-800", title="largest timestep 800", max_timestep=800, prior_only_above=800),
    replace(MOA, name="uniform-timesteps", title="timesteps drawn evenly", timestep_exponent=1.0),
    replace(MOA, name="blocks-middle", title="router loss on the paper's blocks", blocks="middle"),
    replace(MOA, name="router-open", title="routers open at first (R1 = 0.95)", router_bias=3.0),
    replace(MOA, name="router-shut", title="routers shut at first (R1 = 0.05)", router_bias=-3.0),
)  # fmt: skip


def arm(name: str) -> Arm:
    """The arm of that name."""
    return next(one for one in (*TABLE, *SEARCH, RELEASE) if one.name == name)


@dataclass(frozen=True)
class Sampling:
    """How a trained arm is drawn from; the default is as it was trained to be used."""

    strength: float = 1.0
    """R_1 is multiplied by it (IP-Adapter: its scale): 0 = the prior."""
    prior_only_above: int | None = None
    unconditional: Literal["experts", "prior"] = "experts"
    """Who draws the unconditional half of the guidance."""
    threshold: float = 0.0
    """R_1 below it counts as 0."""
    scene: Literal["", "router", "mask"] = ""
    """The prior's own run kept outside the people: of whom the routers know, or a segmenter of the prior's picture."""

    def label(self) -> str:
        """Short and unique, for file names and charts; "" for the default."""
        parts = []
        if self.strength != 1:
            parts.append(f"strength {self.strength:g}")
        if self.prior_only_above is not None:
            parts.append(f"prior above {self.prior_only_above}")
        if self.unconditional == "prior":
            parts.append("unconditional half by the prior")
        if self.threshold:
            parts.append(f"R1 below {self.threshold:g} is 0")
        if self.scene:
            parts.append({"router": "scene kept", "mask": "scene kept by a mask"}[self.scene])
        return ", ".join(parts)


DEFAULT = Sampling()
STRENGTHS = tuple(Sampling(strength=value) for value in (0.25, 0.5, 0.75))  # the default is 1


def curve_samplings(how: Sampling) -> list[Sampling]:
    """`how` at every strength, the full one last."""
    return [*(replace(how, strength=one.strength) for one in STRENGTHS), how]


KEPT = Sampling(scene="router")
MASKED = Sampling(scene="mask")
SAMPLINGS = (
    *curve_samplings(KEPT),
    Sampling(prior_only_above=750),
    Sampling(prior_only_above=800),
    Sampling(unconditional="prior"),
    Sampling(threshold=0.1),
    Sampling(threshold=0.2),
    Sampling(threshold=0.3),
    Sampling(prior_only_above=800, threshold=0.2),
    replace(KEPT, prior_only_above=800),
)


# Who keeps the prior's scene, and by what: MoA's routers know where the people are, the others ask a segmenter.
SCENES = ((MOA, KEPT), (arm("no-layer"), MASKED), (arm("fastcomposer"), MASKED), (arm("ip-adapter"), MASKED))
TABLE_SCENES = SCENES[:3]  # IP-Adapter draws picture by picture: on the curves alone


@dataclass(frozen=True)
class Protocol:
    """Which people, prompts (the demo preset's first ones) and seeds; `pairs` = pictures of two people, too."""

    name: str
    people: int
    prompts: int
    seeds: tuple[int, ...]
    pairs: int = 0


FULL = Protocol("full", people=20, prompts=5, seeds=(11, 12, 13), pairs=12)
CURVE = Protocol("curve", people=8, prompts=3, seeds=(11, 12))
PAIR_PROMPTS = ("a photo of a man and a woman on the beach", "a photo of a man and a woman in the forest")
PAIR_SEEDS = (11, 12)


@dataclass(frozen=True)
class Drawn:
    """One thing to draw and measure."""

    arm: Arm
    seed: int
    step: int
    sampling: Sampling
    protocol: Protocol

    @property
    def name(self) -> str:
        """The result's file name without its ending."""
        label = self.sampling.label().replace(", ", "_").replace(" ", "-")
        return "_".join(
            part for part in (self.arm.name, f"seed{self.seed}", f"step{self.step}", self.protocol.name, label) if part
        )

    def key(self) -> str:
        """Changes with everything the result depends on."""
        # A field that says nothing is left out: what was drawn before there was such a field is still what it was.
        sampling = {name: value for name, value in asdict(self.sampling).items() if (name, value) != ("scene", "")}
        facts = [self.arm.training_key(), self.arm.prior_only_above, sampling, asdict(self.protocol)]
        facts += {"router": [EDGE], "mask": ["the prior's people and the free picture's"]}.get(self.sampling.scene, [])
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def todo(seeds: tuple[int, ...], length: int, search: bool = True) -> list[Drawn]:
    """Everything to draw for a training of `length` steps, the most informative first.

    With the first seed: the arms that the claims are about, release 1, their trade-off curves, ways to sample from
    release 1, the ablations of MoA, the search. Then the table with the other seeds.
    """
    trained = [one for one in TABLE if one.kind != "prior"]
    first, *others = seeds

    def full(arms: Sequence[Arm], seed: int) -> list[Drawn]:
        items = [Drawn(one, seed, length, DEFAULT, FULL) for one in arms]
        return items + [Drawn(one, seed, length, how, FULL) for one, how in TABLE_SCENES if one in arms]

    def curves(arms: Sequence[Arm]) -> list[Drawn]:
        points = [(step, DEFAULT) for step in reversed(LENGTHS) if step <= length]
        points += [(length, sampling) for sampling in STRENGTHS]
        items = [Drawn(one, first, step, sampling, CURVE) for one in arms for step, sampling in points]
        kept = [(one, at) for one, how in SCENES if one in arms for at in curve_samplings(how)]
        return items + [Drawn(one, first, length, sampling, CURVE) for one, sampling in kept]

    core, ablations = trained[:4], trained[4:]
    items = [Drawn(PRIOR, 0, 0, DEFAULT, protocol) for protocol in (FULL, CURVE)]
    items += [*full(core, first), *(Drawn(RELEASE, 0, 0, how, FULL) for how in (DEFAULT, KEPT)), *curves(core)]
    if search:
        items += [Drawn(RELEASE, 0, 0, sampling, CURVE) for sampling in (DEFAULT, *STRENGTHS, *SAMPLINGS)]
    items += [*full(ablations, first), *curves(ablations)]
    if search:
        items += [Drawn(one, first, length, DEFAULT, CURVE) for one in SEARCH]
    return items + [item for seed in others for item in full(trained, seed)]
