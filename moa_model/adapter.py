"""The adapter: all MoA layers and the multimodal prompt, attached to a stock diffusers pipeline.

Axes: B rows of the U-Net's batch, S subjects, F image feature, H W latent pixels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from infra.errors import UserError
from moa_model.attention import AttentionMaps, MoAAttentionProcessor, MoAStep, TextKeys, prior_keys
from moa_model.binding import Binding, RouterChoice, Run, Subjects, SubjectsByWord, bind, spellings
from moa_model.config import MoAConfig
from moa_model.files import read_config, read_weights, write_adapter
from moa_model.image_encoder import ImageEncoder
from moa_model.layers import attention_layers, layer_shapes
from moa_model.prompt import MultimodalPrompt, one_hot_tokens, place
from moa_model.recording import RecordedStep

EncoderLike: TypeAlias = ImageEncoder | tuple[Any, Any] | str | Path
"""An encoder, its (model, processor), or the folder or hub id of a CLIP."""


@dataclass(frozen=True)
class _KnownText:
    """What the cross-attention layers made of one text, and when: a later step of the same run may use it again."""

    text_BTD: Tensor
    version: int
    timestep: float
    prior: tuple[tuple[Tensor, Tensor], ...]
    personal: tuple[Tensor, ...]

    def serves(self, text_BTD: Tensor, timestep: float) -> bool:
        """A step of the same run: the very same tensor, unchanged, at a lower timestep.

        Between runs a LoRA may have been loaded; a new run begins at a higher timestep than the last one ended.
        """
        return self.text_BTD is text_BTD and self.version == text_BTD._version and timestep < self.timestep


@dataclass
class _Attachment:
    unet: nn.Module
    originals: list[Any]
    hosts: list[Attention]
    cross_hosts: list[Attention]
    hook: Any = None
    known: _KnownText | None = None


@dataclass(eq=False)
class _Recording:
    subject_maps: bool
    steps: list[RecordedStep] = field(default_factory=list)


@dataclass
class _Switches:
    prior_only: bool = False
    recordings: list[_Recording] = field(default_factory=list)
    attachments: list[_Attachment] = field(default_factory=list)


class MoAAdapter(nn.Module):
    """Experts, routers and prompt MLP for one architecture of U-Net.

    On a stock pipeline:

        adapter = MoAAdapter.from_pretrained("release").attach(pipe, image_encoder="openai/clip-vit-large-patch14")
        bound = adapter.bind(pipe, prompt, {"man": photo})
        image = pipe(prompt, cross_attention_kwargs=bound, generator=generator).images[0]
    """

    def __init__(self, config: MoAConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder: ImageEncoder | None = None
        cross = [i for i, shape in enumerate(config.layers) if shape.cross]
        self.layers = nn.ModuleList(
            MoAAttentionProcessor(shape, index, cross.index(index) if shape.cross else -1)
            for index, shape in enumerate(config.layers)
        )
        self.prompt = MultimodalPrompt(config.image_dim, config.text_dim, len(config.layers), config.timesteps)
        self.register_buffer("_cross_layers", torch.tensor(cross, device="cpu"), persistent=False)
        self.prior_only_above = config.prior_only_above  # a user may lower it (more of the scene) or raise it
        self.skip_below = config.skip_below  # 0 = exact
        self._switches = _Switches()

    # ---- making and keeping

    @classmethod
    def for_unet(cls, unet: nn.Module, image_dim: int, **config: Any) -> Self:
        """A fresh adapter: experts copied from the U-Net's layers, R = (½, ½), a prompt MLP that changes nothing yet.

        ``config`` are further fields of MoAConfig (``timesteps``, ``prior_only_above``, ``image_encoder``).
        """
        text_dim = unet.config.cross_attention_dim
        adapter = cls(MoAConfig(image_dim=image_dim, text_dim=text_dim, layers=layer_shapes(unet), **config))
        for layer, host in zip(adapter.layers, attention_layers(unet).values(), strict=True):
            layer.expert.copy_from(host)
        return adapter

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read an adapter's two files; raises UserError where one is missing, damaged, tampered with or not finite."""
        with torch.device("meta"):  # nothing is drawn at random to be overwritten: SDXL's has a billion numbers
            adapter = cls(read_config(Path(folder)))
        adapter.load_state_dict(read_weights(Path(folder), adapter.state_dict()), assign=True)
        return adapter.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``adapter.safetensors`` and ``adapter_config.json`` into ``folder``."""
        write_adapter(Path(folder), self.config, self.state_dict())

    # ---- attaching

    def attach(self, pipe_or_unet: Any, image_encoder: EncoderLike | None = None) -> Self:
        """Give every attention layer of the U-Net its MoA processor; the layers themselves stay as they are.

        ``image_encoder``: a CLIP's folder or hub id, or (model, processor); needed to bind pictures, not features.
        Moves the adapter to the U-Net's device and dtype. Raises UserError, and changes nothing, if the U-Net has
        another architecture, already carries an adapter, or has processors that ours would replace.
        """
        unet = getattr(pipe_or_unet, "unet", pipe_or_unet)
        _require_no_pag(pipe_or_unet)
        self._require_fit(unet)
        if image_encoder is not None:
            self.image_encoder = self._fitting(image_encoder)
        first = next(parameter for parameter in unet.parameters())
        self.to(device=first.device, dtype=first.dtype if first.dtype.is_floating_point else None)
        hosts = list(attention_layers(unet).values())
        originals = [host.processor for host in hosts]
        for layer, host in zip(self.layers, hosts, strict=True):
            host.set_processor(layer)
        crossing = [host for host, shape in zip(hosts, self.config.layers, strict=True) if shape.cross]
        attachment = _Attachment(unet, originals, hosts, crossing)
        attachment.hook = unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)
        self._switches.attachments.append(attachment)
        return self

    def detach(self, pipe_or_unet: Any) -> Self:
        """Put the U-Net's own processors back. Raises UserError if this adapter is not attached to it."""
        unet = getattr(pipe_or_unet, "unet", pipe_or_unet)
        attachment = self._attachment(unet)
        for host, original in zip(attachment.hosts, attachment.originals, strict=True):
            host.set_processor(original)
        attachment.hook.remove()
        self._switches.attachments.remove(attachment)
        return self

    def is_attached(self, pipe_or_unet: Any) -> bool:
        """Whether this adapter is attached to the pipeline's U-Net."""
        unet = getattr(pipe_or_unet, "unet", pipe_or_unet)
        return any(attachment.unet is unet for attachment in self._switches.attachments)

    # ---- generating

    def bind(
        self,
        pipe: Any,
        prompt: str | Sequence[str],
        subjects: SubjectsByWord | Sequence[SubjectsByWord],
        image_encoder: EncoderLike | None = None,
        router: RouterChoice | None = None,
    ) -> dict[str, Any]:
        """``cross_attention_kwargs`` for one call of ``pipe`` with this prompt.

        ``subjects`` maps words to a picture, an image feature [F], or a ``Subject`` (a picture with a strength and a
        range of steps); several prompts take a list of mappings. A word that repeats takes a list, first occurrence
        first. An empty mapping, like a strength of 0, is no subject: the prior, bit for bit.
        ``router`` decides who paints which pixel in place of the trained routers: a mask [H W], 1 where the subjects
        are, or the steps that ``recording`` collected in another run.
        Raises UserError: word not in the prompt, or there twice and no list given, more subjects than occurrences, no
        image encoder, not attached, layers replaced since.
        """
        _require_no_pag(pipe)
        self._require_in_place(self._attachment(pipe.unet))
        encoder = self.image_encoder if image_encoder is None else self._fitting(image_encoder)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        by_prompt = [subjects] if isinstance(subjects, Mapping) else list(subjects)
        if not any(by_prompt):
            return {}
        binding: Binding = bind(
            spellings(pipe, prompts),
            by_prompt,
            encoder.encode if encoder else _no_encoder,
            self.config.image_dim,
            Run(lambda: pipe.do_classifier_free_guidance, lambda timestep: _progress(pipe, timestep)),
            router,
        )
        return {"moa": binding}

    @contextmanager
    def prior_only(self) -> Iterator[None]:
        """The prior alone, bit for bit, whatever is bound."""
        before, self._switches.prior_only = self._switches.prior_only, True
        try:
            yield
        finally:
            self._switches.prior_only = before

    @contextmanager
    def recording(self, subject_maps: bool = True) -> Iterator[list[RecordedStep]]:
        """Collect router and subject maps of every step that the experts take part in; recordings may overlap.

        Without ``subject_maps`` the routers' alone, which cost little: two maps a layer and step.
        """
        own = _Recording(subject_maps)
        self._switches.recordings.append(own)
        try:
            yield own.steps
        finally:
            self._switches.recordings.remove(own)

    # ---- inside one forward pass

    # Compiled code begins below the hook, in the U-Net's forward: what is here depends on the values of tensors.
    @torch.compiler.disable
    def _before_unet(
        self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Turn the bound subjects into this step's conditions for all layers, or leave the prior alone."""
        side_channel = dict(kwargs.get("cross_attention_kwargs") or {})
        request: Binding | Subjects | None = side_channel.pop("moa", None)
        if request is None:
            return args, kwargs
        attachment = self._attachment(unet)
        self._require_in_place(attachment)
        named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        step = self._step(
            # A LoRA's scale holds inside the U-Net's forward alone: the prior's keys are not known before it.
            None if "scale" in side_channel else attachment,
            request,
            named["sample"],
            named["timestep"],
            named["encoder_hidden_states"],
        )
        if step is not None:
            side_channel["moa"] = step
        return args, kwargs | {"cross_attention_kwargs": side_channel}

    def _step(
        self,
        attachment: _Attachment | None,
        request: Binding | Subjects,
        sample: Tensor,
        timestep: Any,
        text_BTD: Float[Tensor, "B T D"],
    ) -> MoAStep | None:
        """What all layers need in this forward pass; None where every row takes the prior alone.

        ``attachment`` keeps what is known of the text; without it the layers project the text themselves.
        """
        if self._switches.prior_only:
            return None
        rows, device, size = len(sample), sample.device, (sample.shape[-2], sample.shape[-1])
        timestep_B = torch.as_tensor(timestep, device=device, dtype=torch.float32).expand(rows)
        # Reading a value off an accelerator makes both wait for each other: a training step reads none.
        training = isinstance(request, Subjects) and torch.is_grad_enabled() and not self._switches.recordings
        first = math.nan if training else float(timestep_B[0])
        subjects = request.for_batch(rows, first)
        share_B: Tensor | None = None  # 1 for all
        if self.prior_only_above < self.config.timesteps or subjects.share_B is not None:
            share_B = (timestep_B <= self.prior_only_above).float()
            if subjects.share_B is not None:
                share_B = share_B * subjects.share_B.to(device)
            if not share_B.any():
                return None
            share_B = None if (share_B == 1).all() else share_B.to(text_BTD.dtype)
        if self.prompt.mlp[-1].weight.device != device:  # the pipeline was moved after attach; it moves only the layers
            self.to(device)
        token_BS = subjects.token_BS.to(device)
        on_cpu = subjects.token_BS.device.type == "cpu"  # as every binding is
        if on_cpu and (last := int(subjects.token_BS.max())) >= text_BTD.shape[1]:
            raise UserError(
                f"A subject is bound to token {last}, but the prompt's embeddings have {text_BTD.shape[1]} tokens: "
                "bind the prompt that they were made from."
            )
        token_BST = one_hot_tokens(token_BS, text_BTD.shape[1], like=text_BTD)
        word_BSD = torch.einsum("bst,btd->bsd", token_BST, text_BTD)
        image_BSF = subjects.image_BSF.to(text_BTD)
        word_LBSD = self.prompt(image_BSF, word_BSD, timestep_B, self._cross_layers)
        if subjects.scale_BS is not None:
            word_LBSD = word_LBSD * subjects.scale_BS.to(word_LBSD)[..., None]
        maps = subjects.maps
        if maps is None and (open_ones := self._switches.recordings):
            blocks = {shape.block for shape in self.config.layers}
            maps = AttentionMaps(blocks, subjects_too=any(one.subject_maps for one in open_ones))
            for one in open_ones:
                one.steps.append(RecordedStep(first, size, maps))
        router = request.fixed_router(rows, first, size)
        text = None
        drawing = subjects.maps is None and not torch.is_grad_enabled()  # a training's text does not come again
        if attachment is not None and drawing and not text_BTD.is_inference():
            text = self._text_keys(attachment, text_BTD, first, word_LBSD, token_BST)
        return MoAStep(word_LBSD, token_BST, share_B, maps, router, self.skip_below, text)

    def _text_keys(
        self, attachment: _Attachment, text_BTD: Tensor, timestep: float, word_LBSD: Tensor, token_BST: Tensor
    ) -> TextKeys:
        """Keys and values of the text: the text's own once a run, those of the subjects' words in every step."""
        experts = [layer.expert for layer in self.layers if layer.shape.cross]
        known = attachment.known
        if known is None or not known.serves(text_BTD, timestep):
            prior = tuple(prior_keys(host, text_BTD) for host in attachment.cross_hosts)
            personal = tuple(expert.key_value(text_BTD) for expert in experts)
        else:
            prior, personal = known.prior, known.personal
        attachment.known = _KnownText(text_BTD, text_BTD._version, timestep, prior, personal)
        changed = (
            place(text, functional.linear(change, expert.key_value.weight), token_BST)
            for text, change, expert in zip(personal, word_LBSD, experts, strict=True)
        )
        return TextKeys(prior, tuple(changed))

    # ---- refusals

    def _require_fit(self, unet: Any) -> None:
        if not isinstance(unet, nn.Module):
            raise UserError(
                f"{type(unet).__name__} has no U-Net: attach MoA to a Stable Diffusion pipeline or its U-Net."
            )
        hosts = attention_layers(unet)
        for name, host in hosts.items():
            if isinstance(host.processor, MoAAttentionProcessor):
                raise UserError("This U-Net already carries a MoA adapter: detach it first.")
            if type(host.processor) is not AttnProcessor2_0:
                raise UserError(
                    f"The U-Net's attention is {type(host.processor).__name__} at {name}, which MoA would replace: "
                    "unload it (IP-Adapter, xFormers, attention slicing) before attaching."
                )
        shapes = layer_shapes(unet)
        if len(shapes) != len(self.config.layers):
            raise UserError(
                f"This adapter is for another base: it has {len(self.config.layers)} attention layers, "
                f"this U-Net {len(shapes)}."
            )
        for own, theirs in zip(self.config.layers, shapes, strict=True):
            for what, value in own:
                if getattr(theirs, what) != value:
                    raise UserError(
                        f"This adapter is for another base: {what} of {own.name} is {value} there, "
                        f"{getattr(theirs, what)} in this U-Net."
                    )

    def _fitting(self, given: EncoderLike) -> ImageEncoder:
        if isinstance(given, ImageEncoder):
            encoder = given
        else:
            encoder = ImageEncoder(*given) if isinstance(given, tuple) else ImageEncoder.load(str(given))
        if encoder.width != self.config.image_dim:
            raise UserError(
                f"The image encoder's features have width {encoder.width}, this adapter's {self.config.image_dim}: "
                f"use the one it was trained with ({self.config.image_encoder or 'not named'})."
            )
        return encoder

    def _require_in_place(self, attachment: _Attachment) -> None:
        for host, layer in zip(attachment.hosts, self.layers, strict=True):
            if host.processor is not layer:
                raise UserError(
                    f"{type(host.processor).__name__} has replaced the MoA layers: unload what brought it (IP-Adapter, "
                    "xFormers, attention slicing), detach the adapter, and attach it again."
                )

    def _attachment(self, unet: nn.Module) -> _Attachment:
        for attachment in self._switches.attachments:
            if attachment.unet is unet:
                return attachment
        raise UserError("This adapter is not attached to this pipeline: call adapter.attach(pipe) first.")


def _require_no_pag(pipe: Any) -> None:
    if hasattr(pipe, "pag_applied_layers"):
        raise UserError(
            f"{type(pipe).__name__} replaces attention processors while it draws, MoA's too: take the pipeline without "
            "perturbed-attention guidance."
        )


def _progress(pipe: Any, timestep: float) -> float:
    """The share of the run's steps that lie before this timestep; image-to-image begins within the schedule."""
    timesteps = pipe.scheduler.timesteps[getattr(pipe.scheduler, "begin_index", None) or 0 :]
    return float((timesteps > timestep).sum()) / max(1, len(timesteps))


def _no_encoder(pictures: Sequence[Any]) -> Tensor:
    raise UserError("Pictures need an image encoder: adapter.attach(pipe, image_encoder=the CLIP folder or hub id).")
