"""The report's fixed words: what the columns mean, and how everything was made."""

from moa_model.scene import EDGE
from tests.benchmarks.claims.plan import (
    CURVE,
    DROPOUT,
    EMA_DECAY,
    FULL,
    LEARNING_RATE,
    LENGTHS,
    ROUTER_FACTOR,
    ROWS,
)
from tests.benchmarks.claims.world import PHOTOS

# Markdown, so lines may be longer than code.
# ruff: noqa: E501

TABLE_NOTES = """\
Means with 95 % intervals. *Identity*: similarity of the person drawn to the reference, 0 where nobody is found.
*Prompt*: CLIP's cosine. *Object*: the held object is the prompt's. *Background*: change outside the people when only the
subject is swapped, divided by the change between two seeds. *Against the prior*: grey levels (0 … 255) outside the people
between a picture and the prior's own of that prompt and seed: 0 is the scene untouched. *Variation*: 1 − CLIP cosine
between seeds; LPIPS is not available without its download. *Router IoU*: the strongest pixels of 1 − R₀ against the
person's mask; only arms with a router have one. *Area*: the person's share of the picture; small people score lower on
identity. Release 1 is no arm of the comparison: it is MoA trained on four times as many samples with a falling rate (`infra/zoo/README.md`), and
nobody has trained the other arms as long. It shows where MoA goes, not that the others would not. The tiny CLIP's cosine is high for everything it knows; the object column says more about the prompt."""

METHOD = f"""\
- **Same for every arm**: the base, {PHOTOS:,} photos, and for each training seed the same samples, noise, dropped
  conditions ({DROPOUT:.0%}) and uniform draws behind the timesteps. {ROWS} rows a step, AdamW {LEARNING_RATE:g} (routers
  {ROUTER_FACTOR:g} times that), 20 steps of warm-up, then constant, and the average of the weights (decay {EMA_DECAY}) is what
  draws. A constant rate makes a training of {LENGTHS[1]} steps the half of one of {LENGTHS[2]:,}, so one training gives the whole
  curve over length; the average does what a falling rate would.
- **MoA** is the `demo` preset's: router loss 0.3 with the mirror term 0.5 on all blocks, object loss 1e-4, preservation 1,
  timesteps 900 · u^0.6, prior alone above 900 in sampling.
- **Without the MoA layer**: R = (0, 1) everywhere in both halves of the guidance, which is the attention layers fine-tuned
  directly; all else as MoA, preservation and early steps by the prior included. Its router loss is a constant.
- **FastComposer's way**: directly fine-tuned attention; the masked loss with probability 0.5 (drawn a sample, not a batch),
  its balanced L1 localisation at 1e-3 on the middle blocks, as its training script has it; the word is text plus
  MLP(text, image), alike for all layers and timesteps; all timesteps trained and drawn; the subject's word joins after the
  first fifth of the steps (`start_merge_step` 10 of 50), before which the fine-tuned network sees the plain word. Not
  rebuilt: training CLIP's last layers, a second MLP after the fusion, dropping objects.
- **IP-Adapter**: diffusers' `ImageProjection` (4 tokens) and `IPAdapterAttnProcessor2_0`, loaded through `load_ip_adapter`;
  the image's K and V start as the text's and are trained with the projection on the plain, unmasked denoising loss over
  all timesteps, as its authors do. Of two people in a photo the first is shown in training. With two subjects both
  pictures are given and no `ip_adapter_masks`: masks are a layout that users do not have, and without them it cannot know
  whose picture is whose.
- **Drawn**: UniPC, 15 steps, guidance 3, {FULL.people} people of no training photo, {FULL.prompts} prompts, seeds {", ".join(map(str, FULL.seeds))};
  for curves and search {CURVE.people} people, {CURVE.prompts} prompts, seeds {", ".join(map(str, CURVE.seeds))}. Two people: {FULL.pairs} couples of a man and a woman, 2 prompts, 2 seeds.
- **Intervals**: training seeds and people are crossed; each of 4,000 bootstrap draws resamples both. With one training seed
  the interval is over people alone: how lucky a training was is not in it. Differences are paired. There is no correction
  for asking several questions.
- **Scene kept** (ours, `moa_model/scene.py`; no part of the paper or of the other methods): after every step the latents outside the people
  are set back to those of the prior's own run of that prompt and seed, which it costs besides. Where people are MoA's routers say (mean of R₁
  over layers, largest so far, blended between {EDGE[0]} and {EDGE[1]}); that edge was chosen on release 1 with the people and seeds of the curves, so the
  table's other people are its test. *By a mask*: a segmenter sees the prior's finished picture and the method's own free one, and what
  anybody touches in either is free. That segmenter is also the one that the measures take the background from: its mask is the truth here.
- **Strength** s multiplies R₁ (IP-Adapter: its scale); 0 is the prior.
"""
