"""A release's README: Hugging Face's header and what a person wants to know before using it.

It is made of the release's own lineage and metrics alone, so that the same release has the same card.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.metric_table import metric_rows
from evaluation.metrics import Metrics
from flows.training_continuity import told_course

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LIMITS = (
    "Small faces, as in pictures of whole bodies, are as weak as the base model's (§6 of the paper).",
    "Identity is measured on faces that are found: where faces are small it says little, and by itself it misleads. "
    "Look at prompt consistency and at the pictures, too (app. D).",
    "Timesteps above the one in `adapter_config.json` are drawn by the base model alone: the layout is its, and so are "
    "its prejudices.",
    "Each person needs a word of their own in the prompt, and a photo that shows the face.",
    "It draws likenesses of real people: use photos of people who agreed to it.",
)


def model_card(card: Mapping[str, Any], production: Mapping[str, Any] | None, model: str, alias: str) -> str:
    """The text. card: a release's lineage and metrics; production: the metrics of the release that it was compared
    with; model and alias: what it and the name that follows the gate are called."""
    metrics = Metrics.model_validate(card["metrics"])
    beside = None if production is None else Metrics.model_validate(production)
    sections = [
        _header(card, metrics, model),
        f"# {model}: a Mixture-of-Attention adapter",
        _purpose(card),
        _loading(card, model, alias),
        _training(card),
        _licences(card),
        _measured(card, metrics, beside),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _LIMITS),
        _gate(card["verdict"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def has_header(text: str) -> bool:
    """Whether a README begins with Hugging Face's header; those of old releases do not."""
    return text.startswith("---\n")


def non_commercial(card: Mapping[str, Any]) -> list[str]:
    """The sources among whose photos are some that may not serve commerce."""
    return sorted({str(row["source"]) for row in card.get("licences", []) if row["non_commercial"]})


def _header(card: Mapping[str, Any], metrics: Metrics, model: str) -> str:
    base = str(card["models"]["base"]).rpartition(" (")[0]
    tags = ["mixture-of-attention", "personalization", "text-to-image", "stable-diffusion"]
    lines = ["license: other", "license_name: see-data-and-base", "license_link: README.md"]
    lines += ["library_name: diffusers", "pipeline_tag: text-to-image"]
    lines += [f"base_model: {_quoted(base)}"] if _HUB_ID.fullmatch(base) and not base.startswith("zoo:") else []
    lines += ["tags:", *(f"- {tag}" for tag in tags + (["non-commercial"] if non_commercial(card) else []))]
    lines += ["model-index:", f"- name: {_quoted(model)}", "  results:", "  - task:", "      type: text-to-image"]
    lines += ["    dataset:", "      type: people-never-seen-in-training"]
    lines += [f"      name: {_quoted('protocol ' + card['evaluation'])}", "    metrics:"]
    for name in Metrics.model_fields:
        measured = getattr(metrics, name)
        mean = getattr(measured, "mean", None)
        if mean is not None and abs(mean) != float("inf") and not name.startswith("prior_"):
            lines += [f"    - type: {name}", f"      value: {mean:.6g}"]
    return "\n".join(["---", *lines, "---"])


def _purpose(card: Mapping[str, Any]) -> str:
    return (
        "Draws the people of given photos in the scene that the unmodified base model draws for a prompt and a seed: "
        "experts and routers of [Mixture-of-Attention](https://arxiv.org/abs/2404.11565) for "
        f"{_cell(card['models']['base'])}. One pass, no tuning per person, no masks or boxes from the user."
    )


def _loading(card: Mapping[str, Any], model: str, alias: str) -> str:
    named = (str(card["models"][name]).rpartition(" (")[0] for name in ("base", "clip"))
    base, clip = (name.replace("zoo:", "infra/zoo/weights/", 1) for name in named)
    return f"""## Loading

```python
from infra.pulling import pull
from moa_model import MoAAdapter
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained({_quoted(base)})
adapter = MoAAdapter.from_pretrained(pull("REGISTRY/{model}@{alias}")).attach(pipe, image_encoder={_quoted(clip)})
image = pipe(prompt, cross_attention_kwargs=adapter.bind(pipe, prompt, {{"man": photo}})).images[0]
```

REGISTRY is a folder or `s3://bucket/prefix`; `from_pretrained` takes this folder's path as well."""


def _training(card: Mapping[str, Any]) -> str:
    rows = [
        *((name, model) for name, model in card["models"].items()),
        ("trained on", f"{card['samples']} samples, catalog version {card['catalog_version']}"),
        ("catalog", card["catalog_digest"][:16]),
        ("started from", card["start"]),
        ("training run", card["run_id"]),
        *(told_course(card["course"]).items() if "course" in card else ()),  # releases of before have none
        *((f"train.{name}", card["train"][name]) for name in ("steps", "batch_size", "learning_rate", "seed")),
    ]
    return "## Training\n\n" + _table(("", ""), rows)


def _licences(card: Mapping[str, Any]) -> str:
    rows = card.get("licences") or []
    if not rows:
        return ""
    shown = [
        (
            row["source"],
            row["licence"] or "none given",
            row.get("consent") or "not told",  # releases of before have none
            f"{row['photos']:,}",
            "no" if row["non_commercial"] else "",
        )
        for row in rows
    ]
    lines = ["## Data", "", _table(("source", "photo's licence", "consent", "photos", "commercial use"), shown), ""]
    lines += [f"- {_cell(terms)}" for terms in sorted({row["terms"] for row in rows if row["terms"]})]
    if sources := non_commercial(card):
        lines += ["", f"**For non-commercial use only**: that is what the terms of {_cell(', '.join(sources))} say."]
    return "\n".join(lines)


def _measured(card: Mapping[str, Any], metrics: Metrics, production: Metrics | None) -> str:
    rows = metric_rows(metrics, production)
    columns = ("", "release", "95 % interval", "prior", "production then")
    shown = [(row.label, row.release, row.interval, row.prior, row.production) for row in rows]
    compared = card.get("compared_with")
    says = f" Production was release {compared}." if compared is not None else ""
    return (
        f"## Measured\n\n{metrics.pictures} pictures of {metrics.subjects} people who are in no training photo; the "
        f"intervals are over people.{says}\n\n" + _table(columns, shown)
    )


def _gate(verdict: Mapping[str, Any]) -> str:
    decided = "promote" if verdict["promote"] else "do not promote"
    lines = [f"## The gate: {decided}", "", *(_cell(reason) for reason in verdict["reasons"]), ""]
    return "\n".join([*lines, *(f"- {_cell(check['sentence'])}" for check in verdict["checks"])])


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """Text of strangers in a line of Markdown: no line of its own, no table, no HTML, no link."""
    text = " ".join(str(value).split())
    return re.sub(r"([|<>\[\]`*])", r"\\\1", text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)
