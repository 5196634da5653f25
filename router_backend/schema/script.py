"""How JSON is written to a schema and a budget: brackets, names and commas by code, the values by the checkpoint.

The tokens that close everything that was begun are always kept back (`Need.least`). A value gets those that are its
own, and its share of what is left over, by what it and all that must come after it usually have. What may be left out
(a further item, an optional field) is offered only where all that must come can have its usual length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

from router_backend.errors import AnswerError
from router_backend.schema import grammar, nodes
from router_backend.schema.nodes import Node, resolved
from router_backend.schema.read import MOST_DEPTH, another_of, another_text, within
from router_backend.schema.size import CHARACTER, NAME_LEAST, TEXT_LEAST, UNLIKE, Measure, Sizes, Skeleton
from router_backend.writing import clip
from router_backend.writing.stages import JOIN, QUOTE, TRIES, Ask, Reply, Script, Stages, tokens_of

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_DEEPEST = 2 * MOST_DEPTH


@dataclass(frozen=True, slots=True)
class Need:
    """Tokens of all that must come after a value: at the least, and as it usually is."""

    least: int = 0
    usual: int = 0

    def and_(self, forced: int, values: Sequence[Measure] = ()) -> Need:
        """With so many forced tokens, and with values."""
        least, usual = sum(each.least for each in values), sum(each.usual for each in values)
        return Need(self.least + forced + least, self.usual + forced + usual)


NOTHING = Need()


@dataclass
class SchemaScript(Script):
    """One answer. `sizes` are those of `root` and all below."""

    failure = AnswerError

    root: Node
    sizes: Sizes

    def __post_init__(self) -> None:
        self._skeleton = Skeleton(self.count)

    def stages(self) -> Stages:
        """Writes the whole value.

        Raises:
            AnswerError: the checkpoint gave nothing usable for a value, twice.
        """
        yield from self._value(self.root, "", NOTHING, _DEEPEST)

    def _value(
        self, node: Node, where: str, after: Need, depth: int, lead: str = "", taken: Sequence[str] = ()
    ) -> Stages:
        """Writes one value, none of the `taken`, in JSON.

        `lead` is the blank before it: it is chosen together with what shares a token with it.
        """
        found = resolved(node)
        if isinstance(found, nodes.Union):
            yield from self._union(found, where, after, depth, lead, taken)
            return
        if isinstance(found, nodes.Choice):
            free = nodes.Choice(tuple(option for option in found.options if option not in taken))
            said = yield from self._option(where, self._affordable(free, after), lead)
            self.text += lead + said
            return
        self.text += lead
        if isinstance(found, nodes.Text):
            yield from self._text(found, where, after, _bodies(taken))
        elif isinstance(found, nodes.Pattern):
            self.text += '"'
            after = after.and_(self._skeleton.quote)
            most = self._allot(len(found.example), found, after)
            self.text += (yield from self._kept(found, where, most, _bodies(taken))) + '"'
        elif isinstance(found, nodes.Number):
            yield from self._number(found, where, after, taken)
        elif isinstance(found, nodes.Array):
            yield from self._array(found, where, after, depth - 1)
        elif isinstance(found, nodes.Tuple):
            yield from self._tuple(found, where, after, depth - 1)
        elif isinstance(found, nodes.Object):
            yield from self._object(found, where, after, depth - 1)

    # Values that hold others

    def _object(self, node: nodes.Object, where: str, after: Need, depth: int) -> Stages:
        after = after.and_(self._skeleton.of("}"))
        unnamed = self._unnamed(node, node.unnamed, after)
        self.text += "{"
        written = 0
        fields = list(node.fields)
        while fields:
            at = yield from self._next_field(fields, where, unnamed, depth, first=not written)
            if at is None:
                break
            chosen, fields = fields[at], fields[at + 1 :]
            rest = self._needed(fields, unnamed)
            self.text += ", " if written else ""
            written += 1
            if isinstance(chosen.value, nodes.Part):
                limit = self.count(self.text) + self._allot(self.sizes[chosen.value].least, chosen.value, rest)
                yield from self._write_by(chosen.value.script(limit, self.count, self.text))
                continue
            self.text += f"{_quoted(chosen.name)}:"
            yield from self._value(chosen.value, f"{where}.{chosen.name}", rest, depth, " ")
        if node.other is not None:
            yield from self._others(node, node.other, where, after, depth, written)
        self.text += "}"

    def _next_field(
        self, fields: Sequence[nodes.Field], where: str, after: Need, depth: int, *, first: bool
    ) -> Generator[Ask, Reply, int | None]:
        """The next field: the first required one, or an optional one before it, which the checkpoint chooses."""
        required = next((at for at, each in enumerate(fields) if each.required), None)
        optional = fields if required is None else fields[:required]
        offered = [
            at
            for at, each in enumerate(optional)
            if self._may_add(each.value, self._skeleton.key(each.name), self._needed(fields[at + 1 :], after), depth)
        ]
        if required is not None:
            offered.append(required)
        elif not offered:
            return None
        comma = "" if first else ", "
        options = [f"{comma}{_quoted(fields[at].name)}:" for at in offered] + (["}"] if required is None else [])
        said = yield from self._choose(where, options)
        return None if said == "}" else offered[options.index(said)]

    def _others(self, node: nodes.Object, value: Node, where: str, after: Need, depth: int, written: int) -> Stages:
        """Fields of any name, as long as the checkpoint wants and all that must come can have its usual length.

        In an object that is empty so far, a short one will do: only where not even that fits it stays empty unasked.
        """
        taken = [each.name for each in node.fields]
        name = self._skeleton.name(node.names)
        while (node.most is None or written < node.most) and self._is_another(node.names, taken):
            rest = self._unnamed(node, node.least - written - 1, after)
            opening = '"' if not written else ', "'
            if written >= node.least:
                if not self._may_add(value, name, after, depth, short=not written):
                    return
                if (yield from self._choose(where, [opening, "}"])) == "}":
                    return
            self.text += opening
            if node.names is None:
                key = yield from self._key(where, taken)
            else:
                key = yield from self._kept(node.names, f"{where}.*", len(node.names.example) + UNLIKE, taken)
            taken.append(key)
            self.text += f'{key}":'
            yield from self._value(value, f"{where}.{key}", rest, depth, " ")
            written += 1

    def _unnamed(self, node: nodes.Object, count: int, after: Need) -> Need:
        """What so many fields of other names need, before what comes after the object."""
        if count <= 0 or node.other is None:
            return after
        size, name = self.sizes[node.other], self._skeleton.name(node.names)
        return after.and_(count * name, count * [size])

    def _is_another(self, node: Node | None, taken: Sequence[str]) -> bool:
        """Whether there is a text of this kind that is not taken."""
        return not isinstance(node, nodes.Pattern) or another_text(node, taken) is not None

    def _key(self, where: str, taken: Sequence[str]) -> Generator[Ask, Reply, str]:
        """The name of a field, up to its closing quote."""
        reply = yield Ask(f"{where}.*", NAME_LEAST, grammar.key(taken), ('"',))
        name = clip.clean(clip.split_at_quote(reply.text)[0]).replace('"', "").replace("\\", "").strip()
        while name and (name in taken or self.count(name) + JOIN > NAME_LEAST):
            name = name[:-1].strip()
        return name or next(name for name in (f"k{n}" for n in range(1, len(taken) + 2)) if name not in taken)

    def _array(self, node: nodes.Array, where: str, after: Need, depth: int) -> Stages:
        after = after.and_(self._skeleton.of("]"))
        self.text += "["
        items, taken, kind = 0, list[str](), resolved(node.item)
        while node.most is None or items < node.most:
            if not self._is_another(kind, _bodies(taken)):
                break
            comma = "," if items else ""
            if items >= node.least and (
                not self._may_add(node.item, self._skeleton.between, after, depth)
                or (yield from self._goes_on(node, where, comma)) == "]"
            ):
                break
            self.text += comma
            left = max(0, node.least - items - 1)
            rest = after.and_(left * self._skeleton.between, [self.sizes[node.item]] * left)
            before = len(self.text)
            yield from self._value(node.item, f"{where}[{items}]", rest, depth, " " if items else "", taken)
            items += 1
            if node.unique:
                taken.append(self.text[before:].lstrip())
        self.text += "]"

    def _tuple(self, node: nodes.Tuple, where: str, after: Need, depth: int) -> Stages:
        after = after.and_(self._skeleton.of("]"))
        self.text += "["
        for at, item in enumerate(node.items):
            later = [self.sizes[each] for each in node.items[at + 1 :]]
            rest = after.and_(len(later) * self._skeleton.between, later)
            self.text += "," if at else ""
            yield from self._value(item, f"{where}[{at}]", rest, depth, " " if at else "")
        self.text += "]"

    def _goes_on(self, node: nodes.Array, where: str, comma: str) -> Generator[Ask, Reply, str]:
        """Whether a list has another item. A comma says so; before the first item, what that begins with."""
        if comma:
            return (yield from self._choose(where, [comma, "]"]))
        openings, digit = self._openings(node.item)
        return (yield from self._choose_kind(where, [*openings, "]"], digit=digit))

    def _openings(self, node: Node) -> tuple[list[str], bool]:
        """What a value may begin with, and whether that may be a digit or a sign."""
        found = resolved(node)
        if isinstance(found, nodes.Union):
            parts = [self._openings(way.node) for way in found.ways]
            return list(dict.fromkeys(text for texts, _ in parts for text in texts)), any(digit for _, digit in parts)
        if isinstance(found, nodes.Choice):
            return list(found.options), False
        if isinstance(found, nodes.Number):
            return [], True
        return [
            "{" if isinstance(found, nodes.Object) else "[" if isinstance(found, nodes.Array | nodes.Tuple) else '"'
        ], False

    def _union(self, node: nodes.Union, where: str, after: Need, depth: int, lead: str, taken: Sequence[str]) -> Stages:
        room = self._left() - after.least - JOIN
        ways = [way for way in node.ways if self._has_room(way.node, room, depth)]
        ways = [way for way in ways if not taken or self._is_another(way.node, _bodies(taken))]
        options: dict[str, Node] = {}
        digit: Node | None = None
        for way in ways:
            if way.opening is None:
                digit = way.node
            elif isinstance(way.node, nodes.Choice) and not way.opening:
                free = self._affordable(way.node, after)
                options |= {option: nodes.Choice((option,)) for option in free if option not in taken}
            else:
                options[way.opening] = way.node
        if digit is not None and not options:
            chosen = digit
        else:
            said = yield from self._choose_kind(where, list(options), lead, digit=digit is not None)
            chosen = options[said] if said in options else digit or next(iter(options.values()))
        yield from self._value(chosen, where, after, depth, lead, taken)

    # Values that hold no other

    def _text(self, node: nodes.Text, where: str, after: Need, taken: Sequence[str]) -> Stages:
        self.text += '"'
        most = self._allot(max(TEXT_LEAST, CHARACTER * node.least), node, after.and_(self._skeleton.quote))
        if node.most is not None:
            most = min(most, max(1, CHARACTER * node.most))
        for attempt in range(TRIES):
            rules = grammar.text(node.least, node.most, taken)
            reply = yield Ask(where, most + QUOTE, rules, (), attempt, free_after=2 * node.least)
            body, tail = clip.split_at_quote(reply.text)
            text, stopped = clip.clean(body), tail is None
            if len(text) < node.least:  # cleaned too well
                text = clip.decoded(body) or ""
            fits = partial(self._fits, most, node.most, "")
            if stopped or not fits(text):
                shorter = clip.shorten(text, fits)
                text, stopped = shorter if len(shorter) >= node.least else clip.cut(text, fits), True
            while clip.escape(text) in taken and text:
                text, stopped = text[:-1], True
            if len(text) >= node.least and clip.escape(text) not in taken:
                break
        else:
            raise AnswerError(f"the checkpoint wrote too little for {where}, or the same again, twice")
        self.text += clip.escape(text) + '"'
        if stopped:
            self.clipped.append(where)

    def _kept(self, node: nodes.Pattern, where: str, most: int, taken: Sequence[str]) -> Generator[Ask, Reply, str]:
        """A text of at most so many tokens that keeps a pattern, without its quotes."""
        longest = min(most, grammar.LONGEST_MATCH, *([node.most] if node.most is not None else []))
        reply = yield Ask(where, most + QUOTE, grammar.pattern(node.regex, node.least, longest, taken), ())
        body, tail = clip.split_at_quote(reply.text)
        usable = tail is not None and self.count(body) <= most and body not in taken
        if usable and grammar.keeps(node.regex, node.least, longest, body):
            return body
        self.clipped.append(where)
        return another_text(node, taken) or node.example

    def _number(self, node: nodes.Number, where: str, after: Need, taken: Sequence[str]) -> Stages:
        most = self._allot(len(node.example), node, after)
        reply = yield Ask(where, most + 1, grammar.number(node, taken), ())
        found = _NUMBER.match(reply.text)
        text, others = found[0] if found else "", [float(each) for each in taken if _NUMBER.fullmatch(each)]
        while text and not (
            _NUMBER.fullmatch(text)
            and self.count(text) <= most
            and float(text) not in others
            and within(float(text), node)
        ):
            text = text[:-1]
        self.text += text or (another_of(node, others) if others else node.example)
        if not reply.ended or not text:
            self.clipped.append(where)

    def _option(self, where: str, options: Sequence[str], lead: str) -> Generator[Ask, Reply, str]:
        """One of some values in JSON, with the blank before it or without, and with what shows that a number ended."""
        if len(options) == 1:
            return options[0]
        offered = {
            f"{blank}{option}{end}": option
            for option in options
            for blank in (lead, "")
            for end in ("", *(",}]" if any(other != option and other.startswith(option) for other in options) else ""))
        }
        return offered[(yield from self._choose(where, list(offered)))]

    def _choose_kind(
        self, where: str, options: Sequence[str], lead: str = "", *, digit: bool = False
    ) -> Generator[Ask, Reply, str]:
        """What a value begins with: one of the options, or a digit. The value itself is asked for afterwards."""
        if len(options) == 1 and not digit:
            return options[0]
        for attempt in range(TRIES):
            rules = grammar.beginning(lead, options, digit=digit)
            reply = yield Ask(where, tokens_of([lead + option for option in options]), rules, (), attempt)
            said = reply.text.removeprefix(lead)
            for option in options:
                if said.startswith(option):
                    return option
            if digit and _NUMBER.match(f"{said}0"):
                return said
        raise self._chose_none(where)

    # Arithmetic

    def _allot(self, least: int, node: Node, after: Need) -> int:
        """Tokens for a value: what it needs, and its share of what nothing needs."""
        room = self._left() - JOIN - after.least
        want = max(1, self.sizes[node].usual - self.sizes[node].least)
        return max(1, min(room, least + max(0, room - least) * want // (want + after.usual - after.least)))

    def _needed(self, fields: Sequence[nodes.Field], after: Need) -> Need:
        required = [each for each in fields if each.required]
        keys = sum(self._skeleton.key(each.name) for each in required)
        return after.and_(keys, [self.sizes[each.value] for each in required])

    def _may_add(self, node: Node, forced: int, after: Need, depth: int, *, short: bool = False) -> bool:
        """Whether something that may be left out can come, without taking from what must come."""
        size = self.sizes[node]
        own = size.least if short else size.usual
        return size.depth < depth and forced + own + after.usual + JOIN <= self._left()

    def _has_room(self, node: Node, room: int, depth: int) -> bool:
        return self.sizes[node].depth <= depth and self.sizes[node].least <= room

    def _affordable(self, node: nodes.Choice, after: Need) -> list[str]:
        room = self._left() - after.least - JOIN
        fitting = [option for option in node.options if self._skeleton.of(option) <= room]
        return fitting or [min(node.options, key=self._skeleton.of)]


def _bodies(taken: Sequence[str]) -> list[str]:
    """The texts among some values in JSON, without their quotes."""
    return [each[1:-1] for each in taken if each.startswith('"')]


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
