"""The settings of stage 6 and of the gate's comparison: whom to draw, how, and how much worse a release may be."""

from typing import Self

from pydantic import Field, model_validator

from infra.settings_fields import Count, FrozenSettings


class PairPromptSettings(FrozenSettings):
    template: str = Field(
        description='the prompt, with {word} for the subject\'s word: "a photo of a {word} in the snow"'
    )
    group: str = Field(min_length=1, description="what kind of prompt it is: each group has its own table")

    @model_validator(mode="after")
    def _word_stands_once(self) -> Self:
        if self.template.count("{word}") != 1 or self.template.count("{") != 1 or self.template.count("}") != 1:
            raise ValueError(f"template {self.template!r} must hold {{word}} exactly once, and no other braces")
        return self


class PromptSettings(PairPromptSettings):
    scene: str = Field(description='the scene as a phrase of the prompt, for scene accuracy; "" = not scored')
    object: str = Field(description='the held object as a phrase of the prompt, for object accuracy; "" = not scored')


class PersonSettings(FrozenSettings):
    identity: str = Field(min_length=1, description="whom the source calls so")
    word: str = Field(min_length=1, description="their class word, whatever the source thinks")


class EvaluateSettings(FrozenSettings):
    source: str = Field(description='"paperfolk" or "celeba:PATH": people whose photos are never trained on')
    split: str = Field(description='only people whose photos the source puts into this split; "" = all')
    people: list[PersonSettings] = Field(description="the first of these are evaluated on; [] = any of the source's")
    subjects: Count = Field(description="people to evaluate on")
    pairs: int = Field(ge=0, description="most pairs of them to draw in one picture; 0 = none")
    prompts: list[PromptSettings] = Field(min_length=1, description="each drawn for each subject and seed")
    pair_prompts: list[PairPromptSettings] = Field(
        description='each drawn for each pair and seed, with "man and a woman" as {word}'
    )
    seeds: list[int] = Field(min_length=2, description="at least two: background change is measured between seeds")
    inference_steps: Count = Field(description="UniPC steps")
    guidance_scale: float = Field(ge=1, description="classifier-free guidance; 1 = none")
    prior_only_above: int = Field(ge=0, le=1000, description="timesteps above this are drawn by the prior alone")
    keep_scene: bool = Field(description="outside the people, keep to the prior's own run, which is drawn for it too")
    ip_adapter_scale: float = Field(ge=0, le=1, description="how much the photo counts where an IP-Adapter is judged")
    batch_size: Count = Field(description="pictures drawn at once")
    workers: Count = Field(description="actors, each with the pipeline")

    @model_validator(mode="after")
    def _seeds_differ(self) -> "EvaluateSettings":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must all differ")
        return self

    @model_validator(mode="after")
    def _pairs_have_prompts(self) -> "EvaluateSettings":
        if self.pairs and not self.pair_prompts:
            raise ValueError(f"pairs = {self.pairs} needs pair_prompts")
        return self


class RegressionSettings(FrozenSettings):
    """By how much a release may be worse than production's on the same people, prompts and seeds.

    More than that *and* beyond the 95 % interval of the difference, and the gate stops it.
    """

    identity: float = Field(ge=0, description="similarity to the reference photo")
    prompt_consistency: float = Field(ge=0, description="CLIP's cosine of picture and prompt")
    scene_accuracy: float = Field(ge=0, description="share of pictures that show the prompt's scene")
    object_accuracy: float = Field(ge=0, description="share of pictures that show the prompt's object")
    background_change: float = Field(ge=0, description="change outside people, of what another seed would change")
    prior_fidelity: float = Field(ge=0, description="grey levels from the prior's own picture, outside people")
    pair_identity: float = Field(ge=0, description="of two people, the worse one's similarity")
    pair_separation: float = Field(
        ge=0, description="of two people, the right reference's similarity minus the wrong's"
    )
