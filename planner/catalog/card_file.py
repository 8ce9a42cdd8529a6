"""YAML model cards: reading, checking with every mistake placed, and conversion to `ModelCard`.

The fields are in `card_fields` and `card_shapes`, and explained in docs/models.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from planner.catalog.card_fields import (
    REFUSED_ARCHITECTURES,
    SUPPORTED_ARCHITECTURES,
    CardFile,
)
from planner.catalog.card_shapes import KINDS, MECHANISMS, AttentionShape
from planner.catalog.cards import (
    COMPONENTS,
    WEIGHT_BITS,
    AttentionGroup,
    ModelCard,
    Published,
)
from planner.catalog.names import lookup, normalise
from planner.errors import InputError, Problem, UnsupportedModelError
from planner.schema.yaml_positions import (
    FieldPath,
    Positions,
    field_name,
    load_yaml_with_positions,
    read_text_file,
)

M = TypeVar("M", bound=BaseModel)

_FORMS: Final[Mapping[str | int, str]] = {
    "id": "lower-case letters, digits, dots and hyphens, as in llama-3.1-8b-instruct",
    "repository": "organisation/name, as on Hugging Face",
    "source": "an https:// address",
    "date": "YYYY-MM or YYYY-MM-DD",
}
"""What the text fields with a pattern look like."""


class _Reader:
    """Collects the mistakes of one card and places them."""

    def __init__(self, file: str, positions: Positions) -> None:
        self.file = file
        self.positions = positions
        self.problems: list[Problem] = []
        self.unsupported = False

    def add(self, path: FieldPath, message: str, hint: str = "") -> None:
        place = path
        while place and place not in self.positions:
            place = place[:-1]
        line, column = self.positions.get(place, (1, 1))
        name = field_name(path)
        self.problems.append(Problem(message, hint, self.file, line, column, name))

    def refuse(self, path: FieldPath, message: str, hint: str) -> None:
        self.unsupported = True
        self.add(path, message, hint)

    def read(self, model: type[M], value: object, prefix: FieldPath) -> M | None:
        """The value as a model, or None after collecting what is wrong with it."""
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._translate(model, detail, prefix)
            return None

    def _translate(self, model: type[BaseModel], detail: ErrorDetails, prefix: FieldPath) -> None:
        # A wrong key of a mapping is reported below a pseudo-key.
        location = tuple(part for part in detail["loc"] if part != "[key]")
        path = (*prefix, *location)
        kind = detail["type"]
        if kind == "missing":
            self.add(path, "is required", "see docs/models.md")
        elif kind == "extra_forbidden":
            known = sorted(_field_names(model, location[:-1]))
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            self.add(path, "unknown field", hint)
        elif kind in ("model_type", "dict_type"):
            self.add(path, f"must be a mapping of fields{_shown(detail['input'])}")
        elif kind == "string_pattern_mismatch":
            self.add(path, f"is not in the right form{_shown(detail['input'])}", _FORMS[path[-1]])
        else:
            message = detail["msg"].removeprefix("Input ").replace("'", '"')
            self.add(path, message[:1].lower() + message[1:] + _shown(detail["input"]))

    def finish(self) -> None:
        """Raise what was found, in the order of the file."""
        if not self.problems:
            return
        ordered = sorted(self.problems, key=lambda p: (p.line or 0, p.column or 0))
        raise (UnsupportedModelError if self.unsupported else InputError)(ordered)


def _shown(value: object) -> str:
    """The wrong value in brackets, where it is short enough to help."""
    if isinstance(value, dict | list):
        return ""
    return " (it is empty)" if value is None else f" (it is {str(value)[:60]!r})"


def _field_names(model: type[BaseModel], path: tuple[int | str, ...]) -> Iterator[str]:
    """Names of the fields of the mapping at `path` below a model."""
    for part in path:
        annotation: Any = model.model_fields[str(part)].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    yield from model.model_fields
    if model is CardFile and not path:
        yield "attention"


def parse_card(text: str, file: str = "<string>") -> ModelCard:
    """The card in a YAML text.

    Raises InputError with every mistake and its file:line:column, UnsupportedModelError where the
    architecture or an attention kind or mechanism is not one that the model expresses.
    """
    value, positions = load_yaml_with_positions(text, file)
    reader = _Reader(file, positions)
    if not isinstance(value, dict):
        reader.add((), "a card is a mapping of fields", "see docs/models.md")
        reader.finish()
    assert isinstance(value, dict)
    body = {key: part for key, part in value.items() if key != "attention"}
    card = reader.read(CardFile, body, ())
    _check_architecture(reader, value.get("architecture"))
    shapes = _read_attention(reader, value)
    if card is not None:
        _check_card(reader, card)
        entries = value.get("attention")
        if isinstance(entries, list) and card.mtp and card.mtp.attention_group >= len(entries):
            message = f"there are {len(entries)} attention entries"
            reader.add(("mtp", "attention_group"), message, "it counts from 0")
        if isinstance(entries, list) and 0 < len(shapes) == len(entries):
            # Sums over half-read entries would mislead.
            _check_layers(reader, card, sum(shape.layers for _, shape in shapes))
    reader.finish()
    assert card is not None
    return _build(card, shapes)


def load_card(path: str | Path | Traversable) -> ModelCard:
    """The card in a YAML file; errors as `parse_card`, and InputError for an unreadable file."""
    if isinstance(path, str | Path):
        return parse_card(read_text_file(path), str(path))
    return parse_card(path.read_text("utf-8"), path.name)


def load_models(paths: Iterable[str | Path | Traversable]) -> dict[str, ModelCard]:
    """Cards by id, in the order of ids; InputError where two cards share a name."""
    cards: dict[str, ModelCard] = {}
    owner: dict[str, str] = {}
    problems: list[Problem] = []
    for path in paths:
        card = load_card(path)
        for key in sorted({normalise(n) for n in (card.id, card.repository, *card.aliases)}):
            if key in owner:
                message = f"the name {key!r} belongs to {owner[key]} already"
                problem = Problem(message, "names are unique", file=str(path), field="aliases")
                problems.append(problem)
            owner[key] = card.id
        cards[card.id] = card
    if problems:
        raise InputError(problems)
    return dict(sorted(cards.items()))


def find_model(name: str, cards: Mapping[str, ModelCard]) -> ModelCard:
    """The card with this id, repository or alias; InputError with the nearest names otherwise."""
    table = {
        normalise(known): card
        for card in cards.values()
        for known in (card.id, card.repository, *card.aliases)
    }
    return lookup(name, table, "model")


def _check_architecture(reader: _Reader, name: object) -> None:
    if not isinstance(name, str) or name in SUPPORTED_ARCHITECTURES:
        return
    hint = f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
    if name in REFUSED_ARCHITECTURES:
        message = f"{name} cannot be expressed: {REFUSED_ARCHITECTURES[name]}"
    else:
        message = f"unknown architecture {name[:60]!r}"
    reader.refuse(("architecture",), message, hint)


def _read_attention(reader: _Reader, value: dict[str, object]) -> list[tuple[str, AttentionShape]]:
    """Kind and shape of every readable entry of `attention`."""
    entries = value.get("attention")
    if not isinstance(entries, list) or not entries:
        reader.add(("attention",), "is required: a list of layer groups", "see docs/models.md")
        return []
    shapes = []
    for index, entry in enumerate(entries):
        path: FieldPath = ("attention", index)
        if not isinstance(entry, dict):
            reader.add(path, "must be a mapping with kind and mechanism")
            continue
        kind, mechanism = entry.get("kind"), entry.get("mechanism")
        for field, given, known in (
            ("kind", kind, KINDS),
            ("mechanism", mechanism, tuple(MECHANISMS)),
        ):
            if given is None:
                reader.add((*path, field), "is required", f"one of {', '.join(known)}")
            elif given not in known:
                message = f"unknown {field} {str(given)[:60]!r}"
                reader.refuse((*path, field), message, f"supported: {', '.join(known)}")
        if kind not in KINDS or mechanism not in tuple(MECHANISMS):
            continue
        model = MECHANISMS[mechanism]
        fields = {key: part for key, part in entry.items() if key not in ("kind", "mechanism")}
        shape = reader.read(model, fields, path)
        if kind not in model.kinds:
            message = f"{mechanism} cannot be {kind}"
            reader.refuse((*path, "kind"), message, f"supported: {', '.join(model.kinds)}")
        elif shape is not None:
            for field, message, hint in shape.conflicts(kind):
                reader.add((*path, field), message, hint)
            shapes.append((kind, shape))
    return shapes


def _check_card(reader: _Reader, card: CardFile) -> None:
    """What no single field shows: parts that contradict one another or are missing."""
    if card.moe and card.moe.experts_per_token > card.moe.experts:
        message = f"is above experts ({card.moe.experts})"
        reader.add(("moe", "experts_per_token"), message)
    if card.mtp and (card.moe if card.mtp.ffn == "moe" else card.dense_ffn) is None:
        reader.add(("mtp", "ffn"), f"the card has no {card.mtp.ffn} block")
    native_bits = WEIGHT_BITS[card.native_precision]
    for precision in card.precisions:
        if WEIGHT_BITS[precision] > native_bits or precision == card.native_precision:
            message = f"is not below native {card.native_precision}"
            reader.add(("precisions", precision), message, "state native in component_precisions")


def _check_layers(reader: _Reader, card: CardFile, mixers: int) -> None:
    """Whether the layers of the parts add up to those of the model."""
    dense = card.dense_ffn.layers if card.dense_ffn else 0
    moe = card.moe.layers if card.moe else 0
    if card.layout == "separate":
        sums = {"attention, dense_ffn and moe": mixers + dense + moe}
    elif card.layout == "parallel":
        sums = {"attention": mixers, "dense_ffn": dense, "moe": moe}
    else:
        sums = {"attention": mixers, "dense_ffn and moe": dense + moe}
    for what, found in sums.items():
        if found != card.layers:
            message = f"{what} have {found} layers together, the model has {card.layers}"
            reader.add(("layers",), message, "count each layer once, or see `layout`")


def _build(card: CardFile, shapes: list[tuple[str, AttentionShape]]) -> ModelCard:
    hidden = card.hidden_size
    groups = tuple(shape.group(kind, hidden) for kind, shape in shapes)
    moe, dense = card.moe, card.dense_ffn
    components: dict[str, str] = {
        **dict.fromkeys(COMPONENTS, card.native_precision),
        "head": "bf16",
        **{str(name): precision for name, precision in card.component_precisions.items()},
    }
    counts = card.published.counts
    return ModelCard(
        id=card.id,
        repository=card.repository,
        aliases=tuple(card.aliases),
        family=card.family,
        architecture=card.architecture,
        source=card.source,
        date=card.date,
        licence=card.licence,
        note=card.note,
        hidden=hidden,
        layers=card.layers,
        vocabulary=card.vocabulary_size,
        max_context_tokens=card.max_context_tokens,
        tied_embeddings=card.tied_embeddings,
        separate_blocks=card.layout == "separate",
        attention=groups,
        dense_ffn_layers=dense.layers if dense else 0,
        dense_ffn_parameters_per_layer=dense.parameters(hidden) if dense else 0.0,
        moe_layers=moe.layers if moe else 0,
        experts=moe.experts if moe else 0,
        experts_active=moe.experts_per_token if moe else 0,
        expert_parameters=moe.expert_parameters(hidden) if moe else 0.0,
        shared_parameters_per_layer=moe.shared_parameters(hidden) if moe else 0.0,
        router_parameters_per_layer=moe.router_parameters(hidden) if moe else 0.0,
        mtp_layers=card.mtp.layers if card.mtp else 0,
        mtp_parameters=_mtp_parameters(card, groups),
        native_precision=card.native_precision,
        component_precisions=MappingProxyType(components),
        precision_overrides=MappingProxyType(
            {
                precision: MappingProxyType({str(name): b for name, b in parts.items()})
                for precision, parts in card.precisions.items()
            }
        ),
        published=Published(
            total_parameters_billion=card.published.total_parameters_billion,
            active_parameters_billion=card.published.active_parameters_billion,
            total_embeddings=counts.total.embeddings,
            total_mtp=counts.total.mtp,
            active_embeddings=counts.active.embeddings,
            active_head=counts.active.head,
            active_indexer=counts.active.indexer,
            note=card.published.note,
            source=card.published.source,
        ),
    )


def _mtp_parameters(card: CardFile, groups: tuple[AttentionGroup, ...]) -> float:
    """Per MTP layer: mixer, feed-forward block, and the projection of [hidden, embedding]."""
    if card.mtp is None:
        return 0.0
    hidden = card.hidden_size
    layer = groups[card.mtp.attention_group].parameters_per_layer + 2.0 * hidden * hidden
    if card.mtp.ffn == "moe" and card.moe is not None:
        layer += card.moe.experts * card.moe.expert_parameters(hidden)
        layer += card.moe.shared_parameters(hidden)
    elif card.dense_ffn is not None:
        layer += card.dense_ffn.parameters(hidden)
    return card.mtp.layers * layer
